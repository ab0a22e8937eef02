//! One token: GEMV of ternary rows, four rows at a time, so that they share the loads of activations.
//!
//! A code is used at its place in the byte, as 1, 4 or 16 times itself: a mask, no shift. The sums of each kind are
//! kept apart and divided once a row, which leaves no remainder. 64 weights take 4 masks and 4 `sdot`, of which a
//! Cortex-A76 does two a cycle: 16 cycles for 256 weights.
//!
//! The loop is in assembly. Tried with intrinsics around single `sdot`: 41.5 instructions for 256 weights instead
//! of 38, because the compiler builds masks anew in each iteration, advances each pointer by an instruction of its
//! own and, with loads of two and four registers, spills.

use super::horizontal_sums;
use crate::engine::quant::{BLOCK, packed_row};
use std::arch::aarch64::*;
use std::arch::asm;

/// Rows of one loop. Of 32 registers they take 12 for sums, 8 for activations, 3 for masks and 6 while masking.
/// Eight rows would have to read their activations in halves.
const ROWS: usize = 4;

/// The sums of a row: of codes as they are, times 4, and times 16.
type Sums = [int32x4_t; 3];

/// Multiplies all rows by one token. `q`: `[cols]`, `out`: `[rows]`.
#[target_feature(enable = "neon,dotprod")]
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

#[target_feature(enable = "neon,dotprod")]
fn dot_rows(weights: &[u8], step: usize, q: &[i8]) -> [i32; ROWS] {
    horizontal_sums(add_rows(weights, step, q).map(|sums| combine(sums)))
}

/// Combines the three sums of a row, of which the second and third are whole multiples of 4 and 16.
#[target_feature(enable = "neon")]
fn combine([ones, fours, sixteens]: Sums) -> int32x4_t {
    vsraq_n_s32::<4>(vsraq_n_s32::<2>(ones, fours), sixteens)
}

/// Multiplies a block of one row, given its pointer and its three sums. Activations are in v8 to v15.
macro_rules! block {
    ($row:literal, $ones:literal, $fours:literal, $sixteens:literal) => {
        concat!(
            concat!("ldp q0, q1, [{", $row, "}], #32\n"),
            "ushr v2.16b, v0.16b, #6\n",
            "ushr v3.16b, v1.16b, #6\n",
            "and v4.16b, v0.16b, {m16:v}.16b\n",
            "and v5.16b, v1.16b, {m16:v}.16b\n",
            concat!("sdot {", $ones, ":v}.4s, v2.16b, v8.16b\n"),
            concat!("sdot {", $sixteens, ":v}.4s, v4.16b, v10.16b\n"),
            "and v2.16b, v0.16b, {m4:v}.16b\n",
            "and v4.16b, v1.16b, {m4:v}.16b\n",
            concat!("sdot {", $ones, ":v}.4s, v3.16b, v9.16b\n"),
            concat!("sdot {", $sixteens, ":v}.4s, v5.16b, v11.16b\n"),
            "and v0.16b, v0.16b, {m1:v}.16b\n",
            "and v1.16b, v1.16b, {m1:v}.16b\n",
            concat!("sdot {", $fours, ":v}.4s, v2.16b, v12.16b\n"),
            concat!("sdot {", $ones, ":v}.4s, v0.16b, v14.16b\n"),
            concat!("sdot {", $fours, ":v}.4s, v4.16b, v13.16b\n"),
            concat!("sdot {", $ones, ":v}.4s, v1.16b, v15.16b\n"),
        )
    };
}

/// Adds up four rows, each `step` bytes behind the one before; with a step of 0 the same row four times.
#[target_feature(enable = "neon,dotprod")]
fn add_rows(weights: &[u8], step: usize, q: &[i8]) -> [Sums; ROWS] {
    let blocks = q.len() / BLOCK;
    assert!(blocks > 0 && weights.len() == (ROWS - 1) * step + packed_row(q.len()));
    let rows = [0, 1, 2, 3].map(|index| weights.as_ptr().wrapping_add(index * step));
    let [mut a, mut b, mut c, mut d] = [[vdupq_n_s32(0); 3]; ROWS];
    // SAFETY: reads `blocks` blocks of each row and of `q`, which they have as just checked; no alignment is
    // needed. Writes no memory. The CPU has the instructions, as the features of this function require.
    unsafe {
        asm!(
            "2:",
            "ldp q8, q9, [{q}], #32", // bits 6 and 7
            "ldp q10, q11, [{q}], #32",
            "ldp q12, q13, [{q}], #32",
            "ldp q14, q15, [{q}], #32", // bits 0 and 1
            block!("a", "a1", "a4", "a16"),
            block!("b", "b1", "b4", "b16"),
            block!("c", "c1", "c4", "c16"),
            block!("d", "d1", "d4", "d16"),
            "subs {blocks}, {blocks}, #1",
            "b.ne 2b",
            blocks = inout(reg) blocks => _,
            q = inout(reg) q.as_ptr() => _,
            a = inout(reg) rows[0] => _,
            b = inout(reg) rows[1] => _,
            c = inout(reg) rows[2] => _,
            d = inout(reg) rows[3] => _,
            a1 = inout(vreg) a[0], a4 = inout(vreg) a[1], a16 = inout(vreg) a[2],
            b1 = inout(vreg) b[0], b4 = inout(vreg) b[1], b16 = inout(vreg) b[2],
            c1 = inout(vreg) c[0], c4 = inout(vreg) c[1], c16 = inout(vreg) c[2],
            d1 = inout(vreg) d[0], d4 = inout(vreg) d[1], d16 = inout(vreg) d[2],
            m1 = in(vreg) vdupq_n_u8(0x03),
            m4 = in(vreg) vdupq_n_u8(0x0c),
            m16 = in(vreg) vdupq_n_u8(0x30),
            out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _,
            out("v8") _, out("v9") _, out("v10") _, out("v11") _,
            out("v12") _, out("v13") _, out("v14") _, out("v15") _,
            options(readonly, nostack),
        );
    }
    [a, b, c, d]
}
