//! `Netns::enter` on real namespaces.

use std::{
    env, fs,
    os::fd::OwnedFd,
    panic::{self, AssertUnwindSafe},
    process::Command,
};

use inpod::Netns;
use rustix::thread::CapabilitySet;

use crate::{
    descriptors::none_left_open,
    namespace::{self, here, on_own_thread},
};

#[test]
fn enter_runs_inside_and_comes_back() {
    none_left_open(|| {
        let netns = namespace::empty();
        let home = here();
        assert_ne!(netns.id(), home, "otherwise this test shows nothing");
        assert_eq!(netns.enter(here).unwrap(), netns.id());
        assert_eq!(here(), home);
    });
}

#[test]
fn enter_comes_back_before_a_panic_goes_on() {
    none_left_open(|| {
        let netns = namespace::empty();
        let home = here();
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
            netns.enter(|| -> () {
                assert_eq!(here(), netns.id());
                panic!("inside")
            })
        }));
        let message = outcome.expect_err("goes on");
        assert_eq!(message.downcast_ref::<&str>(), Some(&"inside"));
        assert_eq!(here(), home);
    });
}

#[test]
fn enter_nests() {
    none_left_open(|| {
        let (outer, inner) = (namespace::empty(), namespace::empty());
        let home = here();
        outer
            .enter(|| {
                assert_eq!(inner.enter(here).unwrap(), inner.id());
                assert_eq!(here(), outer.id(), "back in the outer one, not at home");
            })
            .unwrap();
        assert_eq!(here(), home);
    });
}

#[test]
fn only_the_calling_thread_moves() {
    let netns = namespace::empty();
    let home = here();
    let (told, hear) = std::sync::mpsc::channel();
    let (leave, left) = std::sync::mpsc::channel();
    let inside = move || {
        told.send(here()).unwrap();
        left.recv().unwrap();
    };
    std::thread::scope(|scope| {
        scope.spawn(|| netns.enter(inside).unwrap());
        assert_eq!(hear.recv().unwrap(), netns.id(), "the other thread is inside now");
        assert_eq!(here(), home);
        leave.send(()).unwrap();
    });
}

#[test]
fn the_same_namespace_has_one_id_and_another_has_another() {
    none_left_open(|| {
        let netns = namespace::empty();
        assert_eq!(netns.enter(|| Netns::current().unwrap().id()).unwrap(), netns.id());
        assert_ne!(namespace::empty().id(), netns.id());
        assert!(netns.id().to_string().starts_with("net:["));
    });
}

#[test]
fn a_descriptor_of_something_else_is_not_entered() {
    none_left_open(|| {
        for path in ["/dev/null", "/proc/self/ns/uts"] {
            let netns = Netns::from_fd(OwnedFd::from(fs::File::open(path).unwrap())).unwrap();
            let home = here();
            let error = netns.enter(|| unreachable!("{path} is no network namespace")).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{path}: {error}");
            assert_eq!(here(), home);
        }
    });
}

#[test]
fn without_the_right_nothing_runs_inside() {
    on_own_thread(|| {
        let netns = namespace::empty();
        namespace::give_up(CapabilitySet::SYS_ADMIN);
        let error = netns.enter(|| unreachable!("not allowed")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
    });
}

#[test]
fn a_thread_that_cannot_come_back_ends_the_process() {
    const CHILD: &str = "INPOD_TEST_STRANDED";
    if env::var_os(CHILD).is_some() {
        let netns = namespace::empty();
        let _ = netns.enter(|| namespace::give_up(CapabilitySet::SYS_ADMIN));
        unreachable!("the return cannot have worked");
    }
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "netns::a_thread_that_cannot_come_back_ends_the_process", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&output.status), Some(libc::SIGABRT), "{stderr}");
    assert!(stderr.contains("cannot return from net:["), "{stderr}");
}
