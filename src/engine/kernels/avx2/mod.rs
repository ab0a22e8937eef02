//! AVX2 with FMA and F16C: every x86-64 processor since about 2013.
//!
//! An unsigned code times a signed int8 is just what `vpmaddubsw` multiplies, two products to a
//! 16-bit lane.

mod blocks;

pub(super) use blocks::{dot_blocks, mix_blocks};

use super::streams::{each_row, fetch_ahead};
use super::wide::Wide;
use super::{BLOCKS_IN_16_BITS, Kernels};
use crate::engine::quant::{BLOCK, BLOCK_BYTES, packed_row};
use half::f16;
use std::arch::x86_64::*;

pub(super) const TABLE: Kernels = Kernels {
    name: "avx2",
    many: None,
    ternary: &[(4, tile::<4>), (3, tile::<3>), (2, tile::<2>), (1, one)],
    dot_f16,
    mix_f16,
    shared: None,
    dot_blocks,
    mix_blocks,
    wide: Wide::Avx2,
};

/// All rows for one token.
#[target_feature(enable = "avx2")]
fn one(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
    each_row(weights, packed_row(cols), out, |rows| dot_rows(rows, q), |row| dot_rows([row], q)[0]);
}

/// Rows of the same width for one token.
#[target_feature(enable = "avx2")]
fn dot_rows<const ROWS: usize>(rows: [&[u8]; ROWS], q: &[i8]) -> [i32; ROWS] {
    let ones = _mm256_set1_epi16(1);
    let mut sums = [_mm256_setzero_si256(); ROWS];
    for (index, q) in q.chunks(BLOCKS_IN_16_BITS * BLOCK).enumerate() {
        let first = index * BLOCKS_IN_16_BITS * BLOCK_BYTES;
        let mut partial = [_mm256_setzero_si256(); ROWS];
        for (block, q) in q.chunks_exact(BLOCK).enumerate() {
            let at = first + block * BLOCK_BYTES;
            for (row, partial) in rows.iter().zip(&mut partial) {
                fetch_ahead(&row[at..]);
                let codes = unpack(&row[at..at + BLOCK_BYTES]);
                *partial = _mm256_add_epi16(*partial, dot_block(codes, q));
            }
        }
        for (sum, partial) in sums.iter_mut().zip(partial) {
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(partial, ones));
        }
    }
    sums.map(|sum| horizontal_sum(sum))
}

/// All rows for `T` tokens. Of 16 registers four tokens take 4 for codes, 4 for 16-bit sums and 4 for 32-bit
/// sums.
#[target_feature(enable = "avx2")]
fn tile<const T: usize>(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
    let rows = out.len() / T;
    for (row, weights) in weights.chunks_exact(packed_row(cols)).enumerate() {
        let dots = dot_tile::<T>(weights, q, cols);
        for (token, dot) in dots.into_iter().enumerate() {
            out[token * rows + row] = dot;
        }
    }
}

#[target_feature(enable = "avx2")]
fn dot_tile<const T: usize>(weights: &[u8], q: &[i8], cols: usize) -> [i32; T] {
    let ones = _mm256_set1_epi16(1);
    let mut sums = [_mm256_setzero_si256(); T];
    for (index, blocks) in weights.chunks(BLOCKS_IN_16_BITS * BLOCK_BYTES).enumerate() {
        let first = index * BLOCKS_IN_16_BITS * BLOCK;
        let mut partial = [_mm256_setzero_si256(); T];
        for (block, bytes) in blocks.chunks_exact(BLOCK_BYTES).enumerate() {
            let codes = unpack(bytes);
            for (token, partial) in partial.iter_mut().enumerate() {
                let at = token * cols + first + block * BLOCK;
                *partial = _mm256_add_epi16(*partial, dot_block(codes, &q[at..at + BLOCK]));
            }
        }
        for (sum, partial) in sums.iter_mut().zip(partial) {
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(partial, ones));
        }
    }
    sums.map(|sum| horizontal_sum(sum))
}

