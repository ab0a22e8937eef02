//! From other forms of a model to a GGUF file this engine likes best: a checkpoint folder as Hugging
//! Face has it, or another GGUF file.
//!
//! ```text
//! Folder ── config, safetensors, vocabulary ──┐
//!                                             ├──> Plan ── header, then tensor by tensor ──> any writer
//! Gguf ───────────────────────────────────────┘
//! ```
//!
//! A plan knows every size before the first byte is written, and holds no tensor's data: the source
//! stays mapped, and one matrix at a time is packed.
//!
//! Deliberately knows no terminal: who runs a plan says where it goes, and what is shown meanwhile.

mod checkpoint;
mod checkpoint_files;
mod float_table;
mod gguf_source;
mod hf_config;
mod key_checks;
mod output_lock;
pub mod resumable_output;
mod safetensors;
mod ternary_matrix;
mod vocabulary;

pub use checkpoint_files::Folder;

use super::error::LoadError;
use super::gguf::{Draft, Gguf, Map, Planned, Slice};
use super::model::Layout;
use super::quant::{Numbers, TensorType};
use super::tokenizer::Tokenizer;
use float_table::Table;
use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use ternary_matrix::{Form, Matrix};

/// What the output is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Form of the ternary matrices.
    pub weights: Weights,
    /// Form of embedding and head; `None` is the smallest that loses nothing.
    pub head: Option<Head>,
    /// Layout of I2_S tensors in a source that is a GGUF file.
    pub from: Layout,
}

/// Forms of ternary matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Weights {
    /// Two bits a weight in the kernels' own blocks of 128: read where it lies.
    #[default]
    I2S,
    /// 1.69 bits a weight, for llama.cpp and small disks.
    Tq1,
    /// 2.06 bits a weight, for llama.cpp.
    Tq2,
}

impl Weights {
    fn kind(self) -> TensorType {
        match self {
            Weights::I2S => TensorType::I2S,
            Weights::Tq1 => TensorType::Tq1,
            Weights::Tq2 => TensorType::Tq2,
        }
    }

    /// llama.cpp's number of a file with such weights.
    fn file_type(self) -> u32 {
        match self {
            Weights::I2S => 40,
            Weights::Tq1 => 36,
            Weights::Tq2 => 37,
        }
    }
}

/// Forms of embeddings and heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// Half precision.
    F16,
    /// 8.5 bits a number: perplexity of the 2B-4T model rises by 0.01, says bitnet.cpp's README.
    Q8_0,
    /// 6.56 bits a number: by 0.04.
    Q6K,
}

