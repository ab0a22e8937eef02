//! What is done with one row between the integer products, for
//! [`Kernels::wide`](crate::engine::kernels::Kernels::wide) to compile for the processor. A row's numbers do not
//! depend on who computes it.

use super::Activation;
use crate::engine::kernels::WithSimd;
use crate::engine::ops::{self, QuantizedRow, RopePairs};

/// A row normalised into `out`, and quantised.
pub(super) struct NormQuantize<'a> {
    pub x: &'a [f32],
    pub weight: &'a [f32],
    pub epsilon: f32,
    pub out: &'a mut [f32],
    pub q: &'a mut [i8],
}

impl WithSimd for NormQuantize<'_> {
    type Output = QuantizedRow;

    #[inline(always)]
    fn run(self) -> QuantizedRow {
        let Self { x, weight, epsilon, out, q } = self;
        ops::rms_norm(out, x, weight, epsilon);
        ops::quantize(out, q)
    }
}

/// A row normalised in place, where there is a norm, and quantised.
pub(super) struct SubNormQuantize<'a> {
    pub x: &'a mut [f32],
    pub weight: Option<&'a [f32]>,
    pub epsilon: f32,
    pub q: &'a mut [i8],
}

impl WithSimd for SubNormQuantize<'_> {
    type Output = QuantizedRow;

    #[inline(always)]
    fn run(self) -> QuantizedRow {
        let Self { x, weight, epsilon, q } = self;
        if let Some(weight) = weight {
            ops::rms_norm_in_place(x, weight, epsilon);
        }
        ops::quantize(x, q)
    }
}

/// `x += y`
pub(super) struct AddResidual<'a> {
    pub x: &'a mut [f32],
    pub y: &'a [f32],
}

impl WithSimd for AddResidual<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { x, y } = self;
        ops::add(x, y);
    }
}

/// Rotates some heads of `size` numbers.
pub(super) struct Rope<'a> {
    pub heads: &'a mut [f32],
    pub head_dim: usize,
    pub cos: &'a [f32],
    pub sin: &'a [f32],
    pub pairs: RopePairs,
}

impl WithSimd for Rope<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { heads, head_dim: size, cos, sin, pairs } = self;
        for head in heads.chunks_exact_mut(size) {
            ops::rope(head, cos, sin, pairs);
        }
    }
}

/// Scores to weights of the largest, which is returned, and their sum added to `total`; both and `out` hold for the
/// largest `before` them.
pub(super) struct OnlineSoftmax<'a> {
    pub scores: &'a mut [f32],
    pub scale: f32,
    pub max_before: f32,
    pub total: f32,
    pub out: &'a mut [f32],
}

impl WithSimd for OnlineSoftmax<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn run(self) -> (f32, f32) {
        let Self { scores, scale, max_before: before, total, out } = self;
        let largest = before.max(ops::max(scores) * scale);
        let rescale = ops::exp(before - largest);
        out.iter_mut().for_each(|x| *x *= rescale);
        scores.iter_mut().for_each(|score| *score = ops::exp(*score * scale - largest));
        (largest, total * rescale + ops::sum(scores))
    }
}

/// What a product's numbers are put into.
#[derive(Clone, Copy)]
pub(super) enum Epilogue {
    /// Where they belong.
    Store,
    /// What holds the gate's, as the product of both once those went through this.
    MultiplyGate(Activation),
}

/// Puts sums of codes 0, 1, 2 times int8 that sum up to `sum`.
pub(super) struct ApplyEpilogue<'a> {
    pub epilogue: Epilogue,
    pub out: &'a mut [f32],
    pub dots: &'a [i32],
    pub sum: i32,
    pub scale: f32,
}

impl WithSimd for ApplyEpilogue<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { epilogue: put, out, dots, sum, scale } = self;
        put.apply(out, dots.iter().map(|dot| (dot - sum) as f32 * scale));
    }
}

impl Epilogue {
    /// Puts a row of numbers.
    #[inline(always)]
    pub fn apply(self, out: &mut [f32], numbers: impl Iterator<Item = f32>) {
        match self {
            Epilogue::Store => out.iter_mut().zip(numbers).for_each(|(out, x)| *out = x),
            Epilogue::MultiplyGate(Activation::SquaredRelu) => ops::squared_relu_mul(out, numbers),
            Epilogue::MultiplyGate(Activation::Silu) => ops::silu_mul(out, numbers),
        }
    }
}
