//! Number formats: tensor types, float and block formats, ternary layouts, and the conversion from any of these to
//! the one ternary form that the kernels read.
//!
//! That form is I2_S with blocks of 128: codes 0, 1, 2 stand for -1, 0, +1; element `j` of a block is in byte `j %
//! 32`, bits `6 - 2 * (j / 32)`; a row is padded with zeros (code 1) to whole blocks.
//!
//! Deliberately knows nothing of files: slices in, slices out.

pub(super) mod blocks;
mod float_formats;
mod quantize;
mod ternary;
mod two_bit;

pub use blocks::BlockFormat;
pub use float_formats::{FloatFormat, RowFormat, WriteRow};
pub use ternary::{
    BLOCK, BLOCK_BYTES, I2S_TAIL, PackedMatrix, all_zeros, check_i2s_codes, code, find_undefined_code,
    i2s_scale, is_ternary, pack_floats, pack_i2s_64, pack_i2s_rows4, pack_tq1, pack_tq2, packed_row,
};
pub use two_bit::{RowBound, TWO_BIT_MAX_Q, encode_two_bit};

use ternary::{TQ_BLOCK, TQ1_BYTES, TQ2_BYTES};

/// The tensor types of GGUF that this engine reads; the numbers are ggml's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorType {
    /// 0
    F32,
    /// 1
    F16,
    /// 2
    Q4_0,
    /// 8
    Q8_0,
    /// 12
    Q4K,
    /// 14
    Q6K,
    /// 30
    Bf16,
    /// 34
    Tq1,
    /// 35
    Tq2,
    /// 36, as bitnet.cpp uses it
    I2S,
}

impl TensorType {
    /// The type with that number in a file; the error names a type that this engine does not read.
    pub fn from_id(id: u32) -> Result<Self, String> {
        Ok(match id {
            0 => TensorType::F32,
            1 => TensorType::F16,
            2 => TensorType::Q4_0,
            8 => TensorType::Q8_0,
            12 => TensorType::Q4K,
            14 => TensorType::Q6K,
            30 => TensorType::Bf16,
            34 => TensorType::Tq1,
            35 => TensorType::Tq2,
            36 => TensorType::I2S,
            38 | 39 => {
                let name = if id == 38 { "TL1" } else { "TL2" };
                return Err(format!("{name} is tiled for one machine; use the model's I2_S file"));
            }
            other => {
                let name = GGML_NAMES.iter().find(|(id, _)| *id == other).map_or("unknown", |n| n.1);
                return Err(format!(
                    "tensor type {other} ({name}) is not read by this version; use a file with I2_S, TQ1_0 or TQ2_0 \
                     weights and an F16, Q8_0 or Q6_K embedding"
                ));
            }
        })
    }

    /// The type's name.
    pub fn name(self) -> &'static str {
        match self {
            TensorType::F32 => "F32",
            TensorType::F16 => "F16",
            TensorType::Q4_0 => "Q4_0",
            TensorType::Q8_0 => "Q8_0",
            TensorType::Q4K => "Q4_K",
            TensorType::Q6K => "Q6_K",
            TensorType::Bf16 => "BF16",
            TensorType::Tq1 => "TQ1_0",
            TensorType::Tq2 => "TQ2_0",
            TensorType::I2S => "I2_S",
        }
    }

    /// Bytes of a tensor of `elements` in rows of `row`; `None` where rows are not whole blocks, or on overflow.
    pub fn bytes(self, elements: u64, row: u64) -> Option<u64> {
        let (size, bytes) = match self {
            TensorType::F32 => (1, 4),
            TensorType::F16 | TensorType::Bf16 => (1, 2),
            TensorType::Q4_0 => BlockFormat::Q4_0.block_size(),
            TensorType::Q8_0 => BlockFormat::Q8_0.block_size(),
            TensorType::Q4K => BlockFormat::Q4K.block_size(),
            TensorType::Q6K => BlockFormat::Q6K.block_size(),
            TensorType::Tq1 => (TQ_BLOCK, TQ1_BYTES),
            TensorType::Tq2 => (TQ_BLOCK, TQ2_BYTES),
            TensorType::I2S => (BLOCK, BLOCK_BYTES),
        };
        let tail = if self == TensorType::I2S { I2S_TAIL as u64 } else { 0 };
        let size = size as u64;
        let blocks = row.is_multiple_of(size).then_some(elements / size)?;
        blocks.checked_mul(bytes as u64)?.checked_add(tail)
    }
}

/// Types of other files, which the error names.
const GGML_NAMES: &[(u32, &str)] = &[
    (3, "Q4_1"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (13, "Q5_K"),
    (15, "Q8_K"),
    (20, "IQ4_NL"),
    (23, "IQ4_XS"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_refuse_partial_blocks_and_overflow() {
        assert_eq!(TensorType::I2S.bytes(256, 128), Some(96));
        assert_eq!(TensorType::I2S.bytes(256, 64), None);
        assert_eq!(TensorType::Tq1.bytes(512, 256), Some(108));
        assert_eq!(TensorType::F32.bytes(u64::MAX / 2, 4), None);
        assert_eq!(TensorType::Q8_0.bytes(64, 32), Some(68));
        assert_eq!(TensorType::Q4_0.bytes(64, 16), None);
        assert_eq!(TensorType::Q6K.bytes(512, 256), Some(420));
        assert_eq!(TensorType::Q4K.bytes(512, 128), None);
        assert_eq!(TensorType::Q8_0.bytes(u64::MAX - 31, 32), None);
    }

    #[test]
    fn rows_of_numbers_take_the_bytes_their_tensors_take() {
        for kind in (0..40).filter_map(|id| TensorType::from_id(id).ok()) {
            let Some(numbers) = RowFormat::of(kind) else { continue };
            for cols in [1, 32, 48, 256, 288, 512] {
                let bytes = kind.bytes(3 * cols as u64, cols as u64);
                assert_eq!(numbers.row_bytes(cols).map(|row| 3 * row as u64), bytes, "{kind:?} {cols}");
            }
        }
    }
}
