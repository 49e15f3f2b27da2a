package main

import (
	"fmt"
	"net"
	"sync"

	"google.golang.org/grpc"

	"istio.io/istio/cni/pkg/nodeagent"
)

// listeners are the places where daemons reach the one gRPC server: one in each daemon's network namespace.
type listeners struct {
	server *grpc.Server

	mu          sync.Mutex
	connections map[net.Conn]struct{}
}

// listen serves at a port of the loopback of the network namespace at path, 0 for any, and returns the port. It ends with
// the process.
func (l *listeners) listen(path string, port int) (int, error) {
	namespace, err := nodeagent.OpenNetns(path)
	if err != nil {
		return 0, refuse("network namespace %q: %v", path, err)
	}
	defer namespace.Close()
	var listener net.Listener
	err = nodeagent.NetnsDo(namespace, func() error {
		listener, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		return err
	})
	if err != nil {
		return 0, err
	}
	go func() { _ = l.server.Serve(&counted{listener, l}) }()
	return listener.Addr().(*net.TCPAddr).Port, nil
}

// disconnect closes every connection there is and says how many that were.
func (l *listeners) disconnect() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	count := len(l.connections)
	for connection := range l.connections {
		_ = connection.Close()
	}
	return count
}

type counted struct {
	net.Listener
	listeners *listeners
}

func (c *counted) Accept() (net.Conn, error) {
	connection, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c.listeners.mu.Lock()
	defer c.listeners.mu.Unlock()
	c.listeners.connections[connection] = struct{}{}
	return &countedConnection{connection, c.listeners}, nil
}

type countedConnection struct {
	net.Conn
	listeners *listeners
}

func (c *countedConnection) Close() error {
	c.listeners.mu.Lock()
	delete(c.listeners.connections, c.Conn)
	c.listeners.mu.Unlock()
	return c.Conn.Close()
}

func newListeners(server *grpc.Server) *listeners {
	return &listeners{server: server, connections: map[net.Conn]struct{}{}}
}
