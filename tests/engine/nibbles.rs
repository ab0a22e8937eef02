//! 4-bit codes times int8, in every table this processor runs: equal to the definition, to the last bit.

use crate::kernels::Random;
use bitnetd::engine::kernels::Kernels;
use bitnetd::engine::quant::{NIBBLE_BLOCK, nibble};

/// The sum of products, written as the definition says.
fn by_definition(row: &[u8], q: &[i8]) -> i32 {
    q.iter().enumerate().map(|(col, q)| (i32::from(nibble(row, col)) - 8) * i32::from(*q)).sum()
}

fn check(kernels: &Kernels, rows: &[u8], q: &[i8]) {
    let sum = q.iter().map(|q| i32::from(*q)).sum();
    let width = q.len() / 2;
    let mut out = vec![i32::MIN; rows.len() / width];
    kernels.nibbles(rows, q, sum, &mut out);
    for (row, (bytes, dot)) in rows.chunks(width).zip(out).enumerate() {
        assert_eq!(dot, by_definition(bytes, q), "{} cols {} row {row}", kernels.name(), q.len());
    }
}

#[test]
fn every_table_multiplies_nibbles_as_the_definition_says_at_all_lengths() {
    let mut numbers = Random(21);
    for kernels in Kernels::all() {
        for blocks in [1, 2, 3, 7, 8, 20, 33] {
            for rows in [0, 1, 2, 3, 4, 5, 7, 8, 9, 31] {
                let q = numbers.int8(blocks * NIBBLE_BLOCK);
                check(&kernels, &numbers.bytes(rows * q.len() / 2), &q);
            }
        }
    }
}

#[test]
fn extreme_nibbles_overflow_nothing() {
    for kernels in Kernels::all() {
        for blocks in [1, 2, 17, 300] {
            for byte in [0x00u8, 0x0f, 0xf0, 0x88, 0xff] {
                for q in [-128i8, -127, 0, 127] {
                    let q = vec![q; blocks * NIBBLE_BLOCK];
                    check(&kernels, &vec![byte; 5 * q.len() / 2], &q);
                }
            }
        }
    }
}

#[test]
fn extreme_nibbles_against_both_signs_overflow_nothing() {
    let mut numbers = Random(22);
    for kernels in Kernels::all() {
        for _ in 0..20 {
            let pick = |x: u32, a, b| if x.is_multiple_of(2) { a } else { b };
            let q: Vec<i8> = (0..3 * NIBBLE_BLOCK).map(|_| pick(numbers.next(), -128, 127) as i8).collect();
            let rows: Vec<u8> =
                (0..5 * q.len() / 2).map(|_| pick(numbers.next(), 0xf0, 0x0f) as u8).collect();
            check(&kernels, &rows, &q);
        }
    }
}

#[test]
fn rows_of_nibbles_need_no_alignment() {
    let mut numbers = Random(23);
    for kernels in Kernels::all() {
        for offset in 1..9 {
            let q = numbers.int8(offset + 2 * NIBBLE_BLOCK);
            let rows = numbers.bytes(offset + 6 * NIBBLE_BLOCK);
            check(&kernels, &rows[offset..], &q[offset..]);
        }
    }
}

#[test]
fn the_low_nibbles_of_a_block_are_its_first_64_numbers() {
    let row: Vec<u8> = (0..128u8).collect();
    let code = |byte: u8, high: bool| if high { byte >> 4 } else { byte & 15 };
    let want = (0..256).map(|col| code((col / 128 * 64 + col % 64) as u8, col % 128 >= 64));
    assert!((0..256).map(|col| nibble(&row, col)).eq(want));
}

#[test]
#[should_panic]
fn nibbles_of_another_width_are_refused() {
    Kernels::detect().nibbles(&[0; 65], &[0; 128], 0, &mut [0]);
}

#[test]
#[should_panic]
fn part_of_a_block_of_nibbles_is_refused() {
    Kernels::detect().nibbles(&[0; 32], &[0; 64], 0, &mut [0]);
}
