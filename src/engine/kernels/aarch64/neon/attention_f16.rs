//! Half-precision rows: dot products with a vector, and weighted sums.

use super::load_f32;
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
    let ((bytes, bytes_rest), (x, x_rest)) = (row.as_chunks::<8>(), x.as_chunks::<4>());
    // Four sums, because a fused multiply-add takes four cycles on these cores.
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
pub(in crate::engine::kernels::aarch64) fn weighted_sum_f16(rows: &[u8], weights: &[f32], out: &mut [f32]) {
    let width = out.len() * 2;
    let (blocks, rest) = out.as_chunks_mut::<64>();
    let (fours, single) = rest.as_chunks_mut::<4>();
    let mut at = 0;
    for out in blocks {
        weighted_sum_columns::<16>(rows, width, at, weights, out);
        at += 128;
    }
    for out in fours {
        weighted_sum_columns::<1>(rows, width, at, weights, out);
        at += 8;
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
