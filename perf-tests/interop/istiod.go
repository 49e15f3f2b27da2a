package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/encoding/protojson"
	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"istio.io/istio/pilot/pkg/features"
	istiogrpc "istio.io/istio/pilot/pkg/grpc"
	"istio.io/istio/pilot/test/xds"
	"istio.io/istio/pkg/config/constants"
	"istio.io/istio/pkg/config/mesh"
	"istio.io/istio/pkg/config/mesh/meshwatcher"
	"istio.io/istio/pkg/keepalive"
	"istio.io/istio/pkg/kube/multicluster"
	"istio.io/istio/pkg/security"
	"istio.io/istio/pkg/test"
	istioxds "istio.io/istio/pkg/xds"
	caserver "istio.io/istio/security/pkg/server/ca"
	"istio.io/istio/security/pkg/server/ca/authenticate/kubeauth"
)

// What istiod waits for quiet by default before it pushes, and a fifth of it here: tests wait for each push.
const debounce = 20 * time.Millisecond

// runIstiod serves discovery and certificates at one TLS port, as istiod does, until the process ends.
func runIstiod(control, state string) error {
	if state == "" {
		return errors.New("-state is missing: the directory for the CA's roots")
	}
	// Read when the packages initialise, so that setting them here would be too late.
	if !features.EnableAmbient {
		return errors.New("PILOT_ENABLE_AMBIENT=true is missing in the environment")
	}
	if len(features.CATrustedNodeAccounts) == 0 {
		return errors.New("CA_TRUSTED_NODE_ACCOUNTS is missing in the environment, e.g. istio-system/ztunnel")
	}
	return test.Wrap(func(t test.Failer) {
		istiod, err := newIstiod(t, state)
		if err == nil {
			err = serveControl(control, istiod.orders())
		}
		t.Fatalf("%v", err)
	})
}

type istiod struct {
	discovery *xds.FakeDiscoveryServer
	objects   *objects
	authority *authority
	listeners *listeners
	record    *record
	tokens    *tokens
}

func newIstiod(t test.Failer, state string) (*istiod, error) {
	authority, err := newAuthority(state)
	if err != nil {
		return nil, err
	}
	meshConfig := mesh.DefaultMeshConfig()
	discovery := xds.NewFakeDiscoveryServer(t, xds.FakeOptions{MeshConfig: meshConfig, DebounceTime: debounce})
	client := discovery.KubeClient()

	tokens := &tokens{known: map[string]account{}}
	clientset, ok := client.Kube().(*fake.Clientset)
	if !ok {
		return nil, errors.New("the fake client is of another kind than at the pinned version")
	}
	clientset.PrependReactor("create", "tokenreviews", tokens.review)
	authenticators := []security.Authenticator{kubeauth.NewKubeJWTAuthenticator(
		meshwatcher.NewTestWatcher(meshConfig), client.Kube(), constants.DefaultClusterName, nil, nil)}
	discovery.Discovery.Authenticators = authenticators

	// The CA's service asks for its component first; only a cluster added after that is known to it.
	clusters := multicluster.NewFakeController()
	ca, err := caserver.New(authority, leafTTL, authenticators, clusters)
	if err != nil {
		return nil, err
	}
	stop := test.NewStop(t)
	clusters.Add(constants.DefaultClusterName, client, stop)
	client.RunAndWait(stop)

	record := &record{}
	options := append(
		istiogrpc.ServerOptions(keepalive.DefaultOption(), istioxds.RecordRecvSize, authority.intercept),
		grpc.ChainStreamInterceptor(record.intercept),
		grpc.Creds(credentials.NewTLS(authority.tls())))
	server := grpc.NewServer(options...)
	discovery.Discovery.Register(server)
	ca.Register(server)

	return &istiod{
		discovery: discovery,
		objects:   newObjects(client),
		authority: authority,
		listeners: newListeners(server),
		record:    record,
		tokens:    tokens,
	}, nil
}

