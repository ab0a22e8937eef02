//! Encoders of Q8_0 and Q6_K, for heads and embeddings.
//!
//! Q8_0 is written bit for bit as the `gguf` package of Python writes it. Q6_K is written so that the square error
//! is small; ggml's reference weighs errors and rounds the scales later, so its bytes differ. Rows that Q6_K can
//! hold exactly, among them all that were read from it, keep every number.

use super::blocks::{K_BLOCK, Q6_K_BYTES, Q8_0_BLOCK, Q8_0_BYTES};
use half::f16;

/// Numbers of a Q6_K block that share an int8 scale.
const GROUP: usize = 16;
/// Groups in a block.
const GROUPS: usize = K_BLOCK / GROUP;

/// Encodes rows as Q8_0; `bytes` holds exactly `x.len()` numbers.
pub(super) fn write_q8_0(bytes: &mut [u8], x: &[f32]) {
    let ((blocks, rest), (x, x_rest)) = (bytes.as_chunks_mut::<Q8_0_BYTES>(), x.as_chunks::<Q8_0_BLOCK>());
    assert!(blocks.len() == x.len() && rest.is_empty() && x_rest.is_empty());
    for (block, x) in blocks.iter_mut().zip(x) {
        let d = largest(x).abs() / 127.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        for (byte, x) in block[2..].iter_mut().zip(x) {
            *byte = (x * inverse).round() as i8 as u8;
        }
    }
}

/// Encodes rows as Q6_K; `bytes` holds exactly `x.len()` numbers.
pub(super) fn write_q6_k(bytes: &mut [u8], x: &[f32]) {
    let ((blocks, rest), (x, x_rest)) = (bytes.as_chunks_mut::<Q6_K_BYTES>(), x.as_chunks::<K_BLOCK>());
    assert!(blocks.len() == x.len() && rest.is_empty() && x_rest.is_empty());
    for (block, x) in blocks.iter_mut().zip(x) {
        let (d, scales) = exact_scales(x).unwrap_or_else(|| search_scales(x));
        encode_q6_k(block, d, scales, x);
    }
}

/// The number farthest from zero, with its sign; the first of several.
fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |largest: f32, x| if x.abs() > largest.abs() { *x } else { largest })
}

/// The code of `x` with a scale: -32 to 31.
fn code_q6(x: f32, inverse: f32) -> f32 {
    /// 1.5 * 2^23: at this magnitude an f32 has no fraction, so adding it rounds, ties to even. Old x86-64 CPUs
    /// have no instruction for that, and this is done for every scale of the search.
    const ROUND: f32 = 12_582_912.0;
    (x * inverse).clamp(-32.0, 31.0) + ROUND - ROUND
}

fn inverse(scale: f32) -> f32 {
    // A scale so small that its inverse is infinite holds nothing that codes could tell apart.
    Some(1.0 / scale).filter(|inverse| inverse.is_finite()).unwrap_or(0.0)
}

fn encode_q6_k(block: &mut [u8; Q6_K_BYTES], d: f16, scales: [i8; GROUPS], x: &[f32; K_BLOCK]) {
    block.fill(0);
    for (index, x) in x.iter().enumerate() {
        let inverse = inverse(d.to_f32() * f32::from(scales[index / GROUP]));
        let code = (code_q6(*x, inverse) as i8 + 32) as u8;
        let (half, group, j) = (index / 128, index / 32 % 4, index % 32);
        block[half * 64 + group % 2 * 32 + j] |= (code & 15) << (group / 2 * 4);
        block[128 + half * 32 + j] |= (code >> 4) << (group * 2);
    }
    block[192..208].iter_mut().zip(scales).for_each(|(byte, scale)| *byte = scale as u8);
    block[208..].copy_from_slice(&d.to_le_bytes());
}

