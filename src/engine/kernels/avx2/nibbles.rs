//! 4-bit codes times int8.

use super::horizontal_sum;
use crate::engine::kernels::streams::{each_row, fetch_ahead};
use crate::engine::quant::{NIBBLE_BLOCK, NIBBLE_BLOCK_BYTES};
use std::arch::x86_64::*;

/// All rows.
#[target_feature(enable = "avx2")]
pub(super) fn nibbles(rows: &[u8], q: &[i8], out: &mut [i32]) {
    each_row(rows, q.len() / 2, out, |rows| dot_rows(rows, q), |row| dot_rows([row], q)[0]);
}

/// Rows of the same width. A block's sums fit 16 bits: a lane takes two products of a code (at most 15)
/// and an int8 (at least -128) from each of four registers, 15,360 at most.
#[target_feature(enable = "avx2")]
fn dot_rows<const ROWS: usize>(rows: [&[u8]; ROWS], q: &[i8]) -> [i32; ROWS] {
    let ones = _mm256_set1_epi16(1);
    let mut sums = [_mm256_setzero_si256(); ROWS];
    for (block, q) in q.chunks_exact(NIBBLE_BLOCK).enumerate() {
        for (row, sum) in rows.iter().zip(&mut sums) {
            fetch_ahead(&row[block * NIBBLE_BLOCK_BYTES..]);
            let partial = dot_block(&row[block * NIBBLE_BLOCK_BYTES..][..NIBBLE_BLOCK_BYTES], q);
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(partial, ones));
        }
    }
    sums.map(|sum| horizontal_sum(sum))
}

#[target_feature(enable = "avx2")]
fn dot_block(bytes: &[u8], q: &[i8]) -> __m256i {
    assert!(bytes.len() == NIBBLE_BLOCK_BYTES && q.len() == NIBBLE_BLOCK);
    let (bytes, q) = (bytes.as_ptr().cast::<__m256i>(), q.as_ptr().cast::<__m256i>());
    // SAFETY: 64 bytes and 128, as just checked: two loads and four, which need no alignment.
    let (bytes, q) = unsafe {
        (
            [0, 1].map(|at| _mm256_loadu_si256(bytes.add(at))),
            [0, 1, 2, 3].map(|at| _mm256_loadu_si256(q.add(at))),
        )
    };
    let mask = _mm256_set1_epi8(15);
    let low = bytes.map(|bytes| _mm256_and_si256(bytes, mask));
    let high = bytes.map(|bytes| _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask));
    let a = _mm256_add_epi16(_mm256_maddubs_epi16(low[0], q[0]), _mm256_maddubs_epi16(low[1], q[1]));
    let b = _mm256_add_epi16(_mm256_maddubs_epi16(high[0], q[2]), _mm256_maddubs_epi16(high[1], q[3]));
    _mm256_add_epi16(a, b)
}
