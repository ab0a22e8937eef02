//! 4-bit codes times int8: four rows at a time, so that they share the loads of activations.
//!
//! A mask or a shift for each `sdot`: 16 cycles of a Cortex-A76 for 256 bytes, many times what memory
//! can deliver.

use super::add_across;
use crate::engine::quant::NIBBLE_BLOCK;
use std::arch::aarch64::*;
use std::arch::asm;

/// Rows of one loop: of 32 registers they take 8 for sums, 8 for activations and 12 while masking.
const ROWS: usize = 4;

/// All rows.
#[target_feature(enable = "neon,dotprod")]
pub(super) fn nibbles(rows: &[u8], q: &[i8], out: &mut [i32]) {
    let width = q.len() / 2;
    let (fours, rest) = out.as_chunks_mut::<ROWS>();
    let (rows, rows_rest) = rows.split_at(fours.len() * ROWS * width);
    for (out, rows) in fours.iter_mut().zip(rows.chunks_exact(ROWS * width)) {
        *out = dot_rows(rows, width, q);
    }
    // Fewer rows at the end: each as if it were four.
    for (out, row) in rest.iter_mut().zip(rows_rest.chunks_exact(width)) {
        *out = dot_rows(row, 0, q)[0];
    }
}

#[target_feature(enable = "neon,dotprod")]
fn dot_rows(rows: &[u8], step: usize, q: &[i8]) -> [i32; ROWS] {
    add_across(add_rows(rows, step, q).map(|[low, high]| vaddq_s32(low, high)))
}

/// A block of one row: its pointer, its two sums. Activations are in v16 to v23.
macro_rules! block {
    ($row:literal, $low:literal, $high:literal) => {
        concat!(
            concat!("ldp q0, q1, [{", $row, "}], #64\n"),
            concat!("ldp q2, q3, [{", $row, "}, #-32]\n"),
            "and v4.16b, v0.16b, {mask:v}.16b\n",
            "and v5.16b, v1.16b, {mask:v}.16b\n",
            "ushr v0.16b, v0.16b, #4\n",
            "ushr v1.16b, v1.16b, #4\n",
            concat!("sdot {", $low, ":v}.4s, v4.16b, v16.16b\n"),
            concat!("sdot {", $high, ":v}.4s, v0.16b, v20.16b\n"),
            "and v6.16b, v2.16b, {mask:v}.16b\n",
            "and v7.16b, v3.16b, {mask:v}.16b\n",
            concat!("sdot {", $low, ":v}.4s, v5.16b, v17.16b\n"),
            concat!("sdot {", $high, ":v}.4s, v1.16b, v21.16b\n"),
            "ushr v2.16b, v2.16b, #4\n",
            "ushr v3.16b, v3.16b, #4\n",
            concat!("sdot {", $low, ":v}.4s, v6.16b, v18.16b\n"),
            concat!("sdot {", $high, ":v}.4s, v2.16b, v22.16b\n"),
            concat!("sdot {", $low, ":v}.4s, v7.16b, v19.16b\n"),
            concat!("sdot {", $high, ":v}.4s, v3.16b, v23.16b\n"),
        )
    };
}

/// The sums of low and of high codes of four rows, each `step` bytes behind the one before; 0 is four
/// times the same.
#[target_feature(enable = "neon,dotprod")]
fn add_rows(rows: &[u8], step: usize, q: &[i8]) -> [[int32x4_t; 2]; ROWS] {
    let blocks = q.len() / NIBBLE_BLOCK;
    assert!(blocks > 0 && q.len().is_multiple_of(NIBBLE_BLOCK));
    assert!(rows.len() == (ROWS - 1) * step + q.len() / 2);
    let rows = [0, 1, 2, 3].map(|index| rows.as_ptr().wrapping_add(index * step));
    let [mut a, mut b, mut c, mut d] = [[vdupq_n_s32(0); 2]; ROWS];
    // SAFETY: reads `blocks` blocks of each row and of `q`, which they have as just checked; no
    // alignment is needed. Writes no memory. The processor has the instructions, as the features of
    // this function say.
    unsafe {
        asm!(
            "2:",
            "ldp q16, q17, [{q}], #128", // of the low codes
            "ldp q18, q19, [{q}, #-96]",
            "ldp q20, q21, [{q}, #-64]", // of the high codes
            "ldp q22, q23, [{q}, #-32]",
            block!("a", "a0", "a1"),
            block!("b", "b0", "b1"),
            block!("c", "c0", "c1"),
            block!("d", "d0", "d1"),
            "subs {blocks}, {blocks}, #1",
            "b.ne 2b",
            blocks = inout(reg) blocks => _,
            q = inout(reg) q.as_ptr() => _,
            a = inout(reg) rows[0] => _,
            b = inout(reg) rows[1] => _,
            c = inout(reg) rows[2] => _,
            d = inout(reg) rows[3] => _,
            a0 = inout(vreg) a[0], a1 = inout(vreg) a[1],
            b0 = inout(vreg) b[0], b1 = inout(vreg) b[1],
            c0 = inout(vreg) c[0], c1 = inout(vreg) c[1],
            d0 = inout(vreg) d[0], d1 = inout(vreg) d[1],
            mask = in(vreg) vdupq_n_u8(15),
            out("v0") _, out("v1") _, out("v2") _, out("v3") _,
            out("v4") _, out("v5") _, out("v6") _, out("v7") _,
            out("v16") _, out("v17") _, out("v18") _, out("v19") _,
            out("v20") _, out("v21") _, out("v22") _, out("v23") _,
            options(readonly, nostack),
        );
    }
    [a, b, c, d]
}
