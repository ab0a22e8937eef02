//! Ternary weights: the packed form, and the conversion from every other layout to it.

use super::RowFormat;
use super::blocks::{BlockFormat, Q4_0_BLOCK, Q4_0_BYTES};
use half::f16;

/// Weights in a block of the packed form.
pub const BLOCK: usize = 128;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = 32;
/// Weights in a block of TQ1_0 and TQ2_0 (ggml's `QK_K`).
pub(super) const TQ_BLOCK: usize = 256;
/// Bytes of a TQ1_0 block: 48 of five trits, 4 of four trits, a half-precision scale.
pub(super) const TQ1_BYTES: usize = 54;
/// Bytes of a TQ2_0 block: 64 of four codes, a half-precision scale.
pub(super) const TQ2_BYTES: usize = 66;
/// Tail of an I2_S tensor: the scale as f32, padded to 32 bytes.
pub const I2S_TAIL: usize = 32;

/// Bytes of a packed row of `cols` weights.
pub fn packed_row(cols: usize) -> usize {
    cols.div_ceil(BLOCK) * BLOCK_BYTES
}

/// The code (0, 1, 2) of element `col` of a packed row.
pub fn code(row: &[u8], col: usize) -> u8 {
    let (block, j) = (col / BLOCK, col % BLOCK);
    row[block * BLOCK_BYTES + j % BLOCK_BYTES] >> (6 - 2 * (j / BLOCK_BYTES)) & 3
}

/// Writes `code` at `col` of a packed row that has zero bits there.
fn set_code(row: &mut [u8], col: usize, code: u8) {
    let (block, j) = (col / BLOCK, col % BLOCK);
    row[block * BLOCK_BYTES + j % BLOCK_BYTES] |= code << (6 - 2 * (j / BLOCK_BYTES));
}

/// The scale at the end of an I2_S tensor.
///
/// # Panics
/// When the tensor is shorter than its tail.
pub fn i2s_scale(tensor: &[u8]) -> f32 {
    let at = tensor.len() - I2S_TAIL;
    f32::from_le_bytes(tensor[at..at + 4].try_into().expect("four bytes"))
}

/// Refuses undefined codes of I2_S, in any layout.
pub fn check_i2s_codes(codes: &[u8], scale: f32) -> Result<(), String> {
    if let Some(at) = find_undefined_code(codes) {
        return Err(format!("byte {at}: holds the undefined code 3; the file is damaged or no I2_S"));
    }
    // llama-quantize with several threads loses the scale, and every token would be the same.
    if scale == 0.0 && !all_zeros(codes) {
        return Err("its scale is 0, its weights are not; quantise again with one thread".into());
    }
    Ok(())
}

/// Finds the first byte that holds a code 3, which no layout of two bits a weight defines.
pub fn find_undefined_code(packed: &[u8]) -> Option<usize> {
    const LOW: u64 = 0x5555_5555_5555_5555;
    let (words, rest) = packed.as_chunks::<8>();
    // One fold over many words at a time, which the compiler can vectorise: at load this reads the whole model
    // once.
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

/// A byte with four weights of zero.
const FOUR_ZEROS: u8 = 0b01_01_01_01;

/// Whether all packed weights are zero.
pub fn all_zeros(packed: &[u8]) -> bool {
    packed.iter().all(|byte| *byte == FOUR_ZEROS)
}

/// A packed matrix with its scale.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedMatrix {
    /// `[rows, packed_row(cols)]`
    pub bytes: Vec<u8>,
    /// Every weight is -scale, 0 or +scale.
    pub scale: f32,
}

/// Repacks I2_S with blocks of 64 (element `j` in byte `j % 16`, bits `6 - 2 * (j / 16)`), given without its tail;
/// rows are whole blocks of 128. Two blocks hold what one packed block does, so that byte `j` of the packed block
/// is made of bytes `j % 16` of both.
pub fn pack_i2s_64(data: &[u8], scale: f32) -> PackedMatrix {
    let mut bytes = vec![0; data.len()];
    for (from, to) in data.as_chunks::<32>().0.iter().zip(bytes.as_chunks_mut::<32>().0) {
        let (first, second) = from.split_at(16);
        let (low, high) = to.split_at_mut(16);
        for j in 0..16 {
            let (a, b) = (first[j], second[j]);
            low[j] = a & 0xc0 | (a & 0x0c) << 2 | (b & 0xc0) >> 4 | (b & 0x0c) >> 2;
            high[j] = (a & 0x30) << 2 | (a & 0x03) << 4 | (b & 0x30) >> 2 | b & 0x03;
        }
    }
    PackedMatrix { bytes, scale }
}

