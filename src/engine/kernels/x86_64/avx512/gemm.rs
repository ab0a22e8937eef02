//! Tiles of two to six tokens: GEMM of ternary rows.

use crate::engine::kernels::x86_64::row_streams::prefetch_behind;
use crate::engine::quant::{BLOCK, BLOCK_BYTES, packed_row};
use std::arch::x86_64::*;

/// Pairs of rows that share the loads of a tile's tokens: with six tokens, 24 of 32 registers hold sums. Measured
/// in GMAC/s on Zen 4, where one `vpdpbusd` a cycle gives 228: 4 pairs of 6 tokens 194 to 215, 2 of 8 169 to 181, 2
/// of 6 176 to 195, 4 of 4 172 to 196, 3 of 8 129 to 147.
const PAIRS: usize = 4;
/// The rows of these pairs.
const ROWS: usize = 2 * PAIRS;

/// Multiplies all rows by `T` tokens, `P` pairs of rows at a time. A register holds the same block of two rows, one in
/// each half, and is multiplied by the same 32 int8 in both halves, so that nothing needs rearranging.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn gemm<const P: usize, const T: usize>(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
    let (width, count) = (packed_row(cols), out.len() / T);
    let whole = count / (2 * P) * (2 * P);
    for row in (0..whole).step_by(2 * P) {
        let rows = &weights[row * width..(row + 2 * P) * width];
        let sums = dot_pairs::<P, T>(rows, width, width, q, cols);
        store_sums(&sums, 2 * P, &mut out[row..], count);
    }
    for row in (whole..count).step_by(2) {
        // A row beyond the last is a copy of its neighbour and is not stored.
        let few = (count - row).min(2);
        let rows = &weights[row * width..(row + few) * width];
        let sums = dot_pairs::<1, T>(rows, width, (few - 1) * width, q, cols);
        store_sums(&sums, few, &mut out[row..], count);
    }
}

/// Stores the sums of each token and row: `out[t * count + r]`.
#[target_feature(enable = "avx512f")]
#[inline]
fn store_sums<const P: usize, const T: usize>(
    sums: &[[__m512i; P]; T],
    rows: usize,
    out: &mut [i32],
    count: usize,
) {
    for (token, sums) in sums.iter().enumerate() {
        let mut four = [_mm512_setzero_si512(); PAIRS];
        four[..P].copy_from_slice(sums);
        out[token * count..][..rows].copy_from_slice(&sum_pairs(four)[..rows]);
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
) -> [[__m512i; P]; T] {
    assert!(q.len() == T * cols && cols.is_multiple_of(BLOCK));
    assert!(rows.len() >= (2 * P - 2) * width + second + width);
    let low = _mm512_set1_epi8(3);
    let mut sums = [[_mm512_setzero_si512(); P]; T];
    for block in 0..cols / BLOCK {
        prefetch_behind(rows, 2 * P * BLOCK_BYTES * block, 2 * P * BLOCK_BYTES);
        let mut packed = [low; P];
        for (pair, packed) in packed.iter_mut().enumerate() {
            *packed = load_pair(rows, 2 * pair * width + block * BLOCK_BYTES, second);
        }
        for group in 0..4 {
            let shift = _mm_cvtsi32_si128(6 - 2 * group as i32);
            let codes = packed.map(|packed| _mm512_and_si512(_mm512_srl_epi16(packed, shift), low));
            for (token, sums) in sums.iter_mut().enumerate() {
                // SAFETY: within the token's row of `cols`, as asserted; no alignment is needed.
                let q = unsafe {
                    let at = q.as_ptr().add(token * cols + block * BLOCK + group * BLOCK_BYTES);
                    _mm512_broadcast_i64x4(_mm256_loadu_si256(at.cast()))
                };
                for (sum, codes) in sums.iter_mut().zip(codes) {
                    *sum = _mm512_dpbusd_epi32(*sum, codes, q);
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

/// The sums of the rows of four pairs, in their order.
#[target_feature(enable = "avx512f")]
fn sum_pairs([a, b, c, d]: [__m512i; PAIRS]) -> [i32; ROWS] {
    let pairs = |x, y| _mm512_add_epi32(_mm512_unpacklo_epi32(x, y), _mm512_unpackhi_epi32(x, y));
    let (ab, cd) = (pairs(a, b), pairs(c, d));
    // Each 128 bits: four sums of the first rows of the pairs in the lower half, of the second rows in the upper.
    let all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    let order = |first, second| {
        _mm512_setr_epi32(
            first,
            first + 8,
            first + 1,
            first + 9,
            first + 2,
            first + 10,
            first + 3,
            first + 11,
            second,
            second + 8,
            second + 1,
            second + 9,
            second + 2,
            second + 10,
            second + 3,
            second + 11,
        )
    };
    let all = _mm512_permutexvar_epi32(order(0, 4), all);
    let dots = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64::<1>(all));
    let mut out = [0; ROWS];
    // SAFETY: eight numbers; the store needs no alignment.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), dots) };
    out
}
