//! The weights of a model: mapped where the file's form is the kernels' own, repacked where it is not.

use super::Shape;
use super::lm_head::Shortlist;
use crate::engine::error::LoadError;
use crate::engine::gguf::{FileSlice, Gguf, TensorInfo};
use crate::engine::quant::{self, I2S_TAIL, RowFormat, TensorType, packed_row};
use std::cell::RefCell;
use std::collections::HashSet;

/// Which layout the codes of I2_S tensors have; the file does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// Blocks of 128 weights in 32 bytes: the official layout.
    #[default]
    Blocks128,
    /// Blocks of 64 weights in 16 bytes: bitnet.cpp on Arm since November 2025.
    Blocks64,
    /// Four rows of one column in each byte: bitnet.cpp on x86, built without `ACT_PARALLEL`.
    Rows4,
}

impl Layout {
    /// All layouts, the official one first.
    pub const ALL: [Layout; 3] = [Layout::Blocks128, Layout::Blocks64, Layout::Rows4];

    /// Its name in settings and messages.
    pub fn name(self) -> &'static str {
        match self {
            Layout::Blocks128 => "128",
            Layout::Blocks64 => "64",
            Layout::Rows4 => "1x4",
        }
    }

    /// The layout of a name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|layout| layout.name() == name)
    }

    /// Repacks codes of this layout, `[rows, cols]`, into the kernels' form; `None` where they are in it already.
    pub fn packed(
        self,
        codes: &[u8],
        rows: usize,
        cols: usize,
        scale: f32,
    ) -> Result<Option<quant::PackedMatrix>, String> {
        match self {
            Layout::Blocks128 => Ok(None),
            Layout::Blocks64 => Ok(Some(quant::pack_i2s_64(codes, scale))),
            Layout::Rows4 if !rows.is_multiple_of(4) => {
                Err(format!("{rows} rows, which the layout 1x4 cannot have; name another"))
            }
            Layout::Rows4 => Ok(Some(quant::pack_i2s_rows4(codes, cols, scale))),
        }
    }
}

/// Name of the embedding in a GGUF file.
pub const EMBEDDING: &str = "token_embd.weight";
/// Name of the head; where there is none, the embedding is also the head.
pub const HEAD: &str = "output.weight";

/// All weights of a model.
#[derive(Debug)]
pub(super) struct Weights {
    pub embedding: RowTable,
    pub layers: Vec<Layer>,
    pub output_norm: Vec<f32>, // [dim]
    /// `None` where the embedding is also the head.
    pub head: Option<RowTable>,
    /// The head in two-bit codes, where it is read through a shortlist.
    pub shortlist: Option<Shortlist>,
    /// The rotation frequency of each pair, `[rope_dims / 2]`.
    pub rope_frequencies: Vec<f32>,
}

#[derive(Debug)]
pub(super) struct Layer {
    pub attn_norm: Vec<f32>,             // [dim]
    pub q: Matrix,                       // [heads * head_dim, dim]
    pub k: Matrix,                       // [kv_heads * head_dim, dim]
    pub v: Matrix,                       // [kv_heads * head_dim, dim]
    pub attn_sub_norm: Option<Vec<f32>>, // [heads * head_dim]
    pub o: Matrix,                       // [dim, heads * head_dim]
    pub ffn_norm: Vec<f32>,              // [dim]
    pub gate: Matrix,                    // [ffn, dim]
    pub up: Matrix,                      // [ffn, dim]
    pub ffn_sub_norm: Option<Vec<f32>>,  // [ffn]
    pub down: Matrix,                    // [dim, ffn]
}

/// A matrix of a layer. Each of its numbers is multiplied by `scale`.
#[derive(Debug)]
pub(super) struct Matrix {
    pub rows: usize,
    pub cols: usize,
    pub scale: f32,
    pub form: MatrixData,
}

#[derive(Debug)]
pub(super) enum MatrixData {
    /// Ternary, as BitNet's matrices are: multiplied in integers.
    Ternary(PackedRows),
    /// Not ternary: multiplied in floats.
    Float(RowTable),
}

