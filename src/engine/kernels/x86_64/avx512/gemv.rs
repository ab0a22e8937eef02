//! One token: GEMV of ternary rows, with two blocks of a row in a register.

use crate::engine::kernels::x86_64::row_streams::{STREAMS, for_each_row, prefetch_ahead};
use crate::engine::quant::{BLOCK, BLOCK_BYTES, packed_row};
use std::arch::x86_64::*;

/// Multiplies all rows by one token. `q`: `[cols]`, `out`: `[rows]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn gemv(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
    let width = packed_row(cols);
    for_each_row(
        weights,
        width,
        out,
        |rows| horizontal_sums(dot_rows(rows, q)),
        |row| _mm512_reduce_add_epi32(dot_rows([row], q)[0]),
    );
}

/// Multiplies rows of the same width; each result is still 16 partial sums. The lower code of each half of a byte
/// is multiplied as it is and the upper code as four times itself; the sums of the latter are divided at the end.
/// That takes one shift for four codes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn dot_rows<const ROWS: usize>(rows: [&[u8]; ROWS], q: &[i8]) -> [__m512i; ROWS] {
    let (pairs, last) = q.as_chunks::<{ 2 * BLOCK }>();
    let rows = rows.map(|row| {
        let (row, last) = row.as_chunks::<{ 2 * BLOCK_BYTES }>();
        (&row[..pairs.len()], last)
    });
    let mut sums = [[_mm512_setzero_si512(); 2]; ROWS];
    for (at, q) in pairs.iter().enumerate() {
        let (low, high) = q.split_at(BLOCK);
        let q = [0, 1, 2, 3].map(|group| load_two(&low[group * 32..], &high[group * 32..]));
        for ((row, _), sums) in rows.iter().zip(&mut sums) {
            prefetch_ahead(&row[at]);
            // SAFETY: 64 bytes; the load needs no alignment.
            add_blocks(sums, unsafe { _mm512_loadu_si512(row[at].as_ptr().cast()) }, q);
        }
    }
    if !last.is_empty() {
        // The other half of the register is zero.
        let q = [0, 1, 2, 3].map(|group| _mm512_zextsi256_si512(load(&last[group * 32..])));
        for ((_, row), sums) in rows.iter().zip(&mut sums) {
            // SAFETY: a block has 32 bytes, as many as are loaded; no alignment is needed.
            let codes = unsafe { _mm256_loadu_si256(row[..BLOCK_BYTES].as_ptr().cast()) };
            add_blocks(sums, _mm512_zextsi256_si512(codes), q);
        }
    }
    sums.map(|[ones, fours]| _mm512_add_epi32(ones, _mm512_srai_epi32::<2>(fours)))
}

/// Adds the products of two blocks of a row.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn add_blocks([ones, fours]: &mut [__m512i; 2], low: __m512i, q: [__m512i; 4]) {
    let (one, four) = (_mm512_set1_epi8(0x03), _mm512_set1_epi8(0x0c));
    let high = _mm512_srli_epi16::<4>(low);
    *fours = _mm512_dpbusd_epi32(*fours, _mm512_and_si512(high, four), q[0]);
    *ones = _mm512_dpbusd_epi32(*ones, _mm512_and_si512(high, one), q[1]);
    *fours = _mm512_dpbusd_epi32(*fours, _mm512_and_si512(low, four), q[2]);
    *ones = _mm512_dpbusd_epi32(*ones, _mm512_and_si512(low, one), q[3]);
}

/// The sum of each register.
#[target_feature(enable = "avx512f")]
fn horizontal_sums([a, b, c, d]: [__m512i; STREAMS]) -> [i32; STREAMS] {
    let pairs = |x, y| _mm512_add_epi32(_mm512_unpacklo_epi32(x, y), _mm512_unpackhi_epi32(x, y));
    let (ab, cd) = (pairs(a, b), pairs(c, d));
    let all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    let half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64::<1>(all));
    let sums = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half));
    let mut out = [0; STREAMS];
    // SAFETY: four numbers; the store needs no alignment.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), sums) };
    out
}

/// Loads the same 32 columns of two blocks.
#[target_feature(enable = "avx512f,avx512vl")]
fn load_two(low: &[i8], high: &[i8]) -> __m512i {
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(load(low)), load(high))
}

#[target_feature(enable = "avx512f,avx512vl")]
fn load(q: &[i8]) -> __m256i {
    let q = &q[..32];
    // SAFETY: 32 numbers, as just cut; the load needs no alignment.
    unsafe { _mm256_loadu_si256(q.as_ptr().cast()) }
}
