//! The capture rules of a pod's network namespace, as istio-cni lays them (behaviour.md §3). Written here from the
//! description; DNS capture is left out, as no test of this crate runs the DNS proxy.

use anyhow::{Context, Result};

use crate::namespace::Namespace;
use crate::tool;

/// Where a pod's outgoing connections are redirected to.
pub const OUTBOUND_PORT: u16 = 15001;
/// Where a pod's incoming plaintext connections are redirected to.
pub const INBOUND_PLAINTEXT_PORT: u16 = 15006;
/// Where tunnels arrive; never redirected.
pub const INBOUND_HBONE_PORT: u16 = 15008;

/// Replies that a spoofed connection's mark leads here are delivered locally, although the address is not the pod's.
const ROUTES: &str = "\
rule add fwmark 0x111/0xfff pref 32764 lookup 100
route add local 0.0.0.0/0 dev lo table 100
";

/// Chains are named as istio-cni names them, so that `iptables-save` reads the same in a test as on a node.
const RULES: &str = "\
*mangle
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark
COMMIT
*nat
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_PRERT -s 169.254.7.127/32 -p tcp -m tcp -j ACCEPT
-A ISTIO_PRERT ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT -d 169.254.7.127/32 -p tcp -m tcp -j ACCEPT
-A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -j ACCEPT
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001
COMMIT
";

/// Makes `pod` a captured one.
///
/// # Errors
/// When `ip` or `iptables-restore` refuses, for instance for want of a kernel module.
pub fn capture(pod: &Namespace) -> Result<()> {
    pod.ip(ROUTES)?;
    pod.run(|| tool::run_with_input("iptables-restore", &["--noflush"], RULES)).with_context(|| {
        format!("capture rules in {}: the kernel needs nf_nat, xt_mark, xt_connmark and xt_REDIRECT", pod.name())
    })?;
    Ok(())
}
