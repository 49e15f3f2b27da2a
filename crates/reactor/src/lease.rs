//! Owned buffers of a core's pool: lent out for a receive, passed up and on without a copy, returned by the last drop.
//!
//! Memory is never cleared: a lease shows exactly the bytes that were written into it. The pool belongs to one core
//! (`Rc`, no atomics), so a lease never leaves its thread; a block keeps its `Rc` while it is free, so that lending it
//! again allocates nothing.

#![expect(unsafe_code, reason = "a buffer that the kernel fills without being cleared first is uninitialised memory")]

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    mem::MaybeUninit,
    ops::Deref,
    ptr::NonNull,
    rc::Rc,
    slice,
};

use bytes::Buf;

/// The sizes blocks come in. A relay asks for 4 to 16 KiB until a flow proves bulk, TLS reads 64 KiB at a time, and
/// 256 KiB is where bytes per system call stop to pay.
const CLASSES: [usize; 4] = [4 << 10, 16 << 10, 64 << 10, 256 << 10];

/// Bounds of a core's buffer memory.
#[derive(Clone, Debug)]
pub struct LeaseLimits {
    /// Bytes of free blocks that are kept for the next lease. Worst case that many bytes idle per core.
    pub free_bytes_max: usize,
    /// Bytes lent out at once before receives fail with [`io::ErrorKind::OutOfMemory`]. Worst case that many bytes
    /// per core, and what [`LeasePool::lease`] adds, which always lends.
    pub lent_bytes_max: usize,
}

impl Default for LeaseLimits {
    fn default() -> Self {
        Self { free_bytes_max: 16 << 20, lent_bytes_max: 1 << 30 }
    }
}

/// A core's buffers. Clones are the same pool.
#[derive(Clone)]
pub struct LeasePool(Rc<Shelves>);

struct Shelves {
    limits: LeaseLimits,
    free: [RefCell<Vec<Rc<Block>>>; CLASSES.len()],
    free_bytes: Cell<usize>,
    lent_bytes: Cell<usize>,
}

impl LeasePool {
    /// A pool that holds nothing yet.
    pub fn new(limits: LeaseLimits) -> Self {
        Self(Rc::new(Shelves { limits, free: Default::default(), free_bytes: Cell::new(0), lent_bytes: Cell::new(0) }))
    }

    /// An empty lease with room for at least `len` bytes.
    pub fn lease(&self, len: usize) -> Lease {
        let class = CLASSES.iter().position(|size| *size >= len);
        let reused = class.and_then(|class| self.0.free[class].borrow_mut().pop());
        let block = match reused {
            Some(block) => {
                self.0.free_bytes.set(self.0.free_bytes.get() - block.size);
                block
            }
            None => Rc::new(Block::new(class.map_or(len, |class| CLASSES[class]))),
        };
        self.0.lent_bytes.set(self.0.lent_bytes.get() + block.size);
        Lease { owner: Some((block, self.clone())), start: 0, end: 0 }
    }

    /// As [`LeasePool::lease`], for bytes that come from outside and therefore have to respect the limit.
    ///
    /// # Errors
    /// [`io::ErrorKind::OutOfMemory`] when [`LeaseLimits::lent_bytes_max`] is lent out.
    pub fn lease_within_limit(&self, len: usize) -> io::Result<Lease> {
        let (lent, max) = (self.0.lent_bytes.get(), self.0.limits.lent_bytes_max);
        if lent + len > max {
            return Err(io::Error::new(
                io::ErrorKind::OutOfMemory,
                format!("{lent} bytes of receive buffers are in use and the limit is {max}: slow readers hold them"),
            ));
        }
        Ok(self.lease(len))
    }

    /// Bytes of blocks that are lent out now.
    pub fn lent_bytes(&self) -> usize {
        self.0.lent_bytes.get()
    }

    /// Bytes of blocks that wait to be lent again.
    pub fn free_bytes(&self) -> usize {
        self.0.free_bytes.get()
    }

