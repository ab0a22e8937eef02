//! Rows in Q8_0 and Q6_K blocks: codes become floats in registers, four at a time, and each scale is applied once
//! to the sum of its 16 or 32 products.
//!
//! To widen codes, a table look-up puts each into the highest byte of its lane (an index that is out of range gives
//! 0), and the conversion to float divides by 2^24. That takes no shifts, of which these cores do one a cycle, half
//! as many as look-ups.

use super::{horizontal_sum_f32, load_f32};
use crate::engine::kernels::block_quant;
use crate::engine::quant::BlockFormat;
use crate::engine::quant::blocks::{K_BLOCK, Q6_K_BYTES, Q8_0_BLOCK, Q8_0_BYTES};
use std::arch::aarch64::*;

/// Eight lanes in two registers, so that a multiply-add does not wait for the one before.
type Sums = [float32x4_t; 2];

#[target_feature(enable = "neon")]
pub(in crate::engine::kernels) fn dot_blocks(kind: BlockFormat, rows: &[u8], x: &[f32], out: &mut [f32]) {
    match kind {
        BlockFormat::Q8_0 => {
            for (row, out) in rows.chunks_exact(x.len() / Q8_0_BLOCK * Q8_0_BYTES).zip(out) {
                *out = dot_q8_0(row, x);
            }
        }
        BlockFormat::Q6K => {
            for (row, out) in rows.chunks_exact(x.len() / K_BLOCK * Q6_K_BYTES).zip(out) {
                *out = dot_q6_k(row, x);
            }
        }
        BlockFormat::Q4_0 | BlockFormat::Q4K => block_quant::dot::<true>(kind, rows, x, out),
    }
}

#[target_feature(enable = "neon")]
pub(in crate::engine::kernels) fn weighted_sum_blocks(
    kind: BlockFormat,
    rows: &[u8],
    weights: &[f32],
    out: &mut [f32],
) {
    match kind {
        BlockFormat::Q8_0 => weighted_sum_q8_0(rows, weights, out),
        BlockFormat::Q4_0 | BlockFormat::Q4K | BlockFormat::Q6K => {
            block_quant::weighted_sum::<true>(kind, rows, weights, out)
        }
    }
}

#[target_feature(enable = "neon")]
fn dot_q8_0(row: &[u8], x: &[f32]) -> f32 {
    let mut sums = [vdupq_n_f32(0.0); 2];
    for (block, x) in row.as_chunks::<Q8_0_BYTES>().0.iter().zip(x.as_chunks::<Q8_0_BLOCK>().0) {
        let [low, high, codes @ ..] = block;
        let mut products = [vdupq_n_f32(0.0); 2];
        for (codes, x) in codes.as_chunks::<16>().0.iter().zip(x.as_chunks::<16>().0) {
            products = multiply(products, load(codes), x);
        }
        sums = scale(sums, products, load_scale([*low, *high]));
    }
    horizontal_sum_f32(vaddq_f32(sums[0], sums[1]))
}

#[target_feature(enable = "neon")]
fn dot_q6_k(row: &[u8], x: &[f32]) -> f32 {
    let mut sums = [vdupq_n_f32(0.0); 2];
    for (block, x) in row.as_chunks::<Q6_K_BYTES>().0.iter().zip(x.as_chunks::<K_BLOCK>().0) {
        let scales = scales_q6_k(block);
        let mut products = [vdupq_n_f32(0.0); 2];
        // The codes of four groups of 16 numbers, 32 apart, share the bytes of their upper bits.
        for (half, part) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            for (group, codes) in codes_q6_k(block, half, part).into_iter().enumerate() {
                let index = half * 8 + group * 2 + part;
                let of_group = multiply_in_four_lanes(codes, &x.as_chunks::<16>().0[index]);
                products[part] = vfmaq_n_f32(products[part], of_group, scales[index]);
            }
        }
        sums = scale(sums, products, load_scale([block[208], block[209]]));
    }
    horizontal_sum_f32(vaddq_f32(sums[0], sums[1]))
}

/// The scales of groups of 16 numbers, without the scale of the block.
#[target_feature(enable = "neon")]
#[inline]
fn scales_q6_k(block: &[u8; Q6_K_BYTES]) -> [f32; 16] {
    let mut scales = [0.0; 16];
    let numbers = int8_to_f32(load(&block[192..208].as_chunks().0[0]));
    scales.as_chunks_mut::<4>().0.iter_mut().zip(numbers).for_each(|(out, x)| store_f32(out, x));
    scales
}

