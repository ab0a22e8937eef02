//! Tiles of five to eight tokens: GEMM of ternary rows, two rows at a time.
//!
//! Codes are used at their place in the byte, as for one token, but 16 sums leave no registers for sums of each
//! kind. So each pair of rows is read four times, once for each group of 32 columns of its blocks: first the codes
//! that count 16 times, then, after a division, those that count 4 times, then those that count once. Meanwhile the
//! packed rows stay in the L1 cache. There is one mask for 8 products: 9 cycles of a Cortex-A76 for 256 weights and
//! a token, where its two `sdot` a cycle allow 8.
//!
//! Tried: intrinsics around single `sdot` take 13.9 cycles, because the compiler spills sums; four assembly loops,
//! one for each group, take 13.8 for the same reason. Three rows would need as many masks, and one row would load
//! as often as it multiplies.

use crate::engine::quant::{BLOCK, packed_row};
use std::arch::aarch64::*;
use std::arch::asm;

/// The most tokens of a tile. With four, masks would take a fifth of the time instead of a ninth.
pub(super) const TILE_TOKENS: usize = 8;
/// Rows that share the loads of activations.
const ROWS: usize = 2;

/// Four lanes for each row and token.
type Sums = [[int32x4_t; TILE_TOKENS]; ROWS];

/// Multiplies all rows by a tile of tokens. With fewer than [`TILE_TOKENS`] the last token is repeated.
#[target_feature(enable = "neon,dotprod")]
pub(super) fn gemm(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
    let (row, rows) = (packed_row(cols), out.len() / (q.len() / cols));
    for (pair, weights) in weights.chunks(ROWS * row).enumerate() {
        // The last row of an odd number is paired with itself.
        let second = weights.len() - row;
        let dots = dot_rows([&weights[..row], &weights[second..]], q, cols);
        for (out, dots) in out.chunks_exact_mut(rows).zip(dots) {
            out[pair * ROWS] = dots[0];
            if second > 0 {
                out[pair * ROWS + 1] = dots[1];
            }
        }
    }
}

#[target_feature(enable = "neon,dotprod")]
fn dot_rows(rows: [&[u8]; ROWS], q: &[i8], cols: usize) -> [[i32; ROWS]; TILE_TOKENS] {
    let [a, b] = add_rows(rows, q, cols);
    let mut dots = [[0; ROWS]; TILE_TOKENS];
    for (index, dots) in dots.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let pairs = [index * 2, index * 2 + 1].map(|token| vpaddq_s32(a[token], b[token]));
        // SAFETY: four numbers; the store needs no alignment.
        unsafe { vst1q_s32(dots.as_mut_ptr().cast(), vpaddq_s32(pairs[0], pairs[1])) };
    }
    dots
}

/// Multiplies one token by two rows, given its pointer and its two sums. The codes are in v0, v1 and v2, v3.
macro_rules! token {
    ($q:literal, $a:literal, $b:literal) => {
        concat!(
            concat!("ldp q4, q5, [{", $q, "}], #128\n"),
            concat!("sdot v", $a, ".4s, v0.16b, v4.16b\n"),
            concat!("sdot v", $b, ".4s, v2.16b, v4.16b\n"),
            concat!("sdot v", $a, ".4s, v1.16b, v5.16b\n"),
            concat!("sdot v", $b, ".4s, v3.16b, v5.16b\n"),
        )
    };
}

/// The loop over blocks; `$mask` selects the codes of one group.
macro_rules! blocks {
    ($mask:literal) => {
        concat!(
            "2:\n",
            "ldp q0, q1, [{a}], #32\n",
            "ldp q2, q3, [{b}], #32\n",
            concat!($mask, " v0.16b, v0.16b, {mask:v}.16b\n"),
            concat!($mask, " v1.16b, v1.16b, {mask:v}.16b\n"),
            concat!($mask, " v2.16b, v2.16b, {mask:v}.16b\n"),
            concat!($mask, " v3.16b, v3.16b, {mask:v}.16b\n"),
            token!("q0", "16", "24"),
            token!("q1", "17", "25"),
            token!("q2", "18", "26"),
            token!("q3", "19", "27"),
            token!("q4", "20", "28"),
            token!("q5", "21", "29"),
            token!("q6", "22", "30"),
            token!("q7", "23", "31"),
            "subs {left}, {left}, #1\n",
            "b.ne 2b\n",
        )
    };
}