/// Repacks I2_S with four rows of one column in a byte (row `r` in byte `r / 4 * cols + col`, bits `6 - 2 * (r %
/// 4)`), given without its tail; rows are whole blocks of 128.
pub fn pack_i2s_rows4(data: &[u8], cols: usize, scale: f32) -> PackedMatrix {
    let width = packed_row(cols);
    let mut bytes = vec![0; data.len()];
    for (from, to) in data.chunks_exact(cols).zip(bytes.chunks_exact_mut(4 * width)) {
        for (row, to) in to.chunks_exact_mut(width).enumerate() {
            let shift = 6 - 2 * row;
            for (from, to) in from.as_chunks::<BLOCK>().0.iter().zip(to.as_chunks_mut::<BLOCK_BYTES>().0) {
                for j in 0..BLOCK_BYTES {
                    let code = |group: usize| from[group * BLOCK_BYTES + j] >> shift & 3;
                    to[j] = code(0) << 6 | code(1) << 4 | code(2) << 2 | code(3);
                }
            }
        }
    }
    PackedMatrix { bytes, scale }
}

/// Repacks TQ2_0; rows are whole blocks.
pub fn pack_tq2(data: &[u8]) -> Result<PackedMatrix, String> {
    let (blocks, _) = data.as_chunks::<TQ2_BYTES>();
    if let Some(at) = blocks.iter().position(|block| find_undefined_code(&block[..64]).is_some()) {
        return Err(format!("block {at}: holds the undefined code 3; the file is damaged"));
    }
    let scale = tensor_scale(blocks.iter().map(|block| [block[64], block[65]]))?;
    // A byte holds the same four weights as a packed byte, in reverse order.
    let reversed = |byte: u8| byte << 6 | (byte & 0x0c) << 2 | (byte & 0x30) >> 2 | byte >> 6;
    let mut bytes = vec![FOUR_ZEROS; blocks.len() * TQ_BLOCK / 4];
    for (block, to) in blocks.iter().zip(bytes.as_chunks_mut::<{ TQ_BLOCK / 4 }>().0) {
        // A block of zeros has no scale, and its codes mean nothing.
        if block[64..] != [0, 0] {
            to.iter_mut().zip(block).for_each(|(to, byte)| *to = reversed(*byte));
        }
    }
    Ok(PackedMatrix { bytes, scale })
}

/// Repacks TQ1_0; rows are whole blocks.
pub fn pack_tq1(data: &[u8]) -> Result<PackedMatrix, String> {
    let (blocks, _) = data.as_chunks::<TQ1_BYTES>();
    let scale = tensor_scale(blocks.iter().map(|block| [block[52], block[53]]))?;
    let mut bytes = vec![FOUR_ZEROS; blocks.len() * TQ_BLOCK / 4];
    for (block, to) in blocks.iter().zip(bytes.as_chunks_mut::<{ TQ_BLOCK / 4 }>().0) {
        if block[52..] == [0, 0] {
            continue;
        }
        let codes = tq1_codes(block);
        for (codes, to) in codes.as_chunks::<BLOCK>().0.iter().zip(to.as_chunks_mut::<BLOCK_BYTES>().0) {
            for (j, to) in to.iter_mut().enumerate() {
                let code = |group: usize| codes[group * BLOCK_BYTES + j];
                *to = code(0) << 6 | code(1) << 4 | code(2) << 2 | code(3);
            }
        }
    }
    Ok(PackedMatrix { bytes, scale })
}

/// The codes of a TQ1_0 block: the first 160 are five trits to each of 32 bytes, the next 80 five to each of 16,
/// the last 16 four to each of 4. Trits are stored as a fixed-point fraction, so that multiplying by a power of
/// three moves the wanted one to the front.
fn tq1_codes(block: &[u8; TQ1_BYTES]) -> [u8; TQ_BLOCK] {
    let mut codes = [0; TQ_BLOCK];
    for (from, to) in [(&block[..32], 0..160), (&block[32..48], 160..240), (&block[48..52], 240..256)] {
        let mut power = 1u8;
        for codes in codes[to].chunks_exact_mut(from.len()) {
            for (code, byte) in codes.iter_mut().zip(from) {
                let fraction = byte.wrapping_mul(power);
                *code = ((u16::from(fraction) * 3) >> 8) as u8;
            }
            power = power.wrapping_mul(3);
        }
    }
    codes
}

