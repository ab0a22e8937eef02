//! How weights are written: tensor types, ternary block layouts, and the step from any of them to
//! the one form the kernels read.
//!
//! That form is I2_S with blocks of 128: codes 0, 1, 2 for -1, 0, +1; element `j` of a block is in
//! byte `j % 32`, bits `6 - 2 * (j / 32)`; a row is padded with zeros (code 1) to whole blocks.
//! Deliberately knows no file: slices in, slices out.

use half::{bf16, f16};

/// Weights in a block of the packed form.
pub const BLOCK: usize = 128;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = 32;
/// Weights in a block of TQ1_0 and TQ2_0 (ggml's `QK_K`).
const TQ_BLOCK: usize = 256;
/// Bytes of a TQ1_0 block: 48 of five trits, 4 of four trits, a half-precision scale.
const TQ1_BYTES: usize = 54;
/// Bytes of a TQ2_0 block: 64 of four codes, a half-precision scale.
const TQ2_BYTES: usize = 66;
/// Tail of an I2_S tensor: the scale as f32, padded to 32 bytes.
pub const I2S_TAIL: usize = 32;

/// Tensor types of GGUF that this engine reads; the numbers are ggml's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorType {
    /// 0
    F32,
    /// 1
    F16,
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
    /// The type of a number in the file, or the name of what this engine does not read.
    pub fn from_id(id: u32) -> Result<Self, String> {
        Ok(match id {
            0 => TensorType::F32,
            1 => TensorType::F16,
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
                     weights and F16 embeddings"
                ));
            }
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            TensorType::F32 => "F32",
            TensorType::F16 => "F16",
            TensorType::Bf16 => "BF16",
            TensorType::Tq1 => "TQ1_0",
            TensorType::Tq2 => "TQ2_0",
            TensorType::I2S => "I2_S",
        }
    }

    /// Bytes of a tensor of `elements` in rows of `row`; `None` where the row does not divide into
    /// blocks, or on overflow.
    pub fn bytes(self, elements: u64, row: u64) -> Option<u64> {
        let blocks = |size: usize, bytes: usize| {
            let size = size as u64;
            if row.is_multiple_of(size) { (elements / size).checked_mul(bytes as u64) } else { None }
        };
        match self {
            TensorType::F32 => elements.checked_mul(4),
            TensorType::F16 | TensorType::Bf16 => elements.checked_mul(2),
            TensorType::Tq1 => blocks(TQ_BLOCK, TQ1_BYTES),
            TensorType::Tq2 => blocks(TQ_BLOCK, TQ2_BYTES),
            TensorType::I2S => blocks(BLOCK, BLOCK_BYTES)?.checked_add(I2S_TAIL as u64),
        }
    }
}

/// Types people will bring that are named when they are refused.
const GGML_NAMES: &[(u32, &str)] = &[
    (2, "Q4_0"),
    (3, "Q4_1"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (8, "Q8_0"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
];

/// Number formats of embeddings, heads and caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dense {
    /// 4 bytes.
    F32,
    /// 2 bytes, IEEE half.
    F16,
    /// 2 bytes, the upper half of an f32.
    Bf16,
}

impl Dense {
    /// The format of a tensor type that holds plain numbers.
    pub fn of(kind: TensorType) -> Option<Self> {
        match kind {
            TensorType::F32 => Some(Dense::F32),
            TensorType::F16 => Some(Dense::F16),
            TensorType::Bf16 => Some(Dense::Bf16),
            _ => None,
        }
    }

    /// Bytes of one number.
    pub fn size(self) -> usize {
        if self == Dense::F32 { 4 } else { 2 }
    }

    /// Writes little-endian numbers, rounded to the format; `bytes` holds exactly `x.len()` of them.
    pub fn write(self, bytes: &mut [u8], x: &[f32]) {
        assert_eq!(bytes.len(), x.len() * self.size());
        match self {
            Dense::F32 => {
                for (b, x) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(x) {
                    *b = x.to_le_bytes();
                }
            }
            Dense::F16 => {
                for (b, x) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(x) {
                    *b = f16::from_f32(*x).to_le_bytes();
                }
            }
            Dense::Bf16 => {
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
            Dense::F32 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *o = f32::from_le_bytes(*b);
                }
            }
            Dense::F16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = f16::from_le_bytes(*b).to_f32();
                }
            }
            Dense::Bf16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = bf16::from_le_bytes(*b).to_f32();
                }
            }
        }
    }
}

/// Bytes of a packed row of `cols` weights.
pub fn packed_row(cols: usize) -> usize {
    cols.div_ceil(BLOCK) * BLOCK_BYTES
}

/// Code (0, 1, 2) of element `col` of a packed row.
pub fn code(row: &[u8], col: usize) -> u8 {
    let (block, j) = (col / BLOCK, col % BLOCK);
    row[block * BLOCK_BYTES + j % BLOCK_BYTES] >> (6 - 2 * (j / BLOCK_BYTES)) & 3
}

