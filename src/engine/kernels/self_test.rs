//! Compares a table with the reference on random numbers, so that a device can test its own kernels.

use super::{Kernels, scalar};
use crate::engine::quant::{BLOCK, BlockFormat, FloatFormat, RowFormat, TWO_BIT_MAX_Q, packed_row};
use crate::random::Lcg;
use half::f16;

/// Enough rows for every code path of a table.
const ROWS: usize = 133;
/// Columns: an odd number of whole blocks.
const COLS: usize = 17 * BLOCK;

/// Block formats, and the offsets in a block of its half-precision scales.
const BLOCKS: [(BlockFormat, &[usize]); 4] = [
    (BlockFormat::Q4_0, &[0]),
    (BlockFormat::Q8_0, &[0]),
    (BlockFormat::Q4K, &[0, 2]),
    (BlockFormat::Q6K, &[208]),
];
/// Columns of the float tests: whole blocks of each format.
const FLOATS: usize = 5 * 256;
/// Vectors at a time: one whole tile and one more.
const VECTORS: usize = 5;
/// The rounding error that is allowed, as a share of the summed magnitudes: some hundred times what occurs in sums
/// of [`FLOATS`] numbers, and far below the error of any wrong number.
const ROUNDING: f64 = 1e-5;

/// The error says where `table` and the reference differ.
pub(super) fn run(table: &Kernels, seed: u64) -> Result<(), String> {
    let mut numbers = Lcg::new(seed);
    check_ternary(table, &mut numbers)?;
    two_bit_codes(table, &mut numbers)?;
    // Half precision allows any length: one has a rest behind the last whole register.
    for cols in [FLOATS, FLOATS + 5] {
        let mut rows = vec![0; ROWS * cols * FloatFormat::F16.size()];
        FloatFormat::F16.write(&mut rows, &numbers.floats(ROWS * cols));
        check_float_kernels(table, &mut numbers, FloatFormat::F16.into(), &rows, cols)?;
    }
    for (kind, scales) in BLOCKS {
        let rows = random_blocks(&mut numbers, kind, scales);
        check_float_kernels(table, &mut numbers, kind.into(), &rows, FLOATS)?;
    }
    Ok(())
}

fn check_ternary(table: &Kernels, numbers: &mut Lcg) -> Result<(), String> {
    let weights = numbers.ternary_codes(ROWS * packed_row(COLS));
    // Each tile size of the table, and behind the batch size some numbers of tokens that leave a partial tile.
    let tiled = table.tiles.all().iter().map(|tile| tile.tokens);
    let batch = table.batch.into_iter().flat_map(|batch| batch.min_tokens..batch.min_tokens + 8);
    let counts: Vec<usize> = tiled.chain(batch).collect();
    let most = counts.iter().copied().max().unwrap_or(1);
    let q = numbers.int8(most * COLS);
    let sums: Vec<i32> = q.chunks(COLS).map(sum).collect();
    for tokens in counts {
        let (mut ours, mut reference) = (vec![0; ROWS * tokens], vec![0; ROWS * tokens]);
        table.ternary_gemm(&weights, &q[..tokens * COLS], &sums[..tokens], &mut ours);
        scalar::TABLE.ternary_gemm(&weights, &q[..tokens * COLS], &sums[..tokens], &mut reference);
        check_equal(table, "ternary", &ours, &reference)?;
    }
    Ok(())
}

/// Codes from 0 to 3, as the shortlist of the head uses them, for each tile size.
fn two_bit_codes(table: &Kernels, numbers: &mut Lcg) -> Result<(), String> {
    let rows = numbers.bytes(ROWS * packed_row(COLS));
    let most = TWO_BIT_MAX_Q as i8;
    for tokens in table.two_bit_tiles.all().iter().map(|tile| tile.tokens) {
        let q: Vec<i8> = numbers.int8(tokens * COLS).into_iter().map(|q| q.clamp(-most, most)).collect();
        let sums: Vec<i32> = q.chunks(COLS).map(sum).collect();
        let (mut ours, mut reference) = (vec![0; ROWS * tokens], vec![0; ROWS * tokens]);
        table.two_bit_gemm(&rows, &q, &sums, &mut ours);
        scalar::TABLE.two_bit_gemm(&rows, &q, &sums, &mut reference);
        check_equal(table, "four codes", &ours, &reference)?;
    }
    Ok(())
}

