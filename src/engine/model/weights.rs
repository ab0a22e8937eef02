//! The weights of a model: read from the mapping where its form is the kernels', repacked where not.

use super::Shape;
use super::WeightBytes;
use crate::engine::error::LoadError;
use crate::engine::gguf::{Gguf, Slice, Tensor};
use crate::engine::quant::{self, Dense, I2S_TAIL, Packed, TensorType, packed_row};
use std::cell::RefCell;
use std::collections::HashSet;

/// Which block layout I2_S tensors have; the file does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// 128 weights in 32 bytes: the official one.
    #[default]
    Blocks128,
    /// 64 weights in 16 bytes: bitnet.cpp on Arm since November 2025.
    Blocks64,
    /// Four rows of one column to a byte: bitnet.cpp on x86, built without `ACT_PARALLEL`.
    Rows4,
}

impl Layout {
    /// All there are, the official one first.
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
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|layout| layout.name() == name)
    }
}

/// All weights of a model.
#[derive(Debug)]
pub(super) struct Weights {
    pub embedding: Table,
    pub layers: Vec<Layer>,
    pub output_norm: Vec<f32>, // [dim]
    /// `None`: the embedding is used.
    pub head: Option<Table>,
    /// Rotation frequency of each pair, `[rope_dims / 2]`.
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

/// A ternary matrix in the kernels' form.
#[derive(Debug)]
pub(super) struct Matrix {
    pub rows: usize,
    pub cols: usize,
    pub scale: f32,
    bytes: Bytes, // [rows, packed_row(cols)]
}

impl Matrix {
    /// Rows `range`: `[range.len(), packed_row(cols)]`.
    pub fn rows(&self, range: std::ops::Range<usize>) -> &[u8] {
        let width = packed_row(self.cols);
        &self.bytes.get()[range.start * width..range.end * width]
    }
}

#[derive(Debug)]
enum Bytes {
    Mapped(Slice),
    Own(Vec<u8>),
}

impl Bytes {
    fn get(&self) -> &[u8] {
        match self {
            Bytes::Mapped(slice) => slice,
            Bytes::Own(bytes) => bytes,
        }
    }
}

/// A table of plain numbers: the embedding, or the head. Never copied.
#[derive(Debug)]
pub(super) struct Table {
    pub kind: Dense,
    cols: usize,
    bytes: Slice, // [rows, cols]
}

impl Table {
    /// Rows `range`: `[range.len(), cols]`.
    pub fn rows(&self, range: std::ops::Range<usize>) -> &[u8] {
        let width = self.cols * self.kind.size();
        &self.bytes[range.start * width..range.end * width]
    }
}

impl Weights {
    pub fn load(file: &Gguf, shape: &Shape, layout: Layout) -> Result<Self, LoadError> {
        let loader = Loader { file, layout, used: RefCell::default() };
        let weights = Weights {
            embedding: loader.table("token_embd.weight", shape.vocab, shape.dim)?,
            layers: (0..shape.layers).map(|index| loader.layer(index, shape)).collect::<Result<_, _>>()?,
            output_norm: loader.vector("output_norm.weight", shape.dim)?,
            head: match file.tensor("output.weight") {
                Some(_) => Some(loader.table("output.weight", shape.vocab, shape.dim)?),
                None => None,
            },
            rope_frequencies: loader.rope_frequencies(shape)?,
        };
        loader.nothing_left()?;
        Ok(weights)
    }

    pub fn bytes_per_token(&self) -> usize {
        let matrices = self
            .layers
            .iter()
            .flat_map(|layer| [&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down]);
        matrices.map(|matrix| matrix.bytes.get().len()).sum::<usize>()
            + self.head.as_ref().unwrap_or(&self.embedding).bytes.len()
    }
}

struct Loader<'a> {
    file: &'a Gguf,
    layout: Layout,
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

