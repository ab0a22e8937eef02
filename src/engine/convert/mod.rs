//! Conversion: turns a checkpoint folder of Hugging Face, or another GGUF file, into a GGUF file that this engine
//! runs best.
//!
//! ```text
//! CheckpointFolder ── config, safetensors, vocabulary ──┐
//!                                                        ├──> ConvertPlan ── header, then each tensor ──> any writer
//! Gguf ─────────────────────────────────────────────────┘
//! ```
//!
//! A plan knows every size before the first byte is written, and holds no tensor data: the source stays mapped, and
//! one matrix at a time is packed.
//!
//! Deliberately knows nothing of terminals: whoever runs a plan decides where it is written and what is shown
//! meanwhile.

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

pub use checkpoint_files::CheckpointFolder;

use super::error::LoadError;
use super::gguf::{FileMap, FileSlice, Gguf, GgufDraft, PlannedTensor};
use super::model::Layout;
use super::quant::{RowFormat, TensorType};
use super::tokenizer::Tokenizer;
use float_table::FloatTable;
use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use ternary_matrix::{StoredForm, TernaryMatrix};

/// The options of a conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvertOptions {
    /// The format of ternary matrices.
    pub weights: WeightFormat,
    /// The format of embedding and head; `None` is the smallest that loses nothing.
    pub head: Option<TableFormat>,
    /// The layout of I2_S tensors in a source that is a GGUF file.
    pub from: Layout,
}

/// The formats of ternary matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightFormat {
    /// Two bits a weight in the kernels' own blocks of 128: used without repacking.
    #[default]
    I2S,
    /// 1.69 bits a weight, for llama.cpp and small disks.
    Tq1,
    /// 2.06 bits a weight, for llama.cpp.
    Tq2,
}

impl WeightFormat {
    fn kind(self) -> TensorType {
        match self {
            WeightFormat::I2S => TensorType::I2S,
            WeightFormat::Tq1 => TensorType::Tq1,
            WeightFormat::Tq2 => TensorType::Tq2,
        }
    }

    /// llama.cpp's file type of a file with such weights.
    fn file_type(self) -> u32 {
        match self {
            WeightFormat::I2S => 40,
            WeightFormat::Tq1 => 36,
            WeightFormat::Tq2 => 37,
        }
    }
}

/// The formats of embeddings and heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableFormat {
    /// Half precision.
    F16,
    /// 8.5 bits a number: raises the perplexity of the 2B-4T model by 0.01, according to bitnet.cpp's README.
    Q8_0,
    /// 6.56 bits a number: raises it by 0.04.
    Q6K,
}

/// Why a conversion failed.
#[derive(Debug)]
pub enum ConvertError {
    /// The source cannot be used.
    Source(LoadError),
    /// The output cannot be written.
    Output(io::Error),
}

