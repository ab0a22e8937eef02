//! How fast the threads of a pool read memory, whatever order suits this processor best.

use super::report::{Spread, spread};
use crate::engine::pool::Pool;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Larger than any cache; a small device gives a sixteenth of its memory.
const MOST_BYTES: u64 = 256 << 20;
/// Words of a cache line.
const LINE: usize = 8;
/// How long each order is measured between two measurements of the model. Those are means over seconds in
/// which other programs ran too: a short look would find a gap between them, or none.
const EACH: Duration = Duration::from_millis(150);

/// One way through the memory of a part: how many streams it is read in, side by side.
type Reader = fn(&[u64]) -> u64;
/// One core keeps more lines under way when it reads several streams far apart (Zen 4: 27 GB/s with four, 24
/// with one), others prefetch a single one best.
const ORDERS: [Reader; 3] = [sum::<1>, sum::<4>, sum::<8>];

/// A block of memory, and how fast it was read so far.
pub(super) struct Memory {
    block: Vec<u64>,
    /// Bytes a second of every measurement, order by order.
    speeds: [Vec<f64>; ORDERS.len()],
}

impl Memory {
    /// A block that suits a device with `memory` bytes.
    pub fn new(memory: u64) -> Self {
        let words = (memory / 16).min(MOST_BYTES) as usize / size_of::<u64>();
        // Ones: zeroed memory would all be one page of the system's.
        Memory { block: vec![1; words.next_multiple_of(LINE).max(LINE)], speeds: Default::default() }
    }

    /// Reads the block for a while in each order. The speed of a shared machine's memory wanders, so this
    /// is done between the measurements it is compared with.
    pub fn measure(&mut self, pool: &Pool) {
        for (order, speeds) in ORDERS.iter().zip(&mut self.speeds) {
            speeds.push(speed(&self.block, pool, *order));
        }
    }

    /// Bytes a second in the best order.
    ///
    /// # Panics
    /// Before the first measurement.
    pub fn bandwidth(self) -> Spread {
        let spreads = self.speeds.into_iter().map(spread);
        spreads.max_by(|a, b| a.median.total_cmp(&b.median)).expect("there are orders")
    }
}

/// Bytes a second, over as many passes as take [`EACH`].
fn speed(block: &[u64], pool: &Pool, order: Reader) -> f64 {
    let (started, mut bytes) = (Instant::now(), 0);
    loop {
        read(block, pool, order);
        bytes += size_of_val(block);
        let took = started.elapsed();
        if took >= EACH {
            return bytes as f64 / took.as_secs_f64();
        }
    }
}

/// One pass over `block`.
fn read(block: &[u64], pool: &Pool, order: Reader) {
    let total = AtomicU64::new(0);
    // As many parts as a matrix is cut into, for the threads that the last pass used.
    let part = block.len().div_ceil(4 * pool.active()).next_multiple_of(LINE);
    pool.run(block.len().div_ceil(part), &|index| {
        let words = &block[index * part..((index + 1) * part).min(block.len())];
        total.fetch_add(order(words), Ordering::Relaxed);
    });
    assert_eq!(total.into_inner(), block.len() as u64, "every word was read once");
}

/// Sum of all words, read in `STREAMS` streams side by side, a line of each in turn.
fn sum<const STREAMS: usize>(words: &[u64]) -> u64 {
    let (lines, rest) = words.as_chunks::<LINE>();
    let length = lines.len() / STREAMS;
    let streams: [&[[u64; LINE]]; STREAMS] =
        std::array::from_fn(|stream| &lines[stream * length..][..length]);
    let mut sums = [0u64; LINE];
    let mut add = |line: &[u64; LINE]| sums.iter_mut().zip(line).for_each(|(sum, word)| *sum += word);
    for at in 0..length {
        streams.iter().for_each(|stream| add(&stream[at]));
    }
    lines[length * STREAMS..].iter().for_each(add);
    sums.iter().chain(rest).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_reads_every_word_once() {
        for length in [0, 7, 8, 9, 64, 129, 1000] {
            let words: Vec<u64> = (0..length).collect();
            for order in ORDERS {
                assert_eq!(order(&words), words.iter().sum::<u64>(), "{length} words");
            }
        }
    }

    #[test]
    fn a_block_is_read_by_any_number_of_threads() {
        for threads in [1, 2, 3] {
            let pool = Pool::new(threads, &[]).expect("threads can be started");
            let mut memory = Memory::new(1 << 20);
            memory.measure(&pool);
            let read = memory.bandwidth();
            assert!(0.0 < read.min && read.min <= read.median && read.median <= read.max);
        }
    }
}
