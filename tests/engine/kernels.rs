//! Every kernel table of this CPU against the scalar one: integers are equal bit for bit.

use crate::{few, formats};
use bitnetd::engine::kernels::Kernels;
use bitnetd::engine::quant::{BLOCK, FloatFormat, RowFormat, code, packed_row};
use bitnetd::random::Lcg;
use half::f16;

/// Each row times each token, a row after the other: sums of products, written as the definition says. Rows are unpacked
/// once each, since under an emulator this takes longer than the kernels.
fn by_definition(weights: &[u8], q: &[i8], cols: usize) -> Vec<Vec<i32>> {
    let rows = weights.chunks(packed_row(cols)).map(|row| {
        let codes: Vec<i32> = (0..cols).map(|col| i32::from(code(row, col)) - 1).collect();
        let times = |q: &[i8]| codes.iter().zip(q).map(|(code, q)| code * i32::from(*q)).sum();
        q.chunks(cols).map(times).collect()
    });
    rows.collect()
}

/// All tables multiply the same numbers.
fn check_ternary(weights: &[u8], q: &[i8], cols: usize) {
    let (rows, tokens) = (weights.len() / packed_row(cols), q.len() / cols);
    let sums: Vec<i32> = q.chunks(cols).map(|row| row.iter().map(|q| i32::from(*q)).sum()).collect();
    let want = by_definition(weights, q, cols);
    for kernels in Kernels::all() {
        let mut out = vec![i32::MIN; rows * tokens];
        kernels.ternary_gemm(weights, q, &sums, &mut out);
        for (row, want) in want.iter().enumerate() {
            for (token, want) in want.iter().enumerate() {
                let dot = out[token * rows + row];
                assert_eq!(dot, *want, "{} cols {cols} row {row} token {token}", kernels.name());
            }
        }
    }
}

#[test]
fn every_table_multiplies_as_the_definition_says_at_all_lengths() {
    let mut numbers = Lcg::new(1);
    // Around 128 blocks a kernel may begin another span of a row.
    for blocks in [1, 2, 3, 14, 15, 16, 17, 30, 31, 45, 54, 127, 129, 258] {
        for (rows, tokens) in [(1, 1), (3, 2), (2, 4), (5, 5), (4, 9), (19, 1), (11, 6), (17, 15)] {
            let cols = blocks * BLOCK;
            let weights = numbers.ternary_codes(rows * packed_row(cols));
            let q = numbers.int8(tokens * cols);
            check_ternary(&weights, &q, cols);
        }
    }
}

/// Rows in twos and fours and what is left of them; bands of rows, with a rest that is worth a band and
/// one that is not. Tokens in tiles of four and of eight, and what is left.
const SHAPES: [(usize, usize); 8] =
    [(4, 1), (6, 1), (7, 8), (8, 9), (129, 8), (130, 17), (256 + 128, 8), (256 + 127, 8)];

#[test]
fn every_table_multiplies_as_the_definition_says_for_any_number_of_rows_and_tokens() {
    let mut numbers = Lcg::new(5);
    for (rows, tokens) in SHAPES {
        for blocks in [1, 5] {
            let cols = blocks * BLOCK;
            let weights = numbers.ternary_codes(rows * packed_row(cols));
            let q = numbers.int8(tokens * cols);
            check_ternary(&weights, &q, cols);
        }
    }
}

#[test]
fn tokens_that_no_whole_tile_takes_are_multiplied_as_the_definition_says() {
    let mut numbers = Lcg::new(10);
    let tile = Kernels::all().iter().map(Kernels::tile_tokens).max().expect("one at least");
    for tokens in 1..=2 * tile {
        for rows in [5, 130] {
            let cols = 3 * BLOCK;
            let weights = numbers.ternary_codes(rows * packed_row(cols));
            check_ternary(&weights, &numbers.int8(tokens * cols), cols);
        }
    }
}

