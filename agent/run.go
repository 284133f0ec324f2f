package agent
type Options struct { Config Config; Kubeconfig, ClusterDir, Version string }
