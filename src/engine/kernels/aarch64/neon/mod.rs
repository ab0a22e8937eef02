//! NEON as every Armv8 CPU has it: Raspberry Pi 3, 4 and Zero 2 W.
//!
//! Without dot-product instructions a code times an int8 goes through `smlal`, one product to a 16-bit lane, or
//! with several tokens through look-up tables.
//!
//! The 2-bit codes are unpacked by the macros `mask!` and `upper!` in `gemv`; `gemm` never unpacks them, since a packed
//! byte is the index into its tables.
//!
//! Deliberately knows nothing of batches beyond eight tokens.

mod attention_f16;
mod block_quant;
mod gemm;
mod gemv;

pub(super) use attention_f16::{dot_f16, weighted_sum_f16};
pub(super) use block_quant::{dot_blocks, weighted_sum_blocks};

use crate::engine::kernels::Kernels;
use crate::engine::kernels::simd_dispatch::SimdLevel;
use crate::engine::kernels::tiles::{Tile, Tiles};
use std::arch::aarch64::*;

pub(in crate::engine::kernels) const TABLE: Kernels = Kernels {
    name: "neon",
    batch: None,
    // Tenths of a cycle of a Cortex-A72 for 256 weights. A tile of fewer than eight tokens costs as much as one of
    // eight; five single tokens cost less.
    tiles: Tiles::new(&[
        Tile::new(gemm::TILE_TOKENS, 1830, gemm::gemm),
        Tile::new(7, 1827, gemm::gemm),
        Tile::new(6, 1824, gemm::gemm),
        Tile::new(1, 338, gemv::gemv),
    ]),
    // The tables that the larger tiles make have no entry for the code 3.
    two_bit_tiles: Tiles::new(&[Tile::new(1, 338, gemv::gemv)]),
    // With more tokens a call would have too few rows to be worth making tables for.
    call_tokens: gemm::TILE_TOKENS,
    dot_f16,
    weighted_sum_f16,
    batch_f16: None,
    dot_blocks,
    weighted_sum_blocks,
    simd: SimdLevel::Baseline,
};

#[target_feature(enable = "neon")]
fn load_f32(x: &[f32; 4]) -> float32x4_t {
    // SAFETY: 16 bytes; the load needs no alignment.
    unsafe { vld1q_f32(x.as_ptr()) }
}

/// The sum of the lanes, in the order of every table: lanes two apart first.
#[target_feature(enable = "neon")]
fn horizontal_sum_f32(x: float32x4_t) -> f32 {
    let pairs = vadd_f32(vget_low_f32(x), vget_high_f32(x));
    vget_lane_f32::<0>(vpadd_f32(pairs, pairs))
}
