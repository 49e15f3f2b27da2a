//! What other threads do to a core: every wake and every message reaches it, however deep it sleeps.

mod on_core;

use std::{
    io::Read,
    net::{Shutdown, TcpStream as StdStream},
    sync::mpsc,
    time::Duration,
};

use on_core::{PATIENCE, config, deep_sleeper, listen, on_core, on_each_engine};
use reactor::{
    Listener, Runtime, Stream, TenantKey,
    mailbox::{self, TrySendError},
};

#[test]
fn every_message_wakes_a_parked_core() {
    on_each_engine(|| {
        const ROUNDS: u32 = 20_000;
        let (sender, receiver) = mailbox::ordered::<u32>(4);
        let (answer, answers) = mpsc::channel();
        // Parks for an hour: a wake that is lost hangs the round trip.
        let core = reactor::start(deep_sleeper(), move |reactor| async move {
            while let Some(number) = receiver.recv().await {
                answer.send((number, reactor.counts().parks)).unwrap();
            }
        })
        .unwrap();
        let mut parks = 0;
        for number in 0..ROUNDS {
            sender.try_send(number).unwrap();
            let (answered, parked) = answers.recv_timeout(PATIENCE).expect("a wake was lost");
            assert_eq!(answered, number);
            parks = parked;
        }
        assert!(parks > u64::from(ROUNDS / 10), "the core was hardly ever parked: {parks} times");
        drop(sender);
        core.join();
    });
}

#[test]
fn messages_from_several_threads_keep_each_senders_order_under_a_busy_core() {
    on_each_engine(|| {
        const MESSAGES: u32 = 20_000;
        let (sender, receiver) = mailbox::ordered::<(usize, u32)>(64);
        let senders: Vec<_> = (0..3)
            .map(|thread| {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    for number in 0..MESSAGES {
                        let mut message = (thread, number);
                        while let Err(refused) = sender.try_send(message) {
                            assert!(refused.is_full());
                            message = refused.into_inner();
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        drop(sender);
        let seen = on_core(deep_sleeper(), move |reactor| async move {
            let busy = reactor.spawn(TenantKey(2), {
                let reactor = reactor.clone();
                async move {
                    loop {
                        reactor.yield_now().await;
                    }
                }
            });
            let mut next = [0; 3];
            while let Some((thread, number)) = receiver.recv().await {
                assert_eq!(number, next[thread]);
                next[thread] += 1;
            }
            drop(busy);
            next
        });
        assert_eq!(seen, [MESSAGES; 3]);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    });
}

#[test]
fn the_newest_arrives_although_the_core_is_slow() {
    on_each_engine(|| {
        let (mut sender, receiver) = mailbox::latest::<u32>();
        let (answer, answers) = mpsc::channel();
        let core = reactor::start(deep_sleeper(), move |_| async move {
            while let Some(number) = receiver.recv().await {
                answer.send(number).unwrap();
            }
        })
        .unwrap();
        let mut newest = None;
        for number in 1..=10_000 {
            // As control does it: an older one that came back is replaced, not queued.
            newest = sender.offer(number);
        }
        let mut seen = 0;
        while seen < 10_000 {
            let number = answers.recv_timeout(PATIENCE).unwrap();
            assert!(number > seen, "{number} after {seen}");
            seen = number;
            newest = newest.take().and_then(|number| sender.offer(number));
        }
        drop(sender);
        core.join();
    });
}

#[test]
fn a_core_that_has_ended_takes_no_message() {
    on_each_engine(|| {
        let (sender, receiver) = mailbox::ordered::<u32>(1);
        let core = reactor::start(config(), move |_| async move { drop(receiver) }).unwrap();
        core.join();
        assert!(matches!(sender.try_send(1), Err(TrySendError::Closed(1))));
    });
}

#[test]
fn every_operation_that_a_woken_task_starts_reaches_the_kernel() {
    on_each_engine(|| {
        // Each round the core is parked; the message makes a task start an operation, and only a core that takes it to the
        // kernel answers. (A driver that is not woken by what tasks queue hangs here.)
        const ROUNDS: usize = 2_000;
        let (sender, receiver) = mailbox::ordered::<u8>(1);
        let (address_sender, address) = mpsc::channel();
        let core = reactor::start(deep_sleeper(), move |reactor| async move {
            let (listener, local) = listen(&reactor);
            address_sender.send(local).unwrap();
            let stream = listener.accept().await.unwrap();
            while let Some(byte) = receiver.recv().await {
                let (reactor, stream) = (&reactor, &stream);
                let mut lease = reactor.lease(1);
                lease.put_slice(&[byte]);
                stream.send(lease.into()).await.unwrap();
            }
            stream.shutdown_write().unwrap();
            assert!(stream.receive(1).await.unwrap().is_empty());
        })
        .unwrap();
        let mut peer = StdStream::connect(address.recv_timeout(PATIENCE).unwrap()).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        for round in 0..ROUNDS {
            let byte = round.to_le_bytes()[0];
            sender.try_send(byte).unwrap();
            let mut got = [0];
            peer.read_exact(&mut got).expect("the operation never happened");
            assert_eq!(got, [byte]);
        }
        drop(sender);
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        peer.shutdown(Shutdown::Write).unwrap();
        core.join();
    });
}

#[test]
fn a_wake_of_a_sleeping_task_from_another_thread_is_not_lost_beside_timers() {
    on_each_engine(|| {
        let (sender, receiver) = mailbox::ordered::<std::thread::Thread>(1);
        let core = reactor::start(deep_sleeper(), move |reactor| async move {
            reactor
                .spawn(TenantKey(2), {
                    let reactor = reactor.clone();
                    async move {
                        loop {
                            reactor.sleep(Duration::from_millis(1)).await;
                        }
                    }
                })
                .detach();
            while let Some(thread) = receiver.recv().await {
                thread.unpark();
            }
        })
        .unwrap();
        for _ in 0..2_000 {
            sender.try_send(std::thread::current()).unwrap();
            std::thread::park_timeout(PATIENCE);
        }
        drop(sender);
        core.join();
    });
}
