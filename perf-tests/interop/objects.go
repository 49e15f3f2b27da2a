package main

import (
	"bytes"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	kerrors "k8s.io/apimachinery/pkg/api/errors"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	networking "istio.io/client-go/pkg/apis/networking/v1"
	security "istio.io/client-go/pkg/apis/security/v1"
	kubelib "istio.io/istio/pkg/kube"
	"istio.io/istio/pkg/kube/controllers"
	"istio.io/istio/pkg/kube/kclient"
)

// objects is what the tests write in Kubernetes' place. The fake client neither defaults nor admits: UIDs, cluster IPs
// and statuses are whatever the YAML says.
type objects struct {
	kinds map[string]kind
}

type kind struct {
	put    func(object controllers.Object, status bool) error
	delete func(name, namespace string) error
}

func newObjects(client kubelib.Client) *objects {
	return &objects{kinds: map[string]kind{
		"Namespace":           kindOf[*corev1.Namespace](client),
		"Node":                kindOf[*corev1.Node](client),
		"Pod":                 kindOf[*corev1.Pod](client),
		"Service":             kindOf[*corev1.Service](client),
		"ServiceAccount":      kindOf[*corev1.ServiceAccount](client),
		"ServiceEntry":        kindOf[*networking.ServiceEntry](client),
		"WorkloadEntry":       kindOf[*networking.WorkloadEntry](client),
		"AuthorizationPolicy": kindOf[*security.AuthorizationPolicy](client),
		"PeerAuthentication":  kindOf[*security.PeerAuthentication](client),
		"GatewayClass":        kindOf[*gatewayv1.GatewayClass](client),
		"Gateway":             kindOf[*gatewayv1.Gateway](client),
	}}
}

func kindOf[T controllers.ComparableObject](client kubelib.Client) kind {
	writer := kclient.NewWriteClient[T](client)
	return kind{
		put: func(object controllers.Object, status bool) error {
			typed, ok := object.(T)
			if !ok {
				return refuse("%T is written in another version of its API than %T", object, *new(T))
			}
			_, err := writer.Update(typed)
			if kerrors.IsNotFound(err) {
				_, err = writer.Create(typed)
			}
			// Apart, as a kubelet's and a controller's writes are.
			if err == nil && status {
				_, err = writer.UpdateStatus(typed)
			}
			return err
		},
		delete: writer.Delete,
	}
}

// put creates or replaces each object of a YAML text; documents are parted by lines of "---".
func (o *objects) put(text []byte) error {
	decoder := kubelib.IstioCodec.UniversalDeserializer()
	for _, document := range bytes.Split(text, []byte("\n---\n")) {
		if len(bytes.TrimSpace(document)) == 0 {
			continue
		}
		decoded, version, err := decoder.Decode(document, nil, nil)
		if err != nil {
			return refuse("no object of Kubernetes or istio: %v in\n%s", err, document)
		}
		kind, ok := o.kinds[version.Kind]
		object, isObject := decoded.(controllers.Object)
		if !ok || !isObject {
			return refuse("a %s is no kind that this control plane reads", version.Kind)
		}
		var fields map[string]any
		if err := yaml.Unmarshal(document, &fields); err != nil {
			return refuse("%v", err)
		}
		_, status := fields["status"]
		if err := kind.put(object, status); err != nil {
			return fmt.Errorf("%s %s/%s: %w", version.Kind, object.GetNamespace(), object.GetName(), err)
		}
	}
	return nil
}

// delete takes "Kind/namespace/name"; the namespace of an object without one is empty.
func (o *objects) delete(path string) error {
	parts := strings.Split(path, "/")
	if len(parts) != 3 {
		return refuse("%q is not KIND/NAMESPACE/NAME", path)
	}
	kind, ok := o.kinds[parts[0]]
	if !ok {
		return refuse("a %s is no kind that this control plane reads", parts[0])
	}
	return kind.delete(parts[2], parts[1])
}
