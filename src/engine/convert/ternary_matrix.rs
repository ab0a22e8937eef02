//! Converts a ternary matrix from any format that carries one to any that a file can hold.

use super::ConvertError;
use crate::engine::error::LoadError;
use crate::engine::gguf::FileSlice;
use crate::engine::model::Layout;
use crate::engine::quant::{
    self, FloatFormat, I2S_TAIL, PackedMatrix, RowFormat, TensorType, code, packed_row,
};
use half::f16;
use std::io::Write;
use std::sync::OnceLock;

/// A ternary matrix of a source.
#[derive(Debug)]
pub(super) struct TernaryMatrix {
    /// Its name in the source, for errors.
    pub name: String,
    pub source: MatrixSource,
    pub rows: usize,
    pub cols: usize,
    /// The width of the heads whose rows are brought into llama.cpp's order.
    pub rope_head: Option<usize>,
    /// The factor of float weights; computed when it is first needed.
    pub factor: OnceLock<f32>,
}

/// The formats that carry a ternary matrix.
#[derive(Debug)]
pub(super) enum MatrixSource {
    /// Floats that are not ternary yet, `[rows, cols]`; see [`absmean`].
    Master { data: FileSlice, kind: FloatFormat },
    /// Four codes a byte, `[rows.div_ceil(4), cols]`: row `r` in byte row `r % rows.div_ceil(4)`,
    /// bits `2 * (r / rows.div_ceil(4))`. Source: `unpack_weights` of transformers.
    Strided { data: FileSlice, scale: f32 },
    /// A tensor of a GGUF file, or floats that are already ternary; all multiplied by `factor`.
    Tensor { data: FileSlice, kind: TensorType, layout: Layout, factor: f32 },
}

/// How a file holds a matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct StoredForm {
    pub kind: TensorType,
    /// Whether its scale is a separate tensor, beside weights of magnitude 1.
    pub has_scale_tensor: bool,
}

impl TernaryMatrix {
    /// The scale of its weights. Takes a pass over floats that are not ternary yet.
    pub fn scale(&self) -> Result<f32, LoadError> {
        let scale = match &self.source {
            MatrixSource::Master { data, kind } => self.factor(data, *kind).map(|factor| 1.0 / factor),
            MatrixSource::Strided { scale, .. } => Ok(*scale),
            MatrixSource::Tensor { data, kind, factor, .. } => match stored_scale(data, *kind, self.cols) {
                Some(scale) => Ok(scale * factor),
                None => self.pack().map(|packed| packed.scale),
            },
        };
        scale.and_then(check_finite).map_err(|message| self.fail(message))
    }

    /// Reads all of it, and finds what [`TernaryMatrix::write`] would refuse.
    pub fn verify(&self) -> Result<(), LoadError> {
        let checked = match &self.source {
            // The sum is not finite where any number is not.
            MatrixSource::Master { data, kind } => self.factor(data, *kind).map(drop),
            MatrixSource::Strided { data, .. } => check_codes(data),
            MatrixSource::Tensor { .. } => self.pack().map(drop),
        };
        self.data().release();
        checked.map_err(|message| self.fail(message))
    }

    /// What float weights are multiplied by before they are rounded.
    fn factor(&self, data: &[u8], kind: FloatFormat) -> Result<f32, String> {
        match self.factor.get() {
            Some(factor) => Ok(*factor),
            None => absmean(data, kind, self.cols).map(|factor| *self.factor.get_or_init(|| factor)),
        }
    }

    /// How the matrix is stored where `wanted` is asked for: in that type if rows are whole blocks of it.
    pub fn form(&self, wanted: TensorType) -> Result<StoredForm, LoadError> {
        let fits = |kind: &TensorType| kind.bytes(self.cols as u64, self.cols as u64).is_some();
        // Q4_0 holds -1, 0 and +1 exactly, in 4.5 bits each; half precision fits any row.
        let kinds = [wanted, TensorType::I2S, TensorType::Q4_0];
        let kind = kinds.into_iter().find(fits).unwrap_or(TensorType::F16);
        let apart = match kind {
            TensorType::I2S => false,
            // The pass over all numbers comes later; the mean is hardly ever a half-precision number.
            _ if matches!(self.source, MatrixSource::Master { .. }) => true,
            TensorType::Tq1 | TensorType::Tq2 => f16::from_f32(self.scale()?).to_f32() != self.scale()?,
            _ => true,
        };
        Ok(StoredForm { kind, has_scale_tensor: apart })
    }

    /// Writes the matrix.
    pub fn write(&self, form: StoredForm, out: &mut dyn Write) -> Result<(), ConvertError> {
        let packed = self.pack().map_err(|message| self.fail(message))?;
        let scale = if form.has_scale_tensor { 1.0 } else { packed.scale };
        let width = packed_row(self.cols);
        let mut line = Vec::new();
        for row in 0..self.rows {
            let codes = &packed.bytes[self.source_row(row) * width..][..width];
            line.clear();
            write_row(codes, self.cols, form.kind, scale, &mut line);
            out.write_all(&line)?;
        }
        if form.kind == TensorType::I2S {
            let mut tail = [0; I2S_TAIL];
            tail[..4].copy_from_slice(&scale.to_le_bytes());
            out.write_all(&tail)?;
        }
        Ok(())
    }

