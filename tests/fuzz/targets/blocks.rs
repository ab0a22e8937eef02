//! Whatever the bytes of a row: blocks are read, numbers are written, and what was written once is
//! written as the same numbers again.

#![no_main]

use bitnetd::engine::quant::{BlockFormat, FloatFormat, RowFormat, is_ternary, pack_floats};
use libfuzzer_sys::fuzz_target;

/// RowFormat of a row: one block of the largest format.
const COLS: usize = 256;

fuzz_target!(|bytes: &[u8]| {
    for kind in [BlockFormat::Q4_0, BlockFormat::Q8_0, BlockFormat::Q4K, BlockFormat::Q6K] {
        let size = RowFormat::from(kind).row_bytes(COLS).expect("256 is a multiple of every block");
        for row in bytes.chunks_exact(size) {
            check_row(kind.into(), row);
        }
    }
    for row in bytes.chunks_exact(4 * COLS) {
        check_row(FloatFormat::F32.into(), row);
    }
});

fn check_row(kind: RowFormat, row: &[u8]) {
    // A row that is taken for ternary is: there is no other that could break it.
    assert_eq!(is_ternary(row, kind, COLS), pack_floats(row, kind, 1, COLS).is_ok());
    let mut x = [0.0; COLS];
    kind.read(row, &mut x);
    for kind in [BlockFormat::Q8_0, BlockFormat::Q6K] {
        let once = written(kind.into(), &x);
        if kind == BlockFormat::Q6K {
            assert!(once.iter().all(|x| x.is_finite()));
            assert_eq!(written(kind.into(), &once), once);
        }
    }
    if kind == BlockFormat::Q6K.into() && x.iter().all(|x| x.is_finite()) {
        assert_eq!(written(kind, &x), x);
    }
}

/// The numbers that are left of a row once it is written.
fn written(kind: RowFormat, x: &[f32; COLS]) -> [f32; COLS] {
    let mut bytes = vec![0; kind.row_bytes(COLS).expect("256 is a multiple of every block")];
    kind.writer().expect("both are written")(&mut bytes, x);
    let mut out = [0.0; COLS];
    kind.read(&bytes, &mut out);
    out
}
