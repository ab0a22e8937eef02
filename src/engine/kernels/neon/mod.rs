//! NEON as every Armv8 processor has it: Raspberry Pi 3, 4, Zero 2 W.
//!
//! Without the dot product a code times an int8 goes through `smlal`, one product to a 16-bit lane.

mod one;

use super::{BLOCKS_IN_16_BITS, Kernels, blocks};
use crate::engine::quant::{BLOCK, BLOCK_BYTES, Blocks, packed_row};
use half::f16;
use std::arch::aarch64::*;

/// Of 32 registers four tokens take 8 for codes and 12 for sums.
const TILE: usize = 4;

pub(super) const TABLE: Kernels = Kernels {
    name: "neon",
    ternary_one: one::ternary,
    ternary_tile: ternary::<TILE>,
    tile: TILE,
    dot_f16,
    mix_f16,
    dot_blocks,
};

/// All rows for `T` tokens.
#[target_feature(enable = "neon")]
fn ternary<const T: usize>(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
    let rows = out.len() / T;
    for (row, weights) in weights.chunks_exact(packed_row(cols)).enumerate() {
        let dots = dot_row::<T>(weights, q, cols);
        for (token, dot) in dots.into_iter().enumerate() {
            out[token * rows + row] = dot;
        }
    }
}

#[target_feature(enable = "neon")]
fn dot_row<const T: usize>(weights: &[u8], q: &[i8], cols: usize) -> [i32; T] {
    let mut sums = [vdupq_n_s32(0); T];
    for (index, blocks) in weights.chunks(BLOCKS_IN_16_BITS * BLOCK_BYTES).enumerate() {
        let first = index * BLOCKS_IN_16_BITS * BLOCK;
        // Low and high halves apart: a lane of each takes 8 products a block, 120 at most.
        let mut partial = [[vdupq_n_s16(0); 2]; T];
        for (block, bytes) in blocks.chunks_exact(BLOCK_BYTES).enumerate() {
            let codes = unpack(bytes);
            for (token, partial) in partial.iter_mut().enumerate() {
                let at = token * cols + first + block * BLOCK;
                *partial = add_block(*partial, codes, &q[at..at + BLOCK]);
            }
        }
        for (sum, [low, high]) in sums.iter_mut().zip(partial) {
            *sum = vpadalq_s16(vpadalq_s16(*sum, low), high);
        }
    }
    sums.map(|sum| vaddvq_s32(sum))
}

/// The codes of a block in order: 8 times 16.
#[target_feature(enable = "neon")]
pub(super) fn unpack(bytes: &[u8]) -> [int8x16_t; 8] {
    assert_eq!(bytes.len(), BLOCK_BYTES);
    // SAFETY: 32 bytes, as just checked; the loads need no alignment.
    let [a, b] = unsafe { [vld1q_u8(bytes.as_ptr()), vld1q_u8(bytes.as_ptr().add(16))] };
    let low = vdupq_n_u8(3);
    [
        vshrq_n_u8::<6>(a),
        vshrq_n_u8::<6>(b),
        vandq_u8(vshrq_n_u8::<4>(a), low),
        vandq_u8(vshrq_n_u8::<4>(b), low),
        vandq_u8(vshrq_n_u8::<2>(a), low),
        vandq_u8(vshrq_n_u8::<2>(b), low),
        vandq_u8(a, low),
        vandq_u8(b, low),
    ]
    .map(|codes| vreinterpretq_s8_u8(codes))
}

/// The int8 of a block in order: 8 times 16.
#[target_feature(enable = "neon")]
pub(super) fn load_block(q: &[i8]) -> [int8x16_t; 8] {
    assert_eq!(q.len(), BLOCK);
    let q = q.as_ptr();
    // SAFETY: 128 bytes, as just checked; the loads need no alignment.
    unsafe { [0, 1, 2, 3, 4, 5, 6, 7].map(|part| vld1q_s8(q.add(part * 16))) }
}

#[target_feature(enable = "neon")]
fn add_block(partial: [int16x8_t; 2], codes: [int8x16_t; 8], q: &[i8]) -> [int16x8_t; 2] {
    let [mut low, mut high] = partial;
    for (codes, q) in codes.into_iter().zip(load_block(q)) {
        low = vmlal_s8(low, vget_low_s8(codes), vget_low_s8(q));
        high = vmlal_high_s8(high, codes, q);
    }
    [low, high]
}

/// Four half-precision numbers.
#[target_feature(enable = "neon")]
fn load_f16(bytes: &[u8; 8]) -> float32x4_t {
    // SAFETY: 8 bytes; the load needs no alignment.
    let bits = unsafe { vreinterpret_f16_u8(vld1_u8(bytes.as_ptr())) };
    vcvt_f32_f16(bits)
}

#[target_feature(enable = "neon")]
fn load_f32(x: &[f32; 4]) -> float32x4_t {
    // SAFETY: 16 bytes; the load needs no alignment.
    unsafe { vld1q_f32(x.as_ptr()) }
}

#[target_feature(enable = "neon")]
pub(super) fn dot_f16(rows: &[u8], x: &[f32], out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(x.len() * 2).zip(out) {
        *out = dot_row_f16(row, x);
    }
}

#[target_feature(enable = "neon")]
fn dot_row_f16(row: &[u8], x: &[f32]) -> f32 {
    let ((bytes, bytes_rest), (x, x_rest)) = (row.as_chunks::<8>(), x.as_chunks::<4>());
    // Four sums: a fused multiply-add takes four cycles on these cores.
    let mut sums = [vdupq_n_f32(0.0); 4];
    for (bytes, x) in bytes.chunks(4).zip(x.chunks(4)) {
        for ((bytes, x), sum) in bytes.iter().zip(x).zip(&mut sums) {
            *sum = vfmaq_f32(*sum, load_f16(bytes), load_f32(x));
        }
    }
    let sum = vaddq_f32(vaddq_f32(sums[0], sums[1]), vaddq_f32(sums[2], sums[3]));
    bytes_rest
        .as_chunks::<2>()
        .0
        .iter()
        .zip(x_rest)
        .fold(vaddvq_f32(sum), |sum, (bytes, x)| sum + f16::from_le_bytes(*bytes).to_f32_const() * x)
}

#[target_feature(enable = "neon")]
pub(super) fn mix_f16(rows: &[u8], weights: &[f32], out: &mut [f32]) {
    for (row, weight) in rows.chunks_exact(out.len() * 2).zip(weights) {
        let ((bytes, bytes_rest), (out, out_rest)) = (row.as_chunks::<8>(), out.as_chunks_mut::<4>());
        for (bytes, out) in bytes.iter().zip(out) {
            let sum = vfmaq_n_f32(load_f32(out), load_f16(bytes), *weight);
            // SAFETY: four floats; the store needs no alignment.
            unsafe { vst1q_f32(out.as_mut_ptr(), sum) };
        }
        for (bytes, out) in bytes_rest.as_chunks::<2>().0.iter().zip(out_rest) {
            *out += f16::from_le_bytes(*bytes).to_f32_const() * weight;
        }
    }
}

#[target_feature(enable = "neon")]
pub(super) fn dot_blocks(kind: Blocks, rows: &[u8], x: &[f32], out: &mut [f32]) {
    blocks::dot::<true>(kind, rows, x, out);
}
