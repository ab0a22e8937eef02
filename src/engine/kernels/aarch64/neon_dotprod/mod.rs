//! NEON with the dot-product instructions of Armv8.2: Raspberry Pi 5 and most boards since.
//!
//! `sdot` adds four products of int8 to a 32-bit lane, so nothing can overflow. Its intrinsic is not stable in the
//! compilers that are supported, hence assembly.
//!
//! The 2-bit codes are unpacked by the macro `block!` in `gemv` and by `blocks!` in `gemm`.
//!
//! Deliberately knows nothing of floats: those kernels are plain NEON's.

mod gemm;
mod gemv;

use super::neon::{dot_blocks, dot_f16, weighted_sum_blocks, weighted_sum_f16};
use crate::engine::kernels::Kernels;
use crate::engine::kernels::simd_dispatch::SimdLevel;
use crate::engine::kernels::tiles::{Tile, Tiles};
use std::arch::aarch64::*;

/// Tenths of a cycle of a Cortex-A76 for 256 weights.
const TILES: Tiles = Tiles::new(&[
    Tile::new(8, 752, gemm::gemm_8),
    Tile::new(7, 665, gemm::gemm_7),
    Tile::new(6, 580, gemm::gemm_6),
    Tile::new(5, 500, gemm::gemm_5),
    Tile::new(4, 415, gemm::gemm_4),
    Tile::new(3, 332, gemm::gemm_3),
    Tile::new(2, 248, gemm::gemm_2),
    Tile::new(1, 164, gemv::gemv),
]);

pub(in crate::engine::kernels) const TABLE: Kernels = Kernels {
    name: "neon-dotprod",
    batch: None,
    tiles: TILES,
    two_bit_tiles: TILES,
    call_tokens: 16,
    dot_f16,
    weighted_sum_f16,
    batch_f16: None,
    dot_blocks,
    weighted_sum_blocks,
    simd: SimdLevel::Baseline,
};

/// The sum of the lanes of each of four rows.
#[target_feature(enable = "neon")]
#[inline]
fn horizontal_sums([a, b, c, d]: [int32x4_t; 4]) -> [i32; 4] {
    let mut dots = [0; 4];
    // SAFETY: four numbers; the store needs no alignment.
    unsafe { vst1q_s32(dots.as_mut_ptr(), vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d))) };
    dots
}
