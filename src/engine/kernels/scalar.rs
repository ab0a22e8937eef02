//! The reference kernels in plain Rust, against which every other table is tested.
//!
//! They also define the order in which every table adds up rows of F16, Q8_0 and Q6_K: `n` lanes, each with one rounding
//! for a product and its sum; then the upper half of the lanes is added to the lower half until one is left.

use super::multiply_add::multiply_add;
use super::simd_dispatch::SimdLevel;
use super::tiles::{Tile, Tiles};
use super::{Kernels, block_quant};
use crate::engine::quant::blocks::{
    K_BLOCK, Q6_K_BYTES, Q8_0_BLOCK, Q8_0_BYTES, codes_q6_k, q6_k_groups, scale_at,
};
use crate::engine::quant::{BLOCK, BLOCK_BYTES, BlockFormat, packed_row};
use half::{bf16, f16};

const TILES: Tiles = Tiles::new(&[Tile::new(4, 40, gemm), Tile::new(1, 10, gemm)]);

pub(super) const TABLE: Kernels = Kernels {
    name: "scalar",
    batch: None,
    tiles: TILES,
    two_bit_tiles: TILES,
    call_tokens: 16,
    dot_f16,
    weighted_sum_f16,
    batch_f16: None,
    dot_blocks,
    weighted_sum_blocks,
    simd: SimdLevel::Baseline,
};

/// Sums that are kept side by side, so that the compiler can put them into one register.
const LANES: usize = 8;

fn gemm(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
    let rows = weights.len() / packed_row(cols);
    for (row, weights) in weights.chunks_exact(packed_row(cols)).enumerate() {
        for (token, q) in q.chunks_exact(cols).enumerate() {
            out[token * rows + row] = dot_codes(weights, q);
        }
    }
}

fn dot_codes(weights: &[u8], q: &[i8]) -> i32 {
    let mut sum = 0;
    for (bytes, q) in weights.chunks_exact(BLOCK_BYTES).zip(q.chunks_exact(BLOCK)) {
        for (group, q) in q.chunks_exact(BLOCK_BYTES).enumerate() {
            for (byte, q) in bytes.iter().zip(q) {
                sum += i32::from(byte >> (6 - 2 * group) & 3) * i32::from(*q);
            }
        }
    }
    sum
}

fn dot_f16(rows: &[u8], x: &[f32], out: &mut [f32]) {
    /// Lanes of the two AVX2 or four NEON registers that the other tables add up in.
    const LANES: usize = 16;
    let read = |bytes: [u8; 2]| f16::from_le_bytes(bytes).to_f32_const();
    for (row, out) in rows.chunks_exact(x.len() * 2).zip(out) {
        let (numbers, (blocks, rest)) = (row.as_chunks::<2>().0, x.as_chunks::<LANES>());
        let mut sums = [0.0f32; LANES];
        for (numbers, x) in numbers.as_chunks::<LANES>().0.iter().zip(blocks) {
            for ((bytes, x), sum) in numbers.iter().zip(x).zip(&mut sums) {
                *sum = multiply_add::<false>(read(*bytes), *x, *sum);
            }
        }
        let rest = numbers[blocks.len() * LANES..].iter().zip(rest);
        *out = rest.fold(add_lanes(&mut sums), |sum, (bytes, x)| sum + read(*bytes) * x);
    }
}

/// The sum of a power of two of lanes.
fn add_lanes(sums: &mut [f32]) -> f32 {
    let mut lanes = sums;
    while lanes.len() > 1 {
        let (lower, upper) = lanes.split_at_mut(lanes.len() / 2);
        lower.iter_mut().zip(upper).for_each(|(sum, other)| *sum += *other);
        lanes = lower;
    }
    lanes.first().copied().unwrap_or_default()
}

pub(super) fn dot_bf16(rows: &[u8], x: &[f32], out: &mut [f32]) {
    dot_rows(rows, x, out, |bytes: [u8; 2]| bf16::from_le_bytes(bytes).to_f32_const());
}

pub(super) fn dot_f32(rows: &[u8], x: &[f32], out: &mut [f32]) {
    dot_rows(rows, x, out, f32::from_le_bytes);
}

fn dot_rows<const N: usize>(rows: &[u8], x: &[f32], out: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    for (row, out) in rows.chunks_exact(x.len() * N).zip(out) {
        let mut sums = [0.0f32; LANES];
        for (bytes, x) in row.as_chunks::<N>().0.chunks(LANES).zip(x.chunks(LANES)) {
            for ((bytes, x), sum) in bytes.iter().zip(x).zip(&mut sums) {
                *sum += read(*bytes) * x;
            }
        }
        *out = sums.iter().sum();
    }
}

fn dot_blocks(kind: BlockFormat, rows: &[u8], x: &[f32], out: &mut [f32]) {
    match kind {
        BlockFormat::Q8_0 => {
            for (row, out) in rows.chunks_exact(x.len() / Q8_0_BLOCK * Q8_0_BYTES).zip(out) {
                *out = dot_q8_0(row, x);
            }
        }
        BlockFormat::Q6K => {
            for (row, out) in rows.chunks_exact(x.len() / K_BLOCK * Q6_K_BYTES).zip(out) {
                *out = dot_q6_k(row, x);
            }
        }
        BlockFormat::Q4_0 | BlockFormat::Q4K => block_quant::dot::<false>(kind, rows, x, out),
    }
}

