//! Half-precision rows: dot products with a vector, and weighted sums.

use super::{horizontal_sum_f32, load_f32};
use half::f16;
use std::arch::aarch64::*;

/// Four half-precision numbers.
#[target_feature(enable = "neon")]
fn load_f16(bytes: &[u8; 8]) -> float32x4_t {
    // SAFETY: 8 bytes; the load needs no alignment.
    let bits = unsafe { vreinterpret_f16_u8(vld1_u8(bytes.as_ptr())) };
    vcvt_f32_f16(bits)
}

#[target_feature(enable = "neon")]
pub(in crate::engine::kernels::aarch64) fn dot_f16(rows: &[u8], x: &[f32], out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(x.len() * 2).zip(out) {
        *out = dot_row_f16(row, x);
    }
}

#[target_feature(enable = "neon")]
fn dot_row_f16(row: &[u8], x: &[f32]) -> f32 {
    let (blocks, x_rest) = x.as_chunks::<16>();
    // Four sums, because a fused multiply-add takes four cycles on these cores.
    let mut sums = [vdupq_n_f32(0.0); 4];
    for (bytes, x) in row.as_chunks::<32>().0.iter().zip(blocks) {
        for ((bytes, x), sum) in bytes.as_chunks::<8>().0.iter().zip(x.as_chunks::<4>().0).zip(&mut sums) {
            *sum = vfmaq_f32(*sum, load_f16(bytes), load_f32(x));
        }
    }
    // Lanes eight apart, then four: the order of every table.
    let sum = vaddq_f32(vaddq_f32(sums[0], sums[2]), vaddq_f32(sums[1], sums[3]));
    let rest = row[blocks.len() * 32..].as_chunks::<2>().0.iter().zip(x_rest);
    rest.fold(horizontal_sum_f32(sum), |sum, (bytes, x)| sum + f16::from_le_bytes(*bytes).to_f32_const() * x)
}

#[target_feature(enable = "neon")]
pub(in crate::engine::kernels::aarch64) fn weighted_sum_f16(rows: &[u8], weights: &[f32], out: &mut [f32]) {
    let width = out.len() * 2;
    let (blocks, rest) = out.as_chunks_mut::<64>();
    // Eights, as in every table: what is left of them is not fused.
    let (eights, single) = rest.as_chunks_mut::<8>();
    let mut at = 0;
    for out in blocks {
        weighted_sum_columns::<16>(rows, width, at, weights, out);
        at += 128;
    }
    for out in eights {
        weighted_sum_columns::<2>(rows, width, at, weights, out);
        at += 16;
    }
    for (row, weight) in rows.chunks_exact(width).zip(weights) {
        for (bytes, out) in row[at..].as_chunks::<2>().0.iter().zip(&mut *single) {
            *out += f16::from_le_bytes(*bytes).to_f32_const() * weight;
        }
    }
}

/// Adds some columns of all rows, from byte `at` of each row on. The sums stay in `N` registers.
#[target_feature(enable = "neon")]
fn weighted_sum_columns<const N: usize>(
    rows: &[u8],
    width: usize,
    at: usize,
    weights: &[f32],
    out: &mut [f32],
) {
    let out = &mut out.as_chunks_mut::<4>().0[..N];
    let mut sums: [float32x4_t; N] = std::array::from_fn(|part| load_f32(&out[part]));
    for (row, weight) in rows.chunks_exact(width).zip(weights) {
        for (bytes, sum) in row[at..at + N * 8].as_chunks::<8>().0.iter().zip(&mut sums) {
            *sum = vfmaq_n_f32(*sum, load_f16(bytes), *weight);
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        // SAFETY: four floats; the store needs no alignment.
        unsafe { vst1q_f32(out.as_mut_ptr(), sum) };
    }
}
