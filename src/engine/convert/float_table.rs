//! Embeddings, heads and norms: plain numbers, row by row.

use super::{Failure, Head};
use crate::engine::error::LoadError;
use crate::engine::gguf::Slice;
use crate::engine::quant::{Blocks, Dense, Numbers, TensorType};
use std::io::Write;

/// A table of numbers of a source.
#[derive(Debug)]
pub(super) struct Table {
    /// Its name in the source, for errors.
    pub name: String,
    pub data: Slice, // [rows, cols]
    pub from: Numbers,
    pub cols: usize,
    pub to: Numbers,
}

impl Table {
    /// The type it is written in.
    pub fn kind(&self) -> TensorType {
        match self.to {
            Numbers::Plain(Dense::F32) => TensorType::F32,
            Numbers::Plain(Dense::F16) => TensorType::F16,
            Numbers::Plain(Dense::Bf16) => TensorType::Bf16,
            Numbers::Blocks(Blocks::Q8_0) => TensorType::Q8_0,
            Numbers::Blocks(Blocks::Q6K) => TensorType::Q6K,
            Numbers::Blocks(Blocks::Q4_0) => TensorType::Q4_0,
            Numbers::Blocks(Blocks::Q4K) => TensorType::Q4K,
        }
    }

    /// Bytes of a row as it is read.
    pub fn width(&self) -> usize {
        self.from.row_bytes(self.cols).expect("the source's shape was checked against its type")
    }

    /// Writes it, each number rounded to the format.
    pub fn write(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let mut line = vec![0.0; self.cols];
        let mut written = vec![0; self.to.row_bytes(self.cols).expect("the draft has its size")];
        let write = self.to.writer();
        for (index, row) in self.data.chunks_exact(self.width()).enumerate() {
            self.from.read(row, &mut line);
            self.check(index, &line)?;
            match write {
                // The same format: to read and to write it could round.
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

    /// Reads all of it as [`Table::write`] will, and writes nothing.
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
    pub fn holds_the_same(&self, other: &Table) -> bool {
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
        let most = if self.to == Numbers::Plain(Dense::F16) { half::f16::MAX.to_f32() } else { f32::MAX };
        match line.iter().position(|x| x.abs() > most || x.is_nan()) {
            None => Ok(()),
            Some(col) => {
                let said = format!("row {row} column {col}: {} is beyond what is written", line[col]);
                Err(LoadError::tensor(&self.name, said))
            }
        }
    }
}

/// The format for a head: the one asked for, or of plain numbers the smallest that loses nothing of
/// `data`.
pub(super) fn format(data: &[u8], from: Numbers, asked: Option<Head>) -> Numbers {
    match asked {
        Some(Head::F16) => Dense::F16.into(),
        Some(Head::Q8_0) => Blocks::Q8_0.into(),
        Some(Head::Q6K) => Blocks::Q6K.into(),
        None if from == Numbers::Plain(Dense::F32) => {
            let small = [Dense::F16, Dense::Bf16].into_iter().find(|to| holds(*to, data));
            small.unwrap_or(Dense::F32).into()
        }
        None => from,
    }
}

/// Whether every one of these 32-bit numbers is one of `to` too.
fn holds(to: Dense, data: &[u8]) -> bool {
    let mut bytes = [0; 2];
    data.as_chunks::<4>().0.iter().all(|number| {
        let x = f32::from_le_bytes(*number);
        let mut back = [0.0];
        to.write(&mut bytes, &[x]);
        to.read(&bytes, &mut back);
        back[0].to_bits() == x.to_bits()
    })
}