/// Tokens that requests decode together.
const TOGETHER: std::ops::RangeInclusive<usize> = 1..=16;

#[test]
fn every_number_of_tokens_is_multiplied_as_the_definition_says_for_any_rows_and_columns() {
    let mut numbers = Lcg::new(13);
    for tokens in TOGETHER {
        // Rows around the twos, threes, fours and eights that kernels read side by side; columns around the
        // 15 blocks of 16-bit sums and the pairs of blocks of a wide register. The short ones first.
        for rows in [1, 9, 2, 3, 4, 7, 8, 13, 16, 17].into_iter().take(few(2)) {
            for blocks in [1, 16, 2, 3, 15, 17, 20, 31].into_iter().take(few(2)) {
                let cols = blocks * BLOCK;
                let weights = numbers.ternary_codes(rows * packed_row(cols));
                check_ternary(&weights, &numbers.int8(tokens * cols), cols);
            }
        }
    }
}

#[test]
fn extreme_values_overflow_nothing_with_any_number_of_tokens() {
    let mut numbers = Lcg::new(14);
    for tokens in TOGETHER {
        for (rows, blocks) in [(3, 17), (9, 15), (8, 16), (2, 54)].into_iter().take(few(1)) {
            let cols = blocks * BLOCK;
            for byte in [0b00_00_00_00u8, 0b10_10_10_10] {
                for q in [-128i8, 127] {
                    let weights = vec![byte; rows * packed_row(cols)];
                    check_ternary(&weights, &vec![q; tokens * cols], cols);
                }
            }
            let weights = numbers.ternary_codes(rows * packed_row(cols));
            let either = |number: u8| if number.is_multiple_of(2) { -128i8 } else { 127 };
            let q: Vec<i8> = numbers.bytes(tokens * cols).into_iter().map(either).collect();
            check_ternary(&weights, &q, cols);
        }
    }
}

#[test]
fn each_token_has_the_sums_that_it_has_alone_whatever_tokens_stand_beside_it() {
    let mut numbers = Lcg::new(15);
    let (rows, cols) = (37, 5 * BLOCK);
    for kernels in Kernels::all() {
        let weights = numbers.ternary_codes(rows * packed_row(cols));
        let q = numbers.int8(16 * cols);
        let mut alone = vec![0; 16 * rows];
        for (q, out) in q.chunks(cols).zip(alone.chunks_mut(rows)) {
            kernels.ternary_gemm_codes(&weights, q, 1, out);
        }
        for tokens in TOGETHER {
            for first in 0..=16 - tokens {
                let mut out = vec![i32::MIN; tokens * rows];
                let q = &q[first * cols..(first + tokens) * cols];
                kernels.ternary_gemm_codes(&weights, q, tokens, &mut out);
                assert_eq!(out, alone[first * rows..(first + tokens) * rows], "{} {tokens}", kernels.name());
            }
        }
    }
}

#[test]
fn many_tokens_are_multiplied_as_the_definition_says_whatever_tiles_they_make() {
    let mut numbers = Lcg::new(11);
    for tokens in (24..=37).chain([64]) {
        // Chunks of 256 columns, the last one short; the last 32 rows are whole, one or nearly all.
        for (rows, blocks) in [(112, 3), (113, 1), (159, 5)] {
            let cols = blocks * BLOCK;
            let weights = numbers.ternary_codes(rows * packed_row(cols));
            check_ternary(&weights, &numbers.int8(tokens * cols), cols);
        }
    }
}

#[test]
fn many_tokens_are_multiplied_as_the_definition_says_for_any_number_of_rows() {
    let mut numbers = Lcg::new(12);
    // Around the fewest rows for another way, and around a span of 896.
    for rows in [1, 31, 111, 128, 511, 512, 513, 545, 896, 897, 1025] {
        let cols = 3 * BLOCK;
        let weights = numbers.ternary_codes(rows * packed_row(cols));
        check_ternary(&weights, &numbers.int8(25 * cols), cols);
    }
}

