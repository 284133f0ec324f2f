// Package file reads a cluster from files of ordinary Kubernetes manifests: for offline rendering ([Load]), and as a
// [source.Source] that follows a folder ([Source]).
//
// What "kubectl get nodes,services,endpointslices -A -o yaml" prints is read as it is, and so is what a person writes by
// hand: the defaults that the API server would have filled in are filled in (namespace, port name, ipFamilies). Kinds
// that a Snapshot does not hold are passed over, fields that newer API versions have too. Everything else that cannot
// be read is an [Error] with file and line: bad syntax, a repeated key, a field of the wrong type, an object given
// twice. Files are taken all or none: half a folder would read as an order to remove the other half from the kernel. For
// the same reason a folder in which there is no manifest at all is an error; a manifest with no documents in it (a
// comment will do) says "an empty cluster".
//
// A writer should replace a file by renaming a new one over it. A file that is written in place is read 50 ms after
// the last write, and if the writer paused longer than that, as far as it got.
//
// One more kind is known, for offline rendering only:
//
//	apiVersion: fairway.dev/v1alpha1
//	kind: Host
//	links:
//	- name: eth0
//	  index: 2                    # default: the place in the list
//	  up: true                    # the default
//	  loopback: false             # the default
//	  addresses: [192.168.0.2/24]
//
// Subfolders, hidden files and files of other endings than .yaml, .yml and .json are not looked at, so editors' backups
// and the ..data folders of a mounted ConfigMap do not disturb.
package file