impl fmt::Display for ConvertError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConvertError::Source(error) => error.fmt(f),
            ConvertError::Output(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ConvertError {}

impl From<LoadError> for ConvertError {
    fn from(error: LoadError) -> Self {
        ConvertError::Source(error)
    }
}

impl From<io::Error> for ConvertError {
    fn from(error: io::Error) -> Self {
        ConvertError::Output(error)
    }
}

/// The plan of a file.
#[derive(Debug)]
pub struct ConvertPlan {
    draft: GgufDraft,
    /// What each tensor of the draft is made of.
    contents: Vec<Content>,
    notes: Vec<String>,
    /// Whether a word that is a token becomes that token only where its merges produce it.
    merges_decide: bool,
}

/// What a tensor is made of.
#[derive(Debug)]
enum Content {
    /// A ternary matrix.
    Matrix(Arc<TernaryMatrix>, StoredForm),
    /// The scale of a ternary matrix.
    Scale(Arc<TernaryMatrix>),
    /// Rows of numbers.
    Table(FloatTable),
    /// Computed numbers.
    Numbers(Vec<f32>),
    /// Bytes that are copied.
    Bytes(FileSlice),
}

impl ConvertPlan {
    /// The plan of the file that a checkpoint folder becomes.
    pub fn checkpoint(folder: &CheckpointFolder, options: &ConvertOptions) -> Result<Self, LoadError> {
        checkpoint::plan(folder, options).and_then(Self::with_vocabulary)
    }

    /// The plan of the file that another GGUF file becomes.
    pub fn file(source: &Gguf, options: &ConvertOptions) -> Result<Self, LoadError> {
        gguf_source::plan(source, options).and_then(Self::with_vocabulary)
    }

    /// Checks that this engine can read the plan's vocabulary and chat template, before gigabytes are written.
    fn with_vocabulary(self) -> Result<Self, LoadError> {
        let alone = Gguf::parse(FileMap::from(self.draft.metadata().header()))?;
        let tokenizer = Tokenizer::read(&alone)?;
        match tokenizer.token_beyond_merges().filter(|_| self.merges_decide) {
            None => Ok(self),
            Some(id) => {
                let message = format!(
                    "is false, and no merges produce token {id}: GGUF has no metadata key for that, \
                     and without one the token would be used; use another model"
                );
                Err(LoadError::new("tokenizer.json: model.ignore_merges", message))
            }
        }
    }

    fn new() -> Self {
        ConvertPlan {
            draft: GgufDraft::default(),
            contents: Vec::new(),
            notes: Vec::new(),
            merges_decide: false,
        }
    }

    /// The header, and the name, type and size of each tensor.
    pub fn draft(&self) -> &GgufDraft {
        &self.draft
    }

    /// What was repaired or cannot be done as asked: short sentences for the user.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Adds a note.
    pub fn note(&mut self, message: String) {
        self.notes.push(message);
    }

    /// Reads all of the source once and finds what could not be written, so that nothing is written in vain.
    pub fn verify(&self) -> Result<(), LoadError> {
        for (content, tensor) in self.contents.iter().zip(self.draft.tensors()) {
            match content {
                Content::Matrix(matrix, _) => matrix.verify()?,
                Content::Table(table) => table.verify()?,
                Content::Bytes(bytes) => check_finite(tensor, bytes)?,
                Content::Scale(_) | Content::Numbers(_) => {}
            }
        }
        Ok(())
    }

    /// Writes the data of tensor `index` of the draft.
    pub fn write_tensor(&self, index: usize, out: &mut dyn Write) -> Result<(), ConvertError> {
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
    pub fn write<W: Write>(&self, out: W) -> Result<W, ConvertError> {
        let mut writer = self.draft.begin(out)?;
        for index in 0..self.contents.len() {
            self.write_tensor(index, &mut writer)?;
            writer.end_tensor()?;
        }
        Ok(writer.finish()?)
    }

    fn add_tensor(
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

    /// Adds a matrix `name.weight`, with `name.scale` beside it where the format cannot hold its scale.
    fn add_matrix(&mut self, name: &str, matrix: TernaryMatrix, wanted: TensorType) -> Result<(), LoadError> {
        let form = matrix.form(wanted)?;
        if form.kind != wanted {
            let (cols, kind) = (matrix.cols, form.kind.name());
            self.notes
                .push(format!("{name}: {cols} columns fit no {} block, written as {kind}", wanted.name()));
        }
        let (dims, matrix) = ([matrix.cols, matrix.rows], Arc::new(matrix));
        self.add_tensor(
            &format!("{name}.weight"),
            form.kind,
            &dims,
            Content::Matrix(Arc::clone(&matrix), form),
        )?;
        if form.has_scale_tensor {
            self.add_tensor(&format!("{name}.scale"), TensorType::F32, &[1], Content::Scale(matrix))?;
        }
        Ok(())
    }

    fn add_table(&mut self, name: &str, table: FloatTable) -> Result<(), LoadError> {
        let (cols, kind) = (table.cols, table.kind().name());
        if table.to.row_bytes(cols).is_none() {
            let message = format!("rows of {cols} are no whole {kind} blocks; ask for another --head");
            return Err(LoadError::tensor(name, message));
        }
        let rows = table.data.len() / table.width();
        self.add_tensor(name, table.kind(), &[table.cols, rows], Content::Table(table))
    }

    /// Adds a norm, which is always F32.
    fn add_vector(&mut self, name: &str, table: FloatTable) -> Result<(), LoadError> {
        self.add_tensor(name, table.kind(), &[table.cols], Content::Table(table))
    }
}

/// Checks numbers that are copied.
fn check_finite(tensor: &PlannedTensor, bytes: &FileSlice) -> Result<(), LoadError> {
    let (Some(kind), Some(cols)) = (RowFormat::of(tensor.kind), tensor.dims.first()) else { return Ok(()) };
    let Some(width) = kind.row_bytes(*cols).filter(|width| *width > 0) else { return Ok(()) };
    let mut line = vec![0.0; *cols];
    for (index, row) in bytes.chunks_exact(width).enumerate() {
        kind.read(row, &mut line);
        if line.iter().any(|x| !x.is_finite()) {
            let message = format!("row {index}: holds what is not a number; the file is damaged");
            return Err(LoadError::tensor(&tensor.name, message));
        }
    }
    bytes.release();
    Ok(())
}
