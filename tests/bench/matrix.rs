//! One matrix through one kernel, for `tests/bench/arm` to count instructions.
//!
//! `matrix WEIGHTS TABLE TOKENS ROUNDS ROWS`: `ternary`, `q8_0` or `q6_k`; the kernels' name; tokens of a
//! pass (1 for all but ternary); passes; rows of a call. The time of the kernels does not depend on the numbers, so weights and
//! activations are the cheapest there are: what is made before the first pass is executed, too.

use bitnetd::engine::kernels::Kernels;
use bitnetd::engine::quant::{BlockFormat, RowFormat, packed_row};
use std::hint::black_box;

/// The largest shape of BitNet-b1.58-2B-4T.
const ROWS: usize = 6912;
const COLS: usize = 2560;

fn main() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [weights, table, numbers @ ..] = arguments.as_slice() else { return Err(usage()) };
    let numbers: Vec<usize> = numbers.iter().filter_map(|number| number.parse().ok()).collect();
    let [tokens, rounds, rows] = numbers[..] else { return Err(usage()) };
    let kernels = Kernels::named(table).ok_or_else(usage)?;
    if tokens == 0 || !(1..=ROWS).contains(&rows) {
        return Err(usage());
    }
    match weights.as_str() {
        "ternary" => ternary(&kernels, tokens, rounds, rows),
        "q8_0" if tokens == 1 => blocks(&kernels, BlockFormat::Q8_0, rounds, rows),
        "q6_k" if tokens == 1 => blocks(&kernels, BlockFormat::Q6K, rounds, rows),
        _ => return Err(usage()),
    }
    Ok(())
}

fn ternary(kernels: &Kernels, tokens: usize, rounds: usize, rows: usize) {
    let weights = vec![0b01_10_00_01; ROWS * packed_row(COLS)];
    let (q, sums) = (vec![3; tokens * COLS], vec![3 * COLS as i32; tokens]);
    let mut dots = vec![0; rows * tokens];
    for _ in 0..rounds {
        for weights in weights.chunks(rows * packed_row(COLS)) {
            let dots = &mut dots[..weights.len() / packed_row(COLS) * tokens];
            kernels.ternary_gemm(black_box(weights), &q, &sums, dots);
            black_box(dots);
        }
    }
}

fn blocks(kernels: &Kernels, kind: BlockFormat, rounds: usize, rows: usize) {
    let row = RowFormat::from(kind).row_bytes(COLS).expect("the columns are whole blocks of every kind");
    let (weights, x) = (vec![0x11; ROWS * row], vec![0.5; COLS]);
    let mut dots = vec![0.0; rows];
    for _ in 0..rounds {
        for weights in weights.chunks(rows * row) {
            let dots = &mut dots[..weights.len() / row];
            kernels.dot(kind, black_box(weights), &x, dots);
            black_box(dots);
        }
    }
}

fn usage() -> String {
    let names: Vec<&str> = Kernels::all().iter().map(Kernels::name).collect();
    let names = names.join(", ");
    format!("usage: matrix ternary|q8_0|q6_k TABLE TOKENS ROUNDS ROWS; TABLE: {names}; ROWS: 1 to {ROWS}")
}