    fn give_back(&self, block: Rc<Block>) {
        self.0.lent_bytes.set(self.0.lent_bytes.get() - block.size);
        let free_bytes = self.0.free_bytes.get() + block.size;
        let Some(class) = CLASSES.iter().position(|size| *size == block.size) else {
            return;
        };
        if free_bytes <= self.0.limits.free_bytes_max {
            self.0.free_bytes.set(free_bytes);
            self.0.free[class].borrow_mut().push(block);
        }
    }
}

impl fmt::Debug for LeasePool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("LeasePool")
            .field("lent_bytes", &self.lent_bytes())
            .field("free_bytes", &self.free_bytes())
            .finish()
    }
}

/// Some bytes in a block of the pool. Parts of one block may be held apart; the last to go returns the block.
pub struct Lease {
    /// `None` for [`Lease::empty`].
    owner: Option<(Rc<Block>, LeasePool)>,
    /// Invariant: the block's bytes from `start` to `end` are initialised, and `start <= end <= size`.
    start: usize,
    end: usize,
}

impl Lease {
    /// No bytes and no block: the end of a stream.
    pub const fn empty() -> Self {
        Self { owner: None, start: 0, end: 0 }
    }

    /// A lease of `pool` with a copy of `bytes`.
    pub fn copy_from(pool: &LeasePool, bytes: &[u8]) -> Self {
        let mut lease = pool.lease(bytes.len());
        lease.put_slice(bytes);
        lease
    }

    /// How many bytes it shows.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether it shows none.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Takes the first `n` bytes, without a copy; both parts keep the block.
    ///
    /// # Panics
    /// If there are fewer than `n`.
    #[must_use]
    pub fn split_to(&mut self, n: usize) -> Self {
        assert!(n <= self.len(), "split_to({n}) of a lease of {} bytes", self.len());
        let front = Self { owner: self.owner.clone(), start: self.start, end: self.start + n };
        self.start += n;
        front
    }

    /// How many bytes can be added. None while another lease shares the block.
    pub fn room(&mut self) -> usize {
        self.spare().len()
    }

    /// Appends a copy of `bytes`.
    ///
    /// # Panics
    /// If there is less [`Lease::room`] than that.
    pub fn put_slice(&mut self, bytes: &[u8]) {
        let spare = self.spare();
        assert!(bytes.len() <= spare.len(), "no room for {} bytes: {} left", bytes.len(), spare.len());
        spare[..bytes.len()].write_copy_of_slice(bytes);
        // SAFETY: the line above has initialised as many bytes of the spare room, from its beginning.
        unsafe { self.assume_filled(bytes.len()) };
    }

    /// What can be written to: nothing while another lease shares the block.
    pub(crate) fn spare(&mut self) -> &mut [MaybeUninit<u8>] {
        let end = self.end;
        match self.owner.as_mut().and_then(|(block, _)| Rc::get_mut(block)) {
            Some(block) => &mut block.memory_mut()[end..],
            None => &mut [],
        }
    }

    /// Shows `n` more bytes.
    ///
    /// # Safety
    /// The first `n` bytes of [`Lease::spare`] have been initialised.
    pub(crate) unsafe fn assume_filled(&mut self, n: usize) {
        let size = self.owner.as_ref().map_or(0, |(block, _)| block.size);
        assert!(n <= size - self.end, "{n} bytes were written into room for {}", size - self.end);
        self.end += n;
    }
}

impl Deref for Lease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let Some((block, _)) = &self.owner else {
            return &[];
        };
        let shown = &block.memory()[self.start..self.end];
        // SAFETY: by the invariant of `start` and `end` these bytes are initialised; they are only ever written through
        // `spare`, which starts at `end` and demands that no other lease shares the block.
        unsafe { shown.assume_init_ref() }
    }
}

impl AsRef<[u8]> for Lease {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Buf for Lease {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn chunk(&self) -> &[u8] {
        self
    }

    fn advance(&mut self, n: usize) {
        assert!(n <= self.len(), "advance({n}) of a lease of {} bytes", self.len());
        self.start += n;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some((block, pool)) = self.owner.take()
            && Rc::strong_count(&block) == 1
        {
            pool.give_back(block);
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Lease({} bytes)", self.len())
    }
}

/// Memory at an address that stays, because the kernel writes to it while the owner may move.
struct Block {
    memory: NonNull<MaybeUninit<u8>>,
    size: usize,
}

impl Block {
    fn new(size: usize) -> Self {
        let memory = Box::leak(Box::<[u8]>::new_uninit_slice(size));
        Self { memory: NonNull::from(memory).cast(), size }
    }