/// Scales that make the square error small. The block's scale follows from its largest number, which code -32 with
/// scale -128 reaches; each group's scale is the best of those around its own largest number.
fn search_scales(x: &[f32; K_BLOCK]) -> (f16, [i8; GROUPS]) {
    let wanted = largest(x) / (32.0 * 128.0);
    let size = f16::from_f32(wanted.abs().min(f16::MAX.to_f32()));
    // Rounded up: otherwise the largest number would be out of reach, by far where the scale is subnormal.
    let up = size < f16::MAX && size.to_f32() < wanted.abs();
    let d = f16::from_bits(size.to_bits() + u16::from(up)).copysign(f16::from_f32(wanted));
    let groups = x.as_chunks::<GROUP>().0;
    (d, std::array::from_fn(|group| best_scale(&groups[group], d.to_f32())))
}

/// The int8 scale of a group with the smallest square error. Scales are tried that bring its largest number to
/// codes from 35 to 27 of either sign: beyond, it is clipped too much, or codes stay unused.
fn best_scale(x: &[f32; GROUP], d: f32) -> i8 {
    let top = largest(x) * inverse(d);
    let (low, high) = ((top.abs() / 35.0).floor(), (top.abs() / 27.0).ceil());
    let mut best = (squared_error(x, 0.0), 0);
    for size in low.max(1.0) as i32..=high.min(128.0) as i32 {
        for scale in [-size, size] {
            let Ok(scale) = i8::try_from(scale) else { continue };
            let error = squared_error(x, d * f32::from(scale));
            if error < best.0 {
                best = (error, scale);
            }
        }
    }
    best.1
}

/// The square error of a group with a scale.
fn squared_error(x: &[f32; GROUP], scale: f32) -> f32 {
    let inverse = inverse(scale);
    x.iter().map(|x| x - scale * code_q6(*x, inverse)).map(|error| error * error).sum()
}

/// Scales with which a block keeps every number, where there are any: all numbers are whole multiples of one,
/// `unit`, which is a whole multiple of the block's scale.
fn exact_scales(x: &[f32; K_BLOCK]) -> Option<(f16, [i8; GROUPS])> {
    /// The largest product of a group's scale (at most 128) and a code (at most 32).
    const MAX_PRODUCT: f64 = 4096.0;
    let unit = common_unit(x)?;
    let largest = f64::from(largest(x).abs()) / unit;
    // The largest scale of the block first, because it needs the fewest bits.
    (1..=(MAX_PRODUCT / largest) as u32).find_map(|parts| {
        let d = f16::from_f64(unit / f64::from(parts));
        if d.to_f64() * f64::from(parts) != unit {
            return None;
        }
        // The sign matters where a group needs -128: there is no scale 128.
        [d, -d].into_iter().find_map(|d| Some((d, scales_for(x, d)?)))
    })
}

/// Scales with which each number is a code, given that all are whole multiples of `d`.
fn scales_for(x: &[f32; K_BLOCK], d: f16) -> Option<[i8; GROUPS]> {
    let mut scales = [0; GROUPS];
    for (scale, x) in scales.iter_mut().zip(x.as_chunks::<GROUP>().0) {
        *scale = exact_scale(&x.map(|x| (f64::from(x) / d.to_f64()) as i32))?;
    }
    Some(scales)
}

/// A scale that divides all numbers of a group into codes.
fn exact_scale(x: &[i32; GROUP]) -> Option<i8> {
    let sizes = (1..=128i16).flat_map(|size| [size, -size]).filter_map(|scale| i8::try_from(scale).ok());
    let fits = |scale: i32| x.iter().all(|x| x % scale == 0 && (-32..=31).contains(&(x / scale)));
    sizes.into_iter().find(|scale| fits(i32::from(*scale)))
}

/// The largest number of which all are whole multiples, at most 4096 times; `None` where there is none, or all are
/// zero.
fn common_unit(x: &[f32]) -> Option<f64> {
    let largest = f64::from(largest(x).abs());
    if largest == 0.0 || x.iter().any(|x| !x.is_finite()) {
        return None;
    }
    // Euclid's algorithm. The remainder of two floats is a float, so nothing is rounded.
    x.iter().filter(|x| **x != 0.0).try_fold(0.0, |unit: f64, x| {
        let (mut a, mut b) = (f64::from(x.abs()), unit);
        while b != 0.0 {
            (a, b) = (b, a % b);
        }
        (a * 4096.0 >= largest).then_some(a)
    })
}
