//! Owned buffers of a core's pool: lent out for a receive, passed up and on without a copy, returned by the last drop.
//!
//! Each tenant has a share. What it borrows counts against that until it is returned, and a tenant whose share is out
//! waits for its own buffers to come back: neither it nor any other gets an error, and the others do not notice.
//!
//! Memory is never cleared: a lease shows exactly the bytes that were written into it. The pool belongs to one core
//! (`Rc`, no atomics), so a lease never leaves its thread; a block keeps its `Rc` while it is free, so that lending it
//! again allocates nothing.

#![expect(unsafe_code, reason = "a buffer that the kernel fills without being cleared first is uninitialised memory")]

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt,
    mem::MaybeUninit,
    ops::Deref,
    ptr::NonNull,
    rc::Rc,
    slice,
    task::{Context, Poll, Waker},
};

use bytes::Buf;

use crate::tenant::Row;

/// The sizes blocks come in. A relay is given 16 KiB until a flow proves bulk, TLS reads 64 KiB at a time, and 256 KiB is
/// where bytes per system call stop to pay.
const CLASSES: [usize; 4] = [4 << 10, 16 << 10, 64 << 10, 256 << 10];

/// Bounds of a core's buffer memory.
#[derive(Clone, Debug)]
pub struct LeaseLimits {
    /// Bytes of free blocks that are kept for the next lease. Worst case that many bytes idle per core.
    pub free_bytes_max: usize,
    /// Bytes that one tenant's receives may hold at once; further ones wait until it returns some. Worst case that many
    /// bytes per tenant, and what [`LeasePool::lease`] adds, which always lends.
    pub tenant_bytes_max: usize,
    /// Bytes lent out at once from which a tenant gets no more than [`LeaseLimits::tenant_bytes_min`]. Worst case that
    /// many bytes per core, and the latter for each tenant.
    pub lent_bytes_max: usize,
    /// Bytes that a tenant's receives may hold however much the others have.
    pub tenant_bytes_min: usize,
}

impl Default for LeaseLimits {
    fn default() -> Self {
        Self {
            free_bytes_max: 16 << 20,
            tenant_bytes_max: 32 << 20,
            lent_bytes_max: 1 << 30,
            tenant_bytes_min: 64 << 10,
        }
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
    shares: RefCell<Vec<Share>>,
    /// Names those who wait, in the order in which they came.
    next_waiting: Cell<u64>,
    /// Receives that found their tenant's share out.
    waits: Cell<u64>,
}

/// What a tenant has borrowed, and who of it waits for more.
#[derive(Default)]
struct Share {
    lent_bytes: usize,
    waiting: BTreeMap<u64, Waker>,
}

/// A place in the queue for a tenant's buffers. Who gives it up passes on the wake that it may have had.
pub(crate) struct Waiting {
    pool: LeasePool,
    row: Row,
    number: u64,
}

impl LeasePool {
    /// A pool that holds nothing yet.
    pub fn new(limits: LeaseLimits) -> Self {
        Self(Rc::new(Shelves {
            limits,
            free: Default::default(),
            free_bytes: Cell::new(0),
            lent_bytes: Cell::new(0),
            shares: RefCell::default(),
            next_waiting: Cell::new(0),
            waits: Cell::new(0),
        }))
    }

    /// An empty lease with room for at least `len` bytes, on the core's own account.
    pub fn lease(&self, len: usize) -> Lease {
        self.lease_of(Row::CORE, len)
    }

    /// An empty lease with room for at least `len` bytes, on the account of `row`, whether its share is out or not.
    pub(crate) fn lease_of(&self, row: Row, len: usize) -> Lease {
        let class = CLASSES.iter().position(|size| *size >= len);
        let reused = class.and_then(|class| self.0.free[class].borrow_mut().pop());
        let block = match reused {
            Some(block) => {
                self.0.free_bytes.set(self.0.free_bytes.get() - block.size);
                block
            }
            None => Rc::new(Block::new(size_of_lease(len))),
        };
        block.row.set(row);
        self.0.lent_bytes.set(self.0.lent_bytes.get() + block.size);
        self.with_share(row, |share| share.lent_bytes += block.size);
        Lease { owner: Some((block, self.clone())), start: 0, end: 0 }
    }

