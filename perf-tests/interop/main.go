// Real peers for the interop tests, out of istio's own packages at the version go.mod names: istiod's discovery server
// and CA on a fake Kubernetes client, the CNI agent's ZDS server, and the CNI plugin's rules of a pod.
//
// Each is one process of this program, driven over HTTP on a Unix socket (crates/testbed/src/istiod.rs is the driver):
// a Unix socket, because the processes it serves live in network namespaces of their own. Nothing here decides
// anything that istio decides; what it adds is a way in, a record of what crossed the wire, and faults on demand.
package main

import (
	"flag"
	"fmt"
	"os"
)

func main() {
	if len(os.Args) < 2 {
		fail("which peer? istiod, zds or rules")
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	control := flags.String("control", "", "the Unix socket at which HTTP drives this peer")
	var err error
	switch os.Args[1] {
	case "istiod":
		state := flags.String("state", "", "the directory for the CA's roots (root.pem) and what a start restores")
		_ = flags.Parse(os.Args[2:])
		err = runIstiod(*control, *state)
	case "zds":
		socket := flags.String("socket", "", "the ZDS socket")
		keepalive := flags.Duration("keepalive", productionKeepalive, "how long a connection idles before it is probed")
		_ = flags.Parse(os.Args[2:])
		err = runZds(*control, *socket, *keepalive)
	case "rules":
		_ = flags.Parse(os.Args[2:])
		err = applyRules()
	default:
		fail("no peer is called %q: istiod, zds or rules", os.Args[1])
	}
	if err != nil {
		fail("%s: %v", os.Args[1], err)
	}
}

func fail(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", arguments...)
	os.Exit(1)
}
