//! One matrix through one kernel, for `tests/bench/arm` to count instructions.
//!
//! `matrix TABLE TOKENS ROUNDS ROWS`: the kernels' name, tokens of a pass, passes, rows of a call. The
//! time of the kernels does not depend on the numbers, so weights and activations are the cheapest there
//! are: what is made before the first pass is executed, too.

use bitnetd::engine::kernels::Kernels;
use bitnetd::engine::quant::packed_row;
use std::hint::black_box;

/// The largest shape of BitNet-b1.58-2B-4T.
const ROWS: usize = 6912;
const COLS: usize = 2560;

fn main() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [table, numbers @ ..] = arguments.as_slice() else { return Err(usage()) };
    let numbers: Vec<usize> = numbers.iter().filter_map(|number| number.parse().ok()).collect();
    let [tokens, rounds, rows] = numbers[..] else { return Err(usage()) };
    let kernels = Kernels::named(table).ok_or_else(usage)?;
    if tokens == 0 || !(1..=ROWS).contains(&rows) {
        return Err(usage());
    }
    let weights = vec![0b01_10_00_01; ROWS * packed_row(COLS)];
    let (q, sums) = (vec![3; tokens * COLS], vec![3 * COLS as i32; tokens]);
    let mut dots = vec![0; rows * tokens];
    for _ in 0..rounds {
        for weights in weights.chunks(rows * packed_row(COLS)) {
            let dots = &mut dots[..weights.len() / packed_row(COLS) * tokens];
            kernels.ternary(black_box(weights), &q, &sums, dots);
            black_box(dots);
        }
    }
    Ok(())
}

fn usage() -> String {
    let names: Vec<&str> = Kernels::all().iter().map(Kernels::name).collect();
    format!("usage: matrix TABLE TOKENS ROUNDS ROWS; TABLE: {}; ROWS: 1 to {ROWS}", names.join(", "))
}
