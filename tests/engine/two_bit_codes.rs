//! Codes 0 to 3 times int8, as the shortlist uses them, in every kernel table of this CPU: equal to the definition,
//! bit for bit.

use crate::few;
use bitnetd::engine::kernels::Kernels;
use bitnetd::engine::quant::{BLOCK, TWO_BIT_MAX_Q, code, packed_row};
use bitnetd::random::Lcg;

const MOST: i8 = TWO_BIT_MAX_Q as i8;

/// The sum of products, written as the definition says.
fn by_definition(row: &[u8], q: &[i8]) -> i32 {
    q.iter().enumerate().map(|(col, q)| (i32::from(code(row, col)) - 1) * i32::from(*q)).sum()
}

/// Through [`Kernels::two_bit_gemm`], and a single token through [`Kernels::ternary_gemm`] too.
fn check(kernels: &Kernels, rows: &[u8], q: &[i8], cols: usize) {
    let sums: Vec<i32> = q.chunks(cols).map(|q| q.iter().map(|q| i32::from(*q)).sum()).collect();
    let width = packed_row(cols);
    let mut out = vec![i32::MIN; rows.len() / width * sums.len()];
    kernels.two_bit_gemm(rows, q, &sums, &mut out);
    if sums.len() == 1 {
        let mut again = vec![i32::MIN; out.len()];
        kernels.ternary_gemm(rows, q, &sums, &mut again);
        assert_eq!(out, again, "{} cols {cols}", kernels.name());
    }
    let mut dots = out.into_iter();
    for (token, q) in q.chunks(cols).enumerate() {
        for (row, bytes) in rows.chunks(width).enumerate() {
            let at = format!("{} cols {cols} row {row} token {token}", kernels.name());
            assert_eq!(dots.next(), Some(by_definition(bytes, q)), "{at}");
        }
    }
}

/// Random numbers as large as the kernels allow.
fn activations(numbers: &mut Lcg, count: usize) -> Vec<i8> {
    numbers.int8(count).into_iter().map(|q| q.clamp(-MOST, MOST)).collect()
}

#[test]
fn every_table_multiplies_four_codes_as_the_definition_says_at_all_lengths() {
    let mut numbers = Lcg::new(21);
    for kernels in Kernels::all() {
        for blocks in [1, 2, 3, 7, 16, 20, 33] {
            for rows in [0, 1, 2, 3, 4, 5, 7, 8, 9, 31] {
                let cols = blocks * BLOCK;
                let q = activations(&mut numbers, cols);
                check(&kernels, &numbers.bytes(rows * packed_row(cols)), &q, cols);
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
                    let cols = blocks * BLOCK;
                    check(&kernels, &vec![byte; 5 * packed_row(cols)], &vec![q; cols], cols);
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
            check(&kernels, &rows, &q, 17 * BLOCK);
        }
    }
}

#[test]
fn every_table_multiplies_four_codes_of_any_number_of_tokens_as_the_definition_says() {
    let mut numbers = Lcg::new(23);
    for kernels in Kernels::all() {
        for tokens in 1..=17 {
            // The longest shapes last, so that an emulator runs the short ones.
            let shapes = [(5, 3), (2, 16), (33, 1), (1, 2), (17, 20), (9, 17), (130, 5)];
            for (rows, blocks) in shapes.into_iter().take(few(3)) {
                let cols = blocks * BLOCK;
                let q = activations(&mut numbers, tokens * cols);
                check(&kernels, &numbers.bytes(rows * packed_row(cols)), &q, cols);
            }
        }
    }
}

#[test]
fn the_largest_codes_and_numbers_of_several_tokens_overflow_nothing() {
    for kernels in Kernels::all() {
        for tokens in (1..=8).chain([16]) {
            for blocks in [15, 16, 17, 300].into_iter().take(few(3)) {
                for (byte, q) in [(0xff, -MOST), (0xff, MOST), (0x00, -MOST), (0x33, MOST)] {
                    let cols = blocks * BLOCK;
                    check(&kernels, &vec![byte; 3 * packed_row(cols)], &vec![q; tokens * cols], cols);
                }
            }
        }
    }
}