    fn tensor(&self, name: &str, dims: &[usize]) -> Result<&Tensor, LoadError> {
        let fail = |said: String| LoadError::tensor(name, said);
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

    fn table(&self, name: &str, rows: usize, cols: usize) -> Result<Table, LoadError> {
        let tensor = self.tensor(name, &[cols, rows])?;
        let kind = dense(name, tensor)?;
        Ok(Table { kind, cols, bytes: self.file.data(tensor) })
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let tensor = self.tensor(name, &[len])?;
        let kind = dense(name, tensor)?;
        let mut out = vec![0.0; len];
        kind.read(&self.file.data(tensor), &mut out);
        match out.iter().position(|x| !x.is_finite()) {
            None => Ok(out),
            Some(at) => {
                let said = format!("element {at} is not a number; the file is damaged");
                Err(LoadError::tensor(name, said))
            }
        }
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix, LoadError> {
        let tensor = self.tensor(name, &[cols, rows])?;
        let data = self.file.data(tensor);
        let fail = |said| LoadError::tensor(name, said);
        let (bytes, scale) = match tensor.kind {
            TensorType::I2S => i2s(data, rows, cols, self.layout).map_err(fail)?,
            kind => {
                let packed = repack(&data, kind, rows, cols).map_err(fail)?;
                data.release();
                (Bytes::Own(packed.bytes), packed.scale)
            }
        };
        let scale = scale * self.extra_scale(name)?;
        if !scale.is_finite() {
            return Err(fail("its scale is not a number; the file is damaged".into()));
        }
        Ok(Matrix { rows, cols, scale, bytes })
    }

    /// llama.cpp's converter writes the scale of a matrix as a tensor of its own beside weights of
    /// magnitude 1.
    fn extra_scale(&self, weight: &str) -> Result<f32, LoadError> {
        let name = weight.replace(".weight", ".scale");
        match self.file.tensor(&name) {
            Some(_) => Ok(self.vector(&name, 1)?[0]),
            None => Ok(1.0),
        }
    }

    fn rope_frequencies(&self, shape: &Shape) -> Result<Vec<f32>, LoadError> {
        let pairs = shape.rope_dims / 2;
        // Frequencies as float64 first: a rounded exponent would be magnified by the position.
        let frequency =
            |pair: usize| f64::from(shape.rope_base).powf(-2.0 * pair as f64 / shape.rope_dims as f64);
        let plain = (0..pairs).map(|pair| frequency(pair) as f32);
        let name = "rope_freqs.weight";
        if self.file.tensor(name).is_none() {
            return Ok(plain.collect());
        }
        let factors = self.vector(name, pairs)?;
        if let Some(at) = factors.iter().position(|factor| !factor.is_normal() || *factor < 0.0) {
            let said =
                format!("element {at} is {}, no factor to divide by; the file is damaged", factors[at]);
            return Err(LoadError::tensor(name, said));
        }
        Ok(plain.zip(factors).map(|(frequency, factor)| frequency / factor).collect())
    }

    /// A tensor that was not used means a model that is not the one we think: its text would be
    /// wrong without a word.
    fn nothing_left(&self) -> Result<(), LoadError> {
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

fn dense(name: &str, tensor: &Tensor) -> Result<Dense, LoadError> {
    Dense::of(tensor.kind).ok_or_else(|| {
        let said = format!("is {}, where F32, F16 or BF16 is read", tensor.kind.name());
        LoadError::tensor(name, said)
    })
}

/// I2_S: codes, then the scale. The official layout is used where it lies.
fn i2s(data: Slice, rows: usize, cols: usize, layout: Layout) -> Result<(Bytes, f32), String> {
    let codes = data.part(0..data.len() - I2S_TAIL);
    let tail = data.part(codes.len()..codes.len() + 4);
    let scale = f32::from_le_bytes((*tail).try_into().expect("four bytes"));
    if let Some(at) = quant::find_code_3(&codes) {
        return Err(format!("byte {at}: holds the undefined code 3; the file is damaged or no I2_S"));
    }
    // llama-quantize with several threads loses the scale, and every token would be the same.
    if scale == 0.0 && !quant::all_zeros(&codes) {
        return Err("its scale is 0, its weights are not; quantise again with one thread".into());
    }
    Ok(match layout {
        Layout::Blocks128 => (Bytes::Mapped(codes), scale),
        Layout::Blocks64 => {
            let packed = quant::pack_i2s_64(&codes, rows, cols, scale);
            codes.release();
            (Bytes::Own(packed.bytes), scale)
        }
        Layout::Rows4 if !rows.is_multiple_of(4) => {
            return Err(format!("{rows} rows are no whole groups of the layout 1x4"));
        }
        Layout::Rows4 => {
            let packed = quant::pack_i2s_rows4(&codes, rows, cols, scale);
            codes.release();
            (Bytes::Own(packed.bytes), scale)
        }
    })
}

fn repack(data: &[u8], kind: TensorType, rows: usize, cols: usize) -> Result<Packed, String> {
    match kind {
        TensorType::Tq1 => quant::pack_tq1(data, rows, cols),
        TensorType::Tq2 => quant::pack_tq2(data, rows, cols),
        TensorType::F32 => quant::pack_dense(data, Dense::F32, rows, cols),
        TensorType::F16 => quant::pack_dense(data, Dense::F16, rows, cols),
        TensorType::Bf16 => quant::pack_dense(data, Dense::Bf16, rows, cols),
        TensorType::I2S => unreachable!("read in place"),
    }
}

/// Whether a tensor is one of the ternary matrices.
fn is_matrix(tensor: &Tensor) -> bool {
    tensor.name.starts_with("blk.") && tensor.dims.len() == 2
}

pub(super) fn plan(file: &Gguf, layout: Layout) -> WeightBytes {
    let mut plan = WeightBytes::default();
    for tensor in file.tensors() {
        let in_place = tensor.kind == TensorType::I2S && layout == Layout::Blocks128;
        if is_matrix(tensor) && !in_place {
            plan.copied += tensor.dims[1] * packed_row(tensor.dims[0]);
        } else {
            plan.mapped += tensor.bytes.len();
        }
    }
    plan
}