/// Ternary weights in the kernels' packed form.
#[derive(Debug)]
pub(super) struct PackedRows {
    width: usize,
    bytes: PackedBytes, // [rows, width]
}

impl PackedRows {
    /// Rows `range`: `[range.len(), packed_row(cols)]`.
    pub fn rows(&self, range: std::ops::Range<usize>) -> &[u8] {
        &self.bytes.get()[range.start * self.width..range.end * self.width]
    }
}

#[derive(Debug)]
enum PackedBytes {
    Mapped(FileSlice),
    Owned(Vec<u8>),
}

impl PackedBytes {
    fn get(&self) -> &[u8] {
        match self {
            PackedBytes::Mapped(slice) => slice,
            PackedBytes::Owned(bytes) => bytes,
        }
    }
}

/// A table of float rows: the embedding, the head, or a matrix that is not ternary. It is never copied.
#[derive(Debug)]
pub(super) struct RowTable {
    pub format: RowFormat,
    width: usize,
    bytes: FileSlice, // [rows, cols] in `width` bytes a row
    /// Whether single rows are read at random. The memory plan then counts only the part that is in memory while
    /// the table is scanned as a whole.
    read_by_row: bool,
}

impl RowTable {
    pub fn new(kind: RowFormat, cols: usize, bytes: FileSlice) -> Self {
        let width = kind.row_bytes(cols).expect("a row is whole blocks: the parser refuses others");
        RowTable { format: kind, width, bytes, read_by_row: false }
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.width
    }

    /// Whether single rows are read at random.
    pub fn is_read_by_row(&self) -> bool {
        self.read_by_row
    }

    /// Releases the memory of the pages that were read; reading them again reads the file again.
    pub fn release(&self) {
        self.bytes.release();
    }

    /// Checks that all numbers are finite: one that is not would spoil every logit.
    fn check(&self, cols: usize) -> Result<(), String> {
        match self.format.find_non_finite(&self.bytes, cols) {
            None => Ok(()),
            Some((row, col)) => Err(format!("row {row}: column {col} is not a number; the file is damaged")),
        }
    }

    /// Reads a single row; `buffer`: [`RowTable::row_bytes`] bytes.
    pub fn row<'a>(&'a self, row: usize, buffer: &'a mut [u8]) -> &'a [u8] {
        self.bytes.read(row * self.width..(row + 1) * self.width, buffer)
    }

    /// Rows `range`: `[range.len(), cols]`.
    pub fn rows(&self, range: std::ops::Range<usize>) -> &[u8] {
        &self.bytes[range.start * self.width..range.end * self.width]
    }
}

impl Weights {
    pub fn load(file: &Gguf, shape: &Shape, layout: Layout) -> Result<Self, LoadError> {
        check_is_bitnet(file)?;
        Self::read(&Loader { file, layout, headers_only: false, used: RefCell::default() }, shape)
    }

    fn read(loader: &Loader<'_>, shape: &Shape) -> Result<Self, LoadError> {
        let file = loader.file;
        let mut weights = Weights {
            embedding: loader.table(EMBEDDING, shape.vocab, shape.dim)?,
            layers: (0..shape.layers).map(|index| loader.layer(index, shape)).collect::<Result<_, _>>()?,
            output_norm: loader.vector("output_norm.weight", shape.dim)?,
            head: match file.tensor(HEAD) {
                Some(_) => Some(loader.table(HEAD, shape.vocab, shape.dim)?),
                None => None,
            }
            .filter(|_| !has_duplicate_head(file)),
            shortlist: None,
            rope_frequencies: loader.rope_frequencies(shape)?,
        };
        loader.check_all_used()?;
        weights.embedding.read_by_row = weights.head.is_some();
        Ok(weights)
    }