#[test]
fn extreme_values_overflow_nothing() {
    for (blocks, rows, tokens) in
        [(4, 5, 1), (15, 5, 5), (16, 2, 8), (17, 2, 9), (31, 5, 1), (64, 4, 8), (5, 128, 8), (5, 128, 24)]
    {
        let cols = blocks * BLOCK;
        for byte in [0b00_00_00_00u8, 0b01_01_01_01, 0b10_10_10_10] {
            for q in [-128i8, -127, 127, 0] {
                let weights = vec![byte; rows * packed_row(cols)];
                check_ternary(&weights, &vec![q; tokens * cols], cols);
            }
        }
    }
}

#[test]
fn extreme_values_of_both_signs_overflow_nothing() {
    let mut numbers = Lcg::new(6);
    let cols = 17 * BLOCK;
    for (rows, tokens) in [(5, 1), (5, 8), (128, 8), (128, 24)] {
        let mut one_of = |two: [u8; 2], count: usize| -> Vec<u8> {
            (0..count).map(|_| two[numbers.next_u31() as usize % 2]).collect()
        };
        let weights = one_of([0b00_10_00_10, 0b10_10_10_00], rows * packed_row(cols));
        let q = one_of([0x80, 0x7f], tokens * cols).into_iter().map(|q| q as i8).collect::<Vec<i8>>();
        check_ternary(&weights, &q, cols);
    }
}

#[test]
fn a_row_of_bytes_without_meaning_does_no_harm_to_the_others() {
    let mut numbers = Lcg::new(7);
    for tokens in [9, 24] {
        let (rows, cols) = (130, 3 * BLOCK);
        let mut weights = numbers.ternary_codes(rows * packed_row(cols));
        for row in [1, 64, rows - 1] {
            weights[row * packed_row(cols)..][..packed_row(cols)].fill(0xff);
        }
        let q = numbers.int8(tokens * cols);
        let sums: Vec<i32> = q.chunks(cols).map(|row| row.iter().map(|q| i32::from(*q)).sum()).collect();
        let want = by_definition(&weights, &q, cols);
        for kernels in Kernels::all() {
            let mut out = vec![i32::MIN; rows * tokens];
            kernels.ternary_gemm(&weights, &q, &sums, &mut out);
            for (at, dot) in out.iter().enumerate() {
                let (token, row) = (at / rows, at % rows);
                let meant = ![1, 64, rows - 1].contains(&row);
                assert!(!meant || *dot == want[row][token], "{} row {row} token {token}", kernels.name());
            }
        }
    }
}

#[test]
fn rows_need_no_alignment() {
    let mut numbers = Lcg::new(2);
    let cols = 3 * BLOCK;
    for (offset, rows, tokens) in
        (0..9).map(|offset| (offset, 5, 9)).chain([(1, 128, 8), (7, 130, 8), (3, 130, 24)])
    {
        let weights = numbers.ternary_codes(offset + rows * packed_row(cols));
        let q = numbers.int8(offset + tokens * cols);
        check_ternary(&weights[offset..], &q[offset..], cols);
    }
}

#[test]
fn float_rows_agree_with_exact_sums_at_all_lengths_and_alignments() {
    let mut numbers = Lcg::new(3);
    for kernels in Kernels::all() {
        for cols in (1..40).chain([64, 100, 128, 257]) {
            let x: Vec<f32> = numbers.floats(cols);
            let rows: Vec<f16> = (0..3 * cols).map(|_| f16::from_f32(numbers.float())).collect();
            let bytes: Vec<u8> =
                std::iter::once(0).chain(rows.iter().flat_map(|h| h.to_le_bytes())).collect();
            let mut out = [0.0f32; 3];
            kernels.dot(FloatFormat::F16, &bytes[1..], &x, &mut out);
            for (row, out) in rows.chunks(cols).zip(out) {
                let exact: f64 = row.iter().zip(&x).map(|(h, x)| h.to_f64() * f64::from(*x)).sum();
                assert!((f64::from(out) - exact).abs() < 1e-5 * cols as f64, "{} {cols}", kernels.name());
            }
            let mut mixed = vec![1.0f32; cols];
            kernels.weighted_sum(FloatFormat::F16, &bytes[1..], &[0.5, -2.0, 3.0], &mut mixed);
            for (col, mixed) in mixed.iter().enumerate() {
                let at = |row: usize| rows[row * cols + col].to_f32();
                let exact = 1.0 + 0.5 * at(0) - 2.0 * at(1) + 3.0 * at(2);
                assert!((mixed - exact).abs() < 1e-5, "{} {cols}", kernels.name());
            }
        }
    }
}