/// What ended a conversion.
#[derive(Debug)]
pub enum Failure {
    /// The source cannot be used.
    Source(LoadError),
    /// The output cannot be written.
    Output(io::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Source(error) => error.fmt(f),
            Failure::Output(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Failure {}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        Failure::Source(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Output(error)
    }
}

/// A file to be written.
#[derive(Debug)]
pub struct Plan {
    draft: Draft,
    /// What each of the draft's tensors is made of.
    contents: Vec<Content>,
    notes: Vec<String>,
    /// Whether a word that is a token is that token only where its merges lead to it.
    merges_decide: bool,
}

/// What a tensor is made of.
#[derive(Debug)]
enum Content {
    /// A ternary matrix.
    Matrix(Arc<Matrix>, Form),
    /// Its scale.
    Scale(Arc<Matrix>),
    /// Rows of numbers.
    Table(Table),
    /// Numbers of ours.
    Numbers(Vec<f32>),
    /// Bytes as they are.
    Bytes(Slice),
}

impl Plan {
    /// What a checkpoint folder becomes.
    pub fn checkpoint(folder: &Folder, options: &Options) -> Result<Self, LoadError> {
        checkpoint::plan(folder, options).and_then(Self::with_vocabulary)
    }

    /// What another GGUF file becomes.
    pub fn file(source: &Gguf, options: &Options) -> Result<Self, LoadError> {
        gguf_source::plan(source, options).and_then(Self::with_vocabulary)
    }

    /// A plan whose vocabulary and chat template are known to be read: better now than after some
    /// gigabytes were written.
    fn with_vocabulary(self) -> Result<Self, LoadError> {
        let alone = Gguf::parse(Map::from(self.draft.metadata().header()))?;
        let tokenizer = Tokenizer::read(&alone)?;
        match tokenizer.whole_word_beyond_merges().filter(|_| self.merges_decide) {
            None => Ok(self),
            Some(id) => {
                let said = format!(
                    "is false, and no merges lead to token {id}: no key of GGUF says so; use another model"
                );
                Err(LoadError::new("tokenizer.json: model.ignore_merges", said))
            }
        }
    }

    fn new() -> Self {
        Plan { draft: Draft::default(), contents: Vec::new(), notes: Vec::new(), merges_decide: false }
    }

    /// Header, and each tensor's name, type and size.
    pub fn draft(&self) -> &Draft {
        &self.draft
    }

    /// What was repaired or cannot be as asked: short sentences, for who asked.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Adds to them.
    pub fn note(&mut self, said: String) {
        self.notes.push(said);
    }

    /// Reads all of the source once and finds what could not be written, so that nothing is begun in vain.
    pub fn verify(&self) -> Result<(), LoadError> {
        for (content, tensor) in self.contents.iter().zip(self.draft.tensors()) {
            match content {
                Content::Matrix(matrix, _) => matrix.verify()?,
                Content::Table(table) => table.verify()?,
                Content::Bytes(bytes) => verify_numbers(tensor, bytes)?,
                Content::Scale(_) | Content::Numbers(_) => {}
            }
        }
        Ok(())
    }

    /// Writes the data of tensor `index` of the draft.
    pub fn write_tensor(&self, index: usize, out: &mut dyn Write) -> Result<(), Failure> {
        match &self.contents[index] {
            Content::Matrix(matrix, form) => matrix.write(*form, out)?,
            Content::Scale(matrix) => out.write_all(&matrix.scale()?.to_le_bytes())?,
            Content::Table(table) => table.write(out)?,
            Content::Numbers(numbers) => {
                numbers.iter().try_for_each(|x| out.write_all(&x.to_le_bytes()))?;
            }
            Content::Bytes(bytes) => {
                out.write_all(bytes)?;
                bytes.release();
            }
        }
        Ok(())
    }

    /// Writes the whole file.
    pub fn write<W: Write>(&self, out: W) -> Result<W, Failure> {
        let mut writer = self.draft.begin(out)?;
        for index in 0..self.contents.len() {
            self.write_tensor(index, &mut writer)?;
            writer.end_tensor()?;
        }
        Ok(writer.finish()?)
    }

    fn put(
        &mut self,
        name: &str,
        kind: TensorType,
        dims: &[usize],
        content: Content,
    ) -> Result<(), LoadError> {
        self.draft.tensor(name, kind, dims)?;
        self.contents.push(content);
        Ok(())
    }

    /// A matrix `name.weight`, with `name.scale` beside it where it cannot hold its scale.
    fn put_matrix(&mut self, name: &str, matrix: Matrix, wanted: TensorType) -> Result<(), LoadError> {
        let form = matrix.form(wanted)?;
        if form.kind != wanted {
            let (cols, kind) = (matrix.cols, form.kind.name());
            self.notes
                .push(format!("{name}: {cols} columns fit no {} block, written as {kind}", wanted.name()));
        }
        let (dims, matrix) = ([matrix.cols, matrix.rows], Arc::new(matrix));
        self.put(&format!("{name}.weight"), form.kind, &dims, Content::Matrix(Arc::clone(&matrix), form))?;
        if form.apart {
            self.put(&format!("{name}.scale"), TensorType::F32, &[1], Content::Scale(matrix))?;
        }
        Ok(())
    }

    fn put_table(&mut self, name: &str, table: Table) -> Result<(), LoadError> {
        let (cols, kind) = (table.cols, table.kind().name());
        if table.to.row_bytes(cols).is_none() {
            let said = format!("rows of {cols} are no whole {kind} blocks; ask for another --head");
            return Err(LoadError::tensor(name, said));
        }
        let rows = table.data.len() / table.width();
        self.put(name, table.kind(), &[table.cols, rows], Content::Table(table))
    }

    /// A norm: always F32.
    fn put_vector(&mut self, name: &str, table: Table) -> Result<(), LoadError> {
        self.put(name, table.kind(), &[table.cols], Content::Table(table))
    }
}

/// Numbers that are carried over as they are.
fn verify_numbers(tensor: &Planned, bytes: &Slice) -> Result<(), LoadError> {
    let (Some(kind), Some(cols)) = (Numbers::of(tensor.kind), tensor.dims.first()) else { return Ok(()) };
    let Some(width) = kind.row_bytes(*cols).filter(|width| *width > 0) else { return Ok(()) };
    let mut line = vec![0.0; *cols];
    for (index, row) in bytes.chunks_exact(width).enumerate() {
        kind.read(row, &mut line);
        if line.iter().any(|x| !x.is_finite()) {
            let said = format!("row {index}: holds what is not a number; the file is damaged");
            return Err(LoadError::tensor(&tensor.name, said));
        }
    }
    bytes.release();
    Ok(())
}
