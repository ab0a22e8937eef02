//! Tiles of two to eight tokens: GEMM of ternary rows, two rows at a time.
//!
//! Codes are used at their place in the byte, as for one token, but 16 sums leave no registers for sums of each
//! kind. So each pair of rows is read four times, once for each group of 32 columns of its blocks: first the codes
//! that count 16 times, then, after a division, those that count 4 times, then those that count once. Meanwhile the
//! packed rows stay in the L1 cache. 256 weights take 16 masks, whatever the number of tokens, and 16 `sdot` for each,
//! of which a Cortex-A76 does two a cycle: 12 cycles for a token of two, 10 of four and 9 of eight.
//!
//! Tried: intrinsics around single `sdot` take 13.9 cycles with eight tokens, because the compiler spills sums; four
//! assembly loops, one for each group, take 13.8 for the same reason. Three rows would need as many masks, and one row
//! would load as often as it multiplies.

use crate::engine::quant::{BLOCK, packed_row};
use std::arch::aarch64::*;
use std::arch::asm;

/// The most tokens of a tile. With four, masks would take a fifth of the time instead of a ninth.
const MOST_TOKENS: usize = 8;
/// Rows that share the loads of activations.
const ROWS: usize = 2;

/// Four lanes for each row and token.
type Sums<const T: usize> = [[int32x4_t; T]; ROWS];
/// Multiplies two rows by a tile of tokens.
type AddRows<const T: usize> = unsafe fn(rows: [&[u8]; ROWS], q: &[i8], cols: usize) -> Sums<T>;

/// Multiplies all rows by a tile of `T` tokens, a pair of rows at a time by `add_rows`.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn gemm<const T: usize>(add_rows: AddRows<T>, weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
    let (row, rows) = (packed_row(cols), out.len() / T);
    for (pair, weights) in weights.chunks(ROWS * row).enumerate() {
        // The last row of an odd number is paired with itself.
        let second = weights.len() - row;
        // SAFETY: the CPU has the instructions, as the features of this function require.
        let [a, b] = unsafe { add_rows([&weights[..row], &weights[second..]], q, cols) };
        for (token, dots) in sum_lanes(a, b).into_iter().take(T).enumerate() {
            let out = &mut out[token * rows + pair * ROWS..];
            out[0] = dots[0];
            if second > 0 {
                out[1] = dots[1];
            }
        }
    }
}

/// The sums of both rows for each token.
#[target_feature(enable = "neon")]
#[inline]
fn sum_lanes<const T: usize>(a: [int32x4_t; T], b: [int32x4_t; T]) -> [[i32; ROWS]; MOST_TOKENS] {
    let mut dots = [[0; ROWS]; MOST_TOKENS];
    for (index, dots) in dots.as_chunks_mut::<2>().0.iter_mut().enumerate().take(T.div_ceil(2)) {
        // The last of an odd number of tokens is paired with itself.
        let pairs = [index * 2, (index * 2 + 1).min(T - 1)].map(|token| vpaddq_s32(a[token], b[token]));
        // SAFETY: four numbers; the store needs no alignment.
        unsafe { vst1q_s32(dots.as_mut_ptr().cast(), vpaddq_s32(pairs[0], pairs[1])) };
    }
    dots
}

/// Multiplies one token by two rows, given its pointer and its two sums. The codes are in v0, v1 and v2, v3.
macro_rules! token {
    ($q:ident, $a:ident, $b:ident) => {
        concat!(
            concat!("ldp q4, q5, [{", stringify!($q), "}], #128\n"),
            concat!("sdot {", stringify!($a), ":v}.4s, v0.16b, v4.16b\n"),
            concat!("sdot {", stringify!($b), ":v}.4s, v2.16b, v4.16b\n"),
            concat!("sdot {", stringify!($a), ":v}.4s, v1.16b, v5.16b\n"),
            concat!("sdot {", stringify!($b), ":v}.4s, v3.16b, v5.16b\n"),
        )
    };
}

/// The loop over blocks; `$mask` selects the codes of one group.
macro_rules! blocks {
    ($mask:literal, $($q:ident $a:ident $b:ident),*) => {
        concat!(
            "2:\n",
            "ldp q0, q1, [{a}], #32\n",
            "ldp q2, q3, [{b}], #32\n",
            concat!($mask, " v0.16b, v0.16b, {mask:v}.16b\n"),
            concat!($mask, " v1.16b, v1.16b, {mask:v}.16b\n"),
            concat!($mask, " v2.16b, v2.16b, {mask:v}.16b\n"),
            concat!($mask, " v3.16b, v3.16b, {mask:v}.16b\n"),
            $(token!($q, $a, $b),)*
            "subs {left}, {left}, #1\n",
            "b.ne 2b\n",
        )
    };
}