    /// As [`LeasePool::lease_of`], for bytes that come from outside: when the tenant's share is out, it waits until some
    /// of it is back. A place in the queue is kept in `waiting` meanwhile.
    pub(crate) fn poll_lease(
        &self,
        row: Row,
        len: usize,
        waiting: &mut Option<Box<Waiting>>,
        context: &mut Context<'_>,
    ) -> Poll<Lease> {
        if self.within_share(row, size_of_lease(len)) {
            // Taken before the place is given up, so that its drop sees what is left.
            let lease = self.lease_of(row, len);
            *waiting = None;
            return Poll::Ready(lease);
        }
        self.0.waits.set(self.0.waits.get() + u64::from(waiting.is_none()));
        if waiting.as_ref().is_none_or(|waiting| waiting.row != row) {
            let number = self.0.next_waiting.get();
            self.0.next_waiting.set(number + 1);
            *waiting = Some(Box::new(Waiting { pool: self.clone(), row, number }));
        }
        if let Some(waiting) = waiting {
            self.with_share(row, |share| share.waiting.insert(waiting.number, context.waker().clone()));
        }
        Poll::Pending
    }

    /// Whether `row` may have `bytes` more. Who holds nothing always may: a share smaller than a buffer would stop its
    /// tenant for good.
    fn within_share(&self, row: Row, bytes: usize) -> bool {
        let Shelves { limits, lent_bytes, .. } = &*self.0;
        let own = self.with_share(row, |share| share.lent_bytes);
        let scarce = lent_bytes.get() + bytes > limits.lent_bytes_max;
        let most = if scarce { limits.tenant_bytes_min.min(limits.tenant_bytes_max) } else { limits.tenant_bytes_max };
        own == 0 || own + bytes <= most
    }

    /// Wakes the longest waiting of a tenant that may have more. It wakes the next when it has taken its part.
    fn wake_one(&self, row: Row) {
        let smallest = CLASSES[0];
        if !self.within_share(row, smallest) {
            return;
        }
        let woken = self.with_share(row, |share| share.waiting.pop_first());
        if let Some((_, waker)) = woken {
            waker.wake();
        }
    }

    fn wake_one_of_each(&self) {
        let waiting = |share: &Share| !share.waiting.is_empty();
        let rows = self.0.shares.borrow().len();
        for row in (0..rows).filter(|row| waiting(&self.0.shares.borrow()[*row])) {
            self.wake_one(Row::at(row));
        }
    }

    fn with_share<T>(&self, row: Row, change: impl FnOnce(&mut Share) -> T) -> T {
        let mut shares = self.0.shares.borrow_mut();
        if row.index() >= shares.len() {
            shares.resize_with(row.index() + 1, Share::default);
        }
        change(&mut shares[row.index()])
    }