/// Eight lanes; the products of a block are added up before its scale is applied.
fn dot_q8_0(row: &[u8], x: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    for (block, x) in row.as_chunks::<Q8_0_BYTES>().0.iter().zip(x.as_chunks::<Q8_0_BLOCK>().0) {
        let mut products = [0.0f32; 8];
        for (codes, x) in block[2..].as_chunks::<8>().0.iter().zip(x.as_chunks::<8>().0) {
            for ((code, x), product) in codes.iter().zip(x).zip(&mut products) {
                *product = multiply_add::<false>(f32::from(*code as i8), *x, *product);
            }
        }
        add_scaled(&mut sums, &products, [scale_at(block, 0); 2]);
    }
    add_lanes(&mut sums)
}

/// Eight lanes, four for the first 16 numbers of a group of 32 and four for the others, each with a scale of its own;
/// the products of a group are added up before its scales are applied, those of a block before the block's.
fn dot_q6_k(row: &[u8], x: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    for (block, x) in row.as_chunks::<Q6_K_BYTES>().0.iter().zip(x.as_chunks::<K_BLOCK>().0) {
        let mut of_block = [0.0f32; 8];
        for (group, x) in q6_k_groups().zip(x.as_chunks::<32>().0) {
            let (codes, scales) = codes_q6_k(block, group);
            let mut products = [0.0f32; 8];
            for (at, (code, x)) in codes.iter().zip(x).enumerate() {
                let product = &mut products[at / 16 * 4 + at % 4];
                *product = multiply_add::<false>(f32::from(*code), *x, *product);
            }
            add_scaled(&mut of_block, &products, scales.map(f32::from));
        }
        add_scaled(&mut sums, &of_block, [scale_at(block, 208); 2]);
    }
    add_lanes(&mut sums)
}

/// `sums += products * scale`, where the first four lanes have the first scale and the others the second.
fn add_scaled(sums: &mut [f32; 8], products: &[f32; 8], scales: [f32; 2]) {
    for (lane, (sum, product)) in sums.iter_mut().zip(products).enumerate() {
        *sum = multiply_add::<false>(*product, scales[lane / 4], *sum);
    }
}

fn weighted_sum_blocks(kind: BlockFormat, rows: &[u8], weights: &[f32], out: &mut [f32]) {
    match kind {
        BlockFormat::Q8_0 => weighted_sum_q8_0(rows, weights, out),
        BlockFormat::Q4_0 | BlockFormat::Q4K | BlockFormat::Q6K => {
            block_quant::weighted_sum::<false>(kind, rows, weights, out)
        }
    }
}

/// The scale of a block is multiplied by the weight of its row first.
fn weighted_sum_q8_0(rows: &[u8], weights: &[f32], out: &mut [f32]) {
    for (row, weight) in rows.chunks_exact(out.len() / Q8_0_BLOCK * Q8_0_BYTES).zip(weights) {
        for (block, out) in row.as_chunks::<Q8_0_BYTES>().0.iter().zip(out.as_chunks_mut::<Q8_0_BLOCK>().0) {
            let scale = scale_at(block, 0) * weight;
            for (out, code) in out.iter_mut().zip(&block[2..]) {
                *out = multiply_add::<false>(f32::from(*code as i8), scale, *out);
            }
        }
    }
}

/// Whole groups of eight columns with one rounding for product and sum, the others with two, as the other tables.
fn weighted_sum_f16(rows: &[u8], weights: &[f32], out: &mut [f32]) {
    let read = |bytes: [u8; 2]| f16::from_le_bytes(bytes).to_f32_const();
    let whole = out.len() / 8 * 8;
    for (row, weight) in rows.chunks_exact(out.len() * 2).zip(weights) {
        for (col, (out, bytes)) in out.iter_mut().zip(row.as_chunks::<2>().0).enumerate() {
            let number = read(*bytes);
            *out = if col < whole {
                multiply_add::<false>(number, *weight, *out)
            } else {
                *out + number * weight
            };
        }
    }
}

pub(super) fn weighted_sum_bf16(rows: &[u8], weights: &[f32], out: &mut [f32]) {
    weighted_sum_rows(rows, weights, out, |bytes: [u8; 2]| bf16::from_le_bytes(bytes).to_f32_const());
}

pub(super) fn weighted_sum_f32(rows: &[u8], weights: &[f32], out: &mut [f32]) {
    weighted_sum_rows(rows, weights, out, f32::from_le_bytes);
}

fn weighted_sum_rows<const N: usize>(
    rows: &[u8],
    weights: &[f32],
    out: &mut [f32],
    read: impl Fn([u8; N]) -> f32,
) {
    for (row, weight) in rows.chunks_exact(out.len() * N).zip(weights) {
        for (out, bytes) in out.iter_mut().zip(row.as_chunks::<N>().0) {
            *out += read(*bytes) * weight;
        }
    }
}
