//! AVX-512 with VNNI: Intel servers since 2019, AMD since Zen 4.
//!
//! `vpdpbusd` multiplies unsigned codes by signed int8 and adds four products to a 32-bit lane, exactly. For one
//! token memory is the limit; from the L1 cache, 256-bit registers that hold one block of weights are as fast as
//! 512-bit ones.
//!
//! The 2-bit codes are unpacked by `add_blocks` in `gemv`, by `dot_pairs` in `gemm`, and once for many tokens by
//! `split_codes` in `gemm_lut`.
//!
//! Deliberately knows nothing of block formats: those kernels are AVX2's.

mod attention_f16;
mod gemm;
mod gemm_lut;
mod gemm_lut_asm;
mod gemv;
mod lut_layout;

use super::avx2::{dot_blocks, dot_f16, weighted_sum_blocks, weighted_sum_f16};
use crate::engine::kernels::simd_dispatch::SimdLevel;
use crate::engine::kernels::tiles::{Tile, Tiles};
use crate::engine::kernels::{BatchF16, Kernels};

const TILES: Tiles = Tiles::new(&[
    Tile::new(8, 106, gemm::gemm::<2, 8>),
    Tile::new(7, 96, gemm::gemm::<2, 7>),
    Tile::new(6, 78, gemm::gemm::<4, 6>),
    Tile::new(5, 65, gemm::gemm::<4, 5>),
    Tile::new(4, 57, gemm::gemm::<4, 4>),
    Tile::new(3, 47, gemm::gemm::<4, 3>),
    Tile::new(2, 39, gemm::gemm::<4, 2>),
    Tile::new(1, 25, gemv::gemv),
]);

pub(in crate::engine::kernels) const TABLE: Kernels = Kernels {
    name: "avx512-vnni",
    batch: Some(gemm_lut::BATCH),
    tiles: TILES,
    two_bit_tiles: TILES,
    call_tokens: 16,
    dot_f16,
    weighted_sum_f16,
    batch_f16: Some(BatchF16 {
        dot: attention_f16::dot_batch_f16,
        weighted_sum: attention_f16::weighted_sum_batch_f16,
    }),
    dot_blocks,
    weighted_sum_blocks,
    simd: SimdLevel::Avx512,
};
