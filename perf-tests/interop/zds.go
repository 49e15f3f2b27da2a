package main

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"istio.io/istio/cni/pkg/nodeagent"
	"istio.io/istio/pkg/zdsapi"
)

// What the CNI agent probes idle connections by.
const productionKeepalive = 5 * time.Second

// runZds serves the CNI agent's ZDS at socket until the process ends.
func runZds(control, socket string, keepalive time.Duration) error {
	if socket == "" {
		return errors.New("-socket is missing: the ZDS socket")
	}
	pods := &pods{known: map[string]nodeagent.WorkloadInfo{}}
	server, err := newZtunnelServer(socket, pods, keepalive)
	if err != nil {
		return err
	}
	go server.Run(context.Background())
	return serveControl(control, map[string]order{
		"PUT /pods": func(request *http.Request, body []byte) (any, error) {
			return nil, addPod(request.Context(), server, pods, body)
		},
		"DELETE /pods/": func(request *http.Request, _ []byte) (any, error) {
			uid := strings.TrimPrefix(request.URL.Path, "/pods/")
			pods.remove(uid)
			return nil, server.PodDeleted(request.Context(), uid)
		},
	})
}

// addPod puts a pod in the cache, out of which snapshots are made, and where live tells the newest connection of it.
func addPod(ctx context.Context, server nodeagent.ZtunnelServer, pods *pods, body []byte) error {
	var wanted struct {
		UID            string `json:"uid"`
		Name           string `json:"name"`
		Namespace      string `json:"namespace"`
		ServiceAccount string `json:"serviceAccount"`
		// The path of its network namespace; without one, snapshots say Keep.
		Netns string `json:"netns"`
		// Whether a connected daemon is told now.
		Live bool `json:"live"`
	}
	if err := parse(body, &wanted); err != nil {
		return err
	}
	if wanted.UID == "" {
		return refuse("a pod without uid")
	}
	info := nodeagent.WorkloadInfo{Workload: &zdsapi.WorkloadInfo{
		Name: wanted.Name, Namespace: wanted.Namespace, ServiceAccount: wanted.ServiceAccount,
	}}
	if wanted.Netns != "" {
		netns, err := nodeagent.OpenNetns(wanted.Netns)
		if err != nil {
			return refuse("network namespace %q: %v", wanted.Netns, err)
		}
		info.Netns = netns
	}
	pods.add(wanted.UID, info)
	if !wanted.Live {
		return nil
	}
	if info.Netns == nil {
		return refuse("a live Add of %s needs a netns", wanted.UID)
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: wanted.Name, Namespace: wanted.Namespace, UID: types.UID(wanted.UID)},
		Spec:       corev1.PodSpec{ServiceAccountName: wanted.ServiceAccount},
	}
	return server.PodAdded(ctx, pod, info.Netns)
}

// pods is the agent's cache. A namespace stays open as long as a snapshot could hand it over, which is until the process
// ends: a test has few.
type pods struct {
	mu    sync.Mutex
	known map[string]nodeagent.WorkloadInfo
}

func (p *pods) add(uid string, info nodeagent.WorkloadInfo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known[uid] = info
}

func (p *pods) remove(uid string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.known, uid)
}

// ReadCurrentPodSnapshot is what the server asks at each Hello.
func (p *pods) ReadCurrentPodSnapshot() map[string]nodeagent.WorkloadInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	snapshot := make(map[string]nodeagent.WorkloadInfo, len(p.known))
	for uid, info := range p.known {
		snapshot[uid] = info
	}
	return snapshot
}
