package main

import (
	"context"
	"time"
	"unsafe"

	corev1 "k8s.io/api/core/v1"

	"istio.io/istio/cni/pkg/nodeagent"
)

// The ZDS server's type and constructor are unexported, and the exported constructor above it wants a cluster. The
// linker reaches them by name. The alternatives were a copy of the package with one file more (the go command refuses
// overlays inside its module cache), which is other people's code in our tree or a build that patches what it
// downloaded. A version of istio that renames one of these doesn't link, and says which.

//go:linkname linkedNew istio.io/istio/cni/pkg/nodeagent.newZtunnelServer
func linkedNew(address string, pods nodeagent.PodNetnsCache, keepalive time.Duration) (unsafe.Pointer, error)

//go:linkname linkedRun istio.io/istio/cni/pkg/nodeagent.(*ztunnelServer).Run
func linkedRun(server unsafe.Pointer, ctx context.Context)

//go:linkname linkedPodAdded istio.io/istio/cni/pkg/nodeagent.(*ztunnelServer).PodAdded
func linkedPodAdded(server unsafe.Pointer, ctx context.Context, pod *corev1.Pod, netns nodeagent.Netns) error

//go:linkname linkedPodDeleted istio.io/istio/cni/pkg/nodeagent.(*ztunnelServer).PodDeleted
func linkedPodDeleted(server unsafe.Pointer, ctx context.Context, uid string) error

//go:linkname linkedClose istio.io/istio/cni/pkg/nodeagent.(*ztunnelServer).Close
func linkedClose(server unsafe.Pointer) error

type linkedServer struct{ pointer unsafe.Pointer }

var _ nodeagent.ZtunnelServer = linkedServer{}

func newZtunnelServer(address string, pods nodeagent.PodNetnsCache, keepalive time.Duration) (nodeagent.ZtunnelServer, error) {
	pointer, err := linkedNew(address, pods, keepalive)
	return linkedServer{pointer}, err
}

func (s linkedServer) Run(ctx context.Context) { linkedRun(s.pointer, ctx) }

func (s linkedServer) PodAdded(ctx context.Context, pod *corev1.Pod, netns nodeagent.Netns) error {
	return linkedPodAdded(s.pointer, ctx, pod, netns)
}

func (s linkedServer) PodDeleted(ctx context.Context, uid string) error {
	return linkedPodDeleted(s.pointer, ctx, uid)
}

func (s linkedServer) Close() error { return linkedClose(s.pointer) }
