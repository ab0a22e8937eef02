//! The stored form of a shortlist: how it is made from a head, and how it is checked against one.

use crate::engine::model::{Model, Shape};
use crate::engine::quant::{RowBound, encode_two_bit, packed_row};
use std::io::{self, Write};
use std::ops::Range;

/// Rows whose codes are stored together: first all coarse ones, then all fine ones. Enough for a thread to read a
/// long way, and little memory while the shortlist is made.
pub(super) const PART_ROWS: usize = 4096;
/// Bytes of a stored [`RowBound`]: four f32.
pub(super) const BOUND_BYTES: usize = 16;
/// Rows from which the magnitude of each column is estimated.
const SAMPLE_ROWS: usize = 2048;

/// The layout of a stored shortlist: parts of [`PART_ROWS`] rows, the last with what is left, each first `[rows,
/// packed_row(dim)]` coarse codes, then as many fine ones; behind them bounds, `[vocab, 2]`, the coarse one first,
/// and the magnitude of each column, `[dim]`, both little-endian f32.
#[derive(Debug, Clone, Copy)]
pub(super) struct ShortlistLayout {
    pub rows: usize,
    /// Bytes of a row's codes, coarse or fine.
    pub width: usize,
}

impl ShortlistLayout {
    pub fn of(shape: &Shape) -> Self {
        ShortlistLayout { rows: shape.vocab, width: packed_row(shape.dim) }
    }

    /// The coarse codes of rows `range`, which lie in one part.
    pub fn coarse(self, range: Range<usize>) -> Range<usize> {
        let first = (range.start / PART_ROWS * 2 * PART_ROWS + range.start % PART_ROWS) * self.width;
        first..first + range.len() * self.width
    }

    /// The fine codes of a row.
    pub fn fine(self, row: usize) -> Range<usize> {
        let rows_of_part = PART_ROWS.min(self.rows - row / PART_ROWS * PART_ROWS);
        let first = self.coarse(row..row).start + rows_of_part * self.width;
        first..first + self.width
    }

    /// Both bounds of a row.
    fn bounds(self, row: usize) -> Range<usize> {
        let first = self.codes() + row * 2 * BOUND_BYTES;
        first..first + 2 * BOUND_BYTES
    }

    /// Bytes of all codes.
    pub fn codes(self) -> usize {
        self.rows * 2 * self.width
    }

    /// Where the magnitudes of the columns begin.
    pub fn columns(self) -> usize {
        self.codes() + self.rows * 2 * BOUND_BYTES
    }
}

/// Reads little-endian floats.
pub(super) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

impl Model {
    /// Writes a shortlist of the head: [`super::image_bytes`] bytes.
    pub(in crate::engine::model) fn write_shortlist(&self, out: &mut dyn Write) -> io::Result<()> {
        let (vocab, columns) = (self.shape.vocab, self.column_rms());
        let width = ShortlistLayout::of(&self.shape).width;
        let record = 2 * (width + BOUND_BYTES);
        let mut records = vec![0u8; PART_ROWS.min(vocab) * record];
        let mut bounds = Vec::with_capacity(vocab * 2 * BOUND_BYTES);
        for first in (0..vocab).step_by(PART_ROWS) {
            let records = &mut records[..PART_ROWS.min(vocab - first) * record];
            self.pool.for_each_chunk(records, record, 16, |index, record| {
                let row = self.weights.head().rows(first + index..first + index + 1);
                self.encode_record(row, &columns, record);
            });
            // Releases pages that will not be read as a whole again.
            self.weights.head().release();
            for codes in [0..width, width..2 * width] {
                records.chunks_exact(record).try_for_each(|record| out.write_all(&record[codes.clone()]))?;
            }
            bounds.extend(records.chunks_exact(record).flat_map(|record| &record[2 * width..]));
        }
        out.write_all(&bounds)?;
        out.write_all(&columns.iter().flat_map(|size| size.to_le_bytes()).collect::<Vec<u8>>())
    }

    /// Whether a stored shortlist of [`super::image_bytes`] agrees with the head in some sample rows; one that was
    /// made of another file does not.
    pub(in crate::engine::model) fn is_shortlist_of_head(&self, image: &[u8]) -> bool {
        const ROWS: usize = 16;
        let (vocab, layout) = (self.shape.vocab, ShortlistLayout::of(&self.shape));
        let columns = floats(&image[layout.columns()..]);
        // None of them is negative, because all are lengths.
        let is_size = |x: &f32| x.is_finite() && *x >= 0.0;
        if !floats(&image[layout.codes()..]).iter().all(is_size) || columns.contains(&0.0) {
            return false;
        }
        let (mut buffer, mut record) = (self.row_buffer(), vec![0u8; 2 * (layout.width + BOUND_BYTES)]);
        let agrees = |row: usize| {
            self.encode_record(self.weights.head().row(row, &mut buffer), &columns, &mut record);
            let there = [layout.coarse(row..row + 1), layout.fine(row), layout.bounds(row)];
            there.into_iter().flat_map(|place| &image[place]).eq(&record)
        };
        (0..vocab).step_by(vocab.div_ceil(ROWS)).all(agrees)
    }

    /// A buffer for a row of the head.
    fn row_buffer(&self) -> Vec<u8> {
        vec![0; self.weights.head().row_bytes()]
    }

    /// Encodes a row of the head: coarse codes, fine codes, both bounds.
    fn encode_record(&self, row: &[u8], columns: &[f32], record: &mut [u8]) {
        let mut remainder = vec![0.0; self.shape.dim];
        self.weights.head().format.read(row, &mut remainder);
        remainder.iter_mut().zip(columns).for_each(|(x, size)| *x /= size);
        let (codes, bounds) = record.split_at_mut(record.len() - 2 * BOUND_BYTES);
        let codes = codes.chunks_exact_mut(packed_row(remainder.len()));
        for (codes, bound) in codes.zip(bounds.as_chunks_mut::<BOUND_BYTES>().0) {
            let RowBound { scale, error, length, peak } = encode_two_bit(&mut remainder, codes);
            let bytes = bound.as_chunks_mut::<4>().0.iter_mut();
            bytes.zip([scale, error, length, peak]).for_each(|(bytes, x)| *bytes = x.to_le_bytes());
        }
    }

    /// The root mean square of each column, estimated from some rows.
    fn column_rms(&self) -> Vec<f32> {
        let (vocab, head) = (self.shape.vocab, self.weights.head());
        let mut squares = vec![0.0f32; self.shape.dim];
        let (mut buffer, mut row) = (self.row_buffer(), vec![0.0; self.shape.dim]);
        let sample = (0..vocab).step_by(vocab.div_ceil(SAMPLE_ROWS));
        let count = sample.len() as f32;
        for at in sample {
            head.format.read(head.row(at, &mut buffer), &mut row);
            squares.iter_mut().zip(&row).for_each(|(sum, x)| *sum += x * x);
        }
        // A column of zeros may stay as it is.
        let sizes = squares.into_iter().map(|sum| (sum / count).sqrt());
        sizes.map(|size| if size.is_normal() { size } else { 1.0 }).collect()
    }
}
