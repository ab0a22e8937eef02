//! Half-precision rows: dot products with a vector, and weighted sums.

use super::{horizontal_sum_f32, load_f32};
use crate::engine::kernels::x86_64::row_streams::for_each_row;
use half::f16;
use std::arch::x86_64::*;

/// Eight half-precision numbers.
#[target_feature(enable = "avx2,f16c")]
fn load_f16(bytes: &[u8; 16]) -> __m256 {
    // SAFETY: 16 bytes; the load needs no alignment.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::engine::kernels::x86_64) fn dot_f16(rows: &[u8], x: &[f32], out: &mut [f32]) {
    for_each_row(rows, x.len() * 2, out, |rows| dot_rows_f16(rows, x), |row| dot_rows_f16([row], x)[0]);
}

/// Multiplies rows side by side. How many there are changes no bit of a row's sum.
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_rows_f16<const ROWS: usize>(rows: [&[u8]; ROWS], x: &[f32]) -> [f32; ROWS] {
    let (blocks, x_rest) = x.as_chunks::<16>();
    let lines = rows.map(|row| &row.as_chunks::<32>().0[..blocks.len()]);
    // Two sums a row, because an FMA takes four cycles.
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    for (at, x) in blocks.iter().enumerate() {
        let x = x.as_chunks::<8>().0;
        for (line, sums) in lines.iter().zip(&mut sums) {
            for ((half, x), sum) in line[at].as_chunks::<16>().0.iter().zip(x).zip(sums) {
                *sum = _mm256_fmadd_ps(load_f16(half), load_f32(x), *sum);
            }
        }
    }
    let mut out = [0.0; ROWS];
    for ((row, [a, b]), out) in rows.iter().zip(sums).zip(&mut out) {
        let sum = horizontal_sum_f32(_mm256_add_ps(a, b));
        let rest = row[blocks.len() * 32..].as_chunks::<2>().0.iter().zip(x_rest);
        *out = rest.fold(sum, |sum, (bytes, x)| sum + f16::from_le_bytes(*bytes).to_f32_const() * x);
    }
    out
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::engine::kernels::x86_64) fn weighted_sum_f16(rows: &[u8], weights: &[f32], out: &mut [f32]) {
    let width = out.len() * 2;
    let (blocks, rest) = out.as_chunks_mut::<64>();
    let (eights, single) = rest.as_chunks_mut::<8>();
    let mut at = 0;
    for out in blocks {
        weighted_sum_columns::<8>(rows, width, at, weights, out);
        at += 128;
    }
    for out in eights {
        weighted_sum_columns::<1>(rows, width, at, weights, out);
        at += 16;
    }
    for (row, weight) in rows.chunks_exact(width).zip(weights) {
        for (bytes, out) in row[at..].as_chunks::<2>().0.iter().zip(&mut *single) {
            *out += f16::from_le_bytes(*bytes).to_f32_const() * weight;
        }
    }
}

/// Adds some columns of all rows, from byte `at` of each row on. The sums stay in `N` registers.
#[target_feature(enable = "avx2,fma,f16c")]
fn weighted_sum_columns<const N: usize>(
    rows: &[u8],
    width: usize,
    at: usize,
    weights: &[f32],
    out: &mut [f32],
) {
    let out = &mut out.as_chunks_mut::<8>().0[..N];
    let mut sums: [__m256; N] = std::array::from_fn(|part| load_f32(&out[part]));
    for (row, weight) in rows.chunks_exact(width).zip(weights) {
        let weight = _mm256_set1_ps(*weight);
        for (bytes, sum) in row[at..at + N * 16].as_chunks::<16>().0.iter().zip(&mut sums) {
            *sum = _mm256_fmadd_ps(load_f16(bytes), weight, *sum);
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        // SAFETY: eight floats; the store needs no alignment.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sum) };
    }
}
