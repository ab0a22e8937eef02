//! One token: GEMV of ternary rows.

use super::{BLOCKS_IN_16_BITS, dot_block, horizontal_sum, unpack_codes};
use crate::engine::kernels::x86_64::row_streams::{for_each_row, prefetch_ahead};
use crate::engine::quant::{BLOCK, BLOCK_BYTES, packed_row};
use std::arch::x86_64::*;

/// Multiplies all rows by one token. `q`: `[cols]`, `out`: `[rows]`.
#[target_feature(enable = "avx2")]
pub(super) fn gemv(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
    for_each_row(weights, packed_row(cols), out, |rows| dot_rows(rows, q), |row| dot_rows([row], q)[0]);
}

/// Multiplies rows of the same width by one token.
#[target_feature(enable = "avx2")]
fn dot_rows<const ROWS: usize>(rows: [&[u8]; ROWS], q: &[i8]) -> [i32; ROWS] {
    let ones = _mm256_set1_epi16(1);
    let mut sums = [_mm256_setzero_si256(); ROWS];
    for (index, q) in q.chunks(BLOCKS_IN_16_BITS * BLOCK).enumerate() {
        let first = index * BLOCKS_IN_16_BITS * BLOCK_BYTES;
        let mut partial = [_mm256_setzero_si256(); ROWS];
        for (block, q) in q.chunks_exact(BLOCK).enumerate() {
            let at = first + block * BLOCK_BYTES;
            for (row, partial) in rows.iter().zip(&mut partial) {
                prefetch_ahead(&row[at..]);
                let codes = unpack_codes(&row[at..at + BLOCK_BYTES]);
                *partial = _mm256_add_epi16(*partial, dot_block(codes, q));
            }
        }
        for (sum, partial) in sums.iter_mut().zip(partial) {
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(partial, ones));
        }
    }
    sums.map(|sum| horizontal_sum(sum))
}
