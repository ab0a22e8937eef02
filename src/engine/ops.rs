//! The operations between matrix products, on one row at a time: normalisation, rotary embedding, activation,
//! quantisation.
//!
//! They are plain loops that the compiler vectorises. All are inlined, so that they use whatever instruction set
//! the caller is compiled for.

/// Sums that are kept side by side, so that the additions of a sum do not wait for each other.
const LANES: usize = 8;

/// `out = x * weight / rms(x)`, where the root mean square is taken over the row.
#[inline(always)]
pub fn rms_norm(out: &mut [f32], x: &[f32], weight: &[f32], epsilon: f32) {
    assert!(out.len() == x.len() && x.len() == weight.len());
    let scale = 1.0 / (sum_of_squares(x) / x.len() as f32 + epsilon).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

/// The same in place.
#[inline(always)]
pub fn rms_norm_in_place(x: &mut [f32], weight: &[f32], epsilon: f32) {
    assert_eq!(x.len(), weight.len());
    let scale = 1.0 / (sum_of_squares(x) / x.len() as f32 + epsilon).sqrt();
    for (x, weight) in x.iter_mut().zip(weight) {
        *x *= scale * weight;
    }
}

#[inline(always)]
fn sum_of_squares(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x * x;
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>()
}

/// A row quantised to int8: `x[i]` is about `q[i] / scale`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct QuantizedRow {
    /// 127, or the limit that was asked for instead, divided by the largest magnitude of the row.
    pub scale: f32,
    /// The sum of the codes.
    pub sum: i32,
}

/// Quantises a row to int8 as BitNet was trained: the largest magnitude becomes 127, ties go to
/// even. `q` may be longer than `x`; the rest is filled with zeros.
/// Source: `AutoBitLinear` of transformers (`activation_quant`).
#[inline(always)]
pub fn quantize(x: &[f32], q: &mut [i8]) -> QuantizedRow {
    quantize_within(127.0, x, q)
}

/// The same where the largest magnitude becomes `most`, which is at most 127.
#[inline(always)]
pub fn quantize_within(most: f32, x: &[f32], q: &mut [i8]) -> QuantizedRow {
    let (q, padding) = q.split_at_mut(x.len());
    padding.fill(0);
    let scale = most / max_magnitude(x).max(1e-5);
    for (q, x) in q.iter_mut().zip(x) {
        *q = round_half_even(x * scale);
    }
    QuantizedRow { scale, sum: q.iter().map(|q| i32::from(*q)).sum() }
}

#[inline(always)]
fn max_magnitude(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut largest = [0.0f32; LANES];
    for chunk in chunks {
        for (largest, x) in largest.iter_mut().zip(chunk) {
            *largest = if x.abs() > *largest { x.abs() } else { *largest };
        }
    }
    largest.iter().chain(rest).fold(0.0, |a, x| a.max(x.abs()))
}

/// Rounds a number of magnitude below 2^22 to the nearest integer, ties to even, through an addition: 1.5 * 2^23
/// has a unit in the last place of exactly 1. Every x86 and Arm vector unit can do this; the library call for the
/// same needs SSE4.1.
#[inline(always)]
fn round_half_even(x: f32) -> i8 {
    const MAGIC: f32 = 12_582_912.0;
    ((x + MAGIC).to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32) as i8
}

/// The angles of the rotary embedding at one position: `cos` and `sin` of each pair, `[rope_dims / 2]`.
pub fn rope_angles(position: usize, frequencies: &[f32], cos: &mut [f32], sin: &mut [f32]) {
    for ((frequency, cos), sin) in frequencies.iter().zip(cos).zip(sin) {
        (*sin, *cos) = (position as f32 * frequency).sin_cos();
    }
}

/// Which elements of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairs {
    /// `i` and `i + head_dim / 2`: GPT-NeoX, and every BitNet.
    Halves,
    /// `2 i` and `2 i + 1`: llama.cpp's order for Llama files.
    Neighbours,
}

