//! What threads ask the memory for while they wait: the first bytes of the job after the current one. Without this
//! the memory rests whenever a thread does, for a twelfth of a decode step on two threads.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicPtr, AtomicUsize};

/// Bytes of each stream that are asked for: all streams of a thread fill a quarter of a second cache.
const MOST: usize = 64 << 10;
/// Bytes that are fetched together.
const LINE: usize = 64;

/// Where the next job reads: its part `i` begins `i * part` bytes behind `start`, in `streams` streams that lie
/// `apart` bytes apart. Its numbers may be read while they change: then lines are fetched that nobody needs.
#[derive(Default)]
pub(super) struct Ahead {
    start: AtomicPtr<u8>,
    part: AtomicUsize,
    streams: AtomicUsize,
    apart: AtomicUsize,
}

impl Ahead {
    /// The next job reads `bytes`, `part` of them in each of its parts.
    pub fn set(&self, bytes: &[u8], part: usize, streams: usize) {
        // Less where the second thread's part is not there.
        let streams = if bytes.len() < 2 * part { 0 } else { streams };
        self.streams.store(0, Relaxed);
        self.part.store(part, Relaxed);
        self.apart.store(part / streams.max(1), Relaxed);
        self.start.store(bytes.as_ptr().cast_mut(), Relaxed);
        self.streams.store(streams, Relaxed);
    }
}

/// How far a thread is with it.
#[derive(Default)]
pub(super) struct Reading {
    of: usize,
    at: usize,
}

impl Reading {
    /// Asks for one more line of each stream of part `index`; `false` where nothing is left to ask for.
    #[inline]
    pub fn go_on(&mut self, ahead: &Ahead, index: usize) -> bool {
        let streams = ahead.streams.load(Relaxed);
        let start = ahead.start.load(Relaxed);
        if start.addr() != self.of {
            *self = Reading { of: start.addr(), at: 0 };
        }
        let apart = ahead.apart.load(Relaxed);
        if streams == 0 || self.at >= apart.min(MOST) {
            return false;
        }
        let first = start.wrapping_add(index * ahead.part.load(Relaxed) + self.at);
        (0..streams).for_each(|stream| fetch(first.wrapping_add(stream * apart)));
        self.at += LINE;
        true
    }
}

/// Asks for a line of the cache.
#[inline]
fn fetch(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: any address will do, as nothing is read: one that is not mapped is passed over.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(line.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_job_is_asked_for_once_and_no_further_than_its_parts_go() {
        let (ahead, mut reading) = (Ahead::default(), Reading::default());
        assert!(!reading.go_on(&ahead, 0), "nothing was announced");
        let bytes = vec![0; 64 << 10];
        for part in [4096, 8192] {
            ahead.set(&bytes[part..], part, 4);
            let lines = (0..).take_while(|_| reading.go_on(&ahead, 1)).count();
            assert_eq!(lines, part / 4 / LINE);
        }
        ahead.set(&bytes[..4096], 4096, 4);
        assert!(!reading.go_on(&ahead, 1), "there is no second part");
        let huge = vec![0; 4 * MOST * 4];
        ahead.set(&huge, 8 * MOST, 4);
        assert_eq!((0..).take_while(|_| reading.go_on(&ahead, 0)).count(), MOST / LINE);
    }
}
