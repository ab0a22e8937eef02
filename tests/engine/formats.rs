//! Block formats against the `gguf` package of Python; `tests/data/quant/README.md` describes its files.

use crate::data;
use bitnetd::engine::quant::{
    BlockFormat, FloatFormat, RowFormat, code, is_ternary, pack_floats, packed_row,
};
use bitnetd::random::Lcg;

pub const ALL: [(&str, BlockFormat); 4] = [
    ("q4_0", BlockFormat::Q4_0),
    ("q8_0", BlockFormat::Q8_0),
    ("q4_k", BlockFormat::Q4K),
    ("q6_k", BlockFormat::Q6K),
];

pub fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(data(&format!("quant/{name}"))).expect("test data")
}

fn floats(name: &str) -> Vec<f32> {
    bytes(name).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn read(kind: impl Into<RowFormat>, bytes: &[u8], len: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; len];
    kind.into().read(bytes, &mut out);
    out
}

fn write(kind: BlockFormat, x: &[f32]) -> Vec<u8> {
    let kind = RowFormat::from(kind);
    let mut bytes = vec![0xa5; kind.row_bytes(x.len()).expect("whole blocks")];
    kind.writer().expect("a format that is written")(&mut bytes, x);
    bytes
}

#[test]
fn every_number_of_every_block_has_the_bits_of_the_reference() {
    for (name, kind) in ALL {
        let (blocks, want) = (bytes(&format!("{name}.blocks")), floats(&format!("{name}.f32")));
        assert!((0..=255).all(|byte| blocks.contains(&byte)), "{name}");
        let ours = read(kind, &blocks, want.len());
        for (at, (ours, want)) in ours.iter().zip(&want).enumerate() {
            // What is no number has bits that differ from processor to processor.
            let same = ours.to_bits() == want.to_bits() || ours.is_nan() && want.is_nan();
            assert!(same, "{name} {at}: {ours:?} instead of {want:?}");
        }
        // Hard numbers are among them: none, infinite, made of a subnormal scale, a zero with a sign.
        let small = |x: f32| x != 0.0 && x.abs() < 1e-6;
        let hard = [f32::is_nan, f32::is_infinite, small, |x: f32| x.to_bits() == 1 << 31];
        hard.iter().enumerate().for_each(|(at, is)| assert!(want.iter().any(|x| is(*x)), "{name} {at}"));
    }
}

#[test]
fn rows_read_in_parts_are_the_rows_read_whole() {
    for (name, kind) in ALL {
        let (blocks, want) = (bytes(&format!("{name}.blocks")), floats(&format!("{name}.f32")));
        let (len, size) = kind.block_size();
        for (block, want) in blocks.chunks(size).zip(want.chunks(len)) {
            let ours = read(kind, block, len);
            assert!(ours.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan()), "{name}");
        }
    }
}

#[test]
fn rows_written_as_q8_0_have_the_bytes_of_the_reference() {
    let (x, want) = (floats("write.f32"), bytes("write.q8_0"));
    for (row, (x, want)) in x.chunks(64).zip(want.chunks(68)).enumerate() {
        assert_eq!(write(BlockFormat::Q8_0, x), want, "row {row}");
    }
}

/// Square error of a block of Q6_K with the scales that come first to mind: each group's from its
/// largest number, all rounded to the largest of them.
fn plain_q6_k_error(x: &[f32]) -> f64 {
    let scale = |x: &[f32]| x.iter().fold(0.0f32, |a, x| if x.abs() > a.abs() { *x } else { a }) / -32.0;
    let scales: Vec<f32> = x.chunks(16).map(scale).collect();
    let most = scales.iter().fold(0.0f32, |a, x| if x.abs() > a.abs() { *x } else { a });
    let d = half::f16::from_f32(most / -128.0).to_f32();
    let mut error = 0.0;
    for (x, scale) in x.chunks(16).zip(scales) {
        let scale = d * (scale / d).round().clamp(-128.0, 127.0);
        for x in x {
            let code = if scale == 0.0 { 0.0 } else { (x / scale).round().clamp(-32.0, 31.0) };
            error += f64::from(x - scale * code).powi(2);
        }
    }
    error
}

/// Numbers like those of a trained matrix: most near zero, some groups larger than others.
fn weights(seed: u64, len: usize) -> Vec<f32> {
    let mut numbers = Lcg::new(seed);
    let mut uniform = || numbers.fraction() - 0.5;
    (0..len).map(|at| (0..4).map(|_| uniform()).sum::<f32>() * (1.0 + (at / 16 % 5) as f32) * 0.01).collect()
}

#[test]
fn q6_k_is_nearer_than_plain_rounding_in_every_block() {
    let x = weights(7, 256 * 200);
    let (mut ours, mut plain) = (0.0, 0.0);
    for x in x.chunks(256) {
        let back = read(BlockFormat::Q6K, &write(BlockFormat::Q6K, x), 256);
        let error: f64 = x.iter().zip(&back).map(|(x, y)| f64::from(x - y).powi(2)).sum();
        assert!(error <= plain_q6_k_error(x), "{error} over {}", plain_q6_k_error(x));
        ours += error;
        plain += plain_q6_k_error(x);
    }
    println!("square error: {:.3} of plain rounding's", ours / plain);
    assert!(ours < 0.9 * plain, "the search gains nothing: {ours} of {plain}");
}

