//! Half-precision rows with several vectors at a time, for the query heads that share keys and values: loading rows
//! and converting them to floats costs as much as multiplying by a vector.
//!
//! A number is added up in the same order as in the kernels for one vector, and with the same bits: 16 lanes here
//! are two registers of eight there.

use crate::engine::kernels::prefetch::{CACHE_LINE, prefetch_line};
use crate::engine::kernels::x86_64::avx2;
use std::arch::x86_64::*;

/// Lanes of a register.
const LANES: usize = 16;
/// Rows that are multiplied side by side.
const ROWS: usize = 4;
/// How many bytes ahead rows are prefetched: several rows of 128 numbers, because computing is faster than memory.
const PREFETCH_DISTANCE: usize = 2048;
/// Registers that hold columns of the output while all rows are added to them.
const COLUMN_REGISTERS: usize = 4;

/// Multiplies rows by vectors: `out[v * rows + r] = sum over c of rows[r, c] * xs[v, c]`.
#[target_feature(enable = "avx2,fma,f16c,avx512f")]
pub(super) fn dot_batch_f16(rows: &[u8], xs: &[f32], cols: usize, out: &mut [f32]) {
    let count = rows.len() / (2 * cols);
    let (mut xs, mut out) = (xs, out);
    while !xs.is_empty() {
        let vectors = vectors_at_once(xs.len() / cols, cols, LANES);
        let (these, others) = xs.split_at(vectors * cols);
        let (dots, rest) = out.split_at_mut(vectors * count);
        match vectors {
            4 => dot_vectors::<4>(rows, these, cols, dots),
            2 => dot_vectors::<2>(rows, these, cols, dots),
            _ => avx2::dot_f16(rows, these, dots),
        }
        (xs, out) = (others, rest);
    }
}

/// Adds weighted sums of rows: `out[v, c] += sum over r of weights[v * rows + r] * rows[r, c]`.
#[target_feature(enable = "avx2,fma,f16c,avx512f")]
pub(super) fn weighted_sum_batch_f16(rows: &[u8], weights: &[f32], cols: usize, out: &mut [f32]) {
    let count = rows.len() / (2 * cols);
    let (mut weights, mut out) = (weights, out);
    while !out.is_empty() {
        let vectors = vectors_at_once(out.len() / cols, cols, COLUMN_REGISTERS * LANES);
        let (these, others) = weights.split_at(vectors * count);
        let (mixed, rest) = out.split_at_mut(vectors * cols);
        match vectors {
            4 => weighted_sum_vectors::<4>(rows, these, cols, mixed),
            2 => weighted_sum_vectors::<2>(rows, these, cols, mixed),
            _ => avx2::weighted_sum_f16(rows, these, mixed),
        }
        (weights, out) = (others, rest);
    }
}

/// How many of the vectors left are taken at once; one where rows are not whole steps.
fn vectors_at_once(left: usize, cols: usize, step: usize) -> usize {
    match left {
        _ if !cols.is_multiple_of(step) => 1,
        4.. => 4,
        2 | 3 => 2,
        _ => 1,
    }
}

#[target_feature(enable = "avx512f,f16c")]
fn dot_vectors<const V: usize>(rows: &[u8], xs: &[f32], cols: usize, out: &mut [f32]) {
    let count = rows.len() / (2 * cols);
    let xs: [&[[f32; LANES]]; V] = std::array::from_fn(|v| xs[v * cols..][..cols].as_chunks().0);
    for at in (0..count).step_by(ROWS) {
        let few = (count - at).min(ROWS);
        // The last row is repeated where fewer are left.
        let rows = std::array::from_fn(|row| {
            let first = (at + row.min(few - 1)) * 2 * cols;
            rows[first..first + 2 * cols].as_chunks::<{ 2 * LANES }>().0
        });
        let dots = dot_rows(rows, xs);
        for (v, dots) in dots.as_chunks::<ROWS>().0[..V].iter().enumerate() {
            let out = &mut out[v * count + at..][..few];
            match out.first_chunk_mut() {
                Some(four) => *four = *dots,
                None => out.copy_from_slice(&dots[..few]),
            }
        }
    }
}

