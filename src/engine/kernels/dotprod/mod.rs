//! NEON with the dot product of Armv8.2: Raspberry Pi 5 and most boards since.
//!
//! `sdot` adds four products of int8 to a 32-bit lane, so nothing can overflow. Its intrinsic is
//! not stable in the compilers this is built with; one line of assembly stands for it.

mod one;
mod tile;

use super::Kernels;
use super::neon::{dot_blocks, dot_f16, mix_f16};
use std::arch::aarch64::*;
use std::arch::asm;

pub(super) const TABLE: Kernels = Kernels {
    name: "neon-dotprod",
    ternary_one: one::ternary,
    ternary_tile: tile::ternary,
    tile: tile::TILE,
    dot_f16,
    mix_f16,
    dot_blocks,
};

/// `sum[i] += a[4 i] * b[4 i] + … + a[4 i + 3] * b[4 i + 3]`
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: registers in, a register out, no memory and no flags; the processor has the
    // instruction, as the feature of this function says.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[target_feature(enable = "neon,dotprod")]
    fn lanes(a: [i8; 16], b: [i8; 16]) -> [i32; 4] {
        let mut out = [1, 2, 3, 4];
        // SAFETY: arrays of the sizes the loads and the store take.
        unsafe {
            let sum = sdot(vld1q_s32(out.as_ptr()), vld1q_s8(a.as_ptr()), vld1q_s8(b.as_ptr()));
            vst1q_s32(out.as_mut_ptr(), sum);
        }
        out
    }

    #[test]
    fn sdot_adds_four_products_to_each_lane() {
        if !std::arch::is_aarch64_feature_detected!("dotprod") {
            return; // cortex-a53: the table is not offered there
        }
        let a: [i8; 16] = std::array::from_fn(|i| (i as i32 * 17 - 128) as i8);
        let b: [i8; 16] = std::array::from_fn(|i| (127 - i as i32 * 11) as i8);
        let want: [i32; 4] = std::array::from_fn(|lane| {
            (0..4).map(|i| i32::from(a[lane * 4 + i]) * i32::from(b[lane * 4 + i])).sum::<i32>()
                + lane as i32
                + 1
        });
        // SAFETY: the feature was just detected.
        assert_eq!(unsafe { lanes(a, b) }, want);
    }
}