/// Moves the pointers back to the first block, at another group.
macro_rules! back {
    ($to:literal, $($q:ident),*) => {
        concat!(
            "sub {a}, {a}, {blocks}, lsl #5\n",
            "sub {b}, {b}, {blocks}, lsl #5\n",
            $(concat!("add {", stringify!($q), "}, {", stringify!($q), "}, {", $to, "}\n"),)*
            "mov {left}, {blocks}\n",
        )
    };
}

/// Divides sums by 4, because the next codes count a quarter as much.
macro_rules! quarter {
    ($($sum:ident)*) => {
        concat!($(concat!("sshr {", stringify!($sum), ":v}.4s, {", stringify!($sum), ":v}.4s, #2\n")),*)
    };
}

/// Defines the GEMM of a tile: its name, its number of tokens, and for each token its index and the names of its
/// pointer and its two sums.
macro_rules! tile {
    ($gemm:ident, $tokens:literal: $($index:literal $q:ident $sum_a:ident $sum_b:ident),*) => {
        #[target_feature(enable = "neon,dotprod")]
        pub(super) fn $gemm(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
            /// Multiplies two rows by the tile.
            #[target_feature(enable = "neon,dotprod")]
            fn add_rows(rows: [&[u8]; ROWS], q: &[i8], cols: usize) -> Sums<$tokens> {
                assert!(q.len() == $tokens * cols && rows.iter().all(|row| row.len() == packed_row(cols)));
                assert!(cols > 0 && cols.is_multiple_of(BLOCK));
                let [mut a, mut b] = [[vdupq_n_s32(0); $tokens]; ROWS];
                // Each token starts at the second group of its first block.
                let at: [*const i8; $tokens] = std::array::from_fn(|token| q[token * cols + 32..].as_ptr());
                // SAFETY: reads 32 bytes for each block of both rows and 32 of 128 bytes for each block of each token,
                // group by group; all are there as just checked, and no alignment is needed. Writes no memory. The CPU
                // has the instructions, as the features of this function require.
                unsafe {
                    asm!(
                        "b 4f",
                        "3:",
                        back!("next", $($q),*),
                        quarter!($($sum_a $sum_b)*),
                        "4:",
                        blocks!("and", $($q $sum_a $sum_b),*),
                        "ushr {mask:v}.16b, {mask:v}.16b, #2",
                        "subs {groups}, {groups}, #1",
                        "b.ne 3b",
                        back!("first", $($q),*),
                        // A shift to the left by -6 leaves only bits 6 and 7.
                        "movi {mask:v}.16b, #250",
                        blocks!("ushl", $($q $sum_a $sum_b),*),
                        groups = inout(reg) 3usize => _, // 1, 2, 3; then 0
                        next = in(reg) 32 - cols as isize,
                        first = in(reg) -96 - cols as isize,
                        blocks = in(reg) cols / BLOCK,
                        left = inout(reg) cols / BLOCK => _,
                        mask = inout(vreg) vdupq_n_u8(0x30) => _,
                        a = inout(reg) rows[0].as_ptr() => _,
                        b = inout(reg) rows[1].as_ptr() => _,
                        $($q = inout(reg) at[$index] => _,)*
                        $($sum_a = inout(vreg) a[$index], $sum_b = inout(vreg) b[$index],)*
                        out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _,
                        options(readonly, nostack),
                    );
                }
                [a, b]
            }
            gemm::<$tokens>(add_rows, weights, q, cols, out);
        }
    };
}

tile!(gemm_2, 2: 0 q0 a0 b0, 1 q1 a1 b1);
tile!(gemm_3, 3: 0 q0 a0 b0, 1 q1 a1 b1, 2 q2 a2 b2);
tile!(gemm_4, 4: 0 q0 a0 b0, 1 q1 a1 b1, 2 q2 a2 b2, 3 q3 a3 b3);
tile!(gemm_5, 5: 0 q0 a0 b0, 1 q1 a1 b1, 2 q2 a2 b2, 3 q3 a3 b3, 4 q4 a4 b4);
tile!(gemm_6, 6: 0 q0 a0 b0, 1 q1 a1 b1, 2 q2 a2 b2, 3 q3 a3 b3, 4 q4 a4 b4, 5 q5 a5 b5);
tile!(gemm_7, 7: 0 q0 a0 b0, 1 q1 a1 b1, 2 q2 a2 b2, 3 q3 a3 b3, 4 q4 a4 b4, 5 q5 a5 b5, 6 q6 a6 b6);
tile!(gemm_8, 8: 0 q0 a0 b0, 1 q1 a1 b1, 2 q2 a2 b2, 3 q3 a3 b3, 4 q4 a4 b4, 5 q5 a5 b5, 6 q6 a6 b6, 7 q7 a7 b7);
