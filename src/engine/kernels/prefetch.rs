//! Asking the memory for what is read soon, where no processor can guess it.

/// Bytes of a line of the cache.
pub(super) const CACHE_LINE: usize = 64;

/// Asks for all of it, and does not wait.
pub fn prefetch(bytes: &[u8]) {
    for line in bytes.chunks(CACHE_LINE) {
        prefetch_line(line.as_ptr());
    }
}

/// Asks for the line in which it begins.
#[inline(always)]
pub fn prefetch_first_line<T>(it: &T) {
    prefetch_line(std::ptr::from_ref(it).cast());
}

/// Asks for a line. Any address will do: one that is not mapped is passed over.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn prefetch_line(line: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: nothing is read; every x86-64 processor has the instruction.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
}

#[cfg(target_arch = "aarch64")]
fn prefetch_line(line: *const u8) {
    // SAFETY: a hint; nothing is read or written.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{line}]", line = in(reg) line, options(nostack, preserves_flags, readonly));
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn prefetch_line(_: *const u8) {}
