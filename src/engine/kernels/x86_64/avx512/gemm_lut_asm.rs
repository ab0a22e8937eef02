//! A tile of eight tokens, in assembly.
//!
//! 24 registers are sums and four more hold what all tokens meet; from intrinsics the compiler makes loops that spill,
//! or that add 60 products first and look up 24 sums then. The order matters: of the four units two multiply, and
//! one of these looks up too. A look, both products and only then the addition of what was looked up take 10.1
//! cycles for 1024 products of a token, where ten are the limit; with the addition between the products it is 10.5, and
//! 11 as the compiler has it (Zen 4, in the first cache).

use super::lut_layout::{BAND, MOST, Met, UNITS, Unit};
use std::arch::asm;

/// Look-up `$at` of token `$token`, and its product with quad `$at`. The numbers of sums are in zmm26, the quad of
/// both halves of the rows in zmm24 and zmm25.
macro_rules! look {
    ($at:literal, $token:literal, $low:literal, $high:literal, $short:literal) => {
        concat!(
            concat!("vpbroadcastd zmm27, dword ptr [{met} + 2048 + ", $token, " * 20 + ", $at, " * 4]\n"),
            concat!("vpermw zmm28, zmm26, [{met} + ", $at, " * 512 + ", $token, " * 64]\n"),
            concat!("vpdpbusd zmm", $low, ", zmm24, zmm27\n"),
            concat!("vpdpbusd zmm", $high, ", zmm25, zmm27\n"),
            concat!("vpaddw zmm", $short, ", zmm", $short, ", zmm28\n"),
        )
    };
}

/// The last quad has no look-up.
macro_rules! quad {
    ($token:literal, $low:literal, $high:literal) => {
        concat!(
            concat!("vpbroadcastd zmm27, dword ptr [{met} + 2048 + ", $token, " * 20 + 16]\n"),
            concat!("vpdpbusd zmm", $low, ", zmm24, zmm27\n"),
            concat!("vpdpbusd zmm", $high, ", zmm25, zmm27\n"),
        )
    };
}

/// Quad `$at` of a unit, and `$looks`, which brings the numbers of the sums.
macro_rules! looks {
    ($at:literal, $looks:literal) => {
        concat!(
            $looks,
            concat!("vmovdqa64 zmm24, [{unit} + 128 + ", $at, " * 128]\n"),
            concat!("vmovdqa64 zmm25, [{unit} + 192 + ", $at, " * 128]\n"),
            look!($at, "0", "0", "1", "16"),
            look!($at, "1", "2", "3", "17"),
            look!($at, "2", "4", "5", "18"),
            look!($at, "3", "6", "7", "19"),
            look!($at, "4", "8", "9", "20"),
            look!($at, "5", "10", "11", "21"),
            look!($at, "6", "12", "13", "22"),
            look!($at, "7", "14", "15", "23"),
        )
    };
}

/// Sums of a token begin with what is there.
macro_rules! begin {
    ($low:literal, $high:literal, $short:literal) => {
        concat!(
            concat!("vmovdqu64 zmm", $low, ", [{to}]\n"),
            concat!("vmovdqu64 zmm", $high, ", [{to} + 64]\n"),
            concat!("vpxord zmm", $short, ", zmm", $short, ", zmm", $short, "\n"),
            "add {to}, {token}\n",
        )
    };
}

/// Those of 16 bits are added and all put back. One of a row of the first half stands before one of the second.
macro_rules! end {
    ($low:literal, $high:literal, $short:literal) => {
        concat!(
            concat!("vpslld zmm27, zmm", $short, ", 16\n"),
            "vpsrad zmm27, zmm27, 16\n",
            concat!("vpsrad zmm28, zmm", $short, ", 16\n"),
            concat!("vpaddd zmm27, zmm27, zmm", $low, "\n"),
            concat!("vpaddd zmm28, zmm28, zmm", $high, "\n"),
            "vmovdqu64 [{to}], zmm27\n",
            "vmovdqu64 [{to} + 64], zmm28\n",
            "add {to}, {token}\n",
        )
    };
}

/// Adds the first `units` units of bands for eight tokens: `out[t * rows + r]` for 32 rows of each.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline(never)]
pub(super) fn add_bands(
    bands: &[[Unit; UNITS]],
    units: usize,
    met: &[Met; UNITS],
    out: &mut [i32],
    rows: usize,
) {
    const { assert!(size_of::<Unit>() == 768 && size_of::<Met>() == 2240) };
    assert!((1..=UNITS).contains(&units) && out.len() >= (MOST - 1) * rows + bands.len() * BAND);
    if bands.is_empty() {
        return;
    }
    // SAFETY: reads `units` units of each band and as many of what tokens have for them, whose sizes are those
    // just checked and whose alignment is 64; reads and writes 32 numbers of each token for each band, which
    // are there as just checked, in whatever alignment. The processor has the instructions, as the features of this
    // function say.
    unsafe {
        asm!(
            "2:",
            "mov {to}, {out}",
            begin!("0", "1", "16"), begin!("2", "3", "17"), begin!("4", "5", "18"), begin!("6", "7", "19"),
            begin!("8", "9", "20"), begin!("10", "11", "21"), begin!("12", "13", "22"), begin!("14", "15", "23"),
            "mov {left}, {units}",
            "3:",
            looks!("0", "vmovdqa64 zmm26, [{unit}]\n"),
            looks!("1", "vpsrlw zmm26, zmm26, 8\n"),
            looks!("2", "vmovdqa64 zmm26, [{unit} + 64]\n"),
            looks!("3", "vpsrlw zmm26, zmm26, 8\n"),
            "vmovdqa64 zmm24, [{unit} + 640]",
            "vmovdqa64 zmm25, [{unit} + 704]",
            quad!("0", "0", "1"), quad!("1", "2", "3"), quad!("2", "4", "5"), quad!("3", "6", "7"),
            quad!("4", "8", "9"), quad!("5", "10", "11"), quad!("6", "12", "13"), quad!("7", "14", "15"),
            "add {unit}, 768",
            "add {met}, 2240",
            "dec {left}",
            "jne 3b",
            "mov {to}, {out}",
            end!("0", "1", "16"), end!("2", "3", "17"), end!("4", "5", "18"), end!("6", "7", "19"),
            end!("8", "9", "20"), end!("10", "11", "21"), end!("12", "13", "22"), end!("14", "15", "23"),
            "sub {met}, {back}",
            "add {unit}, {skipped}",
            "add {out}, 128",
            "dec {bands}",
            "jne 2b",
            unit = inout(reg) bands.as_ptr() => _,
            skipped = in(reg) (UNITS - units) * size_of::<Unit>(),
            units = in(reg) units,
            left = out(reg) _,
            met = inout(reg) met.as_ptr() => _,
            back = in(reg) units * size_of::<Met>(),
            out = inout(reg) out.as_mut_ptr() => _,
            token = in(reg) rows * size_of::<i32>(),
            to = out(reg) _,
            bands = inout(reg) bands.len() => _,
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _, out("zmm6") _,
            out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _, out("zmm12") _,
            out("zmm13") _, out("zmm14") _, out("zmm15") _, out("zmm16") _, out("zmm17") _, out("zmm18") _,
            out("zmm19") _, out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _, out("zmm24") _,
            out("zmm25") _, out("zmm26") _, out("zmm27") _, out("zmm28") _,
            options(nostack),
        );
    }
}
