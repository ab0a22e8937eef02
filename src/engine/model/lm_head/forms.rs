//! The formats in which the head can be read: the file's own, or another that is made once and kept.
//!
//! The head is the largest thing that a decoded token reads: 657 of 1178 MB in BitNet-b1.58-2B-4T. In 8 or 6 bits
//! it is smaller and slightly inexact. Through a shortlist it is smaller and chooses the same tokens as the file's
//! own; see [`super::logits`].

use super::shortlist::{self, Shortlist};
use crate::engine::error::LoadError;
use crate::engine::gguf::{FileMap, FileSlice, Gguf};
use crate::engine::model::weights::RowTable;
use crate::engine::model::{EMBEDDING, HEAD, Model, Shape};
use crate::engine::quant::{BlockFormat, RowFormat};
use std::io::{self, Write};
use std::sync::Arc;

/// The format in which the head is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadFormat {
    /// As the file has it, usually in half precision.
    File,
    /// Rewritten as Q8_0: 8.5 bits a number.
    Q8,
    /// Rewritten as Q6_K: 6.6 bits a number.
    Q6K,
    /// A shortlist: two bits of every row, two more of rows that may win, and the file's own numbers of those that
    /// still can.
    Shortlist,
}

impl HeadFormat {
    /// All formats.
    pub const ALL: [HeadFormat; 4] =
        [HeadFormat::File, HeadFormat::Q8, HeadFormat::Q6K, HeadFormat::Shortlist];

    /// Its name in settings.
    pub fn name(self) -> &'static str {
        match self {
            HeadFormat::File => "f16",
            HeadFormat::Q8 => "q8",
            HeadFormat::Q6K => "q6_k",
            HeadFormat::Shortlist => "screened",
        }
    }

    /// The format with that name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|form| form.name() == name)
    }

    /// The format for a file's head: `wanted`, or the fastest that chooses the same tokens.
    pub fn choose(file: &Gguf, shape: &Shape, wanted: Option<Self>) -> Result<Self, LoadError> {
        /// The size of a head, in numbers, from which on a shortlist pays: a smaller head is read in a millisecond
        /// or two.
        const LARGE: usize = 1 << 24;
        let name = if file.tensor(HEAD).is_some() { HEAD } else { EMBEDDING };
        let kind = file.tensor(name).and_then(|tensor| RowFormat::of(tensor.kind));
        let small = matches!(kind, None | Some(RowFormat::Block(BlockFormat::Q4_0 | BlockFormat::Q4K)));
        let fallback =
            if small || shape.vocab * shape.dim < LARGE { HeadFormat::File } else { HeadFormat::Shortlist };
        let fallback = if shape.dim > MAX_SHORTLIST_COLS { HeadFormat::File } else { fallback };
        let form = wanted.unwrap_or(fallback);
        if form == HeadFormat::Shortlist && shape.dim > MAX_SHORTLIST_COLS {
            let message = format!("rows of {} are too wide for head = \"screened\"; use another", shape.dim);
            return Err(LoadError::tensor(name, message));
        }
        match form.row_format() {
            Some(numbers) if Some(numbers) == kind => Ok(HeadFormat::File),
            Some(numbers) if numbers.row_bytes(shape.dim).is_none() => {
                let message = format!(
                    "rows of {} are no whole blocks of head = \"{}\"; use another",
                    shape.dim,
                    form.name()
                );
                Err(LoadError::tensor(name, message))
            }
            _ => Ok(form),
        }
    }

    /// Bytes of the head in this format; 0 for the file's own.
    pub fn image_bytes(self, shape: &Shape) -> usize {
        match self {
            HeadFormat::File => 0,
            HeadFormat::Q8 | HeadFormat::Q6K => {
                let row = self.row_format().and_then(|numbers| numbers.row_bytes(shape.dim));
                shape.vocab * row.expect("`of` refuses others")
            }
            HeadFormat::Shortlist => shortlist::image_bytes(shape),
        }
    }

    /// The row format in which the head is rewritten.
    fn row_format(self) -> Option<RowFormat> {
        match self {
            HeadFormat::Q8 => Some(BlockFormat::Q8_0.into()),
            HeadFormat::Q6K => Some(BlockFormat::Q6K.into()),
            HeadFormat::File | HeadFormat::Shortlist => None,
        }
    }
}

/// The widest rows of a shortlist: their sums fit 32 bits.
const MAX_SHORTLIST_COLS: usize = 1 << 20;

/// Rows that are rewritten at a time: enough for every thread, and little memory.
const CHUNK_ROWS: usize = 4096;

impl Model {
    /// Writes the head in a format: exactly [`HeadFormat::image_bytes`] bytes.
    pub fn write_head(&self, form: HeadFormat, out: &mut dyn Write) -> io::Result<()> {
        match form.row_format() {
            Some(numbers) => self.write_rows(numbers, out),
            None if form == HeadFormat::Shortlist => self.write_shortlist(out),
            None => Ok(()),
        }
    }

    fn write_rows(&self, numbers: RowFormat, out: &mut dyn Write) -> io::Result<()> {
        let vocab = self.shape.vocab;
        let width = numbers.row_bytes(self.shape.dim).expect("`of` refuses others");
        let mut rows = vec![0u8; CHUNK_ROWS.min(vocab) * width];
        for first in (0..vocab).step_by(CHUNK_ROWS) {
            let rows = &mut rows[..CHUNK_ROWS.min(vocab - first) * width];
            self.pool
                .for_each_chunk(rows, width, 16, |index, row| self.encode_row(numbers, first + index, row));
            out.write_all(rows)?;
            // Releases pages that will not be read as a whole again.
            self.weights.head().release();
        }
        Ok(())
    }

    /// Encodes one row of the head in another format.
    fn encode_row(&self, numbers: RowFormat, row: usize, out: &mut [u8]) {
        let (head, write) = (self.weights.head(), numbers.writer().expect("forms are written in these"));
        let mut read = vec![0.0; self.shape.dim];
        head.format.read(head.rows(row..row + 1), &mut read);
        write(out, &read);
    }

    /// From now on reads the head from an image that [`Model::write_head`] made.
    ///
    /// # Panics
    /// When the image does not have the format's size.
    pub fn attach_head(&mut self, form: HeadFormat, image: &Arc<FileMap>, start: usize) {
        let image = FileSlice::of(image, start..start + form.image_bytes(&self.shape));
        match form.row_format() {
            Some(numbers) => self.weights.replace_head(RowTable::new(numbers, self.shape.dim, image)),
            None if form == HeadFormat::Shortlist => {
                self.weights.set_shortlist(Shortlist::read(image, &self.shape));
            }
            None => {}
        }
    }

    /// Whether an image agrees with the head in some sample rows; one that was made of another file does not.
    pub fn is_image_of_head(&self, form: HeadFormat, image: &[u8]) -> bool {
        const ROWS: usize = 16;
        if image.len() != form.image_bytes(&self.shape) {
            return false;
        }
        let Some(numbers) = form.row_format() else {
            return form == HeadFormat::Shortlist && self.is_shortlist_of_head(image);
        };
        let vocab = self.shape.vocab;
        let agrees = |(row, there): (usize, &[u8])| {
            let mut encoded = vec![0u8; there.len()];
            self.encode_row(numbers, row, &mut encoded);
            encoded == there
        };
        image.chunks_exact(image.len() / vocab).enumerate().step_by(vocab.div_ceil(ROWS)).all(agrees)
    }
}
