//! The allocator's own store of freed memory.

/// Gives freed memory back to the system: the C library keeps what lies between two living allocations, after a crowd
/// of clients some 10 MiB. Takes about a millisecond, so it is asked for only when memory is short.
#[cfg(target_env = "gnu")]
pub(super) fn give_back() {
    // SAFETY: it locks the allocator as every allocation does, and touches nothing but memory that is free.
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries give back by themselves.
#[cfg(not(target_env = "gnu"))]
pub(super) fn give_back() {}
