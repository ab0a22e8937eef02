//! Rows in Q8_0 and Q6_K blocks: codes become floats in registers, eight at a time, and each scale is applied once
//! to the sum of its 16 or 32 products.

use super::{horizontal_sum_f32, load_f32};
use crate::engine::kernels::block_quant;
use crate::engine::kernels::x86_64::row_streams::for_each_row;
use crate::engine::quant::BlockFormat;
use crate::engine::quant::blocks::{K_BLOCK, Q6_K_BYTES, Q8_0_BLOCK, Q8_0_BYTES};
use std::arch::x86_64::*;

#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::engine::kernels) fn dot_blocks(kind: BlockFormat, rows: &[u8], x: &[f32], out: &mut [f32]) {
    match kind {
        BlockFormat::Q8_0 => {
            let width = x.len() / Q8_0_BLOCK * Q8_0_BYTES;
            for_each_row(rows, width, out, |rows| dot_q8_0(rows, x), |row| dot_q8_0([row], x)[0]);
        }
        BlockFormat::Q6K => {
            let width = x.len() / K_BLOCK * Q6_K_BYTES;
            for_each_row(rows, width, out, |rows| dot_q6_k(rows, x), |row| dot_q6_k([row], x)[0]);
        }
        BlockFormat::Q4_0 | BlockFormat::Q4K => block_quant::dot::<true>(kind, rows, x, out),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
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

/// Multiplies rows side by side. How many there are changes no bit of a row's sum.
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_q8_0<const ROWS: usize>(rows: [&[u8]; ROWS], x: &[f32]) -> [f32; ROWS] {
    let x = x.as_chunks::<Q8_0_BLOCK>().0;
    let rows = rows.map(|row| &row.as_chunks::<Q8_0_BYTES>().0[..x.len()]);
    let mut sums = [_mm256_setzero_ps(); ROWS];
    for (at, x) in x.iter().enumerate() {
        for (row, sum) in rows.iter().zip(&mut sums) {
            let [low, high, codes @ ..] = &row[at];
            *sum = _mm256_fmadd_ps(dot_codes(codes, x), load_scale([*low, *high]), *sum);
        }
    }
    sums.map(|sum| horizontal_sum_f32(sum))
}

/// The same as [`dot_q8_0`] for Q6_K.
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_q6_k<const ROWS: usize>(rows: [&[u8]; ROWS], x: &[f32]) -> [f32; ROWS] {
    let x = x.as_chunks::<K_BLOCK>().0;
    let rows = rows.map(|row| &row.as_chunks::<Q6_K_BYTES>().0[..x.len()]);
    let mut sums = [_mm256_setzero_ps(); ROWS];
    for (at, x) in x.iter().enumerate() {
        let blocks = rows.map(|row| &row[at]);
        for (sum, (block, of_block)) in sums.iter_mut().zip(blocks.iter().zip(dot_block_q6_k(blocks, x))) {
            let scale = _mm256_mul_ps(load_scale([block[208], block[209]]), _mm256_set1_ps(1.0 / TOP_BYTE));
            *sum = _mm256_fmadd_ps(of_block, scale, *sum);
        }
    }
    sums.map(|sum| horizontal_sum_f32(sum))
}

/// The factor by which a code is too large while it stands in the top byte of 32 bits, where it becomes a float
/// without a shift.
const TOP_BYTE: f32 = (1u32 << 24) as f32;

/// Multiplies one block of each row. The result is [`TOP_BYTE`] times too large and lacks the block's own scale.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn dot_block_q6_k<const ROWS: usize>(
    blocks: [&[u8; Q6_K_BYTES]; ROWS],
    x: &[f32; K_BLOCK],
) -> [__m256; ROWS] {
    let mut scales = [[0.0; 16]; ROWS];
    for (block, scales) in blocks.iter().zip(&mut scales) {
        for (bytes, scales) in block[192..208].as_chunks::<8>().0.iter().zip(scales.as_chunks_mut::<8>().0) {
            store(scales, int8_to_f32(bytes));
        }
    }
    let mut sums = [_mm256_setzero_ps(); ROWS];
    for half in 0..2 {
        add_group_q6_k::<0, _>(&mut sums, blocks, half, x, &scales);
        add_group_q6_k::<1, _>(&mut sums, blocks, half, x, &scales);
        add_group_q6_k::<2, _>(&mut sums, blocks, half, x, &scales);
        add_group_q6_k::<3, _>(&mut sums, blocks, half, x, &scales);
    }
    sums
}

/// Adds group `GROUP` of half a block: two times 16 numbers, which stay apart in the two halves of a register.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn add_group_q6_k<const GROUP: usize, const ROWS: usize>(
    sums: &mut [__m256; ROWS],
    blocks: [&[u8; Q6_K_BYTES]; ROWS],
    half: usize,
    x: &[f32; K_BLOCK],
    scales: &[[f32; 16]; ROWS],
) {
    let group = half * 4 + GROUP;
    let (low, high) = x.as_chunks::<32>().0[group].split_at(16);
    let mut parts = [_mm256_setzero_ps(); 4];
    for (part, (low, high)) in parts.iter_mut().zip(low.as_chunks().0.iter().zip(high.as_chunks().0)) {
        *part = load_two(low, high);
    }
    for ((block, scales), sum) in blocks.iter().zip(scales).zip(sums) {
        let codes = codes_q6_k::<GROUP>(block, half);
        let products = _mm256_mul_ps(top_bytes::<0>(codes), parts[0]);
        let products = _mm256_fmadd_ps(top_bytes::<1>(codes), parts[1], products);
        let products = _mm256_fmadd_ps(top_bytes::<2>(codes), parts[2], products);
        let products = _mm256_fmadd_ps(top_bytes::<3>(codes), parts[3], products);
        *sum = _mm256_fmadd_ps(products, two_scales(&scales.as_chunks().0[group]), *sum);
    }
}

