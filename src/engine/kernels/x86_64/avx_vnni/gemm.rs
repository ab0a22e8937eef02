//! Tiles of two to six tokens: GEMM of ternary rows.

/// Rows that share each load of activations: with six tokens 12 of the 16 registers hold sums.
pub(super) const PAIR: usize = 2;

/// Defines `gemm` for an encoding of `vpdpbusd`, with the features that it is compiled for.
macro_rules! gemm {
    ($features:literal, $dpbusd:ident) => {
        /// Multiplies all rows by a tile of `T` tokens. `q`: `[T, cols]`, `out`: `[T, rows]`.
        #[target_feature(enable = $features)]
        fn gemm<const T: usize>(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
            let (width, rows) = (packed_row(cols), out.len() / T);
            for (pair, weights) in weights.chunks(PAIR * width).enumerate() {
                // The last row of an odd number is paired with itself.
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
                let packed = [load(&rows[0][block * BLOCK_BYTES..]), load(&rows[1][block * BLOCK_BYTES..])];
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
    };
}
