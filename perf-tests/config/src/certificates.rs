//! Whether renewals come evenly, in virtual time by the code that schedules them, and whether a root is replaced under load
//! without a failed handshake, by the real daemon and a CA over gRPC.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use control::ca::rotation::{Priority, Rotation};
use mesh_state::identity::Identity;
use perf_tests::serve::{Role, Server};
use testbed::ca_server::Root;
use testbed::mesh::{NodeId, Pod, PodSpec};

use crate::stage::Stage;
use crate::tell;

const IDENTITIES: usize = 500;
const LIFETIME: Duration = Duration::from_secs(3_600);
const HOURS: u64 = 24;
const PORT: u16 = 8080;
/// Connections at once: each has a tunnel, and so a handshake, of its own.
const AT_ONCE: usize = 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// The most requests of a minute over the mean of all minutes, when all identities were wanted at once.
pub(crate) fn peak_over_mean(seed: u64) -> f64 {
    let (mut rng, start) = (fastrand::Rng::with_seed(seed), Instant::now());
    let mut rotation = Rotation::default();
    for number in 0..IDENTITIES {
        let identity = Identity::new("cluster.local", "shop", &format!("account-{number}")).expect("valid parts");
        rotation.want(&identity, Priority::Warmup, start);
    }
    let mut minutes = vec![0_u32; HOURS as usize * 60];
    let mut now = start;
    loop {
        while let Some((identity, ticket)) = rotation.start(now) {
            let minute = (now - start).as_secs() / 60;
            if let Some(minute) = minutes.get_mut(usize::try_from(minute).unwrap_or(usize::MAX)) {
                *minute += 1;
            }
            rotation.issued(&identity, ticket, now, LIFETIME, rng.u64(..));
        }
        match rotation.next_due() {
            Some(due) if due < start + Duration::from_secs(HOURS * 3_600) => now = due,
            _ => break,
        }
    }
    // In the first minute there was no certificate yet and all were wanted.
    let later = &minutes[1..];
    let mean = f64::from(later.iter().sum::<u32>()) / later.len() as f64;
    f64::from(later.iter().copied().max().unwrap_or(0)) / mean
}

/// Replaces the root in the steps that operators take, with certificates that end after `lifetime`, while connections with
/// a handshake each come in bunches. How many failed.
pub(crate) fn replace_root(lifetime: Duration) -> Result<usize> {
    let pods = ["client", "server"].map(|name| PodSpec::new(name, NodeId::A));
    let environment = [("POOL_MAX_STREAMS_PER_CONNECTION", "1"), ("POOL_UNUSED_RELEASE_TIMEOUT", "1s")];
    let mut stage = Stage::start(&pods, &environment)?;
    let ca = stage.mesh.control_plane().ca.clone();
    ca.set_lifetime(lifetime);
    let [from, to] = ["from", "to"].map(|name| stage.add_pod(name));
    let (from, to) = (from?, to?);
    let _server = Server::start(to.netns.run(|| TcpListener::bind((to.address, PORT)))?, Role::Echo)?;
    let mark = stage.daemon().log().mark();
    let (mut made, mut failed) = (0, 0);
    let mut step = |name: &str, act: &dyn Fn()| -> Result<()> {
        act();
        let (asked, deadline) = (ca.asked().len(), Instant::now() + PATIENCE);
        let renewed = |pod: &Pod| ca.asked()[asked..].iter().filter(|call| call.identity == pod.identity()).count();
        // Twice: the first may have been on its way before the step.
        while renewed(&from) < 2 || renewed(&to) < 2 {
            ensure!(
                Instant::now() < deadline,
                "{name}: {} and {} new certificates, {failed} of {made} connections failed\n{}",
                renewed(&from),
                renewed(&to),
                stage.daemon().log().tail(mark)
            );
            let streams: Vec<Result<TcpStream>> = (0..AT_ONCE).map(|_| from.connect(to.at(PORT))).collect();
            made += streams.len();
            // All stay open until the last has echoed: what ends earlier leaves its tunnel to the next.
            failed += streams.iter().filter(|stream| !stream.as_ref().is_ok_and(echoes)).count();
            drop(streams);
            // Tunnels are let go after one to two seconds without a stream.
            std::thread::sleep(Duration::from_millis(2_100));
        }
        tell(&format!("root replaced under load: {name}: {failed} of {made} connections failed so far"));
        Ok(())
    };
    let next = Root::new("the next root")?;
    step("before", &|| {})?;
    step("announced", &|| ca.announce(&next))?;
    step("signs", &|| ca.rotate(next.clone()))?;
    step("alone", &|| ca.forget_old_roots())?;
    let lines = stage.daemon().log().access_since(mark);
    let tunnels: BTreeSet<String> =
        lines.iter().filter(|line| line.has("direction", "inbound")).map(|line| line.field("src.addr")).collect();
    tell(&format!("{} handshakes, {failed} of {made} connections failed", tunnels.len()));
    ensure!(tunnels.len() * 2 > made, "{} handshakes for {made} connections show too little", tunnels.len());
    Ok(failed)
}

fn echoes(mut stream: &TcpStream) -> bool {
    let mut answer = [0; 4];
    stream.write_all(b"ping").is_ok() && stream.read_exact(&mut answer).is_ok() && &answer == b"ping"
}