/// Writes code `code` at `col` of a packed row whose codes are all zero bits there.
fn put(row: &mut [u8], col: usize, code: u8) {
    let (block, j) = (col / BLOCK, col % BLOCK);
    row[block * BLOCK_BYTES + j % BLOCK_BYTES] |= code << (6 - 2 * (j / BLOCK_BYTES));
}

/// Finds the first byte that holds a code 3, which no layout of two bits a weight defines.
pub fn find_code_3(packed: &[u8]) -> Option<usize> {
    const LOW: u64 = 0x5555_5555_5555_5555;
    let (words, rest) = packed.as_chunks::<8>();
    // One fold over many words at a time, so that the compiler can use wide registers: this reads
    // the whole model once at load.
    for (index, chunk) in words.chunks(512).enumerate() {
        let threes = chunk.iter().fold(0, |seen, word| {
            let word = u64::from_le_bytes(*word);
            seen | (word & word >> 1 & LOW)
        });
        if threes != 0 {
            let start = index * 512 * 8;
            return packed[start..].iter().position(|b| b & b >> 1 & 0x55 != 0).map(|at| start + at);
        }
    }
    let start = packed.len() - rest.len();
    rest.iter().position(|b| b & b >> 1 & 0x55 != 0).map(|at| start + at)
}

/// Whether packed codes stand for nothing but zeros.
pub fn all_zeros(packed: &[u8]) -> bool {
    packed.iter().all(|byte| *byte == 0b01_01_01_01)
}

/// Packed weights with their one scale.
#[derive(Debug, Clone, PartialEq)]
pub struct Packed {
    /// `[rows, packed_row(cols)]`
    pub bytes: Vec<u8>,
    /// Every weight is -scale, 0 or +scale.
    pub scale: f32,
}

/// Repacks I2_S with blocks of 64 (element `j` in byte `j % 16`, bits `6 - 2 * (j / 16)`), given
/// without its tail.
pub fn pack_i2s_64(data: &[u8], rows: usize, cols: usize, scale: f32) -> Packed {
    let from = |at: usize| data[at / 64 * 16 + at % 16] >> (6 - 2 * (at % 64 / 16)) & 3;
    Packed { bytes: pack(rows, cols, |row, col| from(row * cols + col)), scale }
}

/// Repacks I2_S with four rows of one column to a byte (row `r` in byte `r / 4 * cols + col`, bits
/// `6 - 2 * (r % 4)`), given without its tail.
pub fn pack_i2s_rows4(data: &[u8], rows: usize, cols: usize, scale: f32) -> Packed {
    let from = |row: usize, col: usize| data[row / 4 * cols + col] >> (6 - 2 * (row % 4)) & 3;
    Packed { bytes: pack(rows, cols, from), scale }
}

/// Repacks TQ2_0.
pub fn pack_tq2(data: &[u8], rows: usize, cols: usize) -> Result<Packed, String> {
    let (blocks, _) = data.as_chunks::<TQ2_BYTES>();
    if let Some(at) = blocks.iter().position(|block| find_code_3(&block[..64]).is_some()) {
        return Err(format!("block {at}: holds the undefined code 3; the file is damaged"));
    }
    let scale = one_scale(blocks.iter().map(|block| [block[64], block[65]]))?;
    let bytes = pack(rows, cols, |row, col| {
        let at = row * cols + col;
        let (block, j) = (&blocks[at / TQ_BLOCK], at % TQ_BLOCK);
        if block[64..] == [0, 0] {
            return 1; // a block of zeros has no scale, and its codes mean nothing
        }
        block[j / 128 * 32 + j % 32] >> (2 * (j % 128 / 32)) & 3
    });
    Ok(Packed { bytes, scale })
}

/// Repacks TQ1_0.
pub fn pack_tq1(data: &[u8], rows: usize, cols: usize) -> Result<Packed, String> {
    let (blocks, _) = data.as_chunks::<TQ1_BYTES>();
    let scale = one_scale(blocks.iter().map(|block| [block[52], block[53]]))?;
    let bytes = pack(rows, cols, |row, col| {
        let at = row * cols + col;
        let (block, j) = (&blocks[at / TQ_BLOCK], at % TQ_BLOCK);
        if block[52..] == [0, 0] { 1 } else { tq1_code(block, j) }
    });
    Ok(Packed { bytes, scale })
}

/// Code of element `j` of a TQ1_0 block: the first 160 are five trits to each of 32 bytes, the next
/// 80 five to each of 16, the last 16 four to each of 4. Trits are stored as a fixed-point fraction,
/// so that multiplying by a power of three shifts the wanted one to the front.
fn tq1_code(block: &[u8; TQ1_BYTES], j: usize) -> u8 {
    let (byte, trit) = match j {
        0..160 => (j % 32, j / 32),
        160..240 => (32 + (j - 160) % 16, (j - 160) / 16),
        _ => (48 + (j - 240) % 4, (j - 240) / 4),
    };
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let fraction = block[byte].wrapping_mul(POWERS[trit]);
    ((u16::from(fraction) * 3) >> 8) as u8
}

