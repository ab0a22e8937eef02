//! The head in two bits a number, and in two more what those leave over: which rows are worth reading whole.
//!
//! The first two bits give every row's logit roughly, and for each how far off that may be. For rows that may be the
//! best, or near it, the other two are read, and of those that still may be the head's own numbers. The bound of
//! "may be" is no proof but seven standard deviations, so that it is watched: see [`search`].

mod format;
mod rerank;

use crate::engine::gguf::FileSlice;
use crate::engine::model::Shape;
use crate::engine::quant::RowBound;
use format::{BOUND_BYTES, ShortlistLayout, floats};
use std::ops::Range;

pub(super) use rerank::MAX_RESCORED_ROWS;
pub(in crate::engine::model) use rerank::ShortlistScratch;

/// Rows that are looked through together, and passed over together.
const GROUP_ROWS: usize = 64;

/// Bytes of an image.
pub(super) fn image_bytes(shape: &Shape) -> usize {
    ShortlistLayout::of(shape).columns() + 4 * shape.dim
}

/// Groups of rows.
fn group_count(vocab: usize) -> usize {
    vocab.div_ceil(GROUP_ROWS)
}

/// A screen in use.
#[derive(Debug)]
pub(in crate::engine::model) struct Shortlist {
    layout: ShortlistLayout,
    codes: FileSlice,
    /// Of what the coarse codes say, `[vocab]`.
    coarse: Vec<RowBound>,
    /// Their scales alone, which every token reads, `[vocab]`.
    scales: Vec<f32>,
    /// The largest of each group's, `[groups(vocab)]`.
    groups: Vec<RowBound>,
    /// Of what the fine codes say of the rest, `[vocab]`.
    fine: Vec<RowBound>,
    /// What the numbers of a column were divided by, and what the hidden vector is multiplied by, `[dim]`.
    columns: Vec<f32>,
}

impl Shortlist {
    /// Takes over an image of [`image_bytes`].
    pub fn read(image: FileSlice, shape: &Shape) -> Self {
        let places = ShortlistLayout::of(shape);
        let [outlines, columns] = [places.codes()..places.columns(), places.columns()..image.len()]
            .map(|part| floats(&image[part]));
        // All of this is copied now.
        image.part(places.codes()..image.len()).release();
        let outline = |[scale, error, length, peak]: [f32; 4]| RowBound { scale, error, length, peak };
        let pairs = outlines.as_chunks::<4>().0.as_chunks::<2>().0;
        let (coarse, fine): (Vec<_>, _) = pairs.iter().map(|[a, b]| (outline(*a), outline(*b))).unzip();
        Shortlist {
            layout: places,
            codes: image.part(0..places.codes()),
            scales: coarse.iter().map(|row| row.scale).collect(),
            groups: coarse.chunks(GROUP_ROWS).map(largest).collect(),
            coarse,
            fine,
            columns,
        }
    }

    /// Coarse codes of rows `range`, which lie in one part: `[range.len(), packed_row(dim)]`.
    fn coarse_rows(&self, range: Range<usize>) -> &[u8] {
        &self.codes[self.layout.coarse(range)]
    }

    /// Fine codes of a row: `[packed_row(dim)]`.
    fn fine_row(&self, row: usize) -> &[u8] {
        &self.codes[self.layout.fine(row)]
    }

    /// Bytes that each token reads of it.
    pub fn bytes_per_token(&self) -> usize {
        self.scales.len() * (self.layout.width + size_of::<f32>())
    }

    /// Bytes of a row that is read once more, in its fine codes.
    pub fn fine_row_bytes(&self) -> usize {
        self.layout.width + 2 * BOUND_BYTES
    }
}

/// The largest of each number.
fn largest(rows: &[RowBound]) -> RowBound {
    rows.iter().fold(RowBound::default(), |all, row| RowBound {
        scale: all.scale.max(row.scale),
        error: all.error.max(row.error),
        length: all.length.max(row.length),
        peak: all.peak.max(row.peak),
    })
}