/// Whether rows of numbers are meant to be ternary, judged by the first row that is not all zeros: all its numbers
/// are -s, 0 or +s, or it is Q4_0 made of such numbers. Rows of zeros are ternary.
///
/// # Panics
/// When rows of `cols` are not whole blocks of the format.
pub fn is_ternary(data: &[u8], kind: impl Into<RowFormat>, cols: usize) -> bool {
    let kind = kind.into();
    if is_ternary_q4_0(data, kind, cols) {
        return true;
    }
    let (mut first, mut scale) = (0, 0.0f32);
    let decided = kind.for_each_chunk(data, cols, |row, _, numbers| {
        if scale != 0.0 && row > first {
            return Err(true);
        }
        for x in numbers.iter().filter(|x| **x != 0.0) {
            if scale == 0.0 {
                (first, scale) = (row, x.abs());
            }
            if x.abs() != scale || !scale.is_finite() {
                return Err(false);
            }
        }
        Ok(())
    });
    decided.err().unwrap_or(true)
}

/// Packs numbers that are all -s, 0 or +s, or Q4_0 made of such numbers.
///
/// # Panics
/// When rows of `cols` are not whole blocks of the format.
pub fn pack_floats(
    data: &[u8],
    kind: impl Into<RowFormat>,
    rows: usize,
    cols: usize,
) -> Result<PackedMatrix, String> {
    let kind = kind.into();
    if is_ternary_q4_0(data, kind, cols) {
        return pack_ternary_q4_0(data, rows, cols);
    }
    let mut scale = 0.0f32;
    kind.for_each_chunk(data, cols, |row, _, numbers| {
        for x in numbers.iter().filter(|x| **x != 0.0) {
            if scale == 0.0 {
                scale = x.abs();
            }
            if x.abs() != scale || !scale.is_finite() {
                return Err(format!(
                    "row {row}: is not ternary: holds {x} beside {scale}; use a BitNet model"
                ));
            }
        }
        Ok(())
    })?;
    let width = packed_row(cols);
    let mut bytes = vec![0; rows * width];
    kind.for_each_chunk(data, cols, |row, col, numbers| {
        let packed = &mut bytes[row * width..(row + 1) * width];
        for (at, x) in numbers.iter().enumerate() {
            set_code(packed, col + at, 1 + u8::from(*x > 0.0) - u8::from(*x < 0.0));
        }
        let end = col + numbers.len();
        let padding = if end == cols { end..width * 4 } else { end..end };
        padding.for_each(|col| set_code(packed, col, 1));
        Ok::<(), String>(())
    })?;
    Ok(PackedMatrix { bytes, scale })
}

/// Whether rows are Q4_0 that was made of ternary numbers, judged by the first row that is not all zeros.
///
/// Q4_0 gives the largest number of a block code 0, which stands for -8 d. So -s and +s become codes 0 and 15, in
/// an order that differs from block to block, and the second stands for 7/8 of s. The numbers are no longer
/// ternary, but the weights and s = 8 |d| can be restored. llama.cpp's quantiser does this to tensors whose rows
/// are not whole blocks of the TQ1_0 or TQ2_0 that was asked for, such as `ffn_down` of bitnet_b1_58-3B with its
/// 8640 columns.
fn is_ternary_q4_0(data: &[u8], kind: RowFormat, cols: usize) -> bool {
    let row = cols / Q4_0_BLOCK * Q4_0_BYTES;
    kind == RowFormat::Block(BlockFormat::Q4_0)
        && data.chunks_exact(row).find_map(|row| match ternary_q4_0_row(row) {
            Some(0.0) => None,
            scale => Some(scale.is_some()),
        }) == Some(true)
}

/// The common |d| of a row of such blocks, 0 where it is all zeros; `None` where it is not such a row.
fn ternary_q4_0_row(row: &[u8]) -> Option<f32> {
    row.as_chunks().0.iter().try_fold(0.0, |one, block| common_scale(one, ternary_q4_0_block(block)?))
}

/// The common |d| of two parts, either of which may be all zeros.
fn common_scale(a: f32, b: f32) -> Option<f32> {
    (a == b || a == 0.0 || b == 0.0).then_some(a.max(b))
}