    /// How many receives found their tenant's share out.
    pub(crate) fn waits(&self) -> u64 {
        self.0.waits.get()
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
        let lent_bytes = self.0.lent_bytes.get();
        self.0.lent_bytes.set(lent_bytes - block.size);
        let row = block.row.get();
        self.with_share(row, |share| share.lent_bytes -= block.size);
        // Somebody's largest buffer did not fit into what the core lends, so it may be that which others wait for.
        if lent_bytes + CLASSES[CLASSES.len() - 1] > self.0.limits.lent_bytes_max {
            self.wake_one_of_each();
        } else {
            self.wake_one(row);
        }
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

/// The size of the block that a lease of `len` bytes gets.
fn size_of_lease(len: usize) -> usize {
    CLASSES.into_iter().find(|size| *size >= len).unwrap_or(len)
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.pool.with_share(self.row, |share| share.waiting.remove(&self.number));
        self.pool.wake_one(self.row);
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
    /// Whose share it is out of, while it is lent.
    row: Cell<Row>,
}

impl Block {
    fn new(size: usize) -> Self {
        let memory = Box::leak(Box::<[u8]>::new_uninit_slice(size));
        Self { memory: NonNull::from(memory).cast(), size, row: Cell::new(Row::CORE) }
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

    const ROW: Row = Row::CORE;

    fn pool(free_bytes_max: usize, tenant_bytes_max: usize) -> LeasePool {
        LeasePool::new(LeaseLimits { free_bytes_max, tenant_bytes_max, ..LeaseLimits::default() })
    }

    /// Counts its wakes.
    #[derive(Default)]
    struct Bell(std::sync::atomic::AtomicUsize);

    impl std::task::Wake for Bell {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// One who asks for 4 KiB again and again.
    struct Asker {
        row: Row,
        bell: std::sync::Arc<Bell>,
        waiting: Option<Box<Waiting>>,
    }

    impl Asker {
        fn new(row: Row) -> Self {
            Self { row, bell: Default::default(), waiting: None }
        }

        fn ask(&mut self, pool: &LeasePool) -> Poll<Lease> {
            let waker = Waker::from(self.bell.clone());
            pool.poll_lease(self.row, 4096, &mut self.waiting, &mut Context::from_waker(&waker))
        }

        fn wakes(&self) -> usize {
            self.bell.0.load(std::sync::atomic::Ordering::Relaxed)
        }
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
    fn a_tenant_whose_share_is_out_waits_for_its_own_and_others_do_not() {
        let pool = pool(0, 8192);
        let (mut one, mut other) = (Asker::new(ROW), Asker::new(Row::at(7)));
        let held = [one.ask(&pool), one.ask(&pool)];
        assert!(held.iter().all(Poll::is_ready) && one.ask(&pool).is_pending());
        let theirs = other.ask(&pool);
        assert!(theirs.is_ready(), "another tenant has its own share");
        assert_eq!(pool.lease(1).len(), 0, "what the core itself makes is always lent");
        drop(theirs);
        assert_eq!(one.wakes(), 0, "what another returns is not its own");
        drop(held);
        assert_eq!(one.wakes(), 1);
        assert!(one.ask(&pool).is_ready());
        assert_eq!((pool.waits(), pool.with_share(ROW, |share| share.lent_bytes), pool.lent_bytes()), (1, 0, 0));
    }

    #[test]
    fn a_wake_that_its_waiter_does_not_use_goes_to_the_next() {
        let pool = pool(0, 4096);
        let (mut holder, mut first, mut second) = (Asker::new(ROW), Asker::new(ROW), Asker::new(ROW));
        let held = holder.ask(&pool);
        assert!(first.ask(&pool).is_pending() && second.ask(&pool).is_pending());
        drop(held);
        assert_eq!((first.wakes(), second.wakes()), (1, 0), "one at a time, in order");
        drop(first);
        assert_eq!(second.wakes(), 1, "it was given up");
        let taken = second.ask(&pool);
        assert!(taken.is_ready() && holder.ask(&pool).is_pending());
        drop(second);
        assert_eq!(holder.wakes(), 0, "nothing is there for it");
    }

    #[test]
    fn when_the_core_has_lent_out_everything_each_tenant_still_has_its_least() {
        let limits = LeaseLimits {
            free_bytes_max: 0,
            tenant_bytes_max: 1 << 20,
            lent_bytes_max: 16 << 10,
            tenant_bytes_min: 8 << 10,
        };
        let pool = LeasePool::new(limits);
        let (mut greedy, mut late) = (Asker::new(ROW), Asker::new(Row::at(1)));
        let hoard: Vec<_> = (0..4).map(|_| greedy.ask(&pool)).collect();
        assert!(hoard.iter().all(Poll::is_ready) && greedy.ask(&pool).is_pending());
        let least = [late.ask(&pool), late.ask(&pool)];
        assert!(least.iter().all(Poll::is_ready) && late.ask(&pool).is_pending());
    }

    #[test]
    fn the_end_of_a_shortage_wakes_one_of_each_tenant_that_waited() {
        let limits = LeaseLimits {
            free_bytes_max: 0,
            tenant_bytes_max: 1 << 20,
            lent_bytes_max: 64 << 10,
            tenant_bytes_min: 4 << 10,
        };
        let pool = LeasePool::new(limits);
        let mut tenants = [1, 2].map(|row| Asker::new(Row::at(row)));
        let own = tenants.each_mut().map(|tenant| tenant.ask(&pool));
        let large = pool.lease(256 << 10);
        assert!(tenants.iter_mut().all(|tenant| tenant.ask(&pool).is_pending()), "the core is short of buffers");
        drop(large);
        assert_eq!(tenants.each_ref().map(Asker::wakes), [1, 1], "what they waited for was another's");
        assert!(tenants.iter_mut().all(|tenant| tenant.ask(&pool).is_ready()));
        drop(own);
    }

    #[test]
    fn a_share_smaller_than_a_buffer_still_lets_its_tenant_go_on() {
        let pool = pool(0, 1);
        let mut asker = Asker::new(ROW);
        let one = asker.ask(&pool);
        assert!(one.is_ready() && asker.ask(&pool).is_pending());
        drop(one);
        assert!(asker.ask(&pool).is_ready());
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
