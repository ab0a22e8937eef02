//! Codes 0 to 3 times int8, as the shortlist uses them, in every kernel table of this CPU: equal to the definition,
//! bit for bit.

use bitnetd::engine::kernels::Kernels;
use bitnetd::engine::quant::{BLOCK, TWO_BIT_MAX_Q, code, packed_row};
use bitnetd::random::Lcg;

const MOST: i8 = TWO_BIT_MAX_Q as i8;

/// The sum of products, written as the definition says.
fn by_definition(row: &[u8], q: &[i8]) -> i32 {
    q.iter().enumerate().map(|(col, q)| (i32::from(code(row, col)) - 1) * i32::from(*q)).sum()
}

fn check(kernels: &Kernels, rows: &[u8], q: &[i8]) {
    let sum = q.iter().map(|q| i32::from(*q)).sum();
    let width = packed_row(q.len());
    let mut out = vec![i32::MIN; rows.len() / width];
    kernels.ternary_gemm(rows, q, &[sum], &mut out);
    for (row, (bytes, dot)) in rows.chunks(width).zip(out).enumerate() {
        assert_eq!(dot, by_definition(bytes, q), "{} cols {} row {row}", kernels.name(), q.len());
    }
}

#[test]
fn every_table_multiplies_four_codes_as_the_definition_says_at_all_lengths() {
    let mut numbers = Lcg::new(21);
    for kernels in Kernels::all() {
        for blocks in [1, 2, 3, 7, 16, 20, 33] {
            for rows in [0, 1, 2, 3, 4, 5, 7, 8, 9, 31] {
                let q = numbers.int8(blocks * BLOCK).into_iter().map(|q| q.clamp(-MOST, MOST));
                check(&kernels, &numbers.bytes(rows * packed_row(blocks * BLOCK)), &Vec::from_iter(q));
            }
        }
    }
}

#[test]
fn the_largest_codes_and_numbers_overflow_nothing() {
    for kernels in Kernels::all() {
        for blocks in [1, 2, 15, 17, 300] {
            for byte in [0x00u8, 0x3f, 0xfc, 0xff] {
                for q in [-MOST, 0, MOST] {
                    check(&kernels, &vec![byte; 5 * packed_row(blocks * BLOCK)], &vec![q; blocks * BLOCK]);
                }
            }
        }
    }
}

#[test]
fn the_largest_codes_against_both_signs_overflow_nothing() {
    let mut numbers = Lcg::new(22);
    let mut is_even = || numbers.next_u31().is_multiple_of(2);
    for kernels in Kernels::all() {
        for _ in 0..20 {
            let q: Vec<i8> = (0..17 * BLOCK).map(|_| if is_even() { MOST } else { -MOST }).collect();
            let bytes = 5 * packed_row(q.len());
            let rows: Vec<u8> = (0..bytes).map(|_| if is_even() { 0xff } else { 0x33 }).collect();
            check(&kernels, &rows, &q);
        }
    }
}