/// Multiplies four rows by each vector: `[vectors, ROWS]`, followed by unused lanes.
#[target_feature(enable = "avx512f,f16c")]
fn dot_rows<const V: usize>(rows: [&[[u8; 2 * LANES]]; ROWS], xs: [&[[f32; LANES]]; V]) -> [f32; LANES] {
    let mut sums = [[_mm512_setzero_ps(); ROWS]; V];
    for step in 0..xs[0].len() {
        let rows = rows.map(|row| {
            // Two steps are one cache line.
            if step % 2 == 0 {
                prefetch_line(row[step].as_ptr().wrapping_add(PREFETCH_DISTANCE));
            }
            load_f16(&row[step])
        });
        for (x, sums) in xs.iter().zip(&mut sums) {
            let x = load(&x[step]);
            rows.iter().zip(sums).for_each(|(row, sum)| *sum = _mm512_fmadd_ps(*row, x, *sum));
        }
    }
    horizontal_sums(std::array::from_fn(|row| std::array::from_fn(|v| sums[v % V][row])))
}

/// Adds the lanes of each register, for four rows and four vectors, to `[vectors, rows]`: lanes 8 apart first, then
/// 4, 2 and 1, in the same order as for a single sum.
#[target_feature(enable = "avx512f")]
fn horizontal_sums(sums: [[__m512; 4]; ROWS]) -> [f32; LANES] {
    // One quarter of the register for each vector.
    let [a, b, c, d] = sums.map(|[a, b, c, d]| {
        let halves = |a, b| {
            _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b),
                _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b),
            )
        };
        let (ab, cd) = (halves(a, b), halves(c, d));
        _mm512_add_ps(
            _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd),
        )
    });
    let pairs = |a, b| _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let (ab, cd) = (_mm512_castps_pd(pairs(a, b)), _mm512_castps_pd(pairs(c, d)));
    let (even, odd) = (_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd));
    let mut out = [0.0; LANES];
    store(&mut out, _mm512_add_ps(_mm512_castpd_ps(even), _mm512_castpd_ps(odd)));
    out
}

#[target_feature(enable = "avx2,fma,f16c,avx512f")]
fn weighted_sum_vectors<const V: usize>(rows: &[u8], weights: &[f32], cols: usize, out: &mut [f32]) {
    let count = rows.len() / (2 * cols);
    let weights: [&[f32]; V] = std::array::from_fn(|v| &weights[v * count..][..count]);
    for at in (0..cols).step_by(COLUMN_REGISTERS * LANES) {
        let mut sums = [[_mm512_setzero_ps(); COLUMN_REGISTERS]; V];
        for (v, sums) in sums.iter_mut().enumerate() {
            *sums = register_chunks(&out[v * cols + at..]).map(|line| load(line));
        }
        for (row, bytes) in rows.chunks_exact(2 * cols).enumerate() {
            // While the first columns are added, all of the row is prefetched.
            if at == 0 {
                bytes
                    .chunks(CACHE_LINE)
                    .for_each(|line| prefetch_line(line.as_ptr().wrapping_add(PREFETCH_DISTANCE)));
            }
            let row_of: [__m512; COLUMN_REGISTERS] =
                register_chunks(&bytes[2 * at..]).map(|line| load_f16(line));
            for (weights, sums) in weights.iter().zip(&mut sums) {
                let weight = _mm512_set1_ps(weights[row]);
                row_of.iter().zip(sums).for_each(|(x, sum)| *sum = _mm512_fmadd_ps(*x, weight, *sum));
            }
        }
        for (v, sums) in sums.iter().enumerate() {
            let out = &mut out[v * cols + at..][..COLUMN_REGISTERS * LANES];
            out.as_chunks_mut().0.iter_mut().zip(sums).for_each(|(out, sum)| store(out, *sum));
        }
    }
}

/// The first [`COLUMN_REGISTERS`] registers' worth of numbers.
fn register_chunks<X, const N: usize>(x: &[X]) -> [&[X; N]; COLUMN_REGISTERS] {
    let lines = &x.as_chunks().0[..COLUMN_REGISTERS];
    std::array::from_fn(|line| &lines[line])
}

#[target_feature(enable = "avx512f")]
fn load_f16(halves: &[u8; 2 * LANES]) -> __m512 {
    // SAFETY: 32 bytes; the load needs no alignment.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(halves.as_ptr().cast()) })
}

#[target_feature(enable = "avx512f")]
fn load(x: &[f32; LANES]) -> __m512 {
    // SAFETY: 16 floats; the load needs no alignment.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[target_feature(enable = "avx512f")]
fn store(to: &mut [f32; LANES], x: __m512) {
    // SAFETY: 16 floats; the store needs no alignment.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
}
