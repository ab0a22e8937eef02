//! Records the largest allocation of each thread: a damaged file must not be able to
//! order memory, and the decode loop allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

#[global_allocator]
static RECORDER: Recorder = Recorder;

thread_local! {
    // Without a destructor, so that it can be used for as long as the thread lives.
    static LARGEST: Cell<usize> = const { Cell::new(0) };
    /// Bytes that this thread allocated less those that it freed, and the most of it.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST_HELD: Cell<isize> = const { Cell::new(0) };
    /// Allocations of this thread, and their bytes.
    static COUNT: Cell<usize> = const { Cell::new(0) };
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

/// The bytes that `work` holds on this thread when it ends, and the most that it held in between.
pub fn held<T>(work: impl FnOnce() -> T) -> (T, usize, usize) {
    let before = HELD.get();
    MOST_HELD.set(before);
    let result = work();
    let [now, most] = [HELD.get(), MOST_HELD.get()].map(|bytes| (bytes - before).max(0) as usize);
    (result, now, most)
}

/// How many allocations `work` makes on this thread, and their bytes: a measure of work that no other process changes.
pub fn counted<T>(work: impl FnOnce() -> T) -> (T, usize, usize) {
    let (count, bytes) = (COUNT.get(), BYTES.get());
    let result = work();
    (result, COUNT.get() - count, BYTES.get() - bytes)
}

/// The largest single allocation that `work` makes on this thread, in bytes.
pub fn largest<T>(work: impl FnOnce() -> T) -> (T, usize) {
    forget();
    let result = work();
    (result, largest_so_far())
}

/// The largest since the last [`forget`] on this thread.
pub fn largest_so_far() -> usize {
    LARGEST.get()
}

/// Begins anew.
pub fn forget() {
    LARGEST.set(0);
}

struct Recorder;

impl Recorder {
    fn note(size: usize) {
        LARGEST.set(LARGEST.get().max(size));
        COUNT.set(COUNT.get() + 1);
        BYTES.set(BYTES.get() + size);
        HELD.set(HELD.get() + size as isize);
        MOST_HELD.set(MOST_HELD.get().max(HELD.get()));
    }

    fn note_freed(size: usize) {
        HELD.set(HELD.get() - size as isize);
    }
}

// SAFETY: every call goes to the system's allocator as it is; noting a size allocates nothing.
unsafe impl GlobalAlloc for Recorder {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::note(layout.size());
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::note(layout.size());
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::note(size);
        Self::note_freed(layout.size());
        // SAFETY: the caller's promise is the same.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        Self::note_freed(layout.size());
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(block, layout) }
    }
}

#[test]
fn a_large_allocation_is_seen() {
    let (bytes, size) = largest(|| vec![0u8; 1 << 20]);
    assert_eq!(bytes.len(), size);
}