/// Blocks of random codes with scales of usual size.
fn blocks(numbers: &mut Lcg, name: &str, count: usize) -> Vec<u8> {
    let usual = formats::bytes(&format!("{name}.blocks"));
    let (_, kind) = formats::ALL.into_iter().find(|(other, _)| *other == name).expect("a format");
    let blocks: Vec<&[u8]> = usual.chunks_exact(kind.block_size().1).skip(16).collect();
    (0..count).flat_map(|_| blocks[numbers.next_u31() as usize % blocks.len()].to_vec()).collect()
}

#[test]
fn rows_of_blocks_agree_with_exact_sums_at_all_lengths_and_alignments() {
    let mut numbers = Lcg::new(4);
    for kernels in Kernels::all() {
        for (name, kind) in formats::ALL {
            for (count, offset) in [(1, 0), (2, 1), (3, 7), (7, 2), (10, 3)] {
                let (rows, cols) = (3, count * kind.block_size().0);
                let bytes = [vec![0; offset], blocks(&mut numbers, name, rows * count)].concat();
                let x: Vec<f32> = numbers.floats(cols);
                let (mut out, mut read) = (vec![0.0f32; rows], vec![0.0f32; rows * cols]);
                kernels.dot(kind, &bytes[offset..], &x, &mut out);
                RowFormat::from(kind).read(&bytes[offset..], &mut read);
                for (row, out) in read.chunks(cols).zip(out) {
                    let products = row.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                    let (exact, size) = products.fold((0.0, 0.0), |(a, b), x| (a + x, b + x.abs()));
                    let error = (f64::from(out) - exact).abs();
                    assert!(error < 1e-6 * size, "{} {name} {cols}: {error} of {size}", kernels.name());
                }
            }
        }
    }
}

#[test]
fn a_mix_of_rows_of_blocks_agrees_with_exact_sums_at_all_lengths_and_alignments() {
    let mut numbers = Lcg::new(8);
    for kernels in Kernels::all() {
        for (name, kind) in formats::ALL {
            for (count, rows, offset) in [(1, 1, 0), (2, 0, 1), (4, 3, 7), (7, 64, 2), (3, 9, 3)] {
                let cols = count * kind.block_size().0;
                let bytes = [vec![0; offset], blocks(&mut numbers, name, rows * count)].concat();
                let weights: Vec<f32> = numbers.floats(rows);
                let start: Vec<f32> = numbers.floats(cols);
                let (mut out, mut read) = (start.clone(), vec![0.0f32; rows * cols]);
                kernels.weighted_sum(kind, &bytes[offset..], &weights, &mut out);
                RowFormat::from(kind).read(&bytes[offset..], &mut read);
                for (col, out) in out.iter().enumerate() {
                    let products = weights.iter().zip(read.chunks(cols));
                    let products = products.map(|(weight, row)| f64::from(*weight) * f64::from(row[col]));
                    let first = f64::from(start[col]);
                    let (exact, size) = products.fold((first, first.abs()), |(a, b), x| (a + x, b + x.abs()));
                    let error = (f64::from(*out) - exact).abs();
                    assert!(error <= 2e-6 * size, "{} {name} {cols}: {error} of {size}", kernels.name());
                }
            }
        }
    }
}

