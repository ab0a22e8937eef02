//! VNNI in registers of 256 bits: Intel's processors without AVX-512 since Alder Lake (2021), AMD's since
//! Zen 5.
//!
//! There are two encodings of the same `vpdpbusd`. This is one text for both: the older one comes with
//! AVX-512 VL, and where that is, the 512-bit table is faster. It is a table all the same, so that machines
//! with AVX-512 test what machines with AVX-VNNI run.

/// A module with a table: its name, the features it is compiled for, its `vpdpbusd`.
macro_rules! table {
    ($module:ident, $name:literal, $features:literal, $dpbusd:ident) => {
        pub(super) mod $module {
            use crate::engine::kernels::Kernels;
            use crate::engine::kernels::avx2::{dot_blocks, dot_f16, horizontal_sum, mix_blocks, mix_f16};
            use crate::engine::kernels::streams::{each_row, fetch_ahead};
            use crate::engine::kernels::wide::Wide;
            use crate::engine::quant::{BLOCK, BLOCK_BYTES, packed_row};
            use std::arch::x86_64::*;

            pub(in crate::engine::kernels) const TABLE: Kernels = Kernels {
                name: $name,
                many: None,
                ternary: &[
                    (6, tile::<6>),
                    (5, tile::<5>),
                    (4, tile::<4>),
                    (3, tile::<3>),
                    (2, tile::<2>),
                    (1, one),
                ],
                dot_f16,
                mix_f16,
                shared: None,
                dot_blocks,
                mix_blocks,
                wide: Wide::Avx2,
            };

            /// All rows for one token.
            #[target_feature(enable = $features)]
            pub(in crate::engine::kernels) fn one(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
                each_row(
                    weights,
                    packed_row(cols),
                    out,
                    |rows| dot_rows(rows, q),
                    |row| dot_rows([row], q)[0],
                );
            }

            /// Rows of the same width. The lower code of each half of a byte is multiplied as it is, the
            /// upper as 4 times itself, and those sums are divided at the end: one shift for four codes.
            #[target_feature(enable = $features)]
            fn dot_rows<const ROWS: usize>(rows: [&[u8]; ROWS], q: &[i8]) -> [i32; ROWS] {
                let (ones, fours) = (_mm256_set1_epi8(0x03), _mm256_set1_epi8(0x0c));
                let mut sums = [[_mm256_setzero_si256(); 2]; ROWS];
                for (block, q) in q.as_chunks::<BLOCK>().0.iter().enumerate() {
                    let q = q.as_chunks::<32>().0;
                    for (row, [one, four]) in rows.iter().zip(&mut sums) {
                        let low = load(&row[block * BLOCK_BYTES..]);
                        if block % 2 == 0 {
                            fetch_ahead(&row[block * BLOCK_BYTES..]); // two blocks are a line of the cache
                        }
                        let high = _mm256_srli_epi16::<4>(low);
                        *four = $dpbusd(*four, _mm256_and_si256(high, fours), load_q(&q[0]));
                        *one = $dpbusd(*one, _mm256_and_si256(high, ones), load_q(&q[1]));
                        *four = $dpbusd(*four, _mm256_and_si256(low, fours), load_q(&q[2]));
                        *one = $dpbusd(*one, _mm256_and_si256(low, ones), load_q(&q[3]));
                    }
                }
                let mut dots = [0; ROWS];
                for (dot, [one, four]) in dots.iter_mut().zip(sums) {
                    *dot = horizontal_sum(_mm256_add_epi32(one, _mm256_srai_epi32::<2>(four)));
                }
                dots
            }

            /// Rows that share the loads of activations: with six tokens 12 registers of 16 are sums.
            const PAIR: usize = 2;

            /// All rows for `T` tokens.
            #[target_feature(enable = $features)]
            fn tile<const T: usize>(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
                let (width, rows) = (packed_row(cols), out.len() / T);
                for (pair, weights) in weights.chunks(PAIR * width).enumerate() {
                    // A last row without a second: the same again, for nothing.
                    let second = weights.len() - width;
                    let dots = dot_tile::<T>([&weights[..width], &weights[second..]], q, cols);
                    for (out, dots) in out.chunks_exact_mut(rows).zip(dots) {
                        let out = &mut out[pair * PAIR..];
                        let few = out.len().min(PAIR);
                        out[..few].copy_from_slice(&dots[..few]);
                    }
                }
            }

            #[target_feature(enable = $features)]
            fn dot_tile<const T: usize>(rows: [&[u8]; PAIR], q: &[i8], cols: usize) -> [[i32; PAIR]; T] {
                assert!(q.len() == T * cols && cols.is_multiple_of(BLOCK));
                let mask = _mm256_set1_epi8(0x03);
                let mut sums = [[_mm256_setzero_si256(); PAIR]; T];
                for block in 0..cols / BLOCK {
                    let packed =
                        [load(&rows[0][block * BLOCK_BYTES..]), load(&rows[1][block * BLOCK_BYTES..])];
                    for group in 0..4 {
                        let shift = _mm_cvtsi32_si128(6 - 2 * group as i32);
                        let a = _mm256_and_si256(_mm256_srl_epi16(packed[0], shift), mask);
                        let b = _mm256_and_si256(_mm256_srl_epi16(packed[1], shift), mask);
                        for (token, sums) in sums.iter_mut().enumerate() {
                            // SAFETY: within the token's row of `cols`, as asserted; no alignment is needed.
                            let q = unsafe {
                                let at = q.as_ptr().add(token * cols + block * BLOCK + group * BLOCK_BYTES);
                                _mm256_loadu_si256(at.cast())
                            };
                            sums[0] = $dpbusd(sums[0], a, q);
                            sums[1] = $dpbusd(sums[1], b, q);
                        }
                    }
                }
                let mut dots = [[0; PAIR]; T];
                for (dots, [a, b]) in dots.iter_mut().zip(sums) {
                    *dots = [horizontal_sum(a), horizontal_sum(b)];
                }
                dots
            }

            #[target_feature(enable = "avx2")]
            #[inline]
            fn load(bytes: &[u8]) -> __m256i {
                let bytes = &bytes[..32];
                // SAFETY: 32 bytes, as just cut; the load needs no alignment.
                unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
            }

            #[target_feature(enable = "avx2")]
            #[inline]
            fn load_q(q: &[i8; 32]) -> __m256i {
                // SAFETY: 32 bytes; the load needs no alignment.
                unsafe { _mm256_loadu_si256(q.as_ptr().cast()) }
            }
        }
    };
}

table!(avx_vnni, "avx-vnni", "avx2,fma,f16c,avxvnni", _mm256_dpbusd_avx_epi32);
table!(avx512vl, "avx512vl-vnni", "avx2,fma,f16c,avx512f,avx512vl,avx512vnni", _mm256_dpbusd_epi32);
