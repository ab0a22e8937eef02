//! The order in which the x86-64 kernels read rows from memory.

use crate::engine::kernels::prefetch::{CACHE_LINE, prefetch_line};

/// Rows that are read side by side. They lie far apart, so that the hardware prefetcher follows each as a stream of
/// its own: one row after the other gives 15 GB/s, four streams give 23 (Zen 4, one thread).
pub(super) const STREAMS: usize = 4;

/// How many bytes ahead a row is prefetched. The hardware prefetcher leaves a little to gain (Zen 4, a decoded
/// token of the 2B model on two threads: 18.6 ms without, 18.7 with 128, 18.3 with 256, 18.2 with 512, 19.0 with
/// 1024, where reading and adding alone take 18.3).
const PREFETCH_DISTANCE: usize = 512;

/// How many bytes ahead a single row is prefetched. One stream must run further ahead than each of four (Sapphire
/// Rapids, AVX2, 256 weights from memory and two tokens: 16.7 ns with 512, 13.7 with 2560, 20.7 without).
const ROW_PREFETCH_DISTANCE: usize = 2560;

/// Prefetches what lies [`PREFETCH_DISTANCE`] behind the start of `row`, be it of this row or of the next.
#[inline(always)]
pub(super) fn prefetch_ahead(row: &[u8]) {
    prefetch_line(row.as_ptr().wrapping_add(PREFETCH_DISTANCE));
}

/// Prefetches `len` bytes from `at` on behind the end of `rows`, which is what the same kernel reads next. Where a
/// kernel reads some rows side by side that follow each other in memory, each is too short a stream for the hardware
/// prefetcher.
#[inline(always)]
pub(super) fn prefetch_behind(rows: &[u8], at: usize, len: usize) {
    for line in (0..len).step_by(CACHE_LINE) {
        prefetch_line(rows.as_ptr().wrapping_add(rows.len() + at + line));
    }
}

/// Prefetches what lies [`ROW_PREFETCH_DISTANCE`] behind the start of `row`, for kernels that read one row at a time.
#[inline(always)]
pub(super) fn prefetch_far_ahead(row: &[u8]) {
    prefetch_line(row.as_ptr().wrapping_add(ROW_PREFETCH_DISTANCE));
}

/// Computes `out`, one number for each row of `width` bytes: [`STREAMS`] rows at a time with `side_by_side`, and
/// the last few with `alone`. Always inlined, so that it is compiled for the caller's instruction set.
#[inline(always)]
pub(super) fn for_each_row<T>(
    rows: &[u8],
    width: usize,
    out: &mut [T],
    side_by_side: impl Fn([&[u8]; STREAMS]) -> [T; STREAMS],
    alone: impl Fn(&[u8]) -> T,
) {
    let part = out.len() / STREAMS;
    if part > 0 {
        // The first bytes, which no earlier row has prefetched.
        for line in (0..PREFETCH_DISTANCE).step_by(CACHE_LINE) {
            (0..STREAMS)
                .for_each(|stream| prefetch_line(rows.as_ptr().wrapping_add(stream * part * width + line)));
        }
    }
    let (streams, rest) = out.split_at_mut(part * STREAMS);
    for row in 0..part {
        let at = |stream: usize| &rows[(stream * part + row) * width..][..width];
        let dots = side_by_side([at(0), at(1), at(2), at(3)]);
        dots.into_iter().enumerate().for_each(|(stream, dot)| streams[stream * part + row] = dot);
    }
    for (row, out) in rows.chunks_exact(width).skip(part * STREAMS).zip(rest) {
        *out = alone(row);
    }
}
