//! An allocator that gives nothing back: what is freed is filled with a mark and kept, so that who writes to it or reads
//! from it later is found out.

#![expect(unsafe_code, reason = "an allocator is unsafe by its trait")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    slice,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

/// What freed memory is full of.
pub(crate) const MARK: u8 = 0xdb;
/// Smaller things are no buffers.
const SIZE_MIN: usize = 4096;
/// Pieces kept; further ones are freed, and [`Quarantine::check`] fails.
const KEPT_MAX: usize = 1 << 16;

/// See the module. It begins to keep with [`Quarantine::begin`].
pub(crate) struct Quarantine {
    on: AtomicBool,
    kept: AtomicUsize,
    /// Address and size.
    pieces: [(AtomicUsize, AtomicUsize); KEPT_MAX],
}

impl Quarantine {
    pub(crate) const fn new() -> Self {
        Self {
            on: AtomicBool::new(false),
            kept: AtomicUsize::new(0),
            pieces: [const { (AtomicUsize::new(0), AtomicUsize::new(0)) }; KEPT_MAX],
        }
    }

    /// From now on nothing large is given back.
    pub(crate) fn begin(&self) {
        self.on.store(true, Ordering::SeqCst);
    }

    /// How many pieces are kept, if none of them was written to. Otherwise which byte of which size was.
    pub(crate) fn check(&self) -> Result<usize, String> {
        let kept = self.kept.load(Ordering::SeqCst);
        if kept > KEPT_MAX {
            return Err(format!("{kept} pieces were freed, and {KEPT_MAX} can be kept"));
        }
        for (address, size) in &self.pieces[..kept] {
            let (address, size) = (address.load(Ordering::SeqCst), size.load(Ordering::SeqCst));
            // SAFETY: it was allocated, initialised with the mark and never given back.
            let bytes = unsafe { slice::from_raw_parts(address as *const u8, size) };
            if let Some(at) = bytes.iter().position(|byte| *byte != MARK) {
                return Err(format!("byte {at} of {size} that were freed was written to"));
            }
        }
        Ok(kept)
    }
}

// SAFETY: it passes on to the system's, and what it does not pass on it leaks.
unsafe impl GlobalAlloc for Quarantine {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if layout.size() >= SIZE_MIN && self.on.load(Ordering::SeqCst) {
            let index = self.kept.fetch_add(1, Ordering::SeqCst);
            if let Some((address, size)) = self.pieces.get(index) {
                // SAFETY: it is the caller's, who has done with it.
                unsafe { memory.write_bytes(MARK, layout.size()) };
                address.store(memory as usize, Ordering::SeqCst);
                size.store(layout.size(), Ordering::SeqCst);
                return;
            }
        }
        // SAFETY: passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}
