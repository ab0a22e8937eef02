//! Software prefetch, for accesses that the hardware prefetcher cannot predict.

/// Bytes of a cache line.
pub(super) const CACHE_LINE: usize = 64;

/// Prefetches all of `bytes`, without waiting.
pub fn prefetch(bytes: &[u8]) {
    for line in bytes.chunks(CACHE_LINE) {
        prefetch_line(line.as_ptr());
    }
}

/// Prefetches the cache line in which a value begins.
#[inline(always)]
pub fn prefetch_first_line<T>(it: &T) {
    prefetch_line(std::ptr::from_ref(it).cast());
}

/// Prefetches one cache line. Any address is allowed: one that is not mapped is ignored.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn prefetch_line(line: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a prefetch reads nothing, and every x86-64 CPU has the instruction.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
}

#[cfg(target_arch = "aarch64")]
fn prefetch_line(line: *const u8) {
    // SAFETY: the instruction is a hint that reads and writes nothing.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{line}]", line = in(reg) line, options(nostack, preserves_flags, readonly));
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn prefetch_line(_: *const u8) {}
