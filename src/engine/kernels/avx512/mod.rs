//! AVX-512 with VNNI: Intel servers since 2019, AMD since Zen 4.
//!
//! `vpdpbusd` multiplies unsigned codes with signed int8 and adds four products to a 32-bit lane,
//! exactly.

mod nibbles;

use super::Kernels;
use super::avx2::{dot_blocks, dot_f16, mix_blocks, mix_f16};
use super::streams::STREAMS;
use crate::engine::quant::{BLOCK, BLOCK_BYTES, packed_row};
use std::arch::x86_64::*;

pub(super) const TABLE: Kernels = Kernels {
    name: "avx512-vnni",
    ternary: &[(6, tile::<6>), (4, tile::<4>), (2, tile::<2>), (1, ternary_one)],
    nibbles: nibbles::nibbles,
    dot_f16,
    mix_f16,
    dot_blocks,
    mix_blocks,
};

/// Bytes of a register: two blocks.
const STEP: usize = 2 * BLOCK_BYTES;
/// Columns whose int8 are rearranged at a time, on the stack. Wider rows are added up in spans.
const SPAN: usize = 1 << 14;
/// Pairs of rows that share what is loaded of a tile's tokens: with six tokens 24 registers of 32 are sums.
/// Tried (GMAC/s of the 228 that one `vpdpbusd` a cycle gives, Zen 4): 4 pairs of 6 tokens 194 to 215, 2 of
/// 8 169 to 181, 2 of 6 176 to 195, 4 of 4 172 to 196, 3 of 8 129 to 147.
const PAIRS: usize = 4;

/// All rows for one token, [`STREAMS`] side by side. Tried: four neighbouring rows, 5 to 9 GB/s of the 23
/// that this gives; with software prefetch 13.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn ternary_one(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
    let width = packed_row(cols);
    out.fill(0);
    for (index, q) in q.chunks(SPAN).enumerate() {
        let q = Arranged::new(q);
        let part = out.len() / STREAMS;
        let (streams, rest) = out.split_at_mut(part * STREAMS);
        let first = index * packed_row(SPAN);
        for row in 0..part {
            let rows: [usize; STREAMS] = std::array::from_fn(|stream| first + (stream * part + row) * width);
            let sums = dot_rows(weights, rows, &q);
            for (stream, sum) in sums.into_iter().enumerate() {
                streams[stream * part + row] += sum;
            }
        }
        for (row, out) in (part * STREAMS..).zip(rest) {
            *out += dot_rows(weights, [first + row * width], &q)[0];
        }
    }
}

/// The int8 of a token as registers of weights meet them: group by group, two blocks side by side.
struct Arranged {
    q: [[i8; 64]; SPAN / 64],
    /// Registers of weights in a row; the last may be half.
    steps: usize,
    /// Whether it is.
    half: bool,
}

impl Arranged {
    fn new(q: &[i8]) -> Self {
        let mut arranged = [[0; 64]; SPAN / 64];
        for (block, q) in q.chunks_exact(BLOCK).enumerate() {
            for (group, q) in q.chunks_exact(BLOCK_BYTES).enumerate() {
                let half = block % 2 * BLOCK_BYTES;
                arranged[block / 2 * 4 + group][half..half + BLOCK_BYTES].copy_from_slice(q);
            }
        }
        let blocks = q.len() / BLOCK;
        Arranged { q: arranged, steps: blocks.div_ceil(2), half: !blocks.is_multiple_of(2) }
    }
}

/// `ROWS` rows, given by where they begin, side by side. The codes are multiplied where they stand in
/// their byte, and the sums, exact multiples, divided at the end: no shift but those.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn dot_rows<const ROWS: usize>(weights: &[u8], rows: [usize; ROWS], q: &Arranged) -> [i32; ROWS] {
    let masks = [0xc0u8, 0x30, 0x0c, 0x03].map(|mask| _mm512_set1_epi8(mask as i8));
    let bytes = q.steps * STEP - if q.half { BLOCK_BYTES } else { 0 };
    let rows = rows.map(|row| &weights[row..row + bytes]);
    let mut sums = [[_mm512_setzero_si512(); 4]; ROWS];
    for step in 0..bytes / STEP {
        // SAFETY: the step's four lines of 64 bytes; `step` is below `steps`, and no alignment is needed.
        let q = [0, 1, 2, 3]
            .map(|group| unsafe { _mm512_loadu_si512(q.q.as_ptr().add(step * 4 + group).cast()) });
        for (row, sums) in rows.iter().zip(&mut sums) {
            // SAFETY: whole steps of the slice's `bytes`; no alignment is needed.
            let codes = unsafe { _mm512_loadu_si512(row.as_ptr().add(step * STEP).cast()) };
            add_codes(sums, codes, q, masks);
        }
    }
    if q.half {
        let at = q.steps - 1;
        // SAFETY: as above; of the row the half that is left.
        let q =
            [0, 1, 2, 3].map(|group| unsafe { _mm512_loadu_si512(q.q.as_ptr().add(at * 4 + group).cast()) });
        for (row, sums) in rows.iter().zip(&mut sums) {
            // SAFETY: the last 32 of the slice's bytes.
            let codes = unsafe { _mm256_loadu_si256(row.as_ptr().add(at * STEP).cast()) };
            add_codes(sums, _mm512_zextsi256_si512(codes), q, masks);
        }
    }
    sums.map(|[a, b, c, d]| {
        let high = _mm512_add_epi32(_mm512_srai_epi32::<6>(a), _mm512_srai_epi32::<4>(b));
        let low = _mm512_add_epi32(_mm512_srai_epi32::<2>(c), d);
        _mm512_reduce_add_epi32(_mm512_add_epi32(high, low))
    })
}

