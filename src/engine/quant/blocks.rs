//! Block formats, in which numbers share a scale: ggml's Q4_0, Q8_0, Q4_K and Q6_K.
//!
//! Every number is computed as the `gguf` package of Python does it, in its order of f32 operations;
//! `tests/engine/formats.rs` compares the bits. Source of the layouts: that package's `quants.py`.

use half::f16;

/// Numbers in a Q4_0 block.
pub const Q4_0_BLOCK: usize = 32;
/// Bytes of a Q4_0 block: a half-precision scale, 32 nibbles.
pub const Q4_0_BYTES: usize = 18;
/// Numbers in a Q8_0 block.
pub const Q8_0_BLOCK: usize = 32;
/// Bytes of a Q8_0 block: a half-precision scale, 32 int8.
pub const Q8_0_BYTES: usize = 34;
/// Numbers in a block of the K formats (ggml's `QK_K`).
pub const K_BLOCK: usize = 256;
/// Bytes of a Q4_K block: scales of scales and minima, both half; 12 bytes of those; 256 nibbles.
pub const Q4_K_BYTES: usize = 144;
/// Bytes of a Q6_K block: 128 of low nibbles, 64 of upper bits, 16 int8 scales, their half scale.
pub const Q6_K_BYTES: usize = 210;

/// The block formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockFormat {
    /// 32 numbers: 4 bits each, one scale.
    Q4_0,
    /// 32 numbers: 8 bits each, one scale.
    Q8_0,
    /// 256 numbers: 4 bits each, a scale and a minimum for 32.
    Q4K,
    /// 256 numbers: 6 bits each, a scale for 16.
    Q6K,
}

impl BlockFormat {
    /// Numbers in a block, and bytes of a block.
    pub fn block_size(self) -> (usize, usize) {
        match self {
            BlockFormat::Q4_0 => (Q4_0_BLOCK, Q4_0_BYTES),
            BlockFormat::Q8_0 => (Q8_0_BLOCK, Q8_0_BYTES),
            BlockFormat::Q4K => (K_BLOCK, Q4_K_BYTES),
            BlockFormat::Q6K => (K_BLOCK, Q6_K_BYTES),
        }
    }

    /// Decodes blocks; `bytes` holds exactly `out.len()` numbers.
    ///
    /// # Panics
    /// When the lengths do not agree.
    pub fn read(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            BlockFormat::Q4_0 => decode_blocks(bytes, out, read_q4_0),
            BlockFormat::Q8_0 => decode_blocks(bytes, out, read_q8_0),
            BlockFormat::Q4K => decode_blocks(bytes, out, read_q4_k),
            BlockFormat::Q6K => decode_blocks(bytes, out, read_q6_k),
        }
    }
}

fn decode_blocks<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    read: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let ((blocks, rest), (out, out_rest)) = (bytes.as_chunks(), out.as_chunks_mut());
    assert!(blocks.len() == out.len() && rest.is_empty() && out_rest.is_empty());
    blocks.iter().zip(out).for_each(|(block, out)| read(block, out));
}

// The four decoders below are always inlined, so that each kernel table compiles them for its instruction set.

/// The half-precision number at a byte of a block.
#[inline(always)]
pub fn scale_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32_const()
}

/// The low nibbles are the first 16 numbers, the high ones the others.
#[inline(always)]
pub fn read_q4_0(block: &[u8; Q4_0_BYTES], out: &mut [f32; Q4_0_BLOCK]) {
    let d = scale_at(block, 0);
    let (low, high) = out.split_at_mut(Q4_0_BLOCK / 2);
    for ((byte, low), high) in block[2..].iter().zip(low).zip(high) {
        *low = d * f32::from((byte & 15) as i8 - 8);
        *high = d * f32::from((byte >> 4) as i8 - 8);
    }
}

#[inline(always)]
pub fn read_q8_0(block: &[u8; Q8_0_BYTES], out: &mut [f32; Q8_0_BLOCK]) {
    let d = scale_at(block, 0);
    for (byte, out) in block[2..].iter().zip(out) {
        *out = f32::from(*byte as i8) * d;
    }
}

/// Each 32 bytes of nibbles hold two groups of 32 numbers, the low nibbles first.
#[inline(always)]
pub fn read_q4_k(block: &[u8; Q4_K_BYTES], out: &mut [f32; K_BLOCK]) {
    let (d, d_min) = (scale_at(block, 0), scale_at(block, 2));
    let (codes, groups) = (block[16..].as_chunks::<32>().0, out.as_chunks_mut::<32>().0);
    for (group, out) in groups.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(&block[4..16], group);
        let (scale, min) = (d * f32::from(scale), d_min * f32::from(min));
        let shift = group % 2 * 4;
        for (byte, out) in codes[group / 2].iter().zip(out) {
            *out = scale * f32::from(byte >> shift & 15) - min;
        }
    }
}

/// The scale and minimum of a group of Q4_K, 6 bits each. Those of the first four groups are the low bits of bytes
/// 0 to 3 and 4 to 7; the others have their low nibbles in bytes 8 to 11 and their upper bits above those of the
/// first four.
#[inline(always)]
fn scale_and_min(packed: &[u8], group: usize) -> (u8, u8) {
    let (i, low) = (group % 4, packed[8 + group % 4]);
    match group {
        0..4 => (packed[i] & 63, packed[4 + i] & 63),
        _ => (low & 15 | packed[i] >> 2 & 48, low >> 4 | packed[4 + i] >> 2 & 48),
    }
}

/// Each half of 128 numbers is four groups of 32: two of low nibbles of 64 bytes, two of high ones; the upper bits
/// of the four share 32 bytes.
#[inline(always)]
pub fn read_q6_k(block: &[u8; Q6_K_BYTES], out: &mut [f32; K_BLOCK]) {
    let d = scale_at(block, 208);
    for (group, out) in q6_k_groups().zip(out.as_chunks_mut::<32>().0) {
        let (codes, scales) = codes_q6_k(block, group);
        for ((out, codes), scale) in out.chunks_exact_mut(16).zip(codes.chunks_exact(16)).zip(scales) {
            let scale = d * f32::from(scale);
            out.iter_mut().zip(codes).for_each(|(out, code)| *out = scale * f32::from(*code));
        }
    }
}

/// The groups of 32 numbers of a Q6_K block.
#[inline(always)]
pub fn q6_k_groups() -> std::ops::Range<usize> {
    0..K_BLOCK / 32
}

/// The codes of one of these groups, from -32 to 31, and the scales of its first and last 16.
#[inline(always)]
pub fn codes_q6_k(block: &[u8; Q6_K_BYTES], group: usize) -> ([i8; 32], [i8; 2]) {
    let (low, high) = (block[..128].as_chunks::<32>().0, block[128..192].as_chunks::<32>().0);
    let (half, part) = (group / 4, group % 4);
    let (low, low_shift) = (&low[half * 2 + part % 2], part / 2 * 4);
    let mut codes = [0i8; 32];
    for ((code, low), high) in codes.iter_mut().zip(low).zip(&high[half]) {
        *code = (low >> low_shift & 15 | (high >> (part * 2) & 3) << 4) as i8 - 32;
    }
    (codes, [block[192 + group * 2] as i8, block[193 + group * 2] as i8])
}