    /// The table that logits are computed with.
    pub fn head(&self) -> &RowTable {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Uses another table as the head. Of the embedding only single rows are read from now on.
    pub fn replace_head(&mut self, head: RowTable) {
        self.head = Some(head);
        self.embedding.read_by_row = true;
    }

    /// The head in the format that was attached.
    pub fn into_head(self) -> (Option<RowTable>, Option<Shortlist>) {
        (self.head, self.shortlist)
    }

    /// Attaches a head from [`Weights::into_head`] again.
    pub fn restore_head(&mut self, (head, shortlist): (Option<RowTable>, Option<Shortlist>)) {
        head.into_iter().for_each(|head| self.replace_head(head));
        shortlist.into_iter().for_each(|shortlist| self.set_shortlist(shortlist));
    }

    /// Reads logits through a shortlist.
    pub fn set_shortlist(&mut self, shortlist: Shortlist) {
        self.shortlist = Some(shortlist);
        self.head.as_mut().unwrap_or(&mut self.embedding).read_by_row = true;
    }

    pub fn bytes_per_token(&self) -> usize {
        let bytes = self.matrices().map(|matrix| match &matrix.form {
            MatrixData::Ternary(packed) => packed.bytes.get().len(),
            MatrixData::Float(table) => table.bytes.len(),
        });
        bytes.sum::<usize>()
            + self.shortlist.as_ref().map_or(self.head().bytes.len(), Shortlist::bytes_per_token)
    }

    /// The number of matrices that are not ternary.
    pub fn float_matrices(&self) -> usize {
        self.matrices().filter(|matrix| matches!(matrix.form, MatrixData::Float(_))).count()
    }

    fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        self.layers
            .iter()
            .flat_map(|layer| [&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down])
    }
}

struct Loader<'a> {
    file: &'a Gguf,
    layout: Layout,
    /// Whether matrices are only checked by their header and not read.
    headers_only: bool,
    used: RefCell<HashSet<String>>,
}

