//! One token: four rows at a time.

use crate::engine::quant::{BLOCK, BLOCK_BYTES, packed_row};
use std::arch::aarch64::*;

/// Rows that share the loads of activations.
const ROWS: usize = 4;
/// Blocks of a row that fit 16 bits: a lane takes eight products of a code times 4 (at most 8) and an
/// int8 (at least -128) from each, 32 in all, which is -32,768: just the least there is.
const BLOCKS: usize = 4;

/// All rows for one token.
#[target_feature(enable = "neon")]
pub(super) fn ternary(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
    let row = packed_row(cols);
    let (out, rest) = out.as_chunks_mut::<ROWS>();
    let (weights, weights_rest) = weights.split_at(out.len() * ROWS * row);
    for (weights, out) in weights.chunks_exact(ROWS * row).zip(out) {
        *out = dot_rows(weights, q);
    }
    for (weights, out) in weights_rest.chunks_exact(row).zip(rest) {
        [*out] = dot_rows(weights, q);
    }
}

#[target_feature(enable = "neon")]
fn dot_rows<const R: usize>(weights: &[u8], q: &[i8]) -> [i32; R] {
    let row = q.len() / BLOCK * BLOCK_BYTES;
    assert_eq!(weights.len(), R * row);
    let mut sums = [vdupq_n_s32(0); R];
    for (index, q) in q.chunks(BLOCKS * BLOCK).enumerate() {
        let mut partial = [[vdupq_n_s16(0); 2]; R];
        for (block, q) in q.as_chunks::<BLOCK>().0.iter().enumerate() {
            for half in 0..2 {
                let at = (index * BLOCKS + block) * BLOCK_BYTES + half * 16;
                // SAFETY: a block of a row, as checked above.
                partial = unsafe { add_half(partial, weights.as_ptr().add(at), row, q.as_ptr().add(half * 16)) };
            }
        }
        for (sum, [ones, fours]) in sums.iter_mut().zip(partial) {
            *sum = vpadalq_s16(*sum, vsraq_n_s16::<2>(ones, fours));
        }
    }
    sums.map(|sum| vaddvq_s32(sum))
}

#[target_feature(enable = "neon")]
#[inline]
unsafe fn add_half<const R: usize>(mut partial: [[int16x8_t; 2]; R], weights: *const u8, row: usize, q: *const i8) -> [[int16x8_t; 2]; R] {
    // SAFETY: as the caller promises
    let q = unsafe { [0, 1, 2, 3].map(|group| vld1q_s8(q.add(group * 32))) };
    for (index, [ones, fours]) in partial.iter_mut().enumerate() {
        // SAFETY: as the caller promises
        let bytes = unsafe { vld1q_u8(weights.add(index * row)) };
        let upper = vshrq_n_u8::<4>(bytes);
        let masked = |bytes, mask| vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(mask)));
        *fours = mla(*fours, masked(upper, 0x0c), q[0]);
        *ones = mla(*ones, masked(upper, 0x03), q[1]);
        *fours = mla(*fours, masked(bytes, 0x0c), q[2]);
        *ones = mla(*ones, masked(bytes, 0x03), q[3]);
    }
    partial
}

#[target_feature(enable = "neon")]
fn mla(sum: int16x8_t, a: int8x16_t, b: int8x16_t) -> int16x8_t {
    vmlal_high_s8(vmlal_s8(sum, vget_low_s8(a), vget_low_s8(b)), a, b)
}