    fn memory(&self) -> &[MaybeUninit<u8>] {
        // SAFETY: `new` leaked a slice of `size` elements at this address, and nobody holds it mutably: that takes
        // `&mut self`, or an operation of the kernel, whose lease is out of everybody's reach until it completes.
        unsafe { slice::from_raw_parts(self.memory.as_ptr(), self.size) }
    }

    fn memory_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: as in `memory`, and `&mut self` makes it exclusive.
        unsafe { slice::from_raw_parts_mut(self.memory.as_ptr(), self.size) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let memory = NonNull::slice_from_raw_parts(self.memory, self.size);
        // SAFETY: `new` got exactly this slice by leaking a box, and a block is dropped once.
        drop(unsafe { Box::from_raw(memory.as_ptr()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(free_bytes_max: usize, lent_bytes_max: usize) -> LeasePool {
        LeasePool::new(LeaseLimits { free_bytes_max, lent_bytes_max })
    }

    #[test]
    fn a_block_comes_back_with_the_last_of_its_parts_and_is_lent_again() {
        let pool = pool(1 << 20, 1 << 20);
        let mut whole = Lease::copy_from(&pool, b"hello world");
        let address = whole.as_ptr();
        let mut front = whole.split_to(5);
        assert_eq!((front.as_ref(), whole.as_ref()), (b"hello".as_slice(), b" world".as_slice()));
        assert_eq!(front.room(), 0, "the rest of the block belongs to the other part");
        drop(whole);
        assert_eq!((pool.lent_bytes(), pool.free_bytes()), (4096, 0));
        drop(front);
        assert_eq!((pool.lent_bytes(), pool.free_bytes()), (0, 4096));
        assert_eq!(Lease::copy_from(&pool, b"x").as_ptr(), address);
    }

    #[test]
    fn a_lease_has_the_smallest_class_that_fits_and_beyond_the_last_its_own_size() {
        for (len, size) in
            [(0, 4096), (4096, 4096), (4097, 16384), (65_000, 65_536), (65_537, 262_144), (262_145, 262_145)]
        {
            let pool = pool(usize::MAX, usize::MAX);
            let mut lease = pool.lease(len);
            assert_eq!((lease.room(), lease.len(), pool.lent_bytes()), (size, 0, size), "lease({len})");
            drop(lease);
            assert_eq!(pool.free_bytes(), if len > 262_144 { 0 } else { size }, "free after lease({len})");
        }
    }

    #[test]
    fn free_memory_stays_below_its_limit() {
        let pool = pool(10_000, usize::MAX);
        let leases: Vec<_> = (0..10).map(|_| pool.lease(4096)).collect();
        drop(leases);
        assert_eq!((pool.lent_bytes(), pool.free_bytes()), (0, 8192));
    }

    #[test]
    fn only_a_lease_within_the_limit_is_refused_at_it() {
        let pool = pool(0, 8192);
        let held = pool.lease_within_limit(4096).unwrap();
        let more = pool.lease_within_limit(4096).unwrap();
        assert_eq!(pool.lease_within_limit(1).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        assert_eq!(pool.lease(1).len(), 0, "what the core itself makes is always lent");
        drop((held, more));
        assert!(pool.lease_within_limit(1).is_ok());
    }

    #[test]
    fn an_appended_lease_shows_exactly_what_was_put() {
        let pool = pool(0, usize::MAX);
        let mut lease = pool.lease(16);
        lease.put_slice(b"abc");
        lease.put_slice(b"");
        lease.put_slice(b"def");
        lease.advance(2);
        assert_eq!(&*lease, b"cdef");
        assert!(Lease::empty().is_empty());
    }

    #[test]
    #[should_panic(expected = "no room for 5000 bytes: 4096 left")]
    fn more_than_the_room_is_a_mistake_of_the_caller() {
        pool(0, usize::MAX).lease(16).put_slice(&[0; 5000]);
    }
}