func (i *istiod) orders() map[string]order {
	return map[string]order{
		// A path of a network namespace, and a port or 0.
		"POST /listen": func(_ *http.Request, body []byte) (any, error) {
			var place struct {
				Netns string `json:"netns"`
				Port  int    `json:"port"`
			}
			if err := parse(body, &place); err != nil {
				return nil, err
			}
			port, err := i.listeners.listen(place.Netns, place.Port)
			return map[string]int{"port": port}, err
		},
		"POST /disconnect": func(*http.Request, []byte) (any, error) {
			return map[string]int{"closed": i.listeners.disconnect()}, nil
		},
		"PUT /objects": func(_ *http.Request, body []byte) (any, error) { return nil, i.objects.put(body) },
		"DELETE /objects/": func(request *http.Request, _ []byte) (any, error) {
			return nil, i.objects.delete(strings.TrimPrefix(request.URL.Path, "/objects/"))
		},
		"GET /index":  func(*http.Request, []byte) (any, error) { return i.index() },
		"GET /frames": func(*http.Request, []byte) (any, error) { return i.record.all(), nil },
		"PUT /token": func(_ *http.Request, body []byte) (any, error) {
			var grant struct {
				Token   string  `json:"token"`
				Account account `json:"account"`
			}
			if err := parse(body, &grant); err != nil {
				return nil, err
			}
			i.tokens.grant(grant.Token, grant.Account)
			return nil, nil
		},
		// The body is the token.
		"DELETE /token": func(_ *http.Request, body []byte) (any, error) {
			i.tokens.revoke(string(body))
			return nil, nil
		},
		// The body is the step.
		"POST /ca/rotate": func(_ *http.Request, body []byte) (any, error) { return nil, i.authority.rotate(string(body)) },
		"PUT /ca/fault": func(_ *http.Request, body []byte) (any, error) {
			var wanted fault
			if err := parse(body, &wanted); err != nil {
				return nil, err
			}
			return nil, i.authority.fail(wanted)
		},
		// The body is the longest life of a certificate, as Go writes durations; "0s" for what is asked for.
		"PUT /ca/ttl": func(_ *http.Request, body []byte) (any, error) {
			ttl, err := time.ParseDuration(string(body))
			if err != nil {
				return nil, refuse("%v", err)
			}
			i.authority.shorten(ttl)
			return nil, nil
		},
		"GET /ca/calls": func(*http.Request, []byte) (any, error) { return i.authority.record(), nil },
	}
}

// index is what istiod would send to one who asks for everything.
func (i *istiod) index() (any, error) {
	addresses := map[string]json.RawMessage{}
	for _, address := range i.discovery.AmbientIndex.All() {
		text, err := protojson.Marshal(address.Address)
		if err != nil {
			return nil, err
		}
		addresses[address.ResourceName()] = text
	}
	policies := map[string]json.RawMessage{}
	for _, policy := range i.discovery.AmbientIndex.Policies(nil) {
		text, err := protojson.Marshal(policy.Authorization)
		if err != nil {
			return nil, err
		}
		policies[policy.ResourceName()] = text
	}
	return map[string]any{"addresses": addresses, "policies": policies}, nil
}

// account is whose token it is.
type account struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
	Pod            string `json:"pod"`
	UID            string `json:"uid"`
}

// tokens stand in for the API server's TokenReview: what a token means is what a test said.
type tokens struct {
	mu    sync.Mutex
	known map[string]account
}

func (t *tokens) grant(token string, account account) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.known[token] = account
}

func (t *tokens) revoke(token string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.known, token)
}

func (t *tokens) review(action k8stesting.Action) (bool, runtime.Object, error) {
	review := action.(k8stesting.CreateAction).GetObject().(*authenticationv1.TokenReview).DeepCopy()
	t.mu.Lock()
	account, ok := t.known[review.Spec.Token]
	t.mu.Unlock()
	if !ok {
		review.Status.Error = "the token is not one of this cluster's"
		return true, review, nil
	}
	review.Status.Authenticated = true
	review.Status.User = authenticationv1.UserInfo{
		Username: "system:serviceaccount:" + account.Namespace + ":" + account.ServiceAccount,
		Groups:   []string{"system:serviceaccounts"},
		Extra: map[string]authenticationv1.ExtraValue{
			"authentication.kubernetes.io/pod-name": {account.Pod},
			"authentication.kubernetes.io/pod-uid":  {account.UID},
		},
	}
	return true, review, nil
}
