//! Two-bit codes of a row of the head, for the shortlist, with a bound of their error. Applied again to the
//! remainder, they give two more bits.
//!
//! Codes are stored like those of ternary weights, so that the same kernels multiply them: code `c`, 0 to 3, stands
//! for `2 c - 3` times the row's scale. Two bits represent normally distributed numbers with an error of a third of
//! their magnitude; two more bits reduce it to a seventh.

use super::ternary::{BLOCK, BLOCK_BYTES, packed_row};

/// Scale and error bounds of a row's codes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RowBound {
    /// The value of one unit of a level.
    pub scale: f32,
    /// The length of the difference between the row and its levels times the scale.
    pub error: f32,
    /// The length of the levels times the scale.
    pub length: f32,
    /// The largest difference between a number and its level times the scale.
    pub peak: f32,
}

/// The largest int8 that the kernels may multiply such codes by: three times it is at most twice 128, which is what
/// ternary codes reach.
pub const TWO_BIT_MAX_Q: f32 = 84.0;

/// Steps between levels that are tried, in units of the row's root mean square. The best is 1.0 for normally
/// distributed numbers, and smaller where a few numbers are large.
const STEPS: [f32; 8] = [0.4, 0.6, 0.75, 0.85, 0.95, 1.05, 1.2, 1.4];
/// Numbers from which the step is chosen: as good as all of them, and ten times as fast.
const SAMPLE: usize = 256;
/// Sums that are kept side by side, so that no addition waits for the one before.
const LANES: usize = 8;

/// Writes the codes of a row, padded to whole blocks, and leaves the remainder in `x`; `codes`:
/// `[packed_row(x.len())]`.
///
/// # Panics
/// When the lengths do not agree.
pub fn encode_two_bit(x: &mut [f32], codes: &mut [u8]) -> RowBound {
    assert_eq!(codes.len(), packed_row(x.len()));
    let step = choose_step(x);
    let (mut products, mut squares) = ([0.0f32; LANES], [0.0f32; LANES]);
    for (x, bytes) in x.chunks(BLOCK).zip(codes.chunks_exact_mut(BLOCK_BYTES)) {
        let mut block = [0u8; BLOCK];
        block.iter_mut().zip(x).for_each(|(code, x)| *code = nearest_code(*x, step));
        for (lane, (x, code)) in x.iter().zip(&block).enumerate() {
            products[lane % LANES] += x * level(*code);
            squares[lane % LANES] += level(*code) * level(*code);
        }
        let groups = block.as_chunks::<BLOCK_BYTES>().0;
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = groups.iter().fold(0, |byte, group| byte << 2 | group[at]);
        }
    }
    let (products, squares) = (products.iter().sum::<f32>(), squares.iter().sum::<f32>());
    // The scale with the least error for these codes differs a little from half a step.
    let scale = products / squares;
    x.iter_mut().for_each(|x| *x -= level(nearest_code(*x, step)) * scale);
    let peak = x.iter().fold(0.0f32, |peak, x| peak.max(x.abs()));
    RowBound { scale, error: sum_of_squares(x).sqrt(), length: squares.sqrt() * scale, peak }
}

/// The step with the least square error on a sample of the row.
fn choose_step(x: &[f32]) -> f32 {
    let stride = x.len().div_ceil(SAMPLE);
    let mut sample = [0.0f32; SAMPLE];
    let sample = &mut sample[..x.len().div_ceil(stride)];
    sample.iter_mut().zip(x.iter().step_by(stride)).for_each(|(to, x)| *to = *x);
    let size = (sum_of_squares(sample) / sample.len() as f32).sqrt();
    let error = |step: f32| {
        let mut remainder = [0.0f32; SAMPLE];
        remainder
            .iter_mut()
            .zip(&*sample)
            .for_each(|(remainder, x)| *remainder = x - level(nearest_code(*x, step)) * step / 2.0);
        sum_of_squares(&remainder)
    };
    let errors = STEPS.map(|step| (error(step * size), step * size));
    errors.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).map_or(size, |(_, step)| step)
}

fn sum_of_squares(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x * x);
    }
    sums.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>()
}

/// The code of the nearest level. NaN gets one too; the bounds of its row are NaN.
#[inline(always)]
fn nearest_code(x: f32, step: f32) -> u8 {
    u8::from(x > -step) + u8::from(x > 0.0) + u8::from(x > step)
}

/// The value of a code, in units of the scale.
#[inline(always)]
fn level(code: u8) -> f32 {
    2.0 * f32::from(code) - 3.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::quant::code;
    use crate::random::Lcg;

    fn numbers(count: usize) -> Vec<f32> {
        // The sum of a few uniform numbers is nearly normal.
        let mut numbers = Lcg::new(7);
        (0..count).map(|_| (0..12).map(|_| numbers.fraction() - 0.5).sum()).collect()
    }

    fn length(x: impl IntoIterator<Item = f32>) -> f32 {
        x.into_iter().map(|x| x * x).sum::<f32>().sqrt()
    }

    #[test]
    fn codes_and_remainder_add_up_to_the_row_and_the_bound_holds() {
        for cols in [1, 100, 128, 200, 2560] {
            let x = numbers(cols);
            let mut remainder = x.clone();
            // Two bits leave 0.345 of normal numbers, four 0.142; of few numbers a little more.
            for most in [0.37, 0.17] {
                let before = remainder.clone();
                let mut codes = vec![0; packed_row(cols)];
                let bound = encode_two_bit(&mut remainder, &mut codes);
                let levels: Vec<f32> = (0..cols).map(|col| level(code(&codes, col)) * bound.scale).collect();
                let near = |a: f32, b: f32| (a - b).abs() <= 1e-4 * length(x.iter().copied());
                for (col, level) in levels.iter().enumerate() {
                    assert!(near(before[col], level + remainder[col]), "{cols}: {col}");
                }
                assert!(near(bound.error, length(remainder.iter().copied())), "{cols}: {bound:?}");
                assert!(near(bound.length, length(levels)), "{cols}: {bound:?}");
                assert!(remainder.iter().all(|x| x.abs() <= bound.peak), "{cols}: {bound:?}");
                assert!(bound.error <= most * length(x.iter().copied()), "{cols}: {bound:?}");
            }
        }
    }

    #[test]
    fn a_row_of_zeros_has_a_bound_of_zero() {
        let mut codes = vec![0; packed_row(130)];
        assert_eq!(encode_two_bit(&mut [0.0; 130], &mut codes), RowBound::default());
    }

    #[test]
    fn one_outlier_does_not_spoil_the_other_numbers_of_a_row() {
        let mut x = numbers(256);
        x[3] = 12.0;
        let bound = encode_two_bit(&mut x, &mut vec![0; packed_row(256)]);
        assert!(bound.scale < 0.8 && bound.peak > 9.0, "{bound:?}");
    }

    #[test]
    fn a_row_with_nan_has_a_bound_of_nan() {
        let mut x = numbers(256);
        x[200] = f32::NAN;
        let bound = encode_two_bit(&mut x, &mut vec![0; packed_row(256)]);
        assert!(bound.error.is_nan(), "{bound:?}");
    }
}
