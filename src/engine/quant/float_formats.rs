//! Formats of rows of numbers: floats, or blocks that share a scale.

use super::TensorType;
use super::blocks::BlockFormat;
use super::quantize::{write_q6_k, write_q8_0};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Float formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatFormat {
    /// 4 bytes.
    F32,
    /// 2 bytes, IEEE half.
    F16,
    /// 2 bytes, the upper half of an f32.
    Bf16,
}

/// Half-precision numbers that are converted together by the CPU's own instructions where it has them: checking for
/// these costs as much as some conversions.
const CONVERT_CHUNK: usize = 64;

impl FloatFormat {
    /// Bytes of one number.
    pub fn size(self) -> usize {
        if self == FloatFormat::F32 { 4 } else { 2 }
    }

    /// Writes little-endian numbers, rounded to the format; `bytes` holds exactly `x.len()` of them.
    pub fn write(self, bytes: &mut [u8], x: &[f32]) {
        assert_eq!(bytes.len(), x.len() * self.size());
        match self {
            FloatFormat::F32 => {
                for (b, x) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(x) {
                    *b = x.to_le_bytes();
                }
            }
            FloatFormat::F16 => {
                let mut halves = [f16::ZERO; CONVERT_CHUNK];
                for (bytes, x) in bytes.chunks_mut(2 * CONVERT_CHUNK).zip(x.chunks(CONVERT_CHUNK)) {
                    let halves = &mut halves[..x.len()];
                    halves.convert_from_f32_slice(x);
                    bytes
                        .as_chunks_mut::<2>()
                        .0
                        .iter_mut()
                        .zip(halves)
                        .for_each(|(b, x)| *b = x.to_le_bytes());
                }
            }
            FloatFormat::Bf16 => {
                for (b, x) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(x) {
                    *b = bf16::from_f32(*x).to_le_bytes();
                }
            }
        }
    }

    /// Reads little-endian numbers; `bytes` holds exactly `out.len()` of them.
    pub fn read(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len(), out.len() * self.size());
        match self {
            FloatFormat::F32 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *o = f32::from_le_bytes(*b);
                }
            }
            FloatFormat::F16 => {
                let mut halves = [f16::ZERO; CONVERT_CHUNK];
                for (out, bytes) in out.chunks_mut(CONVERT_CHUNK).zip(bytes.chunks(2 * CONVERT_CHUNK)) {
                    let halves = &mut halves[..out.len()];
                    halves
                        .iter_mut()
                        .zip(bytes.as_chunks::<2>().0)
                        .for_each(|(x, b)| *x = f16::from_le_bytes(*b));
                    halves.convert_to_f32_slice(out);
                }
            }
            FloatFormat::Bf16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = bf16::from_le_bytes(*b).to_f32();
                }
            }
        }
    }
}

/// Formats of embeddings, heads and matrices that are not ternary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowFormat {
    /// Single floats.
    Float(FloatFormat),
    /// Blocks that share a scale.
    Block(BlockFormat),
}

/// A function that encodes the numbers of its second argument into its first, and panics where that does not hold
/// exactly as many.
pub type WriteRow = fn(&mut [u8], &[f32]);

impl From<FloatFormat> for RowFormat {
    fn from(kind: FloatFormat) -> Self {
        RowFormat::Float(kind)
    }
}

impl From<BlockFormat> for RowFormat {
    fn from(kind: BlockFormat) -> Self {
        RowFormat::Block(kind)
    }
}

impl RowFormat {
    /// The format of a tensor type; `None` for the ternary ones.
    pub fn of(kind: TensorType) -> Option<Self> {
        Some(match kind {
            TensorType::F32 => RowFormat::Float(FloatFormat::F32),
            TensorType::F16 => RowFormat::Float(FloatFormat::F16),
            TensorType::Bf16 => RowFormat::Float(FloatFormat::Bf16),
            TensorType::Q4_0 => RowFormat::Block(BlockFormat::Q4_0),
            TensorType::Q8_0 => RowFormat::Block(BlockFormat::Q8_0),
            TensorType::Q4K => RowFormat::Block(BlockFormat::Q4K),
            TensorType::Q6K => RowFormat::Block(BlockFormat::Q6K),
            TensorType::Tq1 | TensorType::Tq2 | TensorType::I2S => return None,
        })
    }

    /// Bytes of a row of `cols` numbers; `None` where they are not whole blocks, or on overflow.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        let (numbers, bytes) = match self {
            RowFormat::Float(kind) => (1, kind.size()),
            RowFormat::Block(kind) => kind.block_size(),
        };
        if cols.is_multiple_of(numbers) { (cols / numbers).checked_mul(bytes) } else { None }
    }

    /// Decodes numbers, bit for bit as the `gguf` package of Python does; `bytes` holds exactly `out.len()` of
    /// them.
    ///
    /// # Panics
    /// When the lengths do not agree.
    pub fn read(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            RowFormat::Float(kind) => kind.read(bytes, out),
            RowFormat::Block(kind) => kind.read(bytes, out),
        }
    }

    /// The encoder of the format; `None` for Q4_0 and Q4_K, which this engine only reads.
    ///
    /// Numbers should be finite: in blocks, one that is not becomes an arbitrary number. Q8_0 is written bit for
    /// bit as the `gguf` package of Python writes it; Q6_K is written so that the square error is small, and
    /// without any error where possible.
    pub fn writer(self) -> Option<WriteRow> {
        match self {
            RowFormat::Float(FloatFormat::F32) => Some(|bytes, x| FloatFormat::F32.write(bytes, x)),
            RowFormat::Float(FloatFormat::F16) => Some(|bytes, x| FloatFormat::F16.write(bytes, x)),
            RowFormat::Float(FloatFormat::Bf16) => Some(|bytes, x| FloatFormat::Bf16.write(bytes, x)),
            RowFormat::Block(BlockFormat::Q8_0) => Some(write_q8_0),
            RowFormat::Block(BlockFormat::Q6K) => Some(write_q6_k),
            RowFormat::Block(BlockFormat::Q4_0 | BlockFormat::Q4K) => None,
        }
    }

    /// The row and column of the first number that is not finite, in rows of `cols`.
    pub fn find_non_finite(self, data: &[u8], cols: usize) -> Option<(usize, usize)> {
        self.for_each_chunk(data, cols, |row, col, x| match x.iter().position(|x| !x.is_finite()) {
            Some(at) => Err((row, col + at)),
            None => Ok(()),
        })
        .err()
    }

    /// Calls `each(row, first column, numbers)` with some numbers at a time, in order, until it fails. Rows may be
    /// long, and a file must not make the engine allocate memory for whole ones.
    ///
    /// # Panics
    /// When rows of `cols` are not whole blocks.
    pub(super) fn for_each_chunk<E>(
        self,
        data: &[u8], // [rows, cols]
        cols: usize,
        mut each: impl FnMut(usize, usize, &[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        /// A multiple of every block size.
        const PIECE: usize = 256;
        let width = self.row_bytes(cols).expect("a row is whole blocks: the parser refuses others");
        let piece = self.row_bytes(PIECE).expect("256 is a multiple of every block");
        let mut numbers = [0.0; PIECE];
        for (row, bytes) in data.chunks_exact(width).enumerate() {
            for (index, bytes) in bytes.chunks(piece).enumerate() {
                let col = index * PIECE;
                let numbers = &mut numbers[..PIECE.min(cols - col)];
                self.read(bytes, numbers);
                each(row, col, numbers)?;
            }
        }
        Ok(())
    }
}
