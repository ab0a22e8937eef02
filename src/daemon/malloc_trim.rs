//! Returns freed memory from the C library's allocator to the system. Deliberately does not decide when.

/// Returns freed memory to the system: glibc keeps free memory between living allocations, about 10 MiB after many
/// clients. It takes about a millisecond, so it is called only when memory is short.
#[cfg(target_env = "gnu")]
pub(super) fn malloc_trim() {
    // SAFETY: `malloc_trim` locks the allocator as every allocation does, and touches free memory only.
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries return free memory by themselves.
#[cfg(not(target_env = "gnu"))]
pub(super) fn malloc_trim() {}
