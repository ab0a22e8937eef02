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
    // Five single tokens are faster than a tile of eight that is nearly half empty.
    tiles: &[(gemm::TILE_TOKENS, gemm::gemm), (7, gemm::gemm), (6, gemm::gemm), (1, gemv::gemv)],
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
