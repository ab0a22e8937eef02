//! A shortlist of tokens: 2-bit codes of the whole head, and a 2-bit residual, show which few rows can win and must
//! be read exactly.
//!
//! The first two bits estimate every row's logit and bound its error. For rows that may be the best, or near it,
//! the residual is read too, and for those that still may be, the head's own numbers. The error bound is no proof
//! but seven standard deviations, so its use is verified; see [`rerank`].
//!
//! Deliberately knows nothing of sampling: the caller says how far below the best a logit still matters.

mod format;
mod rerank;

use crate::engine::gguf::FileSlice;
use crate::engine::model::Shape;
use crate::engine::quant::RowBound;
use format::{BOUND_BYTES, ShortlistLayout, floats};
use std::ops::Range;

pub(in crate::engine::model) use rerank::MAX_RESCORED_ROWS;
pub(in crate::engine::model) use rerank::ShortlistScratch;

/// Rows that are tested together, and skipped together.
const GROUP_ROWS: usize = 64;

/// Bytes of a stored shortlist.
pub(super) fn image_bytes(shape: &Shape) -> usize {
    ShortlistLayout::of(shape).columns() + 4 * shape.dim
}

/// The number of groups of rows.
fn group_count(vocab: usize) -> usize {
    vocab.div_ceil(GROUP_ROWS)
}

/// A shortlist in use.
#[derive(Debug)]
pub(in crate::engine::model) struct Shortlist {
    layout: ShortlistLayout,
    codes: FileSlice,
    /// Scale and error bound of the coarse codes, `[vocab]`.
    coarse: Vec<RowBound>,
    /// The scales alone, which every token reads, `[vocab]`.
    scales: Vec<f32>,
    /// The largest bounds of each group, `[group_count(vocab)]`.
    groups: Vec<RowBound>,
    /// Scale and error bound of the fine codes, `[vocab]`.
    fine: Vec<RowBound>,
    /// What the numbers of each column were divided by, and the hidden vector is multiplied by, `[dim]`.
    columns: Vec<f32>,
}

impl Shortlist {
    /// Takes over a stored shortlist of [`image_bytes`].
    pub fn read(image: FileSlice, shape: &Shape) -> Self {
        let layout = ShortlistLayout::of(shape);
        let [bounds, columns] = [layout.codes()..layout.columns(), layout.columns()..image.len()]
            .map(|part| floats(&image[part]));
        // These parts have been copied.
        image.part(layout.codes()..image.len()).release();
        let bound = |[scale, error, length, peak]: [f32; 4]| RowBound { scale, error, length, peak };
        let pairs = bounds.as_chunks::<4>().0.as_chunks::<2>().0;
        let (coarse, fine): (Vec<_>, _) = pairs.iter().map(|[a, b]| (bound(*a), bound(*b))).unzip();
        Shortlist {
            layout,
            codes: image.part(0..layout.codes()),
            scales: coarse.iter().map(|row| row.scale).collect(),
            groups: coarse.chunks(GROUP_ROWS).map(largest).collect(),
            coarse,
            fine,
            columns,
        }
    }

    /// The coarse codes of rows `range`, which lie in one part: `[range.len(), packed_row(dim)]`.
    fn coarse_rows(&self, range: Range<usize>) -> &[u8] {
        &self.codes[self.layout.coarse(range)]
    }

    /// The fine codes of a row: `[packed_row(dim)]`.
    fn fine_row(&self, row: usize) -> &[u8] {
        &self.codes[self.layout.fine(row)]
    }

    /// Bytes that each token reads.
    pub fn bytes_per_token(&self) -> usize {
        self.scales.len() * (self.layout.width + size_of::<f32>())
    }

    /// Bytes of a row whose fine codes are read too.
    pub fn fine_row_bytes(&self) -> usize {
        self.layout.width + 2 * BOUND_BYTES
    }
}

/// The largest of each bound.
fn largest(rows: &[RowBound]) -> RowBound {
    rows.iter().fold(RowBound::default(), |all, row| RowBound {
        scale: all.scale.max(row.scale),
        error: all.error.max(row.error),
        length: all.length.max(row.length),
        peak: all.peak.max(row.peak),
    })
}