/// Packs plain numbers that are all -s, 0 or +s.
pub fn pack_dense(data: &[u8], kind: Dense, rows: usize, cols: usize) -> Result<Packed, String> {
    let mut scale = 0.0f32;
    let mut line = vec![0.0; cols];
    for (index, row) in data.chunks_exact(cols * kind.size()).enumerate() {
        kind.read(row, &mut line);
        for x in line.iter().filter(|x| **x != 0.0) {
            if scale == 0.0 {
                scale = x.abs();
            }
            if x.abs() != scale || !scale.is_finite() {
                return Err(format!(
                    "row {index}: is not ternary: holds {x} beside {scale}; use a BitNet model"
                ));
            }
        }
    }
    let mut bytes = vec![0; rows * packed_row(cols)];
    for (row, packed) in data.chunks_exact(cols * kind.size()).zip(bytes.chunks_exact_mut(packed_row(cols))) {
        kind.read(row, &mut line);
        for col in 0..packed_row(cols) * 4 {
            let x = line.get(col).copied().unwrap_or(0.0);
            put(packed, col, 1 + u8::from(x > 0.0) - u8::from(x < 0.0));
        }
    }
    Ok(Packed { bytes, scale })
}

/// Packs codes given by a function of row and column.
fn pack(rows: usize, cols: usize, code: impl Fn(usize, usize) -> u8) -> Vec<u8> {
    let width = packed_row(cols);
    let mut bytes = vec![0; rows * width];
    for (row, packed) in bytes.chunks_exact_mut(width).enumerate() {
        (0..width * 4).for_each(|col| put(packed, col, if col < cols { code(row, col) } else { 1 }));
    }
    bytes
}

/// The one scale of all blocks that have any; BitNet has one a tensor, in half precision here.
fn one_scale(scales: impl Iterator<Item = [u8; 2]>) -> Result<f32, String> {
    let mut one: Option<[u8; 2]> = None;
    for (index, scale) in scales.enumerate().filter(|(_, scale)| *scale != [0, 0]) {
        match one {
            None if !f16::from_le_bytes(scale).is_finite() => {
                return Err(format!("block {index}: its scale is not a number"));
            }
            None => one = Some(scale),
            Some(first) if first != scale => {
                return Err(format!(
                    "block {index}: its scale {} differs from {}; a BitNet tensor has one",
                    f16::from_le_bytes(scale),
                    f16::from_le_bytes(first)
                ));
            }
            Some(_) => {}
        }
    }
    Ok(one.map_or(0.0, |scale| f16::from_le_bytes(scale).to_f32()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_numbers_gives_back_their_signs_and_pads_with_zeros() {
        let cols = 200;
        let numbers: Vec<f32> = (0..2 * cols).map(|i| [-0.5, 0.0, 0.5][i * 7 % 3]).collect();
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let packed = pack_dense(&bytes, Dense::F32, 2, cols).expect("ternary");
        assert_eq!(packed.scale, 0.5);
        for (row, line) in packed.bytes.chunks(packed_row(cols)).enumerate() {
            for col in 0..256 {
                let want = numbers[row * cols..][..cols].get(col).map_or(0.0, |x| x.signum() * x.abs() * 2.0);
                assert_eq!(f32::from(code(line, col)) - 1.0, want, "row {row} col {col}");
            }
        }
    }

    #[test]
    fn numbers_that_are_not_ternary_are_refused() {
        let bytes: Vec<u8> = [0.5f32, 0.25].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert!(pack_dense(&bytes, Dense::F32, 1, 2).is_err());
        let bytes: Vec<u8> = [f32::NAN, 0.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert!(pack_dense(&bytes, Dense::F32, 1, 2).is_err());
    }

    #[test]
    fn a_code_3_is_found_wherever_it_is() {
        for at in [0, 7, 8, 4095, 4096, 9000, 9002] {
            let mut bytes = vec![0b10_01_00_01; 9003];
            assert_eq!(find_code_3(&bytes), None);
            bytes[at] = 0b00_11_00_00;
            assert_eq!(find_code_3(&bytes), Some(at));
        }
    }

    #[test]
    fn blocks_with_different_scales_are_no_bitnet_tensor() {
        let mut data = vec![0u8; 2 * TQ2_BYTES];
        data[64..66].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        assert_eq!(pack_tq2(&data, 2, 256).expect("a block of zeros has no scale").scale, 0.5);
        data[130..132].copy_from_slice(&f16::from_f32(0.25).to_le_bytes());
        assert!(pack_tq2(&data, 2, 256).is_err());
    }

    #[test]
    fn sizes_refuse_partial_blocks_and_overflow() {
        assert_eq!(TensorType::I2S.bytes(256, 128), Some(96));
        assert_eq!(TensorType::I2S.bytes(256, 64), None);
        assert_eq!(TensorType::Tq1.bytes(512, 256), Some(108));
        assert_eq!(TensorType::F32.bytes(u64::MAX / 2, 4), None);
    }
}
