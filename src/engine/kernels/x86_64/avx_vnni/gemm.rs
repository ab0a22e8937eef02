//! Tiles of two to six tokens: GEMM of ternary rows.
//!
//! Some rows share each load of activations. A product takes five cycles and two begin in a cycle, so that ten sums
//! keep the multipliers busy; of 16 registers, 12 hold sums at most.

/// Defines `gemm` for an encoding of `vpdpbusd`, with the features that it is compiled for.
macro_rules! gemm {
    ($features:literal, $dpbusd:ident) => {
        /// Multiplies all rows by a tile of `T` tokens, `R` rows at a time. `q`: `[T, cols]`, `out`: `[T, rows]`.
        #[target_feature(enable = $features)]
        fn gemm<const R: usize, const T: usize>(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
            let (width, rows) = (packed_row(cols), out.len() / T);
            let whole = rows / R * R;
            let (groups, rest) = weights.split_at(whole * width);
            for (group, weights) in groups.chunks_exact(R * width).enumerate() {
                store_dots(&dot_tile::<R, T>(weights, q, cols), &mut out[group * R..], rows);
            }
            for (row, weights) in rest.chunks_exact(width).enumerate() {
                store_dots(&dot_tile::<1, T>(weights, q, cols), &mut out[whole + row..], rows);
            }
        }

        #[target_feature(enable = $features)]
        fn dot_tile<const R: usize, const T: usize>(weights: &[u8], q: &[i8], cols: usize) -> [[i32; R]; T] {
            let width = packed_row(cols);
            assert!(q.len() == T * cols && weights.len() == R * width && cols.is_multiple_of(BLOCK));
            let mask = _mm256_set1_epi8(0x03);
            let mut sums = [[_mm256_setzero_si256(); R]; T];
            for block in 0..cols / BLOCK {
                prefetch_behind(weights, R * BLOCK_BYTES * block, R * BLOCK_BYTES);
                let mut packed = [mask; R];
                for (row, packed) in packed.iter_mut().enumerate() {
                    *packed = load(&weights[row * width + block * BLOCK_BYTES..]);
                }
                for group in 0..4 {
                    let shift = _mm_cvtsi32_si128(6 - 2 * group as i32);
                    let mut codes = [mask; R];
                    for (codes, packed) in codes.iter_mut().zip(packed) {
                        *codes = _mm256_and_si256(_mm256_srl_epi16(packed, shift), mask);
                    }
                    for (token, sums) in sums.iter_mut().enumerate() {
                        // SAFETY: within the token's row of `cols`, as asserted; no alignment is needed.
                        let q = unsafe {
                            let at = q.as_ptr().add(token * cols + block * BLOCK + group * BLOCK_BYTES);
                            _mm256_loadu_si256(at.cast())
                        };
                        for (sum, codes) in sums.iter_mut().zip(codes) {
                            *sum = $dpbusd(*sum, codes, q);
                        }
                    }
                }
            }
            let mut dots = [[0; R]; T];
            for (dot, sum) in dots.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
                *dot = horizontal_sum(*sum);
            }
            dots
        }
    };
}

/// Stores the sums of each token and row: `out[t * rows + r]`.
#[inline(always)]
pub(super) fn store_dots<const R: usize, const T: usize>(dots: &[[i32; R]; T], out: &mut [i32], rows: usize) {
    for (token, dots) in dots.iter().enumerate() {
        out[token * rows..][..R].copy_from_slice(dots);
    }
}
