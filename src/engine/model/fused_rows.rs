//! What is done with one row between the integer products, for
//! [`Kernels::wide`](crate::engine::kernels::Kernels::wide) to compile for the processor. A row's numbers do not
//! depend on who computes it.

use super::Activation;
use crate::engine::kernels::Loops;
use crate::engine::ops::{self, Quantized, RopePairs};

/// A row normalised into `out`, and quantised.
pub(super) struct Norm<'a> {
    pub x: &'a [f32],
    pub weight: &'a [f32],
    pub epsilon: f32,
    pub out: &'a mut [f32],
    pub q: &'a mut [i8],
}

impl Loops for Norm<'_> {
    type Made = Quantized;

    #[inline(always)]
    fn run(self) -> Quantized {
        let Self { x, weight, epsilon, out, q } = self;
        ops::rmsnorm(out, x, weight, epsilon);
        ops::quantize(out, q)
    }
}

/// A row normalised in place, where there is a norm, and quantised.
pub(super) struct SubNorm<'a> {
    pub x: &'a mut [f32],
    pub weight: Option<&'a [f32]>,
    pub epsilon: f32,
    pub q: &'a mut [i8],
}

impl Loops for SubNorm<'_> {
    type Made = Quantized;

    #[inline(always)]
    fn run(self) -> Quantized {
        let Self { x, weight, epsilon, q } = self;
        if let Some(weight) = weight {
            ops::rmsnorm_in_place(x, weight, epsilon);
        }
        ops::quantize(x, q)
    }
}

/// `x += y`
pub(super) struct Add<'a> {
    pub x: &'a mut [f32],
    pub y: &'a [f32],
}

impl Loops for Add<'_> {
    type Made = ();

    #[inline(always)]
    fn run(self) {
        let Self { x, y } = self;
        ops::add(x, y);
    }
}

/// Rotates some heads of `size` numbers.
pub(super) struct Rotate<'a> {
    pub heads: &'a mut [f32],
    pub size: usize,
    pub cos: &'a [f32],
    pub sin: &'a [f32],
    pub pairs: RopePairs,
}

impl Loops for Rotate<'_> {
    type Made = ();

    #[inline(always)]
    fn run(self) {
        let Self { heads, size, cos, sin, pairs } = self;
        for head in heads.chunks_exact_mut(size) {
            ops::rope(head, cos, sin, pairs);
        }
    }
}

/// Scores to weights of the largest, which is returned, and their sum added to `total`; both and `out` hold for the
/// largest `before` them.
pub(super) struct Weigh<'a> {
    pub scores: &'a mut [f32],
    pub scale: f32,
    pub before: f32,
    pub total: f32,
    pub out: &'a mut [f32],
}

impl Loops for Weigh<'_> {
    type Made = (f32, f32);

    #[inline(always)]
    fn run(self) -> (f32, f32) {
        let Self { scores, scale, before, total, out } = self;
        let largest = before.max(ops::largest(scores) * scale);
        let rescale = ops::exp(before - largest);
        out.iter_mut().for_each(|x| *x *= rescale);
        scores.iter_mut().for_each(|score| *score = ops::exp(*score * scale - largest));
        (largest, total * rescale + ops::sum(scores))
    }
}

/// What a product's numbers are put into.
#[derive(Clone, Copy)]
pub(super) enum Put {
    /// Where they belong.
    There,
    /// What holds the gate's, as the product of both once those went through this.
    Gate(Activation),
}

/// Puts sums of codes 0, 1, 2 times int8 that sum up to `sum`.
pub(super) struct PutSums<'a> {
    pub put: Put,
    pub out: &'a mut [f32],
    pub dots: &'a [i32],
    pub sum: i32,
    pub scale: f32,
}

impl Loops for PutSums<'_> {
    type Made = ();

    #[inline(always)]
    fn run(self) {
        let Self { put, out, dots, sum, scale } = self;
        put.row(out, dots.iter().map(|dot| (dot - sum) as f32 * scale));
    }
}

impl Put {
    /// Puts a row of numbers.
    #[inline(always)]
    pub fn row(self, out: &mut [f32], numbers: impl Iterator<Item = f32>) {
        match self {
            Put::There => out.iter_mut().zip(numbers).for_each(|(out, x)| *out = x),
            Put::Gate(Activation::SquaredRelu) => ops::squared_relu_times(out, numbers),
            Put::Gate(Activation::Silu) => ops::silu_times(out, numbers),
        }
    }
}