impl Loader<'_> {
    fn layer(&self, index: usize, shape: &Shape) -> Result<Layer, LoadError> {
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let matrix = |part: &str, rows, cols| self.matrix(&name(part), rows, cols);
        let vector = |part: &str, len| self.vector(&name(part), len);
        let sub_norm = |part: &str, len| shape.sub_norms.then(|| vector(part, len)).transpose();
        let (dim, ffn) = (shape.dim, shape.ffn);
        let (q, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        Ok(Layer {
            attn_norm: vector("attn_norm", dim)?,
            q: matrix("attn_q", q, dim)?,
            k: matrix("attn_k", kv, dim)?,
            v: matrix("attn_v", kv, dim)?,
            attn_sub_norm: sub_norm("attn_sub_norm", q)?,
            o: matrix("attn_output", dim, q)?,
            ffn_norm: vector("ffn_norm", dim)?,
            gate: matrix("ffn_gate", ffn, dim)?,
            up: matrix("ffn_up", ffn, dim)?,
            ffn_sub_norm: sub_norm("ffn_sub_norm", ffn)?,
            down: matrix("ffn_down", dim, ffn)?,
        })
    }

    fn tensor(&self, name: &str, dims: &[usize]) -> Result<&TensorInfo, LoadError> {
        let fail = |message: String| LoadError::tensor(name, message);
        let tensor =
            self.file.tensor(name).ok_or_else(|| fail("missing; the file is no complete model".into()))?;
        if tensor.dims != dims {
            return Err(fail(format!(
                "has shape {:?}, where the model's numbers ask for {dims:?}",
                tensor.dims
            )));
        }
        self.used.borrow_mut().insert(name.to_owned());
        Ok(tensor)
    }

    fn table(&self, name: &str, rows: usize, cols: usize) -> Result<RowTable, LoadError> {
        let tensor = self.tensor(name, &[cols, rows])?;
        Ok(RowTable::new(row_format(name, tensor)?, cols, self.file.data(tensor)))
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let tensor = self.tensor(name, &[len])?;
        let kind = row_format(name, tensor)?;
        let mut out = vec![0.0; len];
        kind.read(&self.file.data(tensor), &mut out);
        match out.iter().position(|x| !x.is_finite()) {
            None => Ok(out),
            Some(at) => {
                let message = format!("element {at} is not a number; the file is damaged");
                Err(LoadError::tensor(name, message))
            }
        }
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix, LoadError> {
        let tensor = self.tensor(name, &[cols, rows])?;
        if self.headers_only {
            let (form, scale) = ternary(PackedBytes::Owned(Vec::new()), self.extra_scale(name)?, cols);
            return Ok(Matrix { rows, cols, scale, form });
        }
        let data = self.file.data(tensor);
        let fail = |message| LoadError::tensor(name, message);
        let (form, scale) = match tensor.kind {
            TensorType::I2S => {
                let (bytes, scale) = i2s(data, rows, cols, self.layout).map_err(fail)?;
                ternary(bytes, scale, cols)
            }
            kind if float_format(kind, &data, cols).is_some() => {
                let table = RowTable::new(row_format(name, tensor)?, cols, data);
                table.check(cols).map_err(fail)?;
                (MatrixData::Float(table), 1.0)
            }
            kind => {
                let packed = repack(&data, kind, rows, cols).map_err(fail)?;
                data.release();
                ternary(PackedBytes::Owned(packed.bytes), packed.scale, cols)
            }
        };
        let scale = scale * self.extra_scale(name)?;
        if !scale.is_finite() {
            return Err(fail("its scale is not a number; the file is damaged".into()));
        }
        Ok(Matrix { rows, cols, scale, form })
    }

    /// llama.cpp's converter writes the scale of a matrix as a tensor of its own beside weights of magnitude 1.
    fn extra_scale(&self, weight: &str) -> Result<f32, LoadError> {
        let name = weight.replace(".weight", ".scale");
        match self.file.tensor(&name) {
            Some(_) => Ok(self.vector(&name, 1)?[0]),
            None => Ok(1.0),
        }
    }

    fn rope_frequencies(&self, shape: &Shape) -> Result<Vec<f32>, LoadError> {
        let pairs = shape.rope_dims / 2;
        // Computed as f64 first: the position would magnify the error of a rounded exponent.
        let frequency =
            |pair: usize| f64::from(shape.rope_base).powf(-2.0 * pair as f64 / shape.rope_dims as f64);
        let stretch = f64::from(shape.rope_stretch);
        let plain = (0..pairs).map(|pair| (frequency(pair) / stretch) as f32);
        let name = "rope_freqs.weight";
        if self.file.tensor(name).is_none() {
            return Ok(plain.collect());
        }
        let factors = self.vector(name, pairs)?;
        if let Some(at) = factors.iter().position(|factor| !factor.is_normal() || *factor < 0.0) {
            let message =
                format!("element {at} is {}, no factor to divide by; the file is damaged", factors[at]);
            return Err(LoadError::tensor(name, message));
        }
        Ok(plain.zip(factors).map(|(frequency, factor)| frequency / factor).collect())
    }

    /// Refuses a file with a tensor that was not used: the model is then another one than it claims, and its text
    /// would be silently wrong.
    fn check_all_used(&self) -> Result<(), LoadError> {
        let used = self.used.borrow();
        match self.file.tensors().iter().find(|tensor| !used.contains(&tensor.name)) {
            None => Ok(()),
            Some(tensor) => Err(LoadError::tensor(
                &tensor.name,
                "is not part of this architecture as this engine knows it; use another model",
            )),
        }
    }
}

/// Refuses a file that loading would refuse for the names, types and shapes of its tensors, for its norms, or
/// because it has no ternary matrix. The matrices are not read.
pub fn check_tensors(file: &Gguf, shape: &Shape) -> Result<(), LoadError> {
    check_is_bitnet(file)?;
    let loader = Loader { file, layout: Layout::default(), headers_only: true, used: RefCell::default() };
    Weights::read(&loader, shape).map(drop)
}

/// Whether the head is a copy of the embedding, as in the first release of BitNet-b1.58-2B-4T. Every 61st row is
/// compared: a head of its own differs in every row, and reading all of both would take a small board seconds.
pub fn has_duplicate_head(file: &Gguf) -> bool {
    const STEP: usize = 61;
    /// Bytes that are compared at a time: a damaged header may claim that a row is the whole file.
    const PIECE: usize = 1 << 16;
    let (Some(embedding), Some(head)) = (file.tensor(EMBEDDING), file.tensor(HEAD)) else { return false };
    if (embedding.kind, &embedding.dims) != (head.kind, &head.dims) {
        return false;
    }
    let rows = embedding.dims.get(1).copied().unwrap_or(1).max(1);
    let (a, b) = (file.data(embedding), file.data(head));
    let width = a.len() / rows;
    let [mut for_a, mut for_b] = [vec![0; width.min(PIECE)], vec![0; width.min(PIECE)]];
    (0..rows).step_by(STEP).all(|row| {
        (0..width).step_by(PIECE).all(|start| {
            let bytes = row * width + start..row * width + (start + PIECE).min(width);
            a.read(bytes.clone(), &mut for_a) == b.read(bytes, &mut for_b)
        })
    })
}

fn row_format(name: &str, tensor: &TensorInfo) -> Result<RowFormat, LoadError> {
    RowFormat::of(tensor.kind).ok_or_else(|| {
        let message =
            format!("is {}, where F32, F16, BF16, Q8_0, Q6_K, Q4_K or Q4_0 is read", tensor.kind.name());
        LoadError::tensor(name, message)
    })
}

/// The format of a matrix that is not ternary; `None` for a ternary one.
pub(super) fn float_format(kind: TensorType, data: &[u8], cols: usize) -> Option<RowFormat> {
    RowFormat::of(kind).filter(|kind| !quant::is_ternary(data, *kind, cols))
}

/// Refuses a model without any ternary matrix; some matrices may be floats, but not all. Checked before any matrix
/// is read whole, because other models are large.
fn check_is_bitnet(file: &Gguf) -> Result<(), LoadError> {
    let is_dense =
        |tensor: &&TensorInfo| float_format(tensor.kind, &file.data(tensor), tensor.dims[0]).is_some();
    let mut matrices = file.tensors().iter().filter(|tensor| is_matrix(tensor)).peekable();
    match matrices.peek().copied() {
        Some(first) if matrices.all(|tensor| is_dense(&tensor)) => Err(LoadError::tensor(
            &first.name,
            "is not ternary, nor is any other matrix of a layer: not a BitNet model; use one",
        )),
        _ => Ok(()),
    }
}

fn ternary(bytes: PackedBytes, scale: f32, cols: usize) -> (MatrixData, f32) {
    (MatrixData::Ternary(PackedRows { width: packed_row(cols), bytes }), scale)
}

/// Reads I2_S: codes, then the scale. The official layout is used in place.
fn i2s(data: FileSlice, rows: usize, cols: usize, layout: Layout) -> Result<(PackedBytes, f32), String> {
    let codes = data.part(0..data.len() - I2S_TAIL);
    let scale = quant::i2s_scale(&data);
    quant::check_i2s_codes(&codes, scale)?;
    Ok(match layout.packed(&codes, rows, cols, scale)? {
        None => (PackedBytes::Mapped(codes), scale),
        Some(packed) => {
            codes.release();
            (PackedBytes::Owned(packed.bytes), scale)
        }
    })
}

fn repack(data: &[u8], kind: TensorType, rows: usize, cols: usize) -> Result<quant::PackedMatrix, String> {
    match (kind, RowFormat::of(kind)) {
        (_, Some(numbers)) => quant::pack_floats(data, numbers, rows, cols),
        (TensorType::Tq1, _) => quant::pack_tq1(data),
        (TensorType::Tq2, _) => quant::pack_tq2(data),
        _ => unreachable!("I2_S is read by a function of its own"),
    }
}

/// Whether a tensor is one of the matrices of a layer.
pub(super) fn is_matrix(tensor: &TensorInfo) -> bool {
    tensor.name.starts_with("blk.") && tensor.dims.len() == 2
}
