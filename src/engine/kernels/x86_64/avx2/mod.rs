//! AVX2 with FMA and F16C: every x86-64 CPU since about 2013.
//!
//! `vpmaddubsw` multiplies unsigned codes by signed int8 and adds two products to a 16-bit lane. `unpack_codes` below
//! makes bytes of the 2-bit codes, for `gemv` and `gemm` alike.
//!
//! Deliberately has no batch kernel: a tile has at most four tokens.

mod attention_f16;
mod block_quant;
mod gemm;
mod gemv;

pub(super) use attention_f16::{dot_f16, weighted_sum_f16};
pub(super) use block_quant::{dot_blocks, weighted_sum_blocks};

use crate::engine::kernels::Kernels;
use crate::engine::kernels::simd_dispatch::SimdLevel;
use crate::engine::kernels::tiles::{Tile, Tiles};
use crate::engine::quant::{BLOCK, BLOCK_BYTES};
use std::arch::x86_64::*;

const TILES: Tiles = Tiles::new(&[
    Tile::new(4, 244, gemm::gemm::<4>),
    Tile::new(3, 183, gemm::gemm::<3>),
    Tile::new(2, 116, gemm::gemm::<2>),
    Tile::new(1, 63, gemv::gemv),
]);

pub(in crate::engine::kernels) const TABLE: Kernels = Kernels {
    name: "avx2",
    batch: None,
    tiles: TILES,
    two_bit_tiles: TILES,
    call_tokens: 16,
    dot_f16,
    weighted_sum_f16,
    batch_f16: None,
    dot_blocks,
    weighted_sum_blocks,
    simd: SimdLevel::Avx2,
};

/// How many blocks of a row fit into 16-bit sums before they must be widened. A lane takes two products of a code
/// (at most 2) and an int8 (at least -128) from each of the four groups of a block: 15 blocks reach -30,720, and 16
/// would overflow.
const BLOCKS_IN_16_BITS: usize = 15;

/// Unpacks the 2-bit codes of a block into bytes, one register for each group of 32.
#[target_feature(enable = "avx2")]
fn unpack_codes(bytes: &[u8]) -> [__m256i; 4] {
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

#[target_feature(enable = "avx2")]
fn load_f32(x: &[f32; 8]) -> __m256 {
    // SAFETY: 32 bytes; the load needs no alignment.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}