/// Moves the pointers back to the first block, at another group.
macro_rules! back {
    ($to:literal) => {
        concat!(
            "sub {a}, {a}, {blocks}, lsl #5\n",
            "sub {b}, {b}, {blocks}, lsl #5\n",
            concat!("add {q0}, {q0}, {", $to, "}\n"),
            concat!("add {q1}, {q1}, {", $to, "}\n"),
            concat!("add {q2}, {q2}, {", $to, "}\n"),
            concat!("add {q3}, {q3}, {", $to, "}\n"),
            concat!("add {q4}, {q4}, {", $to, "}\n"),
            concat!("add {q5}, {q5}, {", $to, "}\n"),
            concat!("add {q6}, {q6}, {", $to, "}\n"),
            concat!("add {q7}, {q7}, {", $to, "}\n"),
            "mov {left}, {blocks}\n",
        )
    };
}

/// Divides all sums by 4, because the next codes count a quarter as much.
macro_rules! quarter {
    ($($sum:literal)*) => {
        concat!($(concat!("sshr v", $sum, ".4s, v", $sum, ".4s, #2\n")),*)
    };
}

#[target_feature(enable = "neon,dotprod")]
fn add_rows(rows: [&[u8]; ROWS], q: &[i8], cols: usize) -> Sums {
    let tokens = q.len() / cols;
    assert!(tokens > 0 && q.len() == tokens * cols && rows.iter().all(|row| row.len() == packed_row(cols)));
    assert!(cols.is_multiple_of(BLOCK));
    let [mut a, mut b] = [[vdupq_n_s32(0); TILE_TOKENS]; ROWS];
    // Each token starts at the second group of its first block.
    let at: [*const i8; TILE_TOKENS] =
        std::array::from_fn(|token| q[token.min(tokens - 1) * cols + 32..].as_ptr());
    // SAFETY: reads 32 bytes for each block of both rows and 32 of 128 bytes for each block of each token, group by
    // group; all are there as just checked, and no alignment is needed. Writes no memory. The CPU has the
    // instructions, as the features of this function require.
    unsafe {
        asm!(
            "b 4f",
            "3:",
            back!("next"),
            quarter!("16" "17" "18" "19" "20" "21" "22" "23" "24" "25" "26" "27" "28" "29" "30" "31"),
            "4:",
            blocks!("and"),
            "ushr {mask:v}.16b, {mask:v}.16b, #2",
            "subs {groups}, {groups}, #1",
            "b.ne 3b",
            back!("first"),
            // A shift to the left by -6 leaves only bits 6 and 7.
            "movi {mask:v}.16b, #250",
            blocks!("ushl"),
            groups = inout(reg) 3usize => _, // 1, 2, 3; then 0
            next = in(reg) 32 - cols as isize,
            first = in(reg) -96 - cols as isize,
            blocks = in(reg) cols / BLOCK,
            left = inout(reg) cols / BLOCK => _,
            mask = inout(vreg) vdupq_n_u8(0x30) => _,
            a = inout(reg) rows[0].as_ptr() => _,
            b = inout(reg) rows[1].as_ptr() => _,
            q0 = inout(reg) at[0] => _,
            q1 = inout(reg) at[1] => _,
            q2 = inout(reg) at[2] => _,
            q3 = inout(reg) at[3] => _,
            q4 = inout(reg) at[4] => _,
            q5 = inout(reg) at[5] => _,
            q6 = inout(reg) at[6] => _,
            q7 = inout(reg) at[7] => _,
            inout("v16") a[0], inout("v17") a[1], inout("v18") a[2], inout("v19") a[3],
            inout("v20") a[4], inout("v21") a[5], inout("v22") a[6], inout("v23") a[7],
            inout("v24") b[0], inout("v25") b[1], inout("v26") b[2], inout("v27") b[3],
            inout("v28") b[4], inout("v29") b[5], inout("v30") b[6], inout("v31") b[7],
            out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _,
            options(readonly, nostack),
        );
    }
    [a, b]
}