/// Rows of random codes with scales from -1 to 1.
fn random_blocks(numbers: &mut Lcg, kind: BlockFormat, scales: &[usize]) -> Vec<u8> {
    let (len, bytes) = kind.block_size();
    let mut rows = numbers.bytes(ROWS * FLOATS / len * bytes);
    for block in rows.chunks_exact_mut(bytes) {
        for (at, scale) in scales.iter().zip(numbers.floats(scales.len())) {
            block[*at..][..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        }
    }
    rows
}

/// Compares float kernels with sums in double precision, and batches of vectors bit for bit with single ones.
fn check_float_kernels(
    table: &Kernels,
    numbers: &mut Lcg,
    kind: RowFormat,
    rows: &[u8],
    cols: usize,
) -> Result<(), String> {
    let name = match kind {
        RowFormat::Float(kind) => format!("{kind:?}"),
        RowFormat::Block(kind) => format!("{kind:?}"),
    };
    let mut plain = vec![0.0; ROWS * cols];
    let row_bytes = rows.len() / ROWS;
    for (bytes, row) in rows.chunks_exact(row_bytes).zip(plain.chunks_exact_mut(cols)) {
        kind.read(bytes, row);
    }
    let column = |col: usize| plain[col..].iter().copied().step_by(cols);

    let xs = numbers.floats(VECTORS * cols);
    let mut dots = vec![0.0; VECTORS * ROWS];
    for (x, dots) in xs.chunks_exact(cols).zip(dots.chunks_exact_mut(ROWS)) {
        table.dot(kind, rows, x, dots);
        let wanted = plain.chunks_exact(cols).map(|row| dot_in_f64(row.iter().copied(), x));
        check_near(table, &format!("{name} times a vector, row"), dots, wanted)?;
    }
    let weights = numbers.floats(VECTORS * ROWS);
    let mut mixes = vec![0.0; VECTORS * cols];
    for (weights, mixes) in weights.chunks_exact(ROWS).zip(mixes.chunks_exact_mut(cols)) {
        table.weighted_sum(kind, rows, weights, mixes);
        let wanted = (0..cols).map(|col| dot_in_f64(column(col), weights));
        check_near(table, &format!("sum of {name} rows, column"), mixes, wanted)?;
    }

    let reference = scalar::TABLE;
    let (mut wanted_dots, mut wanted_mixes) = (vec![0.0; dots.len()], vec![0.0; mixes.len()]);
    reference.dot_batch(kind, rows, &xs, cols, &mut wanted_dots);
    reference.weighted_sum_batch(kind, rows, &weights, cols, &mut wanted_mixes);
    if dots != wanted_dots || mixes != wanted_mixes {
        return Err(format!("kernel {}, {name}: rounded otherwise than by the reference", table.name));
    }

    let (mut shared_dots, mut shared_mixes) = (vec![0.0; dots.len()], vec![0.0; mixes.len()]);
    table.dot_batch(kind, rows, &xs, cols, &mut shared_dots);
    table.weighted_sum_batch(kind, rows, &weights, cols, &mut shared_mixes);
    let same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
    match same(&dots, &shared_dots) && same(&mixes, &shared_mixes) {
        true => Ok(()),
        false => {
            Err(format!("kernel {}, {name} with {VECTORS} vectors: other bits than with one", table.name))
        }
    }
}

/// The sum of the products, and the sum of their magnitudes.
fn dot_in_f64(a: impl Iterator<Item = f32>, b: &[f32]) -> (f64, f64) {
    let products = a.zip(b).map(|(a, b)| f64::from(a) * f64::from(*b));
    products.fold((0.0, 0.0), |(sum, size), product| (sum + product, size + product.abs()))
}

/// Checks that sums are as expected except for rounding.
fn check_near(
    table: &Kernels,
    what: &str,
    ours: &[f32],
    wanted: impl Iterator<Item = (f64, f64)>,
) -> Result<(), String> {
    for (at, (ours, (sum, size))) in ours.iter().zip(wanted).enumerate() {
        // Written so that NaN does not pass.
        let near = (f64::from(*ours) - sum).abs() <= ROUNDING * size;
        if !near {
            return Err(format!("kernel {}, {what} {at}: {ours} instead of {sum}", table.name));
        }
    }
    Ok(())
}

fn sum(q: &[i8]) -> i32 {
    q.iter().map(|q| i32::from(*q)).sum()
}

/// Checks that two integer results, both `[tokens, ROWS]`, are equal.
fn check_equal(table: &Kernels, what: &str, ours: &[i32], reference: &[i32]) -> Result<(), String> {
    let Some(at) = ours.iter().zip(reference).position(|(a, b)| a != b) else { return Ok(()) };
    let (row, token) = (at % ROWS, at / ROWS);
    let (name, ours, reference) = (table.name, ours[at], reference[at]);
    Err(format!("kernel {name}, {what}: row {row}, token {token}: {ours} instead of {reference}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::kernels::tiles::{Tile, Tiles};

    /// Leaves out the first column, which is the smallest possible error of a sum.
    fn short_f16(rows: &[u8], x: &[f32], out: &mut [f32]) {
        let mut x = x.to_vec();
        x[0] = 0.0;
        // SAFETY: plain Rust, and lengths as they were.
        unsafe { (scalar::TABLE.dot_f16)(rows, &x, out) }
    }

    fn nan_f16(_: &[u8], _: &[f32], out: &mut [f32]) {
        out.fill(f32::NAN);
    }

    fn first_row_only(kind: BlockFormat, rows: &[u8], weights: &[f32], out: &mut [f32]) {
        // SAFETY: the same.
        unsafe {
            (scalar::TABLE.weighted_sum_blocks)(kind, &rows[..rows.len() / weights.len()], &weights[..1], out)
        }
    }

    fn last_sum_off_by_one(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
        // SAFETY: the same.
        unsafe { (scalar::TABLE.tiles.next(1).kernel)(weights, q, cols, out) }
        *out.last_mut().expect("a row") += 1;
    }

    const WRONG: &[Tile] = &[Tile::new(1, 1, last_sum_off_by_one)];

    #[test]
    fn a_wrong_kernel_is_reported_with_row_and_token() {
        let table = scalar::TABLE;
        let error_of = |wrong: Kernels| run(&wrong, 7).expect_err("wrong");
        let message = error_of(Kernels { dot_f16: short_f16, ..table });
        assert!(message.starts_with("kernel scalar, F16 times a vector, row "), "{message}");
        let message = error_of(Kernels { dot_f16: nan_f16, ..table });
        assert!(message.contains(" row 0: NaN instead of "), "{message}");
        let message = error_of(Kernels { weighted_sum_blocks: first_row_only, ..table });
        assert!(message.starts_with("kernel scalar, sum of Q4_0 rows, column 0: "), "{message}");
        let message = error_of(Kernels { tiles: Tiles::new(WRONG), ..table });
        assert!(message.starts_with("kernel scalar, ternary: row 132, token 0: "), "{message}");
        let message = error_of(Kernels { two_bit_tiles: Tiles::new(WRONG), ..table });
        assert!(message.starts_with("kernel scalar, four codes: row 132, token 0: "), "{message}");
    }
}
