//! Kernels that read rows once for several vectors: bit for bit as for single vectors, in every kernel table of
//! this CPU.

use crate::formats;
use bitnetd::engine::kernels::Kernels;
use bitnetd::engine::quant::{FloatFormat, RowFormat};
use bitnetd::random::Lcg;
use half::f16;

const VECTORS: [usize; 7] = [0, 1, 2, 3, 4, 5, 9];
const ROWS: [usize; 7] = [0, 1, 3, 4, 5, 16, 66];

/// Rows of plain numbers at any address.
fn halves(numbers: &mut Lcg, count: usize) -> Vec<u8> {
    let rows = numbers.floats(count).into_iter().flat_map(|x| f16::from_f32(x).to_le_bytes());
    std::iter::once(0).chain(rows).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn check(kernels: &Kernels, numbers: &mut Lcg, (kind, rows): (RowFormat, &[u8]), cols: usize) {
    let count = rows.len() / kind.row_bytes(cols).expect("whole blocks");
    for vectors in VECTORS {
        let (xs, weights) = (numbers.floats(vectors * cols), numbers.floats(vectors * count));
        let (mut dots, mut alone) = (vec![0.0; vectors * count], vec![1.0; vectors * count]);
        kernels.dot_batch(kind, rows, &xs, cols, &mut dots);
        let mut mixed = numbers.floats(vectors * cols);
        let mut mixed_alone = mixed.clone();
        kernels.weighted_sum_batch(kind, rows, &weights, cols, &mut mixed);
        for at in 0..vectors {
            let (x, part) = (at * cols..(at + 1) * cols, at * count..(at + 1) * count);
            kernels.dot(kind, rows, &xs[x.clone()], &mut alone[part.clone()]);
            kernels.weighted_sum(kind, rows, &weights[part], &mut mixed_alone[x]);
        }
        let what = format!("{}: {vectors} vectors, {count} rows of {cols}", kernels.name());
        assert_eq!(bits(&dots), bits(&alone), "{what}");
        assert_eq!(bits(&mixed), bits(&mixed_alone), "{what}");
    }
}

#[test]
fn batched_half_precision_rows_give_the_same_bits_as_single_vectors() {
    let mut numbers = Lcg::new(31);
    for kernels in Kernels::all() {
        for cols in [1, 8, 16, 24, 48, 64, 80, 128, 192, 257] {
            for count in ROWS {
                let bytes = halves(&mut numbers, count * cols);
                check(&kernels, &mut numbers, (FloatFormat::F16.into(), &bytes[1..]), cols);
            }
        }
    }
}

#[test]
fn rows_of_other_formats_do_too() {
    let mut numbers = Lcg::new(32);
    for kernels in Kernels::all() {
        for count in ROWS {
            let floats: Vec<u8> =
                numbers.floats(count * 48).into_iter().flat_map(|x| x.to_le_bytes()).collect();
            check(&kernels, &mut numbers, (FloatFormat::F32.into(), &floats), 48);
            for (_, kind) in formats::ALL {
                let (cols, bytes) = kind.block_size();
                // Scales of zero: sums of any codes are numbers.
                check(&kernels, &mut numbers, (kind.into(), &vec![0; count * 2 * bytes]), 2 * cols);
            }
        }
    }
}

#[test]
#[should_panic(expected = "3 bytes in rows of 32")]
fn rows_that_are_not_whole_are_refused() {
    Kernels::detect().dot_batch(FloatFormat::F16, &[0; 3], &[0.0; 16], 16, &mut []);
}
