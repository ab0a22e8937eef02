//! Tiles of two to four tokens: GEMM of ternary rows.

use super::{BLOCKS_IN_16_BITS, dot_block, horizontal_sum, unpack_codes};
use crate::engine::kernels::x86_64::row_streams::prefetch_far_ahead;
use crate::engine::quant::{BLOCK, BLOCK_BYTES, packed_row};
use std::arch::x86_64::*;

/// Multiplies all rows by `T` tokens. Of 16 registers four tokens take 4 for codes, 4 for 16-bit sums and 4 for
/// 32-bit sums.
#[target_feature(enable = "avx2")]
pub(super) fn gemm<const T: usize>(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
    let rows = out.len() / T;
    for (row, weights) in weights.chunks_exact(packed_row(cols)).enumerate() {
        let dots = dot_tile::<T>(weights, q, cols);
        for (token, dot) in dots.into_iter().enumerate() {
            out[token * rows + row] = dot;
        }
    }
}

#[target_feature(enable = "avx2")]
fn dot_tile<const T: usize>(weights: &[u8], q: &[i8], cols: usize) -> [i32; T] {
    let ones = _mm256_set1_epi16(1);
    let mut sums = [_mm256_setzero_si256(); T];
    for (index, blocks) in weights.chunks(BLOCKS_IN_16_BITS * BLOCK_BYTES).enumerate() {
        let first = index * BLOCKS_IN_16_BITS * BLOCK;
        let mut partial = [_mm256_setzero_si256(); T];
        for (block, bytes) in blocks.chunks_exact(BLOCK_BYTES).enumerate() {
            if block % 2 == 0 {
                prefetch_far_ahead(bytes); // two blocks are one cache line
            }
            let codes = unpack_codes(bytes);
            for (token, partial) in partial.iter_mut().enumerate() {
                let at = token * cols + first + block * BLOCK;
                *partial = _mm256_add_epi16(*partial, dot_block(codes, &q[at..at + BLOCK]));
            }
        }
        for (sum, partial) in sums.iter_mut().zip(partial) {
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(partial, ones));
        }
    }
    sums.map(|sum| horizontal_sum(sum))
}
