//! One token: GEMV of ternary rows, four rows at a time, so that they share the loads of activations.
//!
//! `smlal` multiplies eight codes by eight int8 and adds to 16-bit lanes, one instruction a cycle on a Cortex-A72:
//! 32 cycles for 256 weights, behind which everything else must hide. A code is used as 1 or 4 times itself, which
//! takes one shift and four masks for 64 weights; the sums of each kind are kept apart. Using it as 16 times itself
//! would save the shift, but 16-bit sums would be full after one block instead of four.
//!
//! Tried: intrinsics need 73.8 instructions for 256 weights instead of 60. In assembly that masks each pair of rows
//! before it is multiplied, a Cortex-A53 takes 85 cycles in the loop; in the order below it takes 73.5. A pointer
//! that each load moves costs it more than one that is moved once a block.

use crate::engine::quant::{BLOCK, packed_row};
use std::arch::aarch64::*;
use std::arch::asm;

/// Rows of one loop. Of 32 registers they take 12 for sums, 8 for activations, 2 for masks, and 10 for the codes of
/// two rows at a time.
const ROWS: usize = 4;
/// Blocks of a row whose sums fit into 16 bits: a lane takes eight products of 4 times a code (at most 8) and an
/// int8 (at least -128) from each, 32 in all, which is at least -32,768, the smallest 16-bit number.
const BLOCKS: usize = 4;

/// Multiplies all rows by one token. `q`: `[cols]`, `out`: `[rows]`.
#[target_feature(enable = "neon")]
pub(super) fn gemv(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
    let row = packed_row(cols);
    let (fours, rest) = out.as_chunks_mut::<ROWS>();
    let (weights, weights_rest) = weights.split_at(fours.len() * ROWS * row);
    for (out, weights) in fours.iter_mut().zip(weights.chunks_exact(ROWS * row)) {
        *out = dot_rows(weights, row, q);
    }
    // The last one to three rows: each is computed as if it were four.
    for (out, weights) in rest.iter_mut().zip(weights_rest.chunks_exact(row)) {
        *out = dot_rows(weights, 0, q)[0];
    }
}

/// Multiplies four rows, each `step` bytes behind the one before; with a step of 0 the same row four times.
#[target_feature(enable = "neon")]
fn dot_rows(weights: &[u8], step: usize, q: &[i8]) -> [i32; ROWS] {
    assert!(weights.len() == (ROWS - 1) * step + packed_row(q.len()) && q.len().is_multiple_of(BLOCK));
    let mut sums = [vdupq_n_s32(0); ROWS];
    let (mut rows, mut at) =
        ([0, 1, 2, 3].map(|index| weights.as_ptr().wrapping_add(index * step)), q.as_ptr());
    let mut left = q.len() / BLOCK;
    while left > 0 {
        let count = left.min(BLOCKS);
        // SAFETY: `count` blocks of each row and of `q` are left.
        let partial = unsafe { add_blocks(&mut rows, &mut at, count) };
        for (sum, [ones, fours]) in sums.iter_mut().zip(partial) {
            *sum = vpadalq_s16(*sum, vsraq_n_s16::<2>(ones, fours));
        }
        left -= count;
    }
    let [a, b, c, d] = sums;
    let mut dots = [0; ROWS];
    // SAFETY: four numbers; the store needs no alignment.
    unsafe { vst1q_s32(dots.as_mut_ptr(), vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d))) };
    dots
}

/// `to = from & mask`, for codes that stay at their place in the byte.
macro_rules! mask {
    ($mask:literal: $($to:literal $from:literal),*) => {
        concat!($(concat!("and v", $to, ".16b, v", $from, ".16b, {", $mask, ":v}.16b\n")),*)
    };
}

/// `to = from >> 4`: the two upper codes of each byte.
macro_rules! upper {
    ($($to:literal $from:literal),*) => {
        concat!($(concat!("ushr v", $to, ".16b, v", $from, ".16b, #4\n")),*)
    };
}

/// `sum += codes * activations`, the first eight of 16.
macro_rules! low {
    ($($sum:literal $codes:literal $q:literal),*) => {
        concat!($(concat!("smlal {", $sum, ":v}.8h, v", $codes, ".8b, v", $q, ".8b\n")),*)
    };
}

/// `sum += codes * activations`, the last eight of 16.
macro_rules! high {
    ($($sum:literal $codes:literal $q:literal),*) => {
        concat!($(concat!("smlal2 {", $sum, ":v}.8h, v", $codes, ".16b, v", $q, ".16b\n")),*)
    };
}

