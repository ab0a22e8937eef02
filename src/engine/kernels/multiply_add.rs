//! Fused multiply-add: `a * b + c`, rounded once. Tables whose CPU has an instruction for it use that; the others compute
//! the same bits, so that every table adds up a row to the same number.

/// `a * b + c`, rounded once. `FMA`: whether the caller is compiled for a CPU with an instruction for it.
#[inline(always)]
pub(super) fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    // All CPUs of this architecture have the instruction.
    if FMA || cfg!(target_arch = "aarch64") { a.mul_add(b, c) } else { without_instruction(a, b, c) }
}

/// The same through f64, in which the product is exact. The sum is rounded to odd: where it is not exact, its last bit
/// is set, so that rounding once more, to f32, gives what a single rounding would have given.
/// Source: Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to
/// odd", IEEE Transactions on Computers 57 (2008).
#[inline(always)]
fn without_instruction(a: f32, b: f32, c: f32) -> f32 {
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    // What rounding the sum has cut off, exactly (Knuth's TwoSum).
    let of_c = sum - product;
    let rest = (product - (sum - of_c)) + (c - of_c);
    let bits = sum.to_bits();
    // It is NaN where infinities are involved.
    let is_inexact = rest != 0.0 && !rest.is_nan();
    let odd = if (rest > 0.0) == (sum > 0.0) { bits.wrapping_add(1) } else { bits.wrapping_sub(1) };
    let rounded = if is_inexact && bits & 1 == 0 { odd } else { bits };
    f64::from_bits(rounded) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Lcg;

    #[test]
    fn the_bits_are_those_of_the_instruction() {
        let mut random = Lcg::new(1);
        let mut next = || random.next_u32();
        for round in 0..2_000_000u32 {
            // Any bits at all, and numbers of similar size, whose sums cancel or end between two floats.
            let [a, b, c] = match round % 2 {
                0 => [0; 3].map(|_| f32::from_bits(next())),
                _ => [0; 3].map(|_| f32::from_bits(0x3f80_0000 | next() & 0x807f_f00f)),
            };
            let (ours, wanted) = (without_instruction(a, b, c), a.mul_add(b, c));
            let is_same = ours.to_bits() == wanted.to_bits() || ours.is_nan() && wanted.is_nan();
            assert!(is_same, "{a:e} * {b:e} + {c:e}: {ours:e} instead of {wanted:e}");
        }
    }

    #[test]
    fn sums_between_two_floats_are_rounded_by_what_lies_far_below() {
        let half_ulp = 2f32.powi(-24);
        let tiny = 2f32.powi(-80);
        for (a, b, c) in [(half_ulp, 1.0, 1.0), (1.0 + 2.0 * half_ulp, half_ulp, 1.0), (tiny, -tiny, 1.0)] {
            for (a, c) in [(a, c), (-a, c), (a, -c), (-a, -c)] {
                assert_eq!(
                    without_instruction(a, b, c).to_bits(),
                    a.mul_add(b, c).to_bits(),
                    "{a:e} {b:e} {c:e}"
                );
            }
        }
    }
}