#[target_feature(enable = "avx512f,avx512vnni")]
fn add_codes(sums: &mut [__m512i; 4], codes: __m512i, q: [__m512i; 4], masks: [__m512i; 4]) {
    for ((sum, q), mask) in sums.iter_mut().zip(q).zip(masks) {
        *sum = _mm512_dpbusd_epi32(*sum, _mm512_and_si512(codes, mask), q);
    }
}

/// All rows for `T` tokens. A register holds the same block of two rows, one in each half, against the
/// same 32 int8 in both: nothing needs rearranging.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn tile<const T: usize>(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
    let (width, count) = (packed_row(cols), out.len() / T);
    let whole = count / (2 * PAIRS) * (2 * PAIRS);
    for row in (0..whole).step_by(2 * PAIRS) {
        let rows = &weights[row * width..(row + 2 * PAIRS) * width];
        let sums = dot_pairs::<PAIRS, T>(rows, width, width, q, cols);
        store(&sums, row, count, out);
    }
    for row in (whole..count).step_by(2) {
        let few = (count - row).min(2);
        let rows = &weights[row * width..(row + few) * width];
        let sums = dot_pairs::<1, T>(rows, width, (few - 1) * width, q, cols);
        store(&sums, row, count, out);
    }
}

/// Sums of each token and pair to where they belong; a row beyond the last is its neighbour's copy.
#[target_feature(enable = "avx512f")]
fn store<const P: usize, const T: usize>(sums: &[[__m512i; T]; P], row: usize, rows: usize, out: &mut [i32]) {
    for (pair, sums) in sums.iter().enumerate() {
        for (token, sum) in sums.iter().enumerate() {
            let at = token * rows + row + 2 * pair;
            let out = &mut out[at..(at + 2).min((token + 1) * rows)];
            out.copy_from_slice(&halves(*sum)[..out.len()]);
        }
    }
}

/// `P` pairs of rows of `width` bytes, a pair `second` bytes apart, for `T` tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn dot_pairs<const P: usize, const T: usize>(
    rows: &[u8],
    width: usize,
    second: usize,
    q: &[i8],
    cols: usize,
) -> [[__m512i; T]; P] {
    assert!(q.len() == T * cols && cols.is_multiple_of(BLOCK));
    assert!(rows.len() >= (2 * P - 2) * width + second + width);
    let low = _mm512_set1_epi8(3);
    let mut sums = [[_mm512_setzero_si512(); T]; P];
    for block in 0..cols / BLOCK {
        let mut packed = [low; P];
        for (pair, packed) in packed.iter_mut().enumerate() {
            *packed = load_pair(rows, 2 * pair * width + block * BLOCK_BYTES, second);
        }
        for group in 0..4 {
            let shift = _mm_cvtsi32_si128(6 - 2 * group as i32);
            let codes = packed.map(|packed| _mm512_and_si512(_mm512_srl_epi16(packed, shift), low));
            for token in 0..T {
                // SAFETY: within the token's row of `cols`, as asserted; no alignment is needed.
                let q = unsafe {
                    let at = q.as_ptr().add(token * cols + block * BLOCK + group * BLOCK_BYTES);
                    _mm512_broadcast_i64x4(_mm256_loadu_si256(at.cast()))
                };
                for (sums, codes) in sums.iter_mut().zip(codes) {
                    sums[token] = _mm512_dpbusd_epi32(sums[token], codes, q);
                }
            }
        }
    }
    sums
}

/// The same block of two rows, `second` bytes apart.
#[target_feature(enable = "avx512f,avx512vl")]
fn load_pair(rows: &[u8], at: usize, second: usize) -> __m512i {
    debug_assert!(at + second + BLOCK_BYTES <= rows.len());
    // SAFETY: the caller has asserted that its rows are whole; `at` is the start of a block in the first of
    // a pair, and `second` the way to the same block of the other. The loads need no alignment.
    unsafe {
        let at = rows.as_ptr().add(at);
        let (low, high) = (_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(second).cast()));
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
    }
}

/// Sum of each half.
#[target_feature(enable = "avx512f")]
fn halves(x: __m512i) -> [i32; 2] {
    let low = _mm512_castsi512_si256(x);
    let high = _mm512_extracti64x4_epi64::<1>(x);
    [low, high].map(|half| {
        let x = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half));
        let x = _mm_add_epi32(x, _mm_shuffle_epi32::<0b01_00_11_10>(x));
        _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32::<0b10_11_00_01>(x)))
    })
}