#[test]
fn a_row_of_blocks_has_the_same_sum_whatever_rows_stand_beside_it() {
    let mut numbers = Lcg::new(9);
    for kernels in Kernels::all() {
        for (name, kind) in formats::ALL {
            let (rows, count) = (11, 5);
            let bytes = blocks(&mut numbers, name, rows * count);
            let x: Vec<f32> = (0..count * kind.block_size().0).map(|_| numbers.float()).collect();
            let mut all = vec![0.0; rows];
            kernels.dot(kind, &bytes, &x, &mut all);
            for (row, want) in bytes.chunks(count * kind.block_size().1).zip(all) {
                let mut alone = [0.0];
                kernels.dot(kind, row, &x, &mut alone);
                assert_eq!(alone[0].to_bits(), want.to_bits(), "{} {name}", kernels.name());
            }
        }
    }
}

#[test]
#[should_panic(expected = "rows are whole blocks")]
fn rows_that_are_no_whole_blocks_are_refused() {
    Kernels::detect().dot(formats::ALL[1].1, &[0; 34], &[0.0; 33], &mut [0.0]);
}

#[test]
#[should_panic(expected = "rows are whole blocks")]
fn a_mix_of_rows_that_are_no_whole_blocks_is_refused() {
    Kernels::detect().weighted_sum(formats::ALL[1].1, &[0; 34], &[1.0], &mut [0.0; 33]);
}

#[test]
fn half_precision_extremes_are_read_right() {
    let values = [0.0, -0.0, 65504.0, -65504.0, 6.0e-8, 6.1e-5, 1.0, f32::INFINITY].map(f16::from_f32);
    let bytes: Vec<u8> = values.iter().flat_map(|h| h.to_le_bytes()).collect();
    for kernels in Kernels::all() {
        for (at, value) in values.iter().enumerate() {
            let mut out = [0.0];
            kernels.dot(FloatFormat::F16, &bytes[at * 2..at * 2 + 2], &[2.0], &mut out);
            assert_eq!(out[0], value.to_f32() * 2.0, "{}", kernels.name());
        }
    }
}

#[test]
fn the_expected_tables_are_there() {
    let names: Vec<&str> = Kernels::all().iter().map(Kernels::name).collect();
    assert_eq!(names[0], "scalar");
    #[cfg(target_arch = "aarch64")]
    assert!(names.contains(&"neon"));
    #[cfg(target_arch = "aarch64")]
    assert_eq!(names.contains(&"neon-dotprod"), std::arch::is_aarch64_feature_detected!("dotprod"));
    #[cfg(target_arch = "x86_64")]
    {
        let fma = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        assert_eq!(names.contains(&"avx2"), fma);
        assert_eq!(names.contains(&"avx-vnni"), fma && is_x86_feature_detected!("avxvnni"));
        let wide = is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512vnni");
        assert_eq!(names.contains(&"avx512vl-vnni"), wide);
        assert_eq!(names.contains(&"avx512-vnni"), wide && is_x86_feature_detected!("avx512bw"));
    }
}

#[test]
fn of_several_tables_the_widest_is_preferred() {
    let names: Vec<&str> = Kernels::all().iter().map(Kernels::name).collect();
    let best_first = ["avx512-vnni", "avx-vnni", "avx512vl-vnni", "avx2", "neon-dotprod", "neon", "scalar"];
    assert!(names.iter().rev().eq(best_first.iter().filter(|name| names.contains(name))), "{names:?}");
    assert_eq!(Kernels::detect().name(), names[names.len() - 1]);
}

#[test]
fn the_self_test_passes_on_every_table() {
    for kernels in Kernels::all() {
        assert_eq!(kernels.self_test(11), Ok(()));
    }
}

#[test]
#[should_panic]
fn lengths_that_do_not_agree_are_refused() {
    Kernels::detect().ternary_gemm(&[0; 31], &[0; 128], &[0], &mut [0]);
}
