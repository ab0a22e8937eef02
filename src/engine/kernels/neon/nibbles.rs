//! 4-bit codes times int8.

use crate::engine::quant::{NIBBLE_BLOCK, NIBBLE_BLOCK_BYTES};
use std::arch::aarch64::*;

/// Rows that share the loads of activations.
const ROWS: usize = 2;

/// All rows.
#[target_feature(enable = "neon")]
pub(super) fn nibbles(rows: &[u8], q: &[i8], out: &mut [i32]) {
    let width = q.len() / 2;
    let (pairs, rest) = out.as_chunks_mut::<ROWS>();
    let (rows, rows_rest) = rows.split_at(pairs.len() * ROWS * width);
    for (out, rows) in pairs.iter_mut().zip(rows.chunks_exact(ROWS * width)) {
        let (first, second) = rows.split_at(width);
        *out = dot_rows([first, second], q);
    }
    for (out, row) in rest.iter_mut().zip(rows_rest.chunks_exact(width)) {
        *out = dot_rows([row], q)[0];
    }
}

#[target_feature(enable = "neon")]
fn dot_rows<const R: usize>(rows: [&[u8]; R], q: &[i8]) -> [i32; R] {
    let mut sums = [vdupq_n_s32(0); R];
    let rows = rows.map(|row| row.as_chunks::<NIBBLE_BLOCK_BYTES>().0);
    for (block, q) in q.as_chunks::<NIBBLE_BLOCK>().0.iter().enumerate() {
        let mut partial = [vdupq_n_s16(0); R];
        for part in 0..4 {
            // SAFETY: 16 of 64 numbers in each half of the block; the loads need no alignment.
            let (low, high) =
                unsafe { (vld1q_s8(q[part * 16..].as_ptr()), vld1q_s8(q[64 + part * 16..].as_ptr())) };
            for (row, partial) in rows.iter().zip(&mut partial) {
                *partial = add_codes(*partial, &row[block].as_chunks::<16>().0[part], low, high);
            }
        }
        for (sum, partial) in sums.iter_mut().zip(partial) {
            *sum = vpadalq_s16(*sum, partial);
        }
    }
    sums.map(|sum| vaddvq_s32(sum))
}

/// Four products more in each lane. A block makes 16 of them, each a code (at most 15) times an int8 (at
/// least -128): -30,720 at the least.
#[target_feature(enable = "neon")]
#[inline]
fn add_codes(sum: int16x8_t, bytes: &[u8; 16], q_low: int8x16_t, q_high: int8x16_t) -> int16x8_t {
    // SAFETY: 16 bytes; the load needs no alignment.
    let bytes = unsafe { vld1q_u8(bytes.as_ptr()) };
    let low = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
    let high = vreinterpretq_s8_u8(vshrq_n_u8::<4>(bytes));
    let sum = vmlal_s8(sum, vget_low_s8(low), vget_low_s8(q_low));
    let sum = vmlal_high_s8(sum, low, q_low);
    let sum = vmlal_s8(sum, vget_low_s8(high), vget_low_s8(q_high));
    vmlal_high_s8(sum, high, q_high)
}
