//! One token: GEMV of ternary rows.

/// Defines `gemv` for an encoding of `vpdpbusd`, with the features that it is compiled for.
macro_rules! gemv {
    ($features:literal, $dpbusd:ident) => {
        /// Multiplies all rows by one token. `q`: `[cols]`, `out`: `[rows]`.
        #[target_feature(enable = $features)]
        fn gemv(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
            for_each_row(
                weights,
                packed_row(cols),
                out,
                |rows| dot_rows(rows, q),
                |row| dot_rows([row], q)[0],
            );
        }

        /// Multiplies rows of the same width. The lower code of each half of a byte is multiplied as it is and the
        /// upper code as four times itself; the sums of the latter are divided at the end. That takes one shift for
        /// four codes.
        #[target_feature(enable = $features)]
        fn dot_rows<const ROWS: usize>(rows: [&[u8]; ROWS], q: &[i8]) -> [i32; ROWS] {
            let (ones, fours) = (_mm256_set1_epi8(0x03), _mm256_set1_epi8(0x0c));
            let mut sums = [[_mm256_setzero_si256(); 2]; ROWS];
            for (block, q) in q.as_chunks::<BLOCK>().0.iter().enumerate() {
                let q = q.as_chunks::<32>().0;
                for (row, [one, four]) in rows.iter().zip(&mut sums) {
                    let low = load(&row[block * BLOCK_BYTES..]);
                    if block % 2 == 0 {
                        prefetch_ahead(&row[block * BLOCK_BYTES..]); // two blocks are one cache line
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
    };
}
