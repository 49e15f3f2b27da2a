//! Where io_uring is forbidden, as container runtimes do by default, `auto` takes epoll and says why.
//!
//! A seccomp filter is a thread's and its children's, so each case has a thread of its own.

mod on_core;

use std::{collections::BTreeMap, thread};

use on_core::{on_core, pair};
use reactor::{CoreConfig, EngineChoice, EngineKind, EngineReason, Runtime, StartError, Stream};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// Refuses `calls` with `errno` to this thread and what it starts.
fn forbid(calls: &[i64], errno: i32) {
    let rules: BTreeMap<_, _> = calls.iter().map(|number| (*number, Vec::new())).collect();
    let refused = SeccompAction::Errno(errno.cast_unsigned());
    let architecture = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, architecture).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

/// What a core with `engine` runs on, once it has carried bytes.
fn works(engine: EngineChoice) -> Result<(EngineKind, EngineReason), StartError> {
    let config = CoreConfig { engine, ..CoreConfig::default() };
    let core = reactor::start(config.clone(), |_| async {})?;
    let chosen = core.engine().clone();
    core.join();
    on_core(config, |reactor| async move {
        let (client, server) = pair(&reactor).await;
        let mut word = reactor.lease(4);
        word.put_slice(b"word");
        client.send(word.into()).await.unwrap();
        assert_eq!(&*server.receive(100).await.unwrap(), b"word");
    });
    Ok((chosen.kind, chosen.reason))
}

#[test]
fn forbidden_io_uring_makes_auto_take_epoll_and_say_why() {
    let all = [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];
    for (calls, errno, reason) in [
        (&all[..], libc::EPERM, EngineReason::UringForbidden(libc::EPERM)),
        (&all[..], libc::ENOSYS, EngineReason::UringUnsupported),
        // A ring that can be made but not used.
        (&all[1..2], libc::EPERM, EngineReason::UringForbidden(libc::EPERM)),
    ] {
        let case = thread::scope(|scope| {
            let case = scope.spawn(|| {
                forbid(calls, errno);
                (works(EngineChoice::Auto), works(EngineChoice::Epoll), works(EngineChoice::Uring))
            });
            case.join().unwrap()
        });
        let (auto, epoll, uring) = case;
        assert_eq!(auto.unwrap(), (EngineKind::Epoll, reason));
        assert_eq!(epoll.unwrap(), (EngineKind::Epoll, EngineReason::Asked));
        let refused = uring.unwrap_err();
        assert!(matches!(refused, StartError::Ring { .. }), "{refused}");
    }
    // The control: without the filter, the same choice takes io_uring.
    assert_eq!(works(EngineChoice::Auto).unwrap(), (EngineKind::Uring, EngineReason::Preferred));
}