    /// The source row of row `row` of the output. llama.cpp rotates neighbours where transformers rotates the
    /// halves of a head, so its rows come alternately from both halves.
    fn source_row(&self, row: usize) -> usize {
        let Some(head) = self.rope_head else { return row };
        let (start, at) = (row / head * head, row % head);
        start + at % 2 * (head / 2) + at / 2
    }

    /// The codes in the kernels' form, with rows in the source's order.
    fn pack(&self) -> Result<PackedMatrix, String> {
        let packed = match &self.source {
            MatrixSource::Master { data, kind } => self.pack_master(data, *kind),
            MatrixSource::Strided { data, scale } => self.pack_strided(data, *scale),
            MatrixSource::Tensor { data, kind, layout, factor } => {
                self.pack_tensor(data, *kind, *layout, *factor)
            }
        };
        self.data().release();
        let packed = packed?;
        check_finite(packed.scale).map(|_| packed)
    }

    fn data(&self) -> &FileSlice {
        match &self.source {
            MatrixSource::Master { data, .. }
            | MatrixSource::Strided { data, .. }
            | MatrixSource::Tensor { data, .. } => data,
        }
    }

    fn pack_master(&self, data: &[u8], kind: FloatFormat) -> Result<PackedMatrix, String> {
        let factor = self.factor(data, kind)?;
        let mut bytes = Vec::with_capacity(self.rows * packed_row(self.cols));
        let mut line = vec![0.0; self.cols];
        for row in data.chunks_exact(self.cols * kind.size()) {
            kind.read(row, &mut line);
            pack_row(self.cols, &mut bytes, |col| ternary_code(line[col], factor));
        }
        Ok(PackedMatrix { bytes, scale: 1.0 / factor })
    }

    fn pack_strided(&self, data: &[u8], scale: f32) -> Result<PackedMatrix, String> {
        check_codes(data)?;
        let quarter = self.rows.div_ceil(4);
        let mut bytes = Vec::with_capacity(self.rows * packed_row(self.cols));
        for row in 0..self.rows {
            let (line, shift) = (&data[row % quarter * self.cols..][..self.cols], 2 * (row / quarter));
            pack_row(self.cols, &mut bytes, |col| line[col] >> shift & 3);
        }
        Ok(PackedMatrix { bytes, scale })
    }

    fn pack_tensor(
        &self,
        data: &[u8],
        kind: TensorType,
        layout: Layout,
        factor: f32,
    ) -> Result<PackedMatrix, String> {
        let (rows, cols) = (self.rows, self.cols);
        let mut packed = match kind {
            TensorType::I2S => self.pack_i2s(data, layout),
            TensorType::Tq1 => quant::pack_tq1(data),
            TensorType::Tq2 => quant::pack_tq2(data),
            kind => quant::pack_floats(data, row_format(kind), rows, cols),
        }?;
        packed.scale *= factor;
        Ok(packed)
    }

    fn pack_i2s(&self, data: &[u8], layout: Layout) -> Result<PackedMatrix, String> {
        let (codes, _) = data.split_at(data.len() - I2S_TAIL);
        let scale = quant::i2s_scale(data);
        quant::check_i2s_codes(codes, scale)?;
        let packed = layout.packed(codes, self.rows, self.cols, scale)?;
        Ok(packed.unwrap_or_else(|| PackedMatrix { bytes: codes.to_vec(), scale }))
    }

    fn fail(&self, message: impl Into<String>) -> LoadError {
        LoadError::tensor(&self.name, message)
    }
}

fn check_codes(data: &[u8]) -> Result<(), String> {
    match quant::find_undefined_code(data) {
        None => Ok(()),
        Some(at) => Err(format!("byte {at}: holds the undefined code 3; the file is damaged")),
    }
}

fn check_finite(scale: f32) -> Result<f32, String> {
    if scale.is_finite() { Ok(scale) } else { Err("its scale is not a number; the file is damaged".into()) }
}

/// The mean magnitude of a matrix as `WeightQuant` of transformers uses it: a factor, whose reciprocal is the
/// scale. torch adds in 32 bits in an order of its own; added in 64 bits here, the mean is the one it rounds to, or
/// its neighbour.
fn absmean(data: &[u8], kind: FloatFormat, cols: usize) -> Result<f32, String> {
    let mut line = vec![0.0; cols];
    let mut sum = 0.0f64;
    let mut count = 0;
    for (index, row) in data.chunks_exact(cols * kind.size()).enumerate() {
        kind.read(row, &mut line);
        sum += line.iter().map(|x| f64::from(x.abs())).sum::<f64>();
        if !sum.is_finite() {
            return Err(format!("row {index}: holds what is not a number; the file is damaged"));
        }
        count += cols;
    }
    // The smallest mean that transformers divides by.
    Ok(1.0 / ((sum / count as f64) as f32).max(1e-5))
}

