//! Runs a test with a descriptor table of its own, so that what it leaves open can be counted while others run.
#![expect(unsafe_code, reason = "close_range has no safe wrapper")]

use std::{fs, thread};

/// Runs `test` on a thread that shares no descriptors but stdin, stdout and stderr, and fails if it leaves any open.
pub(crate) fn none_left_open<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let body = || {
            // SAFETY: it gives this thread a table of its own without the others' descriptors; theirs stay as they are,
            // and nothing that this thread was given owns one.
            let outcome = unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE as libc::c_int) };
            assert_eq!(outcome, 0, "close_range: {}", std::io::Error::last_os_error());
            let before = open();
            let result = test();
            assert_eq!(open(), before, "descriptors were left open");
            result
        };
        match scope.spawn(body).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// What is open on this thread, by what it points to.
pub(crate) fn open() -> Vec<String> {
    let table = fs::read_dir("/proc/thread-self/fd").expect("/proc is mounted");
    let mut open: Vec<String> = table
        .filter_map(|entry| fs::read_link(entry.expect("readable").path()).ok())
        .map(|target| target.display().to_string())
        // The listing itself.
        .filter(|target| !(target.starts_with("/proc/") && target.ends_with("/fd")))
        .collect();
    open.sort();
    open
}

#[test]
fn a_descriptor_left_open_is_noticed() {
    let leaky = thread::spawn(|| none_left_open(|| std::mem::forget(fs::File::open("/dev/null").expect("exists"))));
    assert!(leaky.join().is_err());
}
