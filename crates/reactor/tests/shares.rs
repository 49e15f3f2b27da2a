//! A tenant that drains its share of buffers harms nobody but itself, and only until it returns some.

mod on_core;

use on_core::{BODY, config, on_core, on_each_engine, pair, until};
use reactor::{Chunk, CoreConfig, LeaseLimits, Reactor, Runtime, Stream, TcpStream, TenantKey};

const CYCLES: usize = 1_000;
/// Buffers of the smallest class, 4 KiB, that a share has room for.
const SHARE: usize = 4;
const GREEDY: TenantKey = TenantKey(7);

fn four_buffers() -> CoreConfig {
    let leases = LeaseLimits { tenant_bytes_max: SHARE * (4 << 10), ..LeaseLimits::default() };
    CoreConfig { leases, ..config() }
}

async fn say(stream: &TcpStream, word: &'static [u8]) {
    stream.send(Chunk::from(bytes::Bytes::from_static(word))).await.unwrap();
}

/// One more connection of the greedy tenant than its share has buffers, and one of `bystander`.
struct Scene {
    reactor: Reactor,
    greedy: Vec<(TcpStream, TcpStream)>,
    bystander: TenantKey,
    theirs: (TcpStream, TcpStream),
}

impl Scene {
    async fn new(reactor: Reactor, bystander: TenantKey) -> Self {
        let mut greedy = Vec::new();
        for _ in 0..=SHARE {
            greedy.push(pair(&reactor).await);
        }
        let theirs = pair(&reactor).await;
        Self { reactor, greedy, bystander, theirs }
    }

    /// The greedy tenant takes all it may have and wants one more. How the bystander fares meanwhile, and whether all is
    /// as it should be afterwards.
    async fn cycle(mut self) -> (Self, bool) {
        let before = self.reactor.counts().share_waits;
        for (client, _) in &self.greedy {
            say(client, b"word").await;
        }
        let mut servers = Vec::new();
        let mut clients = Vec::new();
        for (client, server) in self.greedy.drain(..) {
            clients.push(client);
            servers.push(server);
        }
        let last = servers.pop().expect("there are some");
        let hoarding = self.reactor.spawn(GREEDY, async move {
            let mut held = Vec::new();
            for server in &servers {
                held.push(server.receive(100).await.unwrap());
            }
            (servers, held)
        });
        let (servers, held) = hoarding.await.unwrap();
        let wanting = self.reactor.spawn(GREEDY, async move {
            let word = last.receive(100).await.unwrap();
            assert_eq!(&*word, b"word");
            last
        });
        let reactor = self.reactor.clone();
        until(&reactor, "the share is out", || reactor.counts().share_waits == before + 1).await;
        let (mine, other) = self.theirs;
        say(&mine, b"hello").await;
        let bystanding = self.reactor.spawn(self.bystander, async move {
            let word = other.receive(100).await.unwrap();
            assert_eq!(&*word, b"hello");
            drop(word);
            other
        });
        let waits = || reactor.counts().share_waits > before + 1;
        until(&reactor, "the bystander is served, or waits", || bystanding.is_finished() || waits()).await;
        let unharmed = bystanding.is_finished();
        drop(held);
        self.theirs = (mine, bystanding.await.unwrap());
        let last = wanting.await.unwrap();
        self.greedy = clients.into_iter().zip(servers.into_iter().chain([last])).collect();
        assert_eq!(reactor.counts().lent_bytes, 0, "all is back");
        (self, unharmed)
    }
}

#[test]
fn a_thousand_times_a_tenant_drains_its_buffers_and_nobody_else_notices() {
    on_each_engine(|| {
        on_core(four_buffers(), |reactor| async move {
            let mut scene = Scene::new(reactor, BODY).await;
            for cycle in 0..CYCLES {
                let unharmed;
                (scene, unharmed) = scene.cycle().await;
                assert!(unharmed, "cycle {cycle}: another tenant waited");
            }
        });
        // The control: a bystander of the same tenant does wait.
        on_core(four_buffers(), |reactor| async move {
            let (_scene, unharmed) = Scene::new(reactor, GREEDY).await.cycle().await;
            assert!(!unharmed, "the share was not out");
        });
    });
}
