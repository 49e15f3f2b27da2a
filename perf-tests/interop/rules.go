package main

import (
	"net/netip"

	"istio.io/istio/cni/pkg/config"
	"istio.io/istio/cni/pkg/iptables"
	"istio.io/istio/cni/pkg/scopes"
	"istio.io/istio/tools/istio-iptables/pkg/dependencies"
)

// applyRules lays the CNI plugin's rules of a captured pod in the network namespace this process runs in. Without DNS
// capture, as in crates/testbed/src/redirect.rs.
func applyRules() error {
	settings := &config.AmbientConfig{HostProbeSNATAddress: netip.MustParseAddr("169.254.7.127")}
	real := &dependencies.RealDependencies{UsePodScopedXtablesLock: true}
	_, pod, err := iptables.NewIptablesConfigurator(settings, settings, real, real, iptables.RealNlDeps())
	if err != nil {
		return err
	}
	return pod.CreateInpodRules(scopes.CNIAgent, config.PodLevelOverrides{DNSProxy: config.PodDNSDisabled})
}
