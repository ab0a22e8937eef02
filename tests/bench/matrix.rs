//! One matrix through one kernel, for `tests/bench/arm` to count instructions; and the time of a pass by its tokens.
//!
//! `matrix WEIGHTS TABLE TOKENS ROUNDS ROWS`: `ternary`, `q8_0` or `q6_k`; the kernels' name; tokens of a
//! pass (1 for all but ternary); passes; rows of a call. The time of the kernels does not depend on the numbers, so weights and
//! activations are the cheapest there are: what is made before the first pass is executed, too.
//!
//! `matrix times TABLE THREADS MEGABYTES ROUNDS`: passes of 1 to 128 tokens in turn, over the same rows in the L2 cache
//! and over the next 32 MB of so many in memory. Prints medians, and what a pass takes as a multiple of one token's.

use bitnetd::engine::kernels::Kernels;
use bitnetd::engine::quant::{BlockFormat, RowFormat, packed_row};
use std::hint::black_box;
use std::time::Instant;

/// The largest shape of BitNet-b1.58-2B-4T.
const ROWS: usize = 6912;
const COLS: usize = 2560;

fn main() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [weights, table, numbers @ ..] = arguments.as_slice() else { return Err(usage()) };
    let numbers: Vec<usize> = numbers.iter().filter_map(|number| number.parse().ok()).collect();
    let [tokens, rounds, rows] = numbers[..] else { return Err(usage()) };
    let kernels = Kernels::named(table).ok_or_else(usage)?;
    if weights == "times" {
        let [threads, megabytes, rounds] = [tokens, rounds, rows];
        return if [threads, megabytes, rounds].contains(&0) {
            Err(usage())
        } else {
            times(&kernels, threads, megabytes, rounds);
            Ok(())
        };
    }
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

/// Tokens of a pass whose time is measured.
const TOKENS: [usize; 22] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 20, 24, 32, 48, 64, 128];
/// Bytes that a pass reads of the weights in memory.
const PART: usize = 32 << 20;
/// Rows that a pass reads from the L2 cache, and how often.
const CACHED: (usize, usize) = (896, 16);
/// Integer sums of a call, as the engine has them.
const SUMS: usize = 2048;
/// Rows of a call of the batch kernel.
const BATCH_ROWS: usize = 896;

/// Seconds for each weight byte of a pass over `weights`, in the calls that the engine makes.
fn time_pass(kernels: &Kernels, weights: &[u8], q: &[i8], passes: usize) -> f64 {
    let (n, width) = (q.len() / COLS, packed_row(COLS));
    let is_batch = kernels.batch_min_tokens().is_some_and(|fewest| n >= fewest);
    let tokens = if is_batch { n } else { kernels.tile_tokens() };
    let rows = if is_batch { BATCH_ROWS } else { SUMS / n.min(tokens) };
    let mut dots = [0; BATCH_ROWS * TOKENS[TOKENS.len() - 1]];
    let started = Instant::now();
    for _ in 0..passes {
        for weights in weights.chunks(rows * width) {
            for q in q.chunks(tokens * COLS) {
                let (tokens, rows) = (q.len() / COLS, weights.len() / width);
                let dots = &mut dots[..tokens * rows];
                kernels.ternary_gemm_codes(black_box(weights), q, tokens, dots);
                black_box(dots);
            }
        }
    }
    started.elapsed().as_secs_f64() / (passes * weights.len()) as f64
}

fn times(kernels: &Kernels, threads: usize, megabytes: usize, rounds: usize) {
    let width = packed_row(COLS);
    let part = PART / width / threads * width;
    let weights = vec![0b01_10_00_01; (megabytes << 20).max(2 * threads * part) + 64];
    // Whole cache lines, as a model's rows are.
    let weights = &weights[weights.as_ptr().align_offset(64)..];
    let q: Vec<i8> = vec![3; TOKENS[TOKENS.len() - 1] * COLS];
    let mut times = [const { [const { Vec::new() }; TOKENS.len()] }; 2];
    let mut at = 0;
    for _ in 0..rounds {
        for (index, tokens) in TOKENS.into_iter().enumerate() {
            let q = &q[..tokens * COLS];
            // Each thread has its own rows.
            let each = |weights: &[u8], distance: usize, len: usize, passes: usize| {
                let seconds: Vec<f64> = std::thread::scope(|scope| {
                    let run =
                        |thread| move || time_pass(kernels, &weights[thread * distance..][..len], q, passes);
                    let workers: Vec<_> = (0..threads).map(|thread| scope.spawn(run(thread))).collect();
                    workers.into_iter().map(|worker| worker.join().expect("no panic")).collect()
                });
                seconds.into_iter().fold(0.0, f64::max)
            };
            times[0][index].push(each(&weights[at..], part, part, 1));
            times[1][index].push(each(weights, CACHED.0 * width, CACHED.0 * width, CACHED.1));
            at += threads * part;
            if at + threads * part > weights.len() {
                at = 0;
            }
        }
    }
    println!(
        "{}, {threads} threads, {megabytes} MB, {rounds} rounds; ns for 256 weights, multiples of one token's",
        kernels.name()
    );
    let medians = times.map(|times| times.map(|times| median(times) * 64e9));
    for (index, tokens) in TOKENS.into_iter().enumerate() {
        let [memory, cache] =
            [0, 1].map(|which| (medians[which][index], medians[which][index] / medians[which][0]));
        let [a, b] = [memory, cache]
            .map(|(ns, ratio)| format!("{ns:6.2} {ratio:5.2} ({:.2} tokens)", tokens as f64 / ratio));
        println!("{tokens:2} tokens: memory {a}; L2 {b}");
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
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
