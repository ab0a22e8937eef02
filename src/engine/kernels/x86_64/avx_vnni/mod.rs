//! AVX-VNNI and its older encoding, in 256-bit registers: Intel processors without AVX-512 since Alder Lake (2021), and
//! AMD processors since Zen 5.
//!
//! `vpdpbusd` has two encodings, and the macros here define the kernels once for both. The older encoding comes with
//! AVX-512 VL; where that exists the 512-bit table is faster. The table exists all the same, so that machines with
//! AVX-512 test what machines with AVX-VNNI run.
//!
//! The 2-bit codes are unpacked by `dot_rows` in `gemv` and by `dot_tile` in `gemm`.
//!
//! Deliberately knows nothing of floats: those kernels are AVX2's.

#[macro_use]
mod gemm;
#[macro_use]
mod gemv;

use std::arch::x86_64::*;

/// Defines a module with a table: its name, the features it is compiled for, and its `vpdpbusd`.
macro_rules! table {
    ($module:ident, $name:literal, $features:literal, $dpbusd:ident) => {
        pub(in crate::engine::kernels) mod $module {
            use super::gemm::store_dots;
            use super::{load, load_q};
            use crate::engine::kernels::Kernels;
            use crate::engine::kernels::simd_dispatch::SimdLevel;
            use crate::engine::kernels::tiles::{Tile, Tiles};
            use crate::engine::kernels::x86_64::avx2::{
                dot_blocks, dot_f16, horizontal_sum, weighted_sum_blocks, weighted_sum_f16,
            };
            use crate::engine::kernels::x86_64::row_streams::{
                for_each_row, prefetch_ahead, prefetch_behind,
            };
            use crate::engine::quant::{BLOCK, BLOCK_BYTES, packed_row};
            use std::arch::x86_64::*;

            const TILES: Tiles = Tiles::new(&[
                Tile::new(6, 163, gemm::<2, 6>),
                Tile::new(5, 142, gemm::<2, 5>),
                Tile::new(4, 107, gemm::<3, 4>),
                Tile::new(3, 88, gemm::<4, 3>),
                Tile::new(2, 74, gemm::<4, 2>),
                Tile::new(1, 42, gemv),
            ]);

            pub(in crate::engine::kernels) const TABLE: Kernels = Kernels {
                name: $name,
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

            gemv!($features, $dpbusd);
            gemm!($features, $dpbusd);
        }
    };
}

table!(avx_vnni, "avx-vnni", "avx2,fma,f16c,avxvnni", _mm256_dpbusd_avx_epi32);
table!(avx512vl, "avx512vl-vnni", "avx2,fma,f16c,avx512f,avx512vl,avx512vnni", _mm256_dpbusd_epi32);

#[target_feature(enable = "avx2")]
#[inline]
fn load(bytes: &[u8]) -> __m256i {
    let bytes = &bytes[..32];
    // SAFETY: the slice has just been cut to 32 bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_q(q: &[i8; 32]) -> __m256i {
    // SAFETY: the array has 32 bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(q.as_ptr().cast()) }
}