/// Rotates one head in place: `[head_dim]`, of which the first `2 * cos.len()` elements are rotated.
#[inline(always)]
pub fn rope(head: &mut [f32], cos: &[f32], sin: &[f32], pairs: RopePairs) {
    let rotated = &mut head[..2 * cos.len()];
    match pairs {
        RopePairs::Halves => {
            let (a, b) = rotated.split_at_mut(cos.len());
            for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
            }
        }
        RopePairs::Neighbours => {
            for (([a, b], cos), sin) in rotated.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
            }
        }
    }
}

/// The sum, in an order that depends only on the length.
#[inline(always)]
pub fn sum(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x);
    }
    sums.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// The largest number; NaN is ignored.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut largest = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (largest, x) in largest.iter_mut().zip(chunk) {
            *largest = if *x > *largest { *x } else { *largest };
        }
    }
    largest.iter().chain(rest).fold(f32::NEG_INFINITY, |a, x| a.max(*x))
}

/// The index of the largest number, the first of equal ones. NaN is ignored, and so are tokens that are
/// `penalised`, where that is given. 0 where there is none.
pub fn argmax(x: &[f32], penalised: Option<&[bool]>) -> usize {
    /// Numbers that are searched together; an index is looked up only among the best of these chunks.
    const TOGETHER: usize = 1024;
    let mut best = (0, f32::NEG_INFINITY);
    for start in (0..x.len()).step_by(TOGETHER) {
        let part = start..(start + TOGETHER).min(x.len());
        let top = match penalised {
            None => max(&x[part]),
            Some(penalised) => max_unpenalised(&x[part.clone()], &penalised[part]),
        };
        if top > best.1 {
            best = (start, top);
        }
    }
    let (start, top) = best;
    let is_top = |at: &usize| x[*at] == top && !penalised.is_some_and(|penalised| penalised[*at]);
    if top > f32::NEG_INFINITY { (start..x.len()).find(is_top).unwrap_or(0) } else { 0 }
}

/// The largest number that is not penalised; NaN is ignored.
#[inline(always)]
fn max_unpenalised(x: &[f32], penalised: &[bool]) -> f32 {
    assert_eq!(x.len(), penalised.len());
    let or_none = |(x, penalised): (&f32, &bool)| if *penalised { f32::NEG_INFINITY } else { *x };
    let ((chunks, rest), (flags, rest_flags)) = (x.as_chunks::<LANES>(), penalised.as_chunks::<LANES>());
    let mut largest = [f32::NEG_INFINITY; LANES];
    for (chunk, flags) in chunks.iter().zip(flags) {
        for (largest, x) in largest.iter_mut().zip(chunk.iter().zip(flags).map(or_none)) {
            *largest = if x > *largest { x } else { *largest };
        }
    }
    largest.into_iter().chain(rest.iter().zip(rest_flags).map(or_none)).fold(f32::NEG_INFINITY, f32::max)
}

/// `e^x`, to two units in the last place; above 88 it stays at `e^88`, below -87 at `e^-87`. It uses only additions
/// and multiplications, so that a loop over it is vectorised and gives the same bits on every CPU.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// The upper bits of ln 2 and the rest: the upper bits times a whole number are exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    /// Adding and subtracting it leaves a whole number.
    const MAGIC: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let whole = shifted - MAGIC;
    let x = x - whole * LN_2[0] - whole * LN_2[1];
    // The power series; x is at most half of ln 2, so that the next term is below 1.3e-7 of the sum.
    let terms = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let sum = terms.into_iter().fold(0.0, |sum, term| sum * x + term);
    // The whole number is in the low bits of `shifted`; here it becomes a power of two.
    sum * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000))
}

/// `gate = relu(gate)^2 * up`, the activation of BitNet-b1.58-2B-4T.
#[inline(always)]
pub fn squared_relu_mul(gate: &mut [f32], up: impl Iterator<Item = f32>) {
    for (gate, up) in gate.iter_mut().zip(up) {
        let positive = gate.max(0.0);
        *gate = positive * positive * up;
    }
}

/// `gate = silu(gate) * up`, the activation of Llama.
#[inline(always)]
pub fn silu_mul(gate: &mut [f32], up: impl Iterator<Item = f32>) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}