/// The |d| of such a block, 0 where it is all zeros; `None` where it is not such a block.
fn ternary_q4_0_block(block: &[u8; Q4_0_BYTES]) -> Option<f32> {
    const LARGEST: u16 = 1;
    const ZERO: u16 = 1 << 8;
    const OTHER_SIGN: u16 = 1 << 15;
    let d = f16::from_le_bytes([block[0], block[1]]).to_f32().abs();
    // One bit for each code that occurs.
    let codes = block[2..].iter().fold(0u16, |codes, byte| codes | 1 << (byte & 15) | 1 << (byte >> 4));
    if d == 0.0 || codes == ZERO {
        return Some(0.0);
    }
    // The number that set the scale always occurs.
    let ternary = codes & LARGEST != 0 && codes & !(LARGEST | ZERO | OTHER_SIGN) == 0;
    (ternary && d.is_finite()).then_some(d)
}

/// Packs Q4_0 that was made of ternary numbers; see [`is_ternary_q4_0`].
fn pack_ternary_q4_0(data: &[u8], rows: usize, cols: usize) -> Result<PackedMatrix, String> {
    let (blocks, _) = data.as_chunks::<Q4_0_BYTES>();
    let mut one = 0.0;
    for (index, block) in blocks.iter().enumerate() {
        one = ternary_q4_0_block(block).and_then(|d| common_scale(one, d)).ok_or_else(|| {
            let row = index * Q4_0_BLOCK / cols;
            format!("row {row}: is not ternary, where rows before it are; use a BitNet model")
        })?;
    }
    let bytes = pack(rows, cols, |row, col| {
        let at = row * cols + col;
        let (block, j) = (&blocks[at / Q4_0_BLOCK], at % Q4_0_BLOCK);
        let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
        let code = block[2 + j % 16] >> (j / 16 * 4) & 15;
        match (code, d > 0.0) {
            (0, true) | (15, false) if d != 0.0 => 0,
            (0, false) | (15, true) if d != 0.0 => 2,
            _ => 1,
        }
    });
    Ok(PackedMatrix { bytes, scale: 8.0 * one })
}

/// Packs codes given by a function of row and column.
fn pack(rows: usize, cols: usize, code: impl Fn(usize, usize) -> u8) -> Vec<u8> {
    let width = packed_row(cols);
    let mut bytes = vec![0; rows * width];
    for (row, packed) in bytes.chunks_exact_mut(width).enumerate() {
        (0..width * 4).for_each(|col| set_code(packed, col, if col < cols { code(row, col) } else { 1 }));
    }
    bytes
}

/// The common scale of all blocks that are not zeros; BitNet has one scale a tensor, here in half precision.
fn tensor_scale(scales: impl Iterator<Item = [u8; 2]>) -> Result<f32, String> {
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
    use super::super::FloatFormat;
    use super::*;

    #[test]
    fn packing_numbers_gives_back_their_signs_and_pads_with_zeros() {
        let cols = 200;
        let numbers: Vec<f32> = (0..2 * cols).map(|i| [-0.5, 0.0, 0.5][i * 7 % 3]).collect();
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let packed = pack_floats(&bytes, FloatFormat::F32, 2, cols).expect("ternary");
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
        assert!(pack_floats(&bytes, FloatFormat::F32, 1, 2).is_err());
        let bytes: Vec<u8> = [f32::NAN, 0.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert!(pack_floats(&bytes, FloatFormat::F32, 1, 2).is_err());
    }

    #[test]
    fn a_code_3_is_found_wherever_it_is() {
        for at in [0, 7, 8, 4095, 4096, 9000, 9002] {
            let mut bytes = vec![0b10_01_00_01; 9003];
            assert_eq!(find_undefined_code(&bytes), None);
            bytes[at] = 0b00_11_00_00;
            assert_eq!(find_undefined_code(&bytes), Some(at));
        }
    }

    #[test]
    fn blocks_with_different_scales_are_refused() {
        let mut data = vec![0u8; 2 * TQ2_BYTES];
        data[64..66].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        assert_eq!(pack_tq2(&data).expect("a block of zeros has no scale").scale, 0.5);
        data[130..132].copy_from_slice(&f16::from_f32(0.25).to_le_bytes());
        assert!(pack_tq2(&data).is_err());
    }
}