/// The code of a float that is quantised; ties go to the even side as in torch.
fn ternary_code(x: f32, factor: f32) -> u8 {
    ((x * factor).round_ties_even().clamp(-1.0, 1.0) + 1.0) as u8
}

/// The format of a tensor that is not in ternary blocks.
fn row_format(kind: TensorType) -> RowFormat {
    RowFormat::of(kind).expect("ternary block types are handled before")
}

/// The scale that a tensor holds itself; of floats, the magnitude of the first that is not 0. `None` where the
/// whole tensor must be read.
fn stored_scale(data: &[u8], kind: TensorType, cols: usize) -> Option<f32> {
    let half = |at: usize, size: usize| {
        let scales = data.chunks_exact(size).map(|block| [block[at], block[at + 1]]);
        scales.map(|scale| f16::from_le_bytes(scale).to_f32()).find(|scale| *scale != 0.0)
    };
    let scale = match kind {
        TensorType::I2S => Some(quant::i2s_scale(data)),
        TensorType::Tq1 => half(52, 54),
        TensorType::Tq2 => half(64, 66),
        kind => {
            let RowFormat::Float(kind) = row_format(kind) else { return None };
            let mut line = vec![0.0; cols];
            let mut rows = data.chunks_exact(cols * kind.size());
            rows.find_map(|row| {
                kind.read(row, &mut line);
                line.iter().find(|x| **x != 0.0).map(|x| x.abs())
            })
        }
    };
    Some(scale.unwrap_or(0.0))
}

/// Packs a row of codes, padded with zeros (code 1) to whole blocks.
fn pack_row(cols: usize, out: &mut Vec<u8>, code: impl Fn(usize) -> u8) {
    let code = |col: usize| if col < cols { code(col) } else { 1 };
    for block in (0..cols).step_by(quant::BLOCK) {
        out.extend(
            (block..block + quant::BLOCK_BYTES)
                .map(|col| code(col) << 6 | code(col + 32) << 4 | code(col + 64) << 2 | code(col + 96)),
        );
    }
}

/// Writes a row of packed codes as a tensor type stores it.
fn write_row(codes: &[u8], cols: usize, kind: TensorType, scale: f32, out: &mut Vec<u8>) {
    let half = f16::from_f32(scale).to_le_bytes();
    match kind {
        TensorType::I2S => out.extend_from_slice(codes),
        TensorType::Tq1 => (0..cols).step_by(256).for_each(|at| {
            tq1_block(|j| code(codes, at + j), out);
            out.extend(half);
        }),
        TensorType::Tq2 => (0..cols).step_by(256).for_each(|at| {
            tq2_block(|j| code(codes, at + j), out);
            out.extend(half);
        }),
        TensorType::Q4_0 => (0..cols).step_by(32).for_each(|at| {
            out.extend(half);
            out.extend((at..at + 16).map(|col| q4_0_code(codes, col) | q4_0_code(codes, col + 16) << 4));
        }),
        _ => {
            let numbers = (0..cols).map(|col| f16::from_f32((f32::from(code(codes, col)) - 1.0) * scale));
            out.extend(numbers.flat_map(f16::to_le_bytes));
        }
    }
}

/// Q4_0 counts from -8.
fn q4_0_code(codes: &[u8], col: usize) -> u8 {
    code(codes, col) + 7
}

/// The codes of a TQ2_0 block: element `j` in byte `j / 128 * 32 + j % 32`, bits `2 * (j % 128 / 32)`.
fn tq2_block(code: impl Fn(usize) -> u8, out: &mut Vec<u8>) {
    for half in [0, 128] {
        out.extend(
            (half..half + 32).map(|j| code(j) | code(j + 32) << 2 | code(j + 64) << 4 | code(j + 96) << 6),
        );
    }
}

/// The codes of a TQ1_0 block: five trits a byte, the first the most significant, stored as a fraction of 3^5
/// rounded up to 256ths; see `quant::pack_tq1`, which reads it.
fn tq1_block(code: impl Fn(usize) -> u8, out: &mut Vec<u8>) {
    let byte = |start: usize, step: usize, count: usize| {
        let trits = (0..5).map(|n| if n < count { u16::from(code(start + n * step)) } else { 0 });
        let number = trits.fold(0, |number, trit| number * 3 + trit);
        (number * 256).div_ceil(243) as u8
    };
    out.extend((0..32).map(|j| byte(j, 32, 5)));
    out.extend((160..176).map(|j| byte(j, 16, 5)));
    out.extend((240..244).map(|j| byte(j, 4, 4)));
}
