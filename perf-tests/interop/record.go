package main

import (
	"sync"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
)

// record is what crossed the xDS streams, in order: what a test asserts about the protocol.
type record struct {
	mu      sync.Mutex
	streams int
	frames  []frame
}

// frame is one request or response.
type frame struct {
	Stream int    `json:"stream"`
	Node   string `json:"node,omitempty"`
	Type   string `json:"type"`
	// Of a request.
	Subscribe   []string          `json:"subscribe,omitempty"`
	Unsubscribe []string          `json:"unsubscribe,omitempty"`
	Versions    map[string]string `json:"versions,omitempty"`
	Error       string            `json:"error,omitempty"`
	// The nonce of a response, or the one a request answers.
	Nonce string `json:"nonce,omitempty"`
	// Of a response.
	Response bool              `json:"response,omitempty"`
	Sent     map[string]string `json:"sent,omitempty"`
	Removed  []string          `json:"removed,omitempty"`
}

// The longest record, the oldest of which is forgotten.
const framesMax = 10_000

func (r *record) add(frame frame) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.frames) == framesMax {
		r.frames = r.frames[1:]
	}
	r.frames = append(r.frames, frame)
}

func (r *record) all() []frame {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]frame{}, r.frames...)
}

func (r *record) intercept(server any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	r.mu.Lock()
	r.streams++
	number := r.streams
	r.mu.Unlock()
	return next(server, &recorded{stream, r, number})
}

type recorded struct {
	grpc.ServerStream
	record *record
	number int
}

func (s *recorded) RecvMsg(message any) error {
	if err := s.ServerStream.RecvMsg(message); err != nil {
		return err
	}
	if request, ok := message.(*discovery.DeltaDiscoveryRequest); ok {
		s.record.add(frame{
			Stream:      s.number,
			Node:        request.GetNode().GetId(),
			Type:        request.TypeUrl,
			Subscribe:   request.ResourceNamesSubscribe,
			Unsubscribe: request.ResourceNamesUnsubscribe,
			Versions:    request.InitialResourceVersions,
			Error:       request.GetErrorDetail().GetMessage(),
			Nonce:       request.ResponseNonce,
		})
	}
	return nil
}

func (s *recorded) SendMsg(message any) error {
	if response, ok := message.(*discovery.DeltaDiscoveryResponse); ok {
		sent := make(map[string]string, len(response.Resources))
		for _, resource := range response.Resources {
			sent[resource.Name] = resource.Version
		}
		s.record.add(frame{
			Stream:   s.number,
			Type:     response.TypeUrl,
			Response: true,
			Sent:     sent,
			Removed:  response.RemovedResources,
			Nonce:    response.Nonce,
		})
	}
	return s.ServerStream.SendMsg(message)
}
