//! AVX-512 with VNNI: Intel servers since 2019, AMD since Zen 4.
//!
//! `vpdpbusd` multiplies unsigned codes with signed int8 and adds four products to a 32-bit lane,
//! exactly. For one token memory is the limit: in the first cache registers of 256 bits, a block of
//! weights each, are as fast as those of 512.

mod attention_f16;
mod gemm;
mod gemm_lut;
mod gemm_lut_asm;
mod gemv;
mod lut_layout;

use super::avx2::{dot_blocks, dot_f16, mix_blocks, mix_f16};
use crate::engine::kernels::simd_dispatch::Wide;
use crate::engine::kernels::{Kernels, SharedF16};

pub(in crate::engine::kernels) const TABLE: Kernels = Kernels {
    name: "avx512-vnni",
    many: Some(gemm_lut::MANY),
    ternary: &[
        (6, gemm::gemm::<6>),
        (5, gemm::gemm::<5>),
        (4, gemm::gemm::<4>),
        (3, gemm::gemm::<3>),
        (2, gemm::gemm::<2>),
        (1, gemv::gemv),
    ],
    dot_f16,
    mix_f16,
    shared: Some(SharedF16 { dots: attention_f16::dots_f16, mixes: attention_f16::mixes_f16 }),
    dot_blocks,
    mix_blocks,
    wide: Wide::Avx512,
};