#[test]
fn q6_k_stays_near_for_numbers_of_every_size() {
    for exponent in -20..=15 {
        let x: Vec<f32> = weights(3, 256).iter().map(|x| x * 2f32.powi(exponent)).collect();
        let back = read(BlockFormat::Q6K, &write(BlockFormat::Q6K, &x), 256);
        let largest = x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
        // Half a step of the largest group, and of the smallest scale there is.
        let allowed = largest / 32.0 + 2f32.powi(-24) * 16.0;
        let worst = x.iter().zip(&back).fold(0.0f32, |a, (x, y)| a.max((x - y).abs()));
        assert!(worst <= allowed, "2^{exponent}: {worst} of {largest}");
    }
    assert_eq!(read(BlockFormat::Q6K, &write(BlockFormat::Q6K, &[0.0; 256]), 256), [0.0; 256]);
}

#[test]
fn numbers_that_q6_k_can_hold_exactly_keep_their_bits() {
    let (blocks, numbers) = (bytes("q6_k.blocks"), floats("q6_k.f32"));
    let mut seen = 0;
    for x in numbers.chunks(256).filter(|x| x.iter().all(|x| x.is_finite())) {
        assert_eq!(read(BlockFormat::Q6K, &write(BlockFormat::Q6K, x), 256), x);
        seen += 1;
    }
    assert!(seen >= blocks.len() / 210 - 4);
    // Scales of -128 have no opposite: the sign of the block's scale matters.
    for d in [0x28, 0xa8] {
        let mut block: Vec<u8> = (0..210u32).map(|at| (at * 151 + at / 7) as u8).collect();
        block[192..208].fill(0x80);
        block[209] = d;
        let x = read(BlockFormat::Q6K, &block, 256);
        assert_eq!(read(BlockFormat::Q6K, &write(BlockFormat::Q6K, &x), 256), x);
    }
    // Whatever was written once is written as the same numbers again.
    for x in weights(9, 256 * 20).chunks(256) {
        let once = read(BlockFormat::Q6K, &write(BlockFormat::Q6K, x), 256);
        assert_eq!(read(BlockFormat::Q6K, &write(BlockFormat::Q6K, &once), 256), once);
    }
}

#[test]
fn numbers_that_are_none_are_written_without_a_panic() {
    for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-45] {
        for kind in [BlockFormat::Q8_0, BlockFormat::Q6K] {
            let mut row = weights(1, 256);
            row[77] = x;
            assert_eq!(write(kind, &row).len(), 256 / kind.block_size().0 * kind.block_size().1);
            assert_eq!(write(kind, &[x; 256]).len(), 256 / kind.block_size().0 * kind.block_size().1);
        }
    }
}

#[test]
fn ternary_weights_are_recovered_exactly_from_blocks() {
    const COLS: usize = 288;
    let want: Vec<i8> = bytes("ternary.i8").into_iter().map(|byte| byte as i8).collect();
    for (name, kind, magnitude) in [("q4_0", BlockFormat::Q4_0, 8.0), ("q8_0", BlockFormat::Q8_0, 127.0)] {
        let blocks = bytes(&format!("ternary.{name}"));
        assert!(is_ternary(&blocks, kind, COLS), "{name}");
        let packed = pack_floats(&blocks, kind, want.len() / COLS, COLS).expect("ternary");
        let d = half::f16::from_f32(0.0137 / magnitude).to_f32();
        assert_eq!(packed.scale, magnitude * d, "{name}");
        for (at, want) in want.iter().enumerate() {
            let row = &packed.bytes[at / COLS * packed_row(COLS)..];
            assert_eq!(code(row, at % COLS) as i8 - 1, *want, "{name} {at}");
        }
        let padding = (COLS..packed_row(COLS) * 4).all(|col| code(&packed.bytes, col) == 1);
        assert!(padding, "{name}");
    }
}

#[test]
fn q4_0_of_other_codes_or_scales_is_not_taken_for_ternary() {
    const COLS: usize = 288;
    let sound = bytes("ternary.q4_0");
    let row = COLS / 32 * 18;
    // The first row is all zeros: the second decides.
    for (at, byte) in [(2 + 36, 0x81), (2 + 36, 0x87), (36, 0x55)] {
        let mut blocks = sound.clone();
        blocks[row + at] = byte;
        assert!(!is_ternary(&blocks, BlockFormat::Q4_0, COLS), "{at}");
        let error = pack_floats(&blocks, BlockFormat::Q4_0, 5, COLS).expect_err("no ternary numbers");
        assert!(error.starts_with("row 1: is not ternary"), "{error}");
        // A later row is an error, for the tensor was meant as ternary.
        let mut blocks = sound.clone();
        blocks[4 * row + at] = byte;
        assert!(is_ternary(&blocks, BlockFormat::Q4_0, COLS), "{at}");
        let error = pack_floats(&blocks, BlockFormat::Q4_0, 5, COLS).expect_err("no ternary numbers");
        assert!(error.starts_with("row 4: is not ternary"), "{error}");
    }
}

#[test]
fn ternary_is_decided_by_the_first_row_that_holds_anything() {
    let decide = |rows: &[f32]| {
        let bytes: Vec<u8> = rows.iter().flat_map(|x| x.to_le_bytes()).collect();
        is_ternary(&bytes, FloatFormat::F32, 4)
    };
    assert!(decide(&[0.0; 8]));
    assert!(decide(&[0.5, 0.0, -0.5, 0.5]));
    assert!(decide(&[0.0, 0.0, 0.0, -0.0, 0.5, 0.0, -0.5, 0.5, 1.0, 2.0, 3.0, 4.0]));
    assert!(!decide(&[0.0, 0.0, 0.0, 0.0, 0.5, 0.0, -0.5, 0.25]));
    assert!(!decide(&[f32::NAN, 0.0, 0.0, 0.0]));
    assert!(!decide(&[f32::INFINITY, 0.0, 0.0, f32::INFINITY]));
}
