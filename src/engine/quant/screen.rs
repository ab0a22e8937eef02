//! A row of a head in four bits: enough to say which rows are worth reading whole.
//!
//! One scale a row. Larger numbers may be cut off: for normal numbers the square error is least when the
//! codes reach two thirds of the largest of 2560.

use super::nibbles::{NIBBLE_BLOCK, NIBBLE_BLOCK_BYTES};

/// What is known of a row beside its codes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Outline {
    /// What a code counts.
    pub scale: f32,
    /// Length of the difference between the row and its codes times the scale.
    pub error: f32,
    /// Length of the codes times the scale.
    pub length: f32,
    /// Largest difference between a number and its code times the scale.
    pub peak: f32,
}

/// Codes reach from -8 to 7; the largest magnitude becomes one of these before it is cut off.
const REACHES: [f32; 8] = [7.0, 8.0, 9.0, 10.0, 11.5, 13.0, 16.0, 20.0];
/// Numbers by which the reach is chosen: as good as all of them, and ten times as fast.
const SAMPLE: usize = 256;
/// Sums kept side by side, so that no addition waits for the one before.
const LANES: usize = 8;

/// Bytes of a row of `cols` numbers.
pub fn screen_bytes(cols: usize) -> usize {
    cols.div_ceil(NIBBLE_BLOCK) * NIBBLE_BLOCK_BYTES
}

/// Writes the codes of a row, padded with zeros to whole blocks; `codes`: `[screen_bytes(x.len())]`.
///
/// # Panics
/// When the lengths do not agree.
pub fn screen_row(x: &[f32], codes: &mut [u8]) -> Outline {
    assert_eq!(codes.len(), screen_bytes(x.len()));
    let largest = x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
    let step = if largest > 0.0 { largest / reach(x, largest) } else { 1.0 };
    let per = step.recip();
    // The scale that leaves the least error with these codes is a little off the step.
    let (mut products, mut squares) = ([0.0f32; LANES], [0.0f32; LANES]);
    for (x, bytes) in x.chunks(NIBBLE_BLOCK).zip(codes.chunks_exact_mut(NIBBLE_BLOCK_BYTES)) {
        let (mut padded, mut block) = ([0.0f32; NIBBLE_BLOCK], [0.0f32; NIBBLE_BLOCK]);
        padded[..x.len()].copy_from_slice(x);
        block.iter_mut().zip(&padded).for_each(|(code, x)| *code = nearest(x * per));
        add_products(&mut products, &block, &padded);
        add_products(&mut squares, &block, &block);
        let (low, high) = block.split_at(NIBBLE_BLOCK_BYTES);
        for ((byte, low), high) in bytes.iter_mut().zip(low).zip(high) {
            *byte = (low + 8.0) as u8 | ((high + 8.0) as u8) << 4;
        }
    }
    let (products, squares) = (products.iter().sum::<f32>(), squares.iter().sum::<f32>());
    let scale = if squares > 0.0 { products / squares } else { 0.0 };
    let peak = x.iter().fold(0.0f32, |peak, x| peak.max((x - nearest(x * per) * scale).abs()));
    Outline { scale, error: distance(x, per, scale).sqrt(), length: squares.sqrt() * scale, peak }
}

/// `sums += a * b`, number by number.
fn add_products(sums: &mut [f32; LANES], a: &[f32], b: &[f32]) {
    for (a, b) in a.as_chunks::<LANES>().0.iter().zip(b.as_chunks::<LANES>().0) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
}

/// Square of the distance between numbers and their codes, found with `per`, times `scale`.
fn distance(x: &[f32], per: f32, scale: f32) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let off = |x: f32| x - nearest(x * per) * scale;
    let mut sums = [0.0f32; LANES];
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += off(*x) * off(*x);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|x| off(*x) * off(*x)).sum::<f32>()
}

/// The reach with the least square error on a sample of the row.
fn reach(x: &[f32], largest: f32) -> f32 {
    let stride = x.len().div_ceil(SAMPLE);
    let mut sample = [0.0f32; SAMPLE];
    sample.iter_mut().zip(x.iter().step_by(stride)).for_each(|(to, x)| *to = *x);
    let error = |reach: f32| distance(&sample, reach / largest, largest / reach);
    let errors = REACHES.map(|reach| (error(reach), reach));
    errors.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).map_or(REACHES[0], |(_, reach)| reach)
}

/// The nearest code; what is no number becomes -8, and its row's outline no number.
#[inline(always)]
fn nearest(x: f32) -> f32 {
    // Whole numbers from 0 to 15 by cutting off; plain vector code, where `round` is a call.
    (x.clamp(-8.0, 7.0) + 8.5) as i32 as f32 - 8.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::quant::nibbles::nibble;

    fn numbers(count: usize) -> Vec<f32> {
        // The sum of a few uniform numbers is nearly normal.
        let mut state = 7u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..count).map(|_| (0..12).map(|_| uniform()).sum()).collect()
    }

    fn back(codes: &[u8], outline: Outline, col: usize) -> f32 {
        f32::from(nibble(codes, col) as i8 - 8) * outline.scale
    }

    #[test]
    fn the_outline_says_how_far_the_codes_are_off() {
        for cols in [1, 100, 128, 200, 2560] {
            let x = numbers(cols);
            let mut codes = vec![0; screen_bytes(cols)];
            let outline = screen_row(&x, &mut codes);
            let (mut error, mut length, mut peak) = (0.0, 0.0, 0.0f32);
            for (col, x) in x.iter().enumerate() {
                error += (x - back(&codes, outline, col)).powi(2);
                peak = peak.max((x - back(&codes, outline, col)).abs());
                length += back(&codes, outline, col).powi(2);
            }
            assert!(
                (error.sqrt() - outline.error).abs() <= 1e-3 * outline.length,
                "{cols}: {error} {outline:?}"
            );
            assert!((length.sqrt() - outline.length).abs() <= 1e-3 * outline.length, "{cols}: {outline:?}");
            assert!((peak - outline.peak).abs() <= 1e-6 * outline.length, "{cols}: {peak} {outline:?}");
            let share = outline.error / outline.length;
            assert!(share < 0.13, "{cols}: {share}");
        }
    }

    #[test]
    fn what_is_padded_counts_nothing_and_zeros_stay_zeros() {
        let mut codes = vec![0; screen_bytes(130)];
        let outline = screen_row(&[0.0; 130], &mut codes);
        assert_eq!(outline, Outline::default());
        assert!(codes.iter().all(|byte| *byte == 0x88));
        screen_row(&numbers(130), &mut codes);
        assert!((130..256).all(|col| nibble(&codes, col) == 8));
    }

    #[test]
    fn a_row_with_one_number_far_off_keeps_the_others() {
        let mut x = numbers(256);
        x[3] = 12.0;
        let mut codes = vec![0; screen_bytes(256)];
        let outline = screen_row(&x, &mut codes);
        assert!(outline.scale < 12.0 / 7.0, "{outline:?}");
    }
}
