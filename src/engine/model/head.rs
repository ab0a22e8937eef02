//! Other forms of the head than the file's: made of it once, read with every token.
//!
//! The head is the largest thing that a decoded token reads: 657 of 1178 MB in BitNet-b1.58-2B-4T. Written
//! in 8 or 6 bits it is smaller and a little off; screened it is smaller and chooses as the file's own does:
//! see [`super::logits`].

use super::weights::{RESIDENT, Table};
use super::{EMBEDDING, HEAD, Model, Shape};
use crate::engine::error::LoadError;
use crate::engine::gguf::{Gguf, Map, Slice};
use crate::engine::quant::{Blocks, NIBBLE_BLOCK, Numbers, Outline, WriteRow, screen_bytes, screen_row};
use std::io::{self, Write};
use std::sync::Arc;

/// How the head is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadForm {
    /// As the file has it, most often in half precision.
    File,
    /// Written again as Q8_0: 8.5 bits a number.
    Q8,
    /// Written again as Q6_K: 6.6 bits a number.
    Q6K,
    /// Four bits of every row, and the file's own numbers of the rows that can win.
    Screened,
}

impl HeadForm {
    /// All there are.
    pub const ALL: [HeadForm; 4] = [HeadForm::File, HeadForm::Q8, HeadForm::Q6K, HeadForm::Screened];

    /// Its name in settings.
    pub fn name(self) -> &'static str {
        match self {
            HeadForm::File => "f16",
            HeadForm::Q8 => "q8",
            HeadForm::Q6K => "q6_k",
            HeadForm::Screened => "screened",
        }
    }

    /// The form of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|form| form.name() == name)
    }

    /// The form that a file's head is read in: `wanted`, or what is fastest and chooses the same tokens.
    pub fn of(file: &Gguf, shape: &Shape, wanted: Option<Self>) -> Result<Self, LoadError> {
        /// Numbers of a head from which screening pays: below, it is read in a millisecond or two.
        const LARGE: usize = 1 << 24;
        let name = if file.tensor(HEAD).is_some() { HEAD } else { EMBEDDING };
        let kind = file.tensor(name).and_then(|tensor| Numbers::of(tensor.kind));
        let small = matches!(kind, None | Some(Numbers::Blocks(Blocks::Q4_0 | Blocks::Q4K)));
        let fallback =
            if small || shape.vocab * shape.dim < LARGE { HeadForm::File } else { HeadForm::Screened };
        let form = wanted.unwrap_or(fallback);
        match form.numbers() {
            Some(numbers) if Some(numbers) == kind => Ok(HeadForm::File),
            Some(numbers) if numbers.row_bytes(shape.dim).is_none() => {
                let said = format!(
                    "rows of {} are no whole blocks of head = \"{}\"; use another",
                    shape.dim,
                    form.name()
                );
                Err(LoadError::tensor(name, said))
            }
            _ => Ok(form),
        }
    }

    /// Bytes of its image; none for the file's own.
    pub fn image_bytes(self, shape: &Shape) -> usize {
        match self {
            HeadForm::File => 0,
            HeadForm::Q8 | HeadForm::Q6K => shape.vocab * self.row_bytes(shape.dim),
            HeadForm::Screened => shape.vocab * self.row_bytes(shape.dim) + 4 * shape.dim,
        }
    }

    /// The format that it is written again in.
    fn numbers(self) -> Option<Numbers> {
        match self {
            HeadForm::Q8 => Some(Blocks::Q8_0.into()),
            HeadForm::Q6K => Some(Blocks::Q6K.into()),
            HeadForm::File | HeadForm::Screened => None,
        }
    }

    /// Bytes of a row in an image, its outline with it.
    fn row_bytes(self, cols: usize) -> usize {
        match self.numbers() {
            Some(numbers) => numbers.row_bytes(cols).expect("`of` refuses others"),
            None => screen_bytes(cols) + OUTLINE,
        }
    }
}

/// Bytes of an [`Outline`] in an image: three f32.
const OUTLINE: usize = 12;

/// Rows that are made at a time: enough for every thread, and little memory.
const CHUNK: usize = 4096;
/// Rows from which the size of each column is estimated.
const SAMPLE: usize = 2048;

/// Four bits of every number of a head. Its image: codes of all rows, `[vocab, screen_bytes(dim)]`, then
/// outlines of all rows, then the size of each column, little-endian f32.
#[derive(Debug)]
pub(super) struct Screen {
    codes: Slice,
    width: usize,
    pub outlines: Vec<Outline>, // [vocab]
    /// What the numbers of a column were divided by, and what the hidden vector is multiplied by.
    pub columns: Vec<f32>, // [dim]
}

impl Screen {
    fn read(image: Slice, shape: &Shape) -> Self {
        let width = screen_bytes(shape.dim);
        let (codes, outlines) = (shape.vocab * width, shape.vocab * OUTLINE);
        let read = floats(&image[codes..codes + outlines]);
        let columns = floats(&image[codes + outlines..]);
        // All of this is copied now.
        image.part(codes..image.len()).release();
        Screen {
            outlines: read
                .as_chunks::<3>()
                .0
                .iter()
                .map(|&[scale, error, length]| Outline { scale, error, length })
                .collect(),
            columns,
            codes: image.part(0..codes),
            width,
        }
    }

