//! Tiles of two to six tokens: GEMM of ternary rows.

use crate::engine::quant::{BLOCK, BLOCK_BYTES, packed_row};
use std::arch::x86_64::*;

/// Pairs of rows that share the loads of a tile's tokens: with six tokens, 24 of 32 registers hold sums. Measured
/// in GMAC/s on Zen 4, where one `vpdpbusd` a cycle gives 228: 4 pairs of 6 tokens 194 to 215, 2 of 8 169 to 181, 2
/// of 6 176 to 195, 4 of 4 172 to 196, 3 of 8 129 to 147.
const PAIRS: usize = 4;

/// Multiplies all rows by `T` tokens. A register holds the same block of two rows, one in each half, and is
/// multiplied by the same 32 int8 in both halves, so that nothing needs rearranging.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn gemm<const T: usize>(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
    let (width, count) = (packed_row(cols), out.len() / T);
    let whole = count / (2 * PAIRS) * (2 * PAIRS);
    for row in (0..whole).step_by(2 * PAIRS) {
        let rows = &weights[row * width..(row + 2 * PAIRS) * width];
        let sums = dot_pairs::<PAIRS, T>(rows, width, width, q, cols);
        store_sums(&sums, row, count, out);
    }
    for row in (whole..count).step_by(2) {
        let few = (count - row).min(2);
        let rows = &weights[row * width..(row + few) * width];
        let sums = dot_pairs::<1, T>(rows, width, (few - 1) * width, q, cols);
        store_sums(&sums, row, count, out);
    }
}

/// Stores the sums of each token and pair. A row beyond the last is a copy of its neighbour and is not stored.
#[target_feature(enable = "avx512f")]
fn store_sums<const P: usize, const T: usize>(
    sums: &[[__m512i; T]; P],
    row: usize,
    rows: usize,
    out: &mut [i32],
) {
    for (pair, sums) in sums.iter().enumerate() {
        for (token, sum) in sums.iter().enumerate() {
            let at = token * rows + row + 2 * pair;
            let out = &mut out[at..(at + 2).min((token + 1) * rows)];
            out.copy_from_slice(&sum_halves(*sum)[..out.len()]);
        }
    }
}

/// Multiplies `P` pairs of rows of `width` bytes by `T` tokens; the rows of a pair are `second` bytes apart.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn dot_pairs<const P: usize, const T: usize>(
    rows: &[u8],
    width: usize,
    second: usize,
    q: &[i8],
    cols: usize,
) -> [[__m512i; T]; P] {
    assert!(q.len() == T * cols && cols.is_multiple_of(BLOCK));
    assert!(rows.len() >= (2 * P - 2) * width + second + width);
    let low = _mm512_set1_epi8(3);
    let mut sums = [[_mm512_setzero_si512(); T]; P];
    for block in 0..cols / BLOCK {
        let mut packed = [low; P];
        for (pair, packed) in packed.iter_mut().enumerate() {
            *packed = load_pair(rows, 2 * pair * width + block * BLOCK_BYTES, second);
        }
        for group in 0..4 {
            let shift = _mm_cvtsi32_si128(6 - 2 * group as i32);
            let codes = packed.map(|packed| _mm512_and_si512(_mm512_srl_epi16(packed, shift), low));
            for token in 0..T {
                // SAFETY: within the token's row of `cols`, as asserted; no alignment is needed.
                let q = unsafe {
                    let at = q.as_ptr().add(token * cols + block * BLOCK + group * BLOCK_BYTES);
                    _mm512_broadcast_i64x4(_mm256_loadu_si256(at.cast()))
                };
                for (sums, codes) in sums.iter_mut().zip(codes) {
                    sums[token] = _mm512_dpbusd_epi32(sums[token], codes, q);
                }
            }
        }
    }
    sums
}

/// Loads the same block of two rows, `second` bytes apart.
#[target_feature(enable = "avx512f,avx512vl")]
fn load_pair(rows: &[u8], at: usize, second: usize) -> __m512i {
    debug_assert!(at + second + BLOCK_BYTES <= rows.len());
    // SAFETY: the caller has asserted that its rows are whole; `at` is the start of a block in the first row of a
    // pair, and `second` the distance to the same block of the other row. The loads need no alignment.
    unsafe {
        let at = rows.as_ptr().add(at);
        let (low, high) = (_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(second).cast()));
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
    }
}

/// The sum of each half.
#[target_feature(enable = "avx512f")]
fn sum_halves(x: __m512i) -> [i32; 2] {
    let low = _mm512_castsi512_si256(x);
    let high = _mm512_extracti64x4_epi64::<1>(x);
    [low, high].map(|half| {
        let x = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half));
        let x = _mm_add_epi32(x, _mm_shuffle_epi32::<0b01_00_11_10>(x));
        _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32::<0b10_11_00_01>(x)))
    })
}
