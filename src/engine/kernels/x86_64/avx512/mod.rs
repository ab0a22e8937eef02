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
use crate::engine::kernels::{BatchF16, BatchKernel, Kernels};

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

/// For processors that begin two 512-bit multiplications a cycle (Zen 5): tiles of four and five tokens take half a
/// nanosecond for 256 weights and one token, as long as the multipliers do; wider ones, whose sums do not fit into the
/// registers beside the weights, take 0.6 to 0.7. From the L2 cache, one thread: `matrix times avx512-vnni 1 1024 9`, in
/// hundredths of a nanosecond.
const TILES_OF_TWO_MULTIPLIERS: Tiles = Tiles::new(&[
    Tile::new(5, 263, gemm::gemm::<4, 5>),
    Tile::new(4, 212, gemm::gemm::<4, 4>),
    Tile::new(3, 167, gemm::gemm::<4, 3>),
    Tile::new(2, 132, gemm::gemm::<4, 2>),
    Tile::new(1, 79, gemv::gemv),
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

/// The table with the tiles and the batch kernel that suit a CPU with these features.
///
/// The batch kernel looks sums up because Zen 4 begins one 512-bit multiplication a cycle. Processors that begin two make
/// other kernels the fastest. Intel's are recognised by half-precision arithmetic, which they have had since then. There
/// tiles take less time for any number of tokens (Sapphire Rapids, one thread, ns for 256 weights from memory: 24 tokens 33
/// instead of 53, 64 tokens 87 instead of 125, 128 tokens 184 instead of 222). AMD's are recognised by AVX-VNNI. There
/// looking up pays from more tokens on (Zen 5, the same: 24 tokens 13.4 instead of 12.7, 32 tokens 16.7 instead of 17.0).
pub(in crate::engine::kernels) fn table_for(has_feature: impl Fn(&str) -> bool) -> Kernels {
    if has_feature("avx512fp16") {
        Kernels { batch: None, ..TABLE }
    } else if has_feature("avxvnni") {
        let batch = BatchKernel { min_tokens: 30, ..gemm_lut::BATCH };
        let tiles = TILES_OF_TWO_MULTIPLIERS;
        Kernels { batch: Some(batch), tiles, two_bit_tiles: tiles, ..TABLE }
    } else {
        TABLE
    }
}
