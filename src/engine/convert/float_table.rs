//! Embeddings, heads and norms: tables of floats that are converted row by row.

use super::{ConvertError, TableFormat};
use crate::engine::error::LoadError;
use crate::engine::gguf::FileSlice;
use crate::engine::quant::{BlockFormat, FloatFormat, RowFormat, TensorType};
use std::io::Write;

/// A table of numbers of a source.
#[derive(Debug)]
pub(super) struct FloatTable {
    /// Its name in the source, for errors.
    pub name: String,
    pub data: FileSlice, // [rows, cols]
    pub from: RowFormat,
    pub cols: usize,
    pub to: RowFormat,
}

impl FloatTable {
    /// The type in which it is written.
    pub fn kind(&self) -> TensorType {
        match self.to {
            RowFormat::Float(FloatFormat::F32) => TensorType::F32,
            RowFormat::Float(FloatFormat::F16) => TensorType::F16,
            RowFormat::Float(FloatFormat::Bf16) => TensorType::Bf16,
            RowFormat::Block(BlockFormat::Q8_0) => TensorType::Q8_0,
            RowFormat::Block(BlockFormat::Q6K) => TensorType::Q6K,
            RowFormat::Block(BlockFormat::Q4_0) => TensorType::Q4_0,
            RowFormat::Block(BlockFormat::Q4K) => TensorType::Q4K,
        }
    }

    /// Bytes of a row of the source.
    pub fn width(&self) -> usize {
        self.from.row_bytes(self.cols).expect("the source's shape was checked against its type")
    }

    /// Writes the table, with each number rounded to the format.
    pub fn write(&self, out: &mut dyn Write) -> Result<(), ConvertError> {
        let mut line = vec![0.0; self.cols];
        let mut written = vec![0; self.to.row_bytes(self.cols).expect("the draft has its size")];
        let write = self.to.writer();
        for (index, row) in self.data.chunks_exact(self.width()).enumerate() {
            self.from.read(row, &mut line);
            self.check(index, &line)?;
            match write {
                // The same format: decoding and encoding could round.
                _ if self.from == self.to => out.write_all(row)?,
                Some(write) => {
                    write(&mut written, &line);
                    out.write_all(&written)?;
                }
                None => unreachable!("asked for is what can be written"),
            }
        }
        self.data.release();
        Ok(())
    }

    /// Reads all of it as [`FloatTable::write`] will, and writes nothing.
    pub fn verify(&self) -> Result<(), LoadError> {
        let mut line = vec![0.0; self.cols];
        for (index, row) in self.data.chunks_exact(self.width()).enumerate() {
            self.from.read(row, &mut line);
            self.check(index, &line)?;
        }
        self.data.release();
        Ok(())
    }

    /// Whether another table of as many columns holds the same numbers.
    pub fn has_same_numbers(&self, other: &FloatTable) -> bool {
        if self.from == other.from {
            return *self.data == *other.data;
        }
        let (mut line, mut others) = (vec![0.0; self.cols], vec![0.0; self.cols]);
        let rows = self.data.chunks_exact(self.width()).zip(other.data.chunks_exact(other.width()));
        rows.into_iter().all(|(row, other_row)| {
            self.from.read(row, &mut line);
            other.from.read(other_row, &mut others);
            line == others
        })
    }

    fn check(&self, row: usize, line: &[f32]) -> Result<(), LoadError> {
        let max =
            if self.to == RowFormat::Float(FloatFormat::F16) { half::f16::MAX.to_f32() } else { f32::MAX };
        match line.iter().position(|x| x.abs() > max || x.is_nan()) {
            None => Ok(()),
            Some(col) => {
                let message = format!("row {row} column {col}: {} is beyond what is written", line[col]);
                Err(LoadError::tensor(&self.name, message))
            }
        }
    }
}

/// The format for a head: the one asked for, or the smallest float format that loses nothing of `data`.
pub(super) fn choose_format(data: &[u8], from: RowFormat, asked: Option<TableFormat>) -> RowFormat {
    match asked {
        Some(TableFormat::F16) => FloatFormat::F16.into(),
        Some(TableFormat::Q8_0) => BlockFormat::Q8_0.into(),
        Some(TableFormat::Q6K) => BlockFormat::Q6K.into(),
        None if from == RowFormat::Float(FloatFormat::F32) => {
            let small = [FloatFormat::F16, FloatFormat::Bf16].into_iter().find(|to| is_lossless(*to, data));
            small.unwrap_or(FloatFormat::F32).into()
        }
        None => from,
    }
}

/// Whether `to` represents every one of these 32-bit numbers exactly.
fn is_lossless(to: FloatFormat, data: &[u8]) -> bool {
    let mut bytes = [0; 2];
    data.as_chunks::<4>().0.iter().all(|number| {
        let x = f32::from_le_bytes(*number);
        let mut back = [0.0];
        to.write(&mut bytes, &[x]);
        to.read(&bytes, &mut back);
        back[0].to_bits() == x.to_bits()
    })
}