/// The codes of a group in order, from -32 on. Bits that a shift brings from the neighbouring byte are masked.
#[target_feature(enable = "avx2")]
#[inline]
fn codes_q6_k<const GROUP: usize>(block: &[u8; Q6_K_BYTES], half: usize) -> __m256i {
    let lines = block.as_chunks::<32>().0;
    let (low, high) = (load_32(&lines[half * 2 + GROUP % 2]), load_32(&lines[4 + half]));
    let low = if GROUP < 2 { low } else { _mm256_srli_epi16::<4>(low) };
    let high = match GROUP {
        0 => _mm256_slli_epi16::<4>(high),
        1 => _mm256_slli_epi16::<2>(high),
        2 => high,
        _ => _mm256_srli_epi16::<2>(high),
    };
    let low = _mm256_and_si256(low, _mm256_set1_epi8(0x0f));
    let high = _mm256_and_si256(high, _mm256_set1_epi8(0x30));
    _mm256_sub_epi8(_mm256_or_si256(low, high), _mm256_set1_epi8(32))
}

/// Codes `4 * PART` to `4 * PART + 3` of each half, each multiplied by [`TOP_BYTE`].
#[target_feature(enable = "avx2")]
#[inline]
fn top_bytes<const PART: i32>(codes: __m256i) -> __m256 {
    /// Makes the three lower bytes of each lane zero.
    const LOWER: i32 = 0x0080_8080;
    let at = |lane: i32| LOWER | (4 * PART + lane) << 24;
    let lanes = _mm256_setr_epi32(at(0), at(1), at(2), at(3), at(0), at(1), at(2), at(3));
    _mm256_cvtepi32_ps(_mm256_shuffle_epi8(codes, lanes))
}

/// The first scale in the lower half, the second in the upper.
#[target_feature(enable = "avx2")]
#[inline]
fn two_scales(scales: &[f32; 2]) -> __m256 {
    _mm256_set_m128(_mm_set1_ps(scales[1]), _mm_set1_ps(scales[0]))
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_two(low: &[f32; 4], high: &[f32; 4]) -> __m256 {
    // SAFETY: 16 bytes each; the loads need no alignment.
    unsafe { _mm256_loadu2_m128(high.as_ptr(), low.as_ptr()) }
}

/// Adds rows to `out`, 32 columns at a time, whose sums stay in registers.
#[target_feature(enable = "avx2,fma,f16c")]
fn weighted_sum_q8_0(rows: &[u8], weights: &[f32], out: &mut [f32]) {
    let (blocks, out) = (rows.as_chunks::<Q8_0_BYTES>().0, out.as_chunks_mut::<Q8_0_BLOCK>().0);
    let width = out.len();
    for (at, out) in out.iter_mut().enumerate() {
        let out = out.as_chunks_mut::<8>().0;
        let mut sums = [0, 1, 2, 3].map(|part: usize| load_f32(&out[part]));
        for (block, weight) in blocks.iter().skip(at).step_by(width).zip(weights) {
            let [low, high, codes @ ..] = block;
            let scale = _mm256_mul_ps(load_scale([*low, *high]), _mm256_set1_ps(*weight));
            for (codes, sum) in codes.as_chunks::<8>().0.iter().zip(&mut sums) {
                *sum = _mm256_fmadd_ps(int8_to_f32(codes), scale, *sum);
            }
        }
        out.iter_mut().zip(sums).for_each(|(out, sum)| store(out, sum));
    }
}

/// The sum of products as eight partial sums. `N` is 16 or 32.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn dot_codes<const N: usize>(codes: &[u8; N], x: &[f32; N]) -> __m256 {
    let mut parts = codes.as_chunks::<8>().0.iter().zip(x.as_chunks::<8>().0);
    let (codes, x) = parts.next().expect("there are eight at least");
    let first = _mm256_mul_ps(int8_to_f32(codes), load_f32(x));
    parts.fold(first, |sum, (codes, x)| _mm256_fmadd_ps(int8_to_f32(codes), load_f32(x), sum))
}

/// Converts eight int8 to floats.
#[target_feature(enable = "avx2")]
#[inline]
fn int8_to_f32(codes: &[u8; 8]) -> __m256 {
    // SAFETY: 8 bytes; the load needs no alignment.
    let codes = unsafe { _mm_loadl_epi64(codes.as_ptr().cast()) };
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes))
}

/// Loads a half-precision scale into all lanes.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn load_scale(bytes: [u8; 2]) -> __m256 {
    let bits = _mm_cvtsi32_si128(i32::from(u16::from_le_bytes(bytes)));
    _mm256_broadcastss_ps(_mm_cvtph_ps(bits))
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_32(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: 32 bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn store(out: &mut [f32; 8], x: __m256) {
    // SAFETY: 32 bytes; the store needs no alignment.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), x) }
}