/// The codes of the first or second 16 numbers of each group of 32, for half a block.
#[target_feature(enable = "neon")]
#[inline]
fn codes_q6_k(block: &[u8; Q6_K_BYTES], half: usize, part: usize) -> [int8x16_t; 4] {
    let lines = block.as_chunks::<16>().0;
    let at = |line: usize| vreinterpretq_u8_s8(load(&lines[line + part]));
    let (a, b, high) = (at(half * 4), at(half * 4 + 2), at(8 + half * 2));
    let (mask, upper) = (vdupq_n_u8(15), vdupq_n_u8(0x30));
    let codes = [
        (vandq_u8(a, mask), vshlq_n_u8::<4>(high)),
        (vandq_u8(b, mask), vshlq_n_u8::<2>(high)),
        (vshrq_n_u8::<4>(a), high),
        (vshrq_n_u8::<4>(b), vshrq_n_u8::<2>(high)),
    ];
    codes.map(|(low, high)| {
        let codes = vorrq_u8(low, vandq_u8(high, upper));
        vreinterpretq_s8_u8(vsubq_u8(codes, vdupq_n_u8(32)))
    })
}

/// Adds rows to `out`, 32 columns at a time, whose sums stay in registers.
#[target_feature(enable = "neon")]
fn weighted_sum_q8_0(rows: &[u8], weights: &[f32], out: &mut [f32]) {
    let (blocks, out) = (rows.as_chunks::<Q8_0_BYTES>().0, out.as_chunks_mut::<Q8_0_BLOCK>().0);
    let width = out.len();
    for (at, out) in out.iter_mut().enumerate() {
        let out = out.as_chunks_mut::<4>().0;
        let mut sums: [float32x4_t; 8] = std::array::from_fn(|part| load_f32(&out[part]));
        for (block, weight) in blocks.iter().skip(at).step_by(width).zip(weights) {
            let [low, high, codes @ ..] = block;
            let scale = load_scale([*low, *high]) * weight;
            let codes = codes.as_chunks::<16>().0;
            for (codes, sums) in codes.iter().zip(sums.as_chunks_mut::<4>().0) {
                let numbers = int8_to_f32(load(codes));
                sums.iter_mut().zip(numbers).for_each(|(sum, x)| *sum = vfmaq_n_f32(*sum, x, scale));
            }
        }
        out.iter_mut().zip(sums).for_each(|(out, sum)| store_f32(out, sum));
    }
}

/// `sums + codes * x`, where numbers eight apart share a lane.
#[target_feature(enable = "neon")]
#[inline]
fn multiply([a, b]: Sums, codes: int8x16_t, x: &[f32; 16]) -> Sums {
    let (codes, x) = (int8_to_f32(codes), x.as_chunks::<4>().0);
    let a = vfmaq_f32(vfmaq_f32(a, codes[0], load_f32(&x[0])), codes[2], load_f32(&x[2]));
    let b = vfmaq_f32(vfmaq_f32(b, codes[1], load_f32(&x[1])), codes[3], load_f32(&x[3]));
    [a, b]
}

/// The products of 16 numbers, of which those four apart share a lane.
#[target_feature(enable = "neon")]
#[inline]
fn multiply_in_four_lanes(codes: int8x16_t, x: &[f32; 16]) -> float32x4_t {
    let (codes, x) = (int8_to_f32(codes), x.as_chunks::<4>().0);
    let products = vmulq_f32(codes[0], load_f32(&x[0]));
    let products = vfmaq_f32(products, codes[1], load_f32(&x[1]));
    let products = vfmaq_f32(products, codes[2], load_f32(&x[2]));
    vfmaq_f32(products, codes[3], load_f32(&x[3]))
}

/// `sums + products * scale`.
#[target_feature(enable = "neon")]
#[inline]
fn scale([a, b]: Sums, products: Sums, scale: f32) -> Sums {
    [vfmaq_n_f32(a, products[0], scale), vfmaq_n_f32(b, products[1], scale)]
}

/// Converts sixteen int8 to floats, in order.
#[target_feature(enable = "neon")]
#[inline]
fn int8_to_f32(codes: int8x16_t) -> [float32x4_t; 4] {
    /// Which code goes into the highest byte of each lane; the other bytes become 0.
    const LANES: [[u8; 16]; 4] = {
        let mut lanes = [[255; 16]; 4];
        let mut code = 0;
        while code < 16 {
            lanes[code / 4][code % 4 * 4 + 3] = code as u8;
            code += 1;
        }
        lanes
    };
    LANES.map(|lanes| {
        // SAFETY: 16 bytes; the load needs no alignment.
        let lanes = vqtbl1q_s8(codes, unsafe { vld1q_u8(lanes.as_ptr()) });
        vcvtq_n_f32_s32::<24>(vreinterpretq_s32_s8(lanes))
    })
}

/// A half-precision scale.
#[target_feature(enable = "neon")]
#[inline]
fn load_scale(bytes: [u8; 2]) -> f32 {
    let bits = vreinterpret_f16_u16(vdup_n_u16(u16::from_le_bytes(bytes)));
    vgetq_lane_f32::<0>(vcvt_f32_f16(bits))
}

#[target_feature(enable = "neon")]
#[inline]
fn load(bytes: &[u8; 16]) -> int8x16_t {
    // SAFETY: 16 bytes; the load needs no alignment.
    unsafe { vld1q_s8(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "neon")]
#[inline]
fn store_f32(out: &mut [f32; 4], x: float32x4_t) {
    // SAFETY: 16 bytes; the store needs no alignment.
    unsafe { vst1q_f32(out.as_mut_ptr(), x) }
}
