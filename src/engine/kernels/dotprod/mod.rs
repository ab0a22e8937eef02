//! NEON with the dot product of Armv8.2: Raspberry Pi 5 and most boards since.
//!
//! `sdot` adds four products of int8 to a 32-bit lane, so nothing can overflow. Its intrinsic is
//! not stable in the compilers this is built with, hence assembly.

mod one;
mod tile;

use super::Kernels;
use super::neon::{dot_blocks, dot_f16, mix_blocks, mix_f16};
use super::wide::Wide;
use std::arch::aarch64::*;

pub(super) const TABLE: Kernels = Kernels {
    name: "neon-dotprod",
    many: None,
    // Four tokens one by one are faster than a tile that is half in vain.
    ternary: &[
        (tile::TILE, tile::ternary),
        (7, tile::ternary),
        (6, tile::ternary),
        (5, tile::ternary),
        (1, one::ternary),
    ],
    dot_f16,
    mix_f16,
    shared: None,
    dot_blocks,
    mix_blocks,
    wide: Wide::Plain,
};

/// The sums of the lanes of four rows.
#[target_feature(enable = "neon")]
#[inline]
fn add_across([a, b, c, d]: [int32x4_t; 4]) -> [i32; 4] {
    let mut dots = [0; 4];
    // SAFETY: four numbers; the store needs no alignment.
    unsafe { vst1q_s32(dots.as_mut_ptr(), vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d))) };
    dots
}
