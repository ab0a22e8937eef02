//! Fused operations on one row between matrix products, for
//! [`Kernels::with_simd`](crate::engine::kernels::Kernels::with_simd) to compile for the CPU. The results do not
//! depend on which thread computes a row.

use super::Activation;
use crate::engine::kernels::WithSimd;
use crate::engine::ops::{self, QuantizedRow, RopePairs};

/// `out = rms_norm(x)`, which is also quantised.
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

/// Normalises a row in place, where there is a norm, and quantises it.
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

/// `x += y`, for the residual stream.
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

/// Rotates several heads of `head_dim` numbers by one position.
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
        let Self { heads, head_dim, cos, sin, pairs } = self;
        for head in heads.chunks_exact_mut(head_dim) {
            ops::rope(head, cos, sin, pairs);
        }
    }
}

/// One step of online softmax: turns scores into weights relative to the largest score so far, which is returned
/// together with the sum of all weights. `out` and `total`, which were relative to `max_before`, are rescaled.
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
        let Self { scores, scale, max_before, total, out } = self;
        let largest = max_before.max(ops::max(scores) * scale);
        let rescale = ops::exp(max_before - largest);
        out.iter_mut().for_each(|x| *x *= rescale);
        scores.iter_mut().for_each(|score| *score = ops::exp(*score * scale - largest));
        (largest, total * rescale + ops::sum(scores))
    }
}

/// What is done with the numbers of a matrix product.
#[derive(Clone, Copy)]
pub(super) enum Epilogue {
    /// `out = number`
    Store,
    /// `out = activation(out) * number`, where `out` holds the gate.
    MultiplyGate(Activation),
}

/// Converts integer products to floats and applies the epilogue. `dots` are sums of codes 0, 1, 2 times int8; `sum`
/// is the sum of these int8.
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
        let Self { epilogue, out, dots, sum, scale } = self;
        epilogue.apply(out, dots.iter().map(|dot| (dot - sum) as f32 * scale));
    }
}

impl Epilogue {
    /// Applies the epilogue to a row of numbers.
    #[inline(always)]
    pub fn apply(self, out: &mut [f32], numbers: impl Iterator<Item = f32>) {
        match self {
            Epilogue::Store => out.iter_mut().zip(numbers).for_each(|(out, x)| *out = x),
            Epilogue::MultiplyGate(Activation::SquaredRelu) => ops::squared_relu_mul(out, numbers),
            Epilogue::MultiplyGate(Activation::Silu) => ops::silu_mul(out, numbers),
        }
    }
}
