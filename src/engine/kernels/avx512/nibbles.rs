//! 4-bit codes times int8: a block is one register of codes and two of int8.

use crate::engine::kernels::streams::{each_row, fetch_ahead};
use crate::engine::quant::{NIBBLE_BLOCK, NIBBLE_BLOCK_BYTES};
use std::arch::x86_64::*;

/// All rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn nibbles(rows: &[u8], q: &[i8], out: &mut [i32]) {
    each_row(rows, q.len() / 2, out, |rows| dot_rows(rows, q), |row| dot_rows([row], q)[0]);
}

/// Rows of the same width. High codes are multiplied where they stand in their byte, as 16 times
/// themselves, and their sums divided at the end.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn dot_rows<const ROWS: usize>(rows: [&[u8]; ROWS], q: &[i8]) -> [i32; ROWS] {
    let (low, high) = (_mm512_set1_epi8(0x0f), _mm512_set1_epi8(0xf0u8 as i8));
    let mut sums = [[_mm512_setzero_si512(); 2]; ROWS];
    for (block, q) in q.as_chunks::<NIBBLE_BLOCK>().0.iter().enumerate() {
        // SAFETY: 128 numbers; the loads need no alignment.
        let q = unsafe { [0, 64].map(|at| _mm512_loadu_si512(q[at..].as_ptr().cast())) };
        for (row, [a, b]) in rows.iter().zip(&mut sums) {
            let bytes = &row[block * NIBBLE_BLOCK_BYTES..][..NIBBLE_BLOCK_BYTES];
            fetch_ahead(bytes);
            // SAFETY: 64 bytes; the load needs no alignment.
            let codes = unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
            *a = _mm512_dpbusd_epi32(*a, _mm512_and_si512(codes, low), q[0]);
            *b = _mm512_dpbusd_epi32(*b, _mm512_and_si512(codes, high), q[1]);
        }
    }
    sums.map(|[a, b]| _mm512_reduce_add_epi32(_mm512_add_epi32(a, _mm512_srai_epi32::<4>(b))))
}
