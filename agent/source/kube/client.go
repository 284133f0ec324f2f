package kube

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Options tell how to reach the Kubernetes API.
type Options struct {
	// Kubeconfig is the path of a kubeconfig file. Empty means the service account of the pod that this runs in.
	Kubeconfig string
	// Version is the agent's version, for the User-Agent "fairway/<version>".
	Version string
	// QPS and Burst bound the requests per second, and at once; a negative QPS is no bound, and zeros are client-go's defaults. The
	// agent opens four watches and writes a few Events: the limits bound it when something goes wrong.
	QPS   float32
	Burst int
	// ContentType is the encoding of requests, AcceptContentTypes lists those of answers: protobuf or JSON. When empty, protobuf
	// and either.
	ContentType, AcceptContentTypes string
}

// A Client speaks to the Kubernetes API. It is safe for concurrent use.
type Client struct {
	core, discovery, networking, events rest.Interface
	parameters                          runtime.ParameterCodec
}

// Connect reads the credentials and makes a Client. It does not speak to the API yet. Errors are those of an unreadable
// kubeconfig, or of not running in a pod.
func Connect(o Options) (*Client, error) {
	var config *rest.Config
	var err error
	if o.Kubeconfig == "" {
		if config, err = rest.InClusterConfig(); err != nil {
			return nil, fmt.Errorf("connect to the Kubernetes API as a pod's service account: %w", err)
		}
	} else if config, err = clientcmd.BuildConfigFromFlags("", o.Kubeconfig); err != nil {
		return nil, fmt.Errorf("connect to the Kubernetes API by kubeconfig %s: %w", o.Kubeconfig, err)
	}
	config.UserAgent = "fairway/" + o.Version
	config.QPS, config.Burst = o.QPS, o.Burst
	config.ContentType, config.AcceptContentTypes = o.ContentType, o.AcceptContentTypes
	return newClient(config)
}

func newClient(config *rest.Config) (*Client, error) {
	scheme := runtime.NewScheme()
	utilruntime.Must(corev1.AddToScheme(scheme))
	utilruntime.Must(discoveryv1.AddToScheme(scheme))
	utilruntime.Must(networkingv1.AddToScheme(scheme))
	utilruntime.Must(eventsv1.AddToScheme(scheme))
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})

	config = rest.CopyConfig(config)
	if config.ContentType == "" {
		config.ContentType = runtime.ContentTypeProtobuf
	}
	if config.AcceptContentTypes == "" {
		config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	}
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	httpClient, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("connect to the Kubernetes API at %s: %w", config.Host, err)
	}
	c := &Client{parameters: runtime.NewParameterCodec(scheme)}
	for _, group := range []struct {
		gv   schema.GroupVersion
		path string
		to   *rest.Interface
	}{
		{corev1.SchemeGroupVersion, "/api", &c.core},
		{discoveryv1.SchemeGroupVersion, "/apis", &c.discovery},
		{networkingv1.SchemeGroupVersion, "/apis", &c.networking},
		{eventsv1.SchemeGroupVersion, "/apis", &c.events},
	} {
		config.GroupVersion, config.APIPath = &group.gv, group.path
		client, err := rest.RESTClientForConfigAndClient(config, httpClient)
		if err != nil {
			return nil, fmt.Errorf("connect to the Kubernetes API at %s: %w", config.Host, err)
		}
		*group.to = client
	}
	return c, nil
}

// CreateEvent creates an Event in its namespace. The error is as the API returned it, so that apierrors.IsAlreadyExists
// and its like hold.
func (c *Client) CreateEvent(ctx context.Context, e *eventsv1.Event) error {
	err := c.events.Post().Namespace(e.Namespace).Resource("events").VersionedParams(&metav1.CreateOptions{}, c.parameters).Body(e).Do(ctx).Error()
	if err != nil {
		return fmt.Errorf("create event %s/%s: %w", e.Namespace, e.Name, err)
	}
	return nil
}