    /// Codes of rows `range`.
    pub fn rows(&self, range: std::ops::Range<usize>) -> &[u8] {
        &self.codes[range.start * self.width..range.end * self.width]
    }

    /// Bytes that one token reads of it.
    pub fn bytes(&self) -> usize {
        self.codes.len() + self.outlines.len() * OUTLINE
    }
}

/// Little-endian numbers.
fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

impl Model {
    /// Writes the image of a form, of exactly [`HeadForm::image_bytes`].
    pub fn write_head(&self, form: HeadForm, out: &mut dyn Write) -> io::Result<()> {
        let columns = if form == HeadForm::Screened { self.column_sizes() } else { Vec::new() };
        let outlines = self.write_rows(form, &columns, out)?;
        out.write_all(&outlines)?;
        out.write_all(&columns.iter().flat_map(|size| size.to_le_bytes()).collect::<Vec<u8>>())
    }

    /// All rows but their outlines, which it gives.
    fn write_rows(&self, form: HeadForm, columns: &[f32], out: &mut dyn Write) -> io::Result<Vec<u8>> {
        let (vocab, cols) = (self.shape.vocab, self.shape.dim);
        let record = form.row_bytes(cols);
        let bytes = if form == HeadForm::Screened { record - OUTLINE } else { record };
        let head = self.weights.head();
        let mut records = vec![0u8; CHUNK.min(vocab) * record];
        let mut outlines = Vec::with_capacity(vocab * (record - bytes));
        let writer = form.numbers().and_then(Numbers::writer);
        for first in (0..vocab).step_by(CHUNK) {
            let records = &mut records[..CHUNK.min(vocab - first) * record];
            self.pool.pieces(records, record, 16, |index, record| {
                let mut row = vec![0.0; cols];
                head.kind.read(head.rows(first + index..first + index + 1), &mut row);
                write_record(writer, &mut row, columns, record);
            });
            for record in records.chunks_exact(record) {
                out.write_all(&record[..bytes])?;
                outlines.extend_from_slice(&record[bytes..]);
            }
            // Read once, and never again as a whole.
            head.release();
        }
        Ok(outlines)
    }

    /// The root of the mean square of each column, by some rows.
    fn column_sizes(&self) -> Vec<f32> {
        let (vocab, head) = (self.shape.vocab, self.weights.head());
        let mut squares = vec![0.0f32; self.shape.dim];
        let mut row = vec![0.0; self.shape.dim];
        let sample: Vec<usize> = (0..vocab).step_by(vocab.div_ceil(SAMPLE)).collect();
        for rows in sample.chunks(RESIDENT) {
            for at in rows {
                head.kind.read(head.rows(*at..at + 1), &mut row);
                squares.iter_mut().zip(&row).for_each(|(sum, x)| *sum += x * x);
            }
            head.release();
        }
        // A column without any size may be left as it is.
        let sizes = squares.into_iter().map(|sum| (sum / sample.len() as f32).sqrt());
        sizes.map(|size| if size.is_normal() { size } else { 1.0 }).collect()
    }

    /// Reads the head from the image of a form from now on.
    ///
    /// # Panics
    /// When the image does not have the form's size.
    pub fn use_head(&mut self, form: HeadForm, image: &Arc<Map>, start: usize) {
        let image = Slice::of(image, start..start + form.image_bytes(&self.shape));
        match form.numbers() {
            Some(numbers) => self.weights.replace_head(Table::new(numbers, self.shape.dim, image)),
            None if form == HeadForm::Screened => {
                self.weights.put_screen(Screen::read(image, &self.shape));
            }
            None => {}
        }
    }

    /// Whether an image agrees with the head in some rows: one made of another file does not.
    pub fn is_image_of_head(&self, form: HeadForm, image: &[u8]) -> bool {
        const ROWS: usize = 16;
        let (vocab, cols) = (self.shape.vocab, self.shape.dim);
        if image.len() != form.image_bytes(&self.shape) || form == HeadForm::File {
            return false;
        }
        let record = form.row_bytes(cols);
        let screened = form == HeadForm::Screened;
        let bytes = if screened { record - OUTLINE } else { record };
        let columns = floats(&image[vocab * record..]);
        let (head, writer) = (self.weights.head(), form.numbers().and_then(Numbers::writer));
        let agrees = |row: usize| {
            let (mut made, mut numbers) = (vec![0u8; record], vec![0.0; cols]);
            head.kind.read(head.rows(row..row + 1), &mut numbers);
            write_record(writer, &mut numbers, &columns, &mut made);
            made[..bytes] == image[row * bytes..(row + 1) * bytes]
        };
        (0..vocab).step_by(vocab.div_ceil(ROWS)).all(agrees)
    }
}

/// One row as an image has it: by `writer`, or screened. `row` is spent.
fn write_record(writer: Option<WriteRow>, row: &mut [f32], columns: &[f32], record: &mut [u8]) {
    match writer {
        Some(write) => write(record, row),
        None => {
            row.iter_mut().zip(columns).for_each(|(x, size)| *x /= size);
            let (codes, outline) = record.split_at_mut(row.len().div_ceil(NIBBLE_BLOCK) * NIBBLE_BLOCK / 2);
            let Outline { scale, error, length } = screen_row(row, codes);
            for (bytes, x) in outline.as_chunks_mut::<4>().0.iter_mut().zip([scale, error, length]) {
                *bytes = x.to_le_bytes();
            }
        }
    }
}