/// Adds up codes that count once and codes that count four times, for `count` blocks (at least 1, at most
/// [`BLOCKS`]) of each row; moves the pointers behind these blocks.
///
/// A Cortex-A53 executes in this order: no register is used within five instructions after it was written, loads
/// stand together, and the masks for the next products fill the gaps.
///
/// # Safety
/// Each row and `q` have `count` more blocks.
#[target_feature(enable = "neon")]
unsafe fn add_blocks(
    rows: &mut [*const u8; ROWS],
    q: &mut *const i8,
    count: usize,
) -> [[int16x8_t; 2]; ROWS] {
    let [mut a, mut b, mut c, mut d] = [[vdupq_n_s16(0); 2]; ROWS];
    // SAFETY: reads `count` blocks from each row and from `q`; no alignment is needed. Writes no
    // memory.
    unsafe {
        asm!(
            "2:",
            "ldp q0, q1, [{a}], #32",
            "ldp q2, q3, [{b}], #32",
            "ldp q20, q21, [{q}, #64]",
            "ldp q22, q23, [{q}, #96]", // bits 0 and 1
            "ldp q18, q19, [{q}, #32]",
            "ldp q16, q17, [{q}], #128", // bits 6 and 7
            "subs {blocks}, {blocks}, #1",
            // First half of rows a and b: bytes in v0 and v2, upper codes in v4 and v5.
            mask!("m4": "6" "0", "7" "2"),
            upper!("4" "0", "5" "2"),
            mask!("m1": "0" "0", "2" "2"),
            low!("a4" "6" "20", "b4" "7" "20", "a1" "0" "22", "b1" "2" "22"),
            mask!("m1": "8" "4", "9" "5"),
            mask!("m4": "4" "4", "5" "5"),
            high!("a4" "6" "20", "b4" "7" "20", "a1" "0" "22", "b1" "2" "22"),
            mask!("m4": "6" "1", "7" "3"),
            low!("a4" "4" "16", "b4" "5" "16", "a1" "8" "18", "b1" "9" "18"),
            upper!("0" "1", "2" "3"),
            mask!("m1": "1" "1"),
            high!("a4" "4" "16", "b4" "5" "16", "a1" "8" "18", "b1" "9" "18"),
            mask!("m1": "3" "3"),
            // Second half: v1 and v3, v0 and v2.
            low!("a4" "6" "21", "b4" "7" "21", "a1" "1" "23", "b1" "3" "23"),
            mask!("m1": "8" "0", "9" "2"),
            mask!("m4": "0" "0", "2" "2"),
            high!("a4" "6" "21", "b4" "7" "21", "a1" "1" "23", "b1" "3" "23"),
            "ldp q4, q5, [{c}], #32",
            "ldp q1, q3, [{d}], #32",
            low!("a4" "0" "17", "b4" "2" "17", "a1" "8" "19", "b1" "9" "19"),
            mask!("m4": "6" "4", "7" "1"),
            high!("a4" "0" "17", "b4" "2" "17", "a1" "8" "19", "b1" "9" "19"),
            // First half of rows c and d: v4 and v1, v0 and v2.
            upper!("0" "4", "2" "1"),
            mask!("m1": "4" "4", "1" "1"),
            low!("c4" "6" "20", "d4" "7" "20", "c1" "4" "22", "d1" "1" "22"),
            mask!("m1": "8" "0", "9" "2"),
            mask!("m4": "0" "0", "2" "2"),
            high!("c4" "6" "20", "d4" "7" "20", "c1" "4" "22", "d1" "1" "22"),
            mask!("m4": "6" "5", "7" "3"),
            low!("c4" "0" "16", "d4" "2" "16", "c1" "8" "18", "d1" "9" "18"),
            upper!("4" "5", "1" "3"),
            mask!("m1": "5" "5"),
            high!("c4" "0" "16", "d4" "2" "16", "c1" "8" "18", "d1" "9" "18"),
            mask!("m1": "3" "3"),
            // Second half: v5 and v3, v4 and v1.
            low!("c4" "6" "21", "d4" "7" "21", "c1" "5" "23", "d1" "3" "23"),
            mask!("m1": "8" "4", "9" "1"),
            mask!("m4": "4" "4", "1" "1"),
            high!("c4" "6" "21", "d4" "7" "21", "c1" "5" "23", "d1" "3" "23"),
            low!("c4" "4" "17", "d4" "1" "17", "c1" "8" "19", "d1" "9" "19"),
            high!("c4" "4" "17", "d4" "1" "17", "c1" "8" "19", "d1" "9" "19"),
            "b.ne 2b",
            blocks = inout(reg) count => _,
            q = inout(reg) *q,
            a = inout(reg) rows[0], b = inout(reg) rows[1], c = inout(reg) rows[2], d = inout(reg) rows[3],
            a1 = inout(vreg) a[0], a4 = inout(vreg) a[1],
            b1 = inout(vreg) b[0], b4 = inout(vreg) b[1],
            c1 = inout(vreg) c[0], c4 = inout(vreg) c[1],
            d1 = inout(vreg) d[0], d4 = inout(vreg) d[1],
            m1 = in(vreg) vdupq_n_u8(0x03),
            m4 = in(vreg) vdupq_n_u8(0x0c),
            out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _,
            out("v5") _, out("v6") _, out("v7") _, out("v8") _, out("v9") _,
            out("v16") _, out("v17") _, out("v18") _, out("v19") _,
            out("v20") _, out("v21") _, out("v22") _, out("v23") _,
            options(readonly, nostack),
        );
    }
    [a, b, c, d]
}
