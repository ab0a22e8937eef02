//! The tile of eight tokens of the table look-up kernel, in assembly.
//!
//! 24 registers hold sums and four more the values that all tokens share. From intrinsics the compiler makes loops
//! that spill registers, or that first multiply 60 times and then look up 24 sums. The order matters, because two
//! of the four vector units multiply and one of these also looks up: a look-up, both products and only then the
//! addition of the looked-up sum take 10.1 cycles for 1024 products of a token, where ten are the limit; with the
//! addition between the products it is 10.5, and 11 as the compiler orders them (Zen 4, data in the L1 cache).

use super::lut_layout::{ActivationTables, BAND, CHUNK_TILES, MAX_TOKENS, WeightTile};
use std::arch::asm;

/// Look-up `$at` of token `$token`, and its product with group `$at` of codes. The table indices are in zmm26, the
/// codes of both halves of the rows in zmm24 and zmm25.
macro_rules! lut_step {
    ($at:literal, $token:literal, $low:literal, $high:literal, $short:literal) => {
        concat!(
            concat!("vpbroadcastd zmm27, dword ptr [{tables} + 2048 + ", $token, " * 20 + ", $at, " * 4]\n"),
            concat!("vpermw zmm28, zmm26, [{tables} + ", $at, " * 512 + ", $token, " * 64]\n"),
            concat!("vpdpbusd zmm", $low, ", zmm24, zmm27\n"),
            concat!("vpdpbusd zmm", $high, ", zmm25, zmm27\n"),
            concat!("vpaddw zmm", $short, ", zmm", $short, ", zmm28\n"),
        )
    };
}

/// The last group of codes has no look-up.
macro_rules! dot_step {
    ($token:literal, $low:literal, $high:literal) => {
        concat!(
            concat!("vpbroadcastd zmm27, dword ptr [{tables} + 2048 + ", $token, " * 20 + 16]\n"),
            concat!("vpdpbusd zmm", $low, ", zmm24, zmm27\n"),
            concat!("vpdpbusd zmm", $high, ", zmm25, zmm27\n"),
        )
    };
}

/// Group `$at` of a weight tile for all tokens; `$indices` loads the table indices.
macro_rules! lut_steps {
    ($at:literal, $indices:literal) => {
        concat!(
            $indices,
            concat!("vmovdqa64 zmm24, [{tile} + 128 + ", $at, " * 128]\n"),
            concat!("vmovdqa64 zmm25, [{tile} + 192 + ", $at, " * 128]\n"),
            lut_step!($at, "0", "0", "1", "16"),
            lut_step!($at, "1", "2", "3", "17"),
            lut_step!($at, "2", "4", "5", "18"),
            lut_step!($at, "3", "6", "7", "19"),
            lut_step!($at, "4", "8", "9", "20"),
            lut_step!($at, "5", "10", "11", "21"),
            lut_step!($at, "6", "12", "13", "22"),
            lut_step!($at, "7", "14", "15", "23"),
        )
    };
}

/// Loads the sums of a token from the output.
macro_rules! load_sums {
    ($low:literal, $high:literal, $short:literal) => {
        concat!(
            concat!("vmovdqu64 zmm", $low, ", [{to}]\n"),
            concat!("vmovdqu64 zmm", $high, ", [{to} + 64]\n"),
            concat!("vpxord zmm", $short, ", zmm", $short, ", zmm", $short, "\n"),
            "add {to}, {token}\n",
        )
    };
}

/// Adds the 16-bit sums and stores all sums of a token. A 16-bit sum of a row of the first half stands before one
/// of the second half.
macro_rules! store_sums {
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

/// Adds the first `tiles` weight tiles of each band for eight tokens: `out[t * rows + r]` for 32 rows of each band.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline(never)]
pub(super) fn add_bands(
    bands: &[[WeightTile; CHUNK_TILES]],
    tiles: usize,
    tables: &[ActivationTables; CHUNK_TILES],
    out: &mut [i32],
    rows: usize,
) {
    const { assert!(size_of::<WeightTile>() == 768 && size_of::<ActivationTables>() == 2240) };
    assert!((1..=CHUNK_TILES).contains(&tiles) && out.len() >= (MAX_TOKENS - 1) * rows + bands.len() * BAND);
    if bands.is_empty() {
        return;
    }
    // SAFETY: reads `tiles` weight tiles of each band and as many activation tables, whose sizes were just checked
    // and whose alignment is 64; reads and writes 32 numbers of each token for each band, which are there as just
    // checked, in any alignment. The CPU has the instructions, as the features of this function require.
    unsafe {
        asm!(
            "2:",
            "mov {to}, {out}",
            load_sums!("0", "1", "16"), load_sums!("2", "3", "17"), load_sums!("4", "5", "18"), load_sums!("6", "7", "19"),
            load_sums!("8", "9", "20"), load_sums!("10", "11", "21"), load_sums!("12", "13", "22"), load_sums!("14", "15", "23"),
            "mov {left}, {tiles}",
            "3:",
            lut_steps!("0", "vmovdqa64 zmm26, [{tile}]\n"),
            lut_steps!("1", "vpsrlw zmm26, zmm26, 8\n"),
            lut_steps!("2", "vmovdqa64 zmm26, [{tile} + 64]\n"),
            lut_steps!("3", "vpsrlw zmm26, zmm26, 8\n"),
            "vmovdqa64 zmm24, [{tile} + 640]",
            "vmovdqa64 zmm25, [{tile} + 704]",
            dot_step!("0", "0", "1"), dot_step!("1", "2", "3"), dot_step!("2", "4", "5"), dot_step!("3", "6", "7"),
            dot_step!("4", "8", "9"), dot_step!("5", "10", "11"), dot_step!("6", "12", "13"), dot_step!("7", "14", "15"),
            "add {tile}, 768",
            "add {tables}, 2240",
            "dec {left}",
            "jne 3b",
            "mov {to}, {out}",
            store_sums!("0", "1", "16"), store_sums!("2", "3", "17"), store_sums!("4", "5", "18"), store_sums!("6", "7", "19"),
            store_sums!("8", "9", "20"), store_sums!("10", "11", "21"), store_sums!("12", "13", "22"), store_sums!("14", "15", "23"),
            "sub {tables}, {back}",
            "add {tile}, {skipped}",
            "add {out}, 128",
            "dec {bands}",
            "jne 2b",
            tile = inout(reg) bands.as_ptr() => _,
            skipped = in(reg) (CHUNK_TILES - tiles) * size_of::<WeightTile>(),
            tiles = in(reg) tiles,
            left = out(reg) _,
            tables = inout(reg) tables.as_ptr() => _,
            back = in(reg) tiles * size_of::<ActivationTables>(),
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
