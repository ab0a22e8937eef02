//! Tiles of six to eight tokens: GEMM of ternary rows by table look-up.
//!
//! A packed byte holds four codes, which have 81 possible sums with four activations. With eight tokens a sum is a
//! vector with 16 bits for each token, so that one load and one addition replace 32 products, where `smlal` does 8.
//! The bytes of packed rows are the table indices. Building the tables takes as long as some hundred rows take to
//! use them, hence the bands.
//!
//! Tried, in cycles of a Cortex-A72 for 256 weights and a token: `smlal` with codes unpacked once for four tokens,
//! 37.7 (32 at best); tables for two codes, 33.9 (addressing by a register is an operation of its own there, so
//! that a look-up takes four); sums in 16 bits for a whole block, which makes the loop shorter (16.1 instead of
//! 18.1) and needs a second one: no gain.

use super::gemv::gemv;
use crate::engine::quant::{BLOCK, BLOCK_BYTES, packed_row};
use std::arch::aarch64::*;

/// The most tokens of a tile: one vector of 16-bit sums.
pub(super) const TILE_TOKENS: usize = 8;
/// The most rows that share the same tables; their sums take 8 KB.
const BAND_ROWS: usize = 256;
/// The fewest rows that are worth building tables; with fewer, one token after the other is faster.
const MIN_ROWS: usize = 128;
/// Bytes of a row that are looked up before the next row's: the tables in use take 14 KB of an L1 cache of 32 KB.
const CHUNK_BYTES: usize = 8;

/// The sums of a byte's four codes, at `TABLE_STRIDE * place + byte`. The largest valid byte is 0b10_10_10_10;
/// invalid ones read an entry of the next table. 32 products reach -8,192.
type Tables = [int16x8_t; (CHUNK_BYTES - 1) * TABLE_STRIDE + 256];
/// Whole cache lines of 64 bytes, and an odd number of them, so that tables do not compete for the same cache sets.
const TABLE_STRIDE: usize = 172;

/// Multiplies all rows by a tile of tokens. With fewer than [`TILE_TOKENS`] the last token is repeated.
#[target_feature(enable = "neon")]
pub(super) fn gemm(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
    let (row, rows) = (packed_row(cols), out.len() / (q.len() / cols));
    for (band, weights) in weights.chunks(BAND_ROWS * row).enumerate() {
        let rows_here = band * BAND_ROWS..rows.min((band + 1) * BAND_ROWS);
        if rows_here.len() < MIN_ROWS {
            for (out, q) in out.chunks_exact_mut(rows).zip(q.chunks_exact(cols)) {
                gemv(weights, q, cols, &mut out[rows_here.clone()]);
            }
            continue;
        }
        let dots = dot_band(weights, q, cols);
        for (token, out) in out.chunks_exact_mut(rows).enumerate() {
            for (out, dots) in out[rows_here.clone()].iter_mut().zip(&dots) {
                *out = dots[token];
            }
        }
    }
}

/// Multiplies up to [`BAND_ROWS`] rows: `[row, token]`.
#[target_feature(enable = "neon")]
fn dot_band(weights: &[u8], q: &[i8], cols: usize) -> [[i32; TILE_TOKENS]; BAND_ROWS] {
    let row = packed_row(cols);
    let mut sums = [vdupq_n_s16(0); _];
    let mut dots = [[0; TILE_TOKENS]; BAND_ROWS];
    for part in 0..row / CHUNK_BYTES {
        build_tables(&mut sums, q, cols, part);
        for (weights, dots) in weights.chunks_exact(row).zip(&mut dots) {
            let sum = look_up(&sums, weights.as_chunks().0[part]);
            // SAFETY: eight numbers, read and written; no alignment is needed.
            unsafe {
                let int32x4x2_t(a, b) = vld1q_s32_x2(dots.as_ptr());
                let (a, b) = (vaddw_s16(a, vget_low_s16(sum)), vaddw_high_s16(b, sum));
                vst1q_s32_x2(dots.as_mut_ptr(), int32x4x2_t(a, b));
            }
        }
    }
    dots
}

/// The sum of the products of eight bytes of a row, for each token.
#[target_feature(enable = "neon")]
#[inline]
fn look_up(sums: &Tables, bytes: [u8; CHUNK_BYTES]) -> int16x8_t {
    let word = u64::from_le_bytes(bytes);
    // Two sums, so that an addition does not wait for the one before.
    let mut dots = [vdupq_n_s16(0); 2];
    for place in 0..CHUNK_BYTES {
        let byte = usize::from((word >> (8 * place)) as u8);
        dots[place % 2] = vaddq_s16(dots[place % 2], sums[place * TABLE_STRIDE + byte]);
    }
    vaddq_s16(dots[0], dots[1])
}

/// Builds the tables for eight bytes of all rows: those of part `part`.
#[target_feature(enable = "neon")]
fn build_tables(sums: &mut Tables, q: &[i8], cols: usize, part: usize) {
    let at = part * CHUNK_BYTES;
    let first = at / BLOCK_BYTES * BLOCK + at % BLOCK_BYTES;
    let mut columns = [[vdupq_n_s16(0); CHUNK_BYTES]; 4]; // [group, byte]: all tokens
    for (group, columns) in columns.iter_mut().enumerate() {
        *columns = transpose(q, cols, first + group * BLOCK_BYTES);
    }
    for place in 0..CHUNK_BYTES {
        let sums: &mut [int16x8_t; 171] =
            sums[place * TABLE_STRIDE..].first_chunk_mut().expect("256 are there");
        let [a, b, c, d] = [0, 1, 2, 3].map(|group: usize| columns[group][place]);
        for (i, a) in multiples(vdupq_n_s16(0), a).into_iter().enumerate() {
            for (j, b) in multiples(a, b).into_iter().enumerate() {
                for (k, c) in multiples(b, c).into_iter().enumerate() {
                    for (l, d) in multiples(c, d).into_iter().enumerate() {
                        sums[i << 6 | j << 4 | k << 2 | l] = d;
                    }
                }
            }
        }
    }
}

/// `sum` plus `x` times the codes 0, 1 and 2.
#[target_feature(enable = "neon")]
#[inline]
fn multiples(sum: int16x8_t, x: int16x8_t) -> [int16x8_t; 3] {
    let one = vaddq_s16(sum, x);
    [sum, one, vaddq_s16(one, x)]
}

/// Loads eight columns of `q` from `first` on, with all tokens of each.
#[target_feature(enable = "neon")]
#[inline]
fn transpose(q: &[i8], cols: usize, first: usize) -> [int16x8_t; CHUNK_BYTES] {
    let tokens = q.len() / cols;
    assert!(tokens > 0 && first + CHUNK_BYTES <= cols);
    let mut rows = [vdup_n_s8(0); TILE_TOKENS];
    for (token, row) in rows.iter_mut().enumerate() {
        // SAFETY: eight numbers, as just checked; the load needs no alignment.
        *row = unsafe { vld1_s8(q.as_ptr().add(token.min(tokens - 1) * cols + first)) };
    }
    // Each round moves the first of the six bits that number the 64 values, tokens first, to the end.
    for _ in 0..3 {
        let [a, b, c, d, e, f, g, h] = rows;
        rows = [
            vzip1_s8(a, e),
            vzip2_s8(a, e),
            vzip1_s8(b, f),
            vzip2_s8(b, f),
            vzip1_s8(c, g),
            vzip2_s8(c, g),
            vzip1_s8(d, h),
            vzip2_s8(d, h),
        ];
    }
    rows.map(|tokens| vmovl_s8(tokens))
}
