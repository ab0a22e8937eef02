//! A table against the reference, on numbers made from a seed: what a device can ask of itself.

use super::{Kernels, scalar};
use crate::engine::quant::{BLOCK, SCREEN_Q, packed_row};

/// Rows enough for every way that a table has.
const ROWS: usize = 133;
/// Columns: whole blocks, an odd number of them.
const COLS: usize = 17 * BLOCK;

/// Numbers that depend on the seed only.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        // Steps of a linear congruential generator (Knuth's constants): any numbers will do.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    fn int8(&mut self, count: usize) -> Vec<i8> {
        (0..count).map(|_| self.next() as i8).collect()
    }
}

/// `Err` says where `table` and the reference part.
pub(super) fn run(table: &Kernels, seed: u64) -> Result<(), String> {
    let mut numbers = Random(seed);
    ternary(table, &mut numbers)?;
    four_codes(table, &mut numbers)
}

fn ternary(table: &Kernels, numbers: &mut Random) -> Result<(), String> {
    let weights: Vec<u8> = (0..ROWS * packed_row(COLS))
        .map(|_| (0..4).fold(0, |byte, _| byte << 2 | (numbers.next() % 3) as u8))
        .collect();
    let many = table.many.map_or(0, |many| many.tokens);
    let q = numbers.int8(many.max(table.ternary[0].0) * COLS);
    let sums: Vec<i32> = q.chunks(COLS).map(sum).collect();
    for tokens in table.ternary.iter().map(|(tokens, _)| *tokens).chain((many > 0).then_some(many)) {
        let (mut ours, mut reference) = (vec![0; ROWS * tokens], vec![0; ROWS * tokens]);
        table.ternary(&weights, &q[..tokens * COLS], &sums[..tokens], &mut ours);
        scalar::TABLE.ternary(&weights, &q[..tokens * COLS], &sums[..tokens], &mut reference);
        compare(table, "ternary", &ours, &reference)?;
    }
    Ok(())
}

/// One token and codes from 0 to 3, as a screen has them.
fn four_codes(table: &Kernels, numbers: &mut Random) -> Result<(), String> {
    let rows: Vec<u8> = (0..ROWS * packed_row(COLS)).map(|_| numbers.next() as u8).collect();
    let most = SCREEN_Q as i8;
    let q: Vec<i8> = numbers.int8(COLS).into_iter().map(|q| q.clamp(-most, most)).collect();
    let (mut ours, mut reference) = (vec![0; ROWS], vec![0; ROWS]);
    table.ternary(&rows, &q, &[sum(&q)], &mut ours);
    scalar::TABLE.ternary(&rows, &q, &[sum(&q)], &mut reference);
    compare(table, "four codes", &ours, &reference)
}

fn sum(q: &[i8]) -> i32 {
    q.iter().map(|q| i32::from(*q)).sum()
}

/// Both `[tokens, ROWS]`.
fn compare(table: &Kernels, what: &str, ours: &[i32], reference: &[i32]) -> Result<(), String> {
    let Some(at) = ours.iter().zip(reference).position(|(a, b)| a != b) else { return Ok(()) };
    let (row, token) = (at % ROWS, at / ROWS);
    let (name, ours, reference) = (table.name, ours[at], reference[at]);
    Err(format!("kernel {name}, {what}: row {row}, token {token}: {ours} instead of {reference}"))
}