/// `x += y`
#[inline(always)]
pub fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_to_two_units_in_the_last_place() {
        for step in -87_000..=88_000 {
            let x = step as f32 / 1000.0;
            let wanted = f64::from(x).exp();
            let off = (f64::from(exp(x)) - wanted).abs() / wanted;
            assert!(off < 2.5e-7, "{x}: {off}");
        }
        assert_eq!((exp(0.0), exp(f32::NEG_INFINITY), exp(1e9)), (1.0, exp(-87.0), exp(88.0)));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn argmax_finds_the_first_of_the_largest_and_skips_penalised_and_nan() {
        let one_by_one = |x: &[f32], penalised: &[bool]| {
            let better = |best: (usize, f32), at: usize| {
                if x[at] > best.1 && !penalised[at] { (at, x[at]) } else { best }
            };
            (0..x.len()).fold((0, f32::NEG_INFINITY), better).0
        };
        for len in [1, 7, 8, 1023, 1024, 1025, 4099] {
            for at in [0, len / 2, len - 1] {
                let mut x: Vec<f32> = (0..len).map(|i| (i % 13) as f32 - 20.0).collect();
                (x[at], x[len - 1]) = (3.0, 3.0);
                let mut penalised = vec![false; len];
                assert_eq!([argmax(&x, None), argmax(&x, Some(&penalised))], [at; 2], "{len}");
                penalised[at] = true;
                let wanted = one_by_one(&x, &penalised);
                assert_eq!(argmax(&x, Some(&penalised)), wanted, "{len}, {at}");
                x[at] = f32::NAN;
                assert_eq!(argmax(&x, None), wanted, "{len}, {at}");
            }
        }
        let none = [f32::NAN, f32::NEG_INFINITY, f32::NEG_INFINITY];
        let found = [argmax(&none, None), argmax(&[], None), argmax(&[1.0, 2.0], Some(&[true; 2]))];
        assert_eq!(found, [0; 3]);
    }

    #[test]
    fn rounding_goes_to_even_on_ties() {
        for x in -1270..=1270 {
            let x = x as f32 / 10.0;
            assert_eq!(round_half_even(x), x.round_ties_even() as i8, "{x}");
        }
    }

    #[test]
    fn quantising_keeps_the_largest_at_127_and_sums_the_codes() {
        let mut q = [9i8; 6];
        let quantized = quantize(&[0.5, -1.0, 0.25, 0.0], &mut q);
        assert_eq!(q, [64, -127, 32, 0, 0, 0]);
        assert_eq!((quantized.scale, quantized.sum), (127.0, -31));
    }

    #[test]
    fn a_row_of_zeros_quantises_to_zeros() {
        let mut q = [1i8; 3];
        assert_eq!(quantize(&[0.0; 3], &mut q).sum, 0);
        assert_eq!(q, [0; 3]);
    }

    #[test]
    fn normalising_gives_unit_rms() {
        let x: Vec<f32> = (0..37).map(|i| i as f32 - 11.0).collect();
        let mut out = vec![0.0; 37];
        rms_norm(&mut out, &x, &[1.0; 37], 0.0);
        assert!((sum_of_squares(&out) / 37.0 - 1.0).abs() < 1e-5);
        let mut same = x.clone();
        rms_norm_in_place(&mut same, &[1.0; 37], 0.0);
        assert_eq!(out, same);
    }

    #[test]
    fn rotation_keeps_length_and_pairs_as_named() {
        let (mut cos, mut sin) = ([0.0; 2], [0.0; 2]);
        rope_angles(3, &[1.0, 0.5], &mut cos, &mut sin);
        let mut halves = [1.0, 2.0, 3.0, 4.0];
        rope(&mut halves, &cos, &sin, RopePairs::Halves);
        let mut neighbours = [1.0, 3.0, 2.0, 4.0];
        rope(&mut neighbours, &cos, &sin, RopePairs::Neighbours);
        assert_eq!(halves, [neighbours[0], neighbours[2], neighbours[1], neighbours[3]]);
        assert!((halves.iter().map(|x| x * x).sum::<f32>() - 30.0).abs() < 1e-4);
    }
}
