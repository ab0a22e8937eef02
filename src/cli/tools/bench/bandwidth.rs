//! How fast the threads of a pool read memory, whatever order suits this processor best.

use super::report::spread;
use crate::engine::pool::Pool;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Larger than any cache; a small device gives a sixteenth of its memory.
const MOST_BYTES: u64 = 256 << 20;
/// Words of a cache line.
const LINE: usize = 8;
/// How long each order is measured in a round that was too short for a look.
const EACH: Duration = Duration::from_millis(150);

/// One way through the memory of a part: how many streams it is read in, side by side.
type Reader = fn(&[u64]) -> u64;
/// One core keeps more lines under way when it reads several streams far apart (Zen 4: 27 GB/s with four, 24
/// with one), others prefetch a single one best.
const ORDERS: [Reader; 3] = [sum::<1>, sum::<4>, sum::<8>];

/// A block of memory, and how fast it was read so far.
pub(super) struct Memory {
    block: Vec<u64>,
    /// What the looks of this round took, order by order.
    looks: [Duration; ORDERS.len()],
    /// How many they were.
    count: usize,
    /// Bytes a second of every round, order by order.
    speeds: [Vec<f64>; ORDERS.len()],
}

impl Memory {
    /// A block that suits a device with `memory` bytes.
    pub fn new(memory: u64) -> Self {
        let words = (memory / 16).min(MOST_BYTES) as usize / size_of::<u64>();
        // Ones: zeroed memory would all be one page of the system's.
        Memory {
            block: vec![1; words.next_multiple_of(LINE).max(LINE)],
            looks: Default::default(),
            count: 0,
            speeds: Default::default(),
        }
    }

    /// Reads the block once in each order. The speed of a shared machine's memory wanders within a second, by half and
    /// more, so this is done in the middle of what it is compared with, many times a round.
    pub fn look(&mut self, pool: &Pool) {
        for (order, took) in ORDERS.iter().zip(&mut self.looks) {
            let started = Instant::now();
            read(&self.block, pool, *order);
            *took += started.elapsed();
        }
        self.count += 1;
    }

    /// Ends a round, in which it was read as fast as all of its looks together. Where it was too short for one, it is
    /// looked at for a while now.
    pub fn end_round(&mut self, pool: &Pool) {
        if self.count == 0 {
            while self.looks.iter().sum::<Duration>() < EACH * ORDERS.len() as u32 {
                self.look(pool);
            }
        }
        let bytes = (std::mem::take(&mut self.count) * size_of_val(&self.block[..])) as f64;
        for (took, speeds) in std::mem::take(&mut self.looks).iter().zip(&mut self.speeds) {
            speeds.push(bytes / took.as_secs_f64());
        }
    }

    /// Bytes a second of each round in the best order.
    pub fn bandwidth(self) -> Vec<f64> {
        let median = |speeds: &Vec<f64>| spread(speeds.clone()).median;
        self.speeds.into_iter().max_by(|a, b| median(a).total_cmp(&median(b))).expect("there are orders")
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
            memory.look(&pool);
            memory.end_round(&pool);
            memory.end_round(&pool);
            assert!(matches!(memory.bandwidth()[..], [a, b] if a > 0.0 && b > 0.0));
        }
    }
}