/// The codes of a block, group by group.
#[target_feature(enable = "avx2")]
fn unpack(bytes: &[u8]) -> [__m256i; 4] {
    assert_eq!(bytes.len(), BLOCK_BYTES);
    // SAFETY: 32 bytes, as just checked; the load needs no alignment.
    let packed = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
    let low = _mm256_set1_epi8(3);
    [
        _mm256_and_si256(_mm256_srli_epi16::<6>(packed), low),
        _mm256_and_si256(_mm256_srli_epi16::<4>(packed), low),
        _mm256_and_si256(_mm256_srli_epi16::<2>(packed), low),
        _mm256_and_si256(packed, low),
    ]
}

#[target_feature(enable = "avx2")]
fn dot_block(codes: [__m256i; 4], q: &[i8]) -> __m256i {
    assert_eq!(q.len(), BLOCK);
    let q = q.as_ptr().cast::<__m256i>();
    // SAFETY: 128 bytes, as just checked: four loads, which need no alignment.
    let q = unsafe { [0, 1, 2, 3].map(|group| _mm256_loadu_si256(q.add(group))) };
    let a = _mm256_add_epi16(_mm256_maddubs_epi16(codes[0], q[0]), _mm256_maddubs_epi16(codes[1], q[1]));
    let b = _mm256_add_epi16(_mm256_maddubs_epi16(codes[2], q[2]), _mm256_maddubs_epi16(codes[3], q[3]));
    _mm256_add_epi16(a, b)
}

#[target_feature(enable = "avx2")]
pub(super) fn horizontal_sum(x: __m256i) -> i32 {
    let x = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
    let x = _mm_add_epi32(x, _mm_shuffle_epi32::<0b01_00_11_10>(x));
    _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32::<0b10_11_00_01>(x)))
}

#[target_feature(enable = "avx2")]
fn horizontal_sum_f32(x: __m256) -> f32 {
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
}

/// Eight half-precision numbers.
#[target_feature(enable = "avx2,f16c")]
fn load_f16(bytes: &[u8; 16]) -> __m256 {
    // SAFETY: 16 bytes; the load needs no alignment.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

#[target_feature(enable = "avx2")]
fn load_f32(x: &[f32; 8]) -> __m256 {
    // SAFETY: 32 bytes; the load needs no alignment.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dot_f16(rows: &[u8], x: &[f32], out: &mut [f32]) {
    each_row(rows, x.len() * 2, out, |rows| dot_rows_f16(rows, x), |row| dot_rows_f16([row], x)[0]);
}

/// Rows side by side; how many there are changes no bit of a row's sum.
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_rows_f16<const ROWS: usize>(rows: [&[u8]; ROWS], x: &[f32]) -> [f32; ROWS] {
    let (wide, x_rest) = x.as_chunks::<16>();
    let lines = rows.map(|row| &row.as_chunks::<32>().0[..wide.len()]);
    // Two sums a row: an FMA takes four cycles.
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    for (at, x) in wide.iter().enumerate() {
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
        let rest = row[wide.len() * 32..].as_chunks::<2>().0.iter().zip(x_rest);
        *out = rest.fold(sum, |sum, (bytes, x)| sum + f16::from_le_bytes(*bytes).to_f32_const() * x);
    }
    out
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn mix_f16(rows: &[u8], weights: &[f32], out: &mut [f32]) {
    let width = out.len() * 2;
    let (wide, rest) = out.as_chunks_mut::<64>();
    let (eights, single) = rest.as_chunks_mut::<8>();
    let mut at = 0;
    for out in wide {
        mix_columns::<8>(rows, width, at, weights, out);
        at += 128;
    }
    for out in eights {
        mix_columns::<1>(rows, width, at, weights, out);
        at += 16;
    }
    for (row, weight) in rows.chunks_exact(width).zip(weights) {
        for (bytes, out) in row[at..].as_chunks::<2>().0.iter().zip(&mut *single) {
            *out += f16::from_le_bytes(*bytes).to_f32_const() * weight;
        }
    }
}

/// Some columns of all rows, from byte `at` of each on; their sums stay in `N` registers.
#[target_feature(enable = "avx2,fma,f16c")]
fn mix_columns<const N: usize>(rows: &[u8], width: usize, at: usize, weights: &[f32], out: &mut [f32]) {
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
