//! Measures the memory bandwidth of a thread pool, with the access pattern that suits this processor best.
//! Deliberately knows no model.

use super::report::summary;
use crate::engine::thread_pool::ThreadPool;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Larger than any cache; on a small device a sixteenth of its memory is used.
const MAX_BLOCK: u64 = 256 << 20;
/// Words per cache line.
const LINE_WORDS: usize = 8;
/// How long each pattern is measured in a round that was too short for a probe.
const MIN_ROUND: Duration = Duration::from_millis(150);

/// Reads a part of the memory, in a number of streams side by side.
type Reader = fn(&[u64]) -> u64;
/// Some cores keep more cache lines in flight when they read several streams far apart (Zen 4: 27 GB/s with four,
/// 24 with one), others prefetch a single stream best.
const READERS: [Reader; 3] = [sum::<1>, sum::<4>, sum::<8>];

/// A block of memory, and the measurements so far.
pub(super) struct BandwidthProbe {
    block: Vec<u64>,
    /// The time of the probes of this round, for each pattern.
    took: [Duration; READERS.len()],
    /// The number of probes of this round.
    probes: usize,
    /// Bytes per second of every round, for each pattern.
    speeds: [Vec<f64>; READERS.len()],
}

impl BandwidthProbe {
    /// A block that suits a device with `memory` bytes.
    pub fn new(memory: u64) -> Self {
        let words = (memory / 16).min(MAX_BLOCK) as usize / size_of::<u64>();
        // Filled with ones, since zeroed memory would all be mapped to one page.
        BandwidthProbe {
            block: vec![1; words.next_multiple_of(LINE_WORDS).max(LINE_WORDS)],
            took: Default::default(),
            probes: 0,
            speeds: Default::default(),
        }
    }

    /// Reads the block once with each pattern. The memory bandwidth of a shared machine varies by half within a
    /// second, so it is probed many times in the middle of what it is compared with.
    pub fn probe(&mut self, pool: &ThreadPool) {
        for (order, took) in READERS.iter().zip(&mut self.took) {
            let started = Instant::now();
            read(&self.block, pool, *order);
            *took += started.elapsed();
        }
        self.probes += 1;
    }

    /// Ends a round, whose speed is that of all its probes together. Where the round was too short for one, it is
    /// probed now.
    pub fn end_round(&mut self, pool: &ThreadPool) {
        if self.probes == 0 {
            while self.took.iter().sum::<Duration>() < MIN_ROUND * READERS.len() as u32 {
                self.probe(pool);
            }
        }
        let bytes = (std::mem::take(&mut self.probes) * size_of_val(&self.block[..])) as f64;
        for (took, speeds) in std::mem::take(&mut self.took).iter().zip(&mut self.speeds) {
            speeds.push(bytes / took.as_secs_f64());
        }
    }

    /// Bytes per second of each round with the best pattern.
    pub fn bandwidth(self) -> Vec<f64> {
        let median = |speeds: &Vec<f64>| summary(speeds.clone()).median;
        self.speeds.into_iter().max_by(|a, b| median(a).total_cmp(&median(b))).expect("there are orders")
    }
}

/// One pass over `block`.
fn read(block: &[u64], pool: &ThreadPool, order: Reader) {
    let total = AtomicU64::new(0);
    // As many parts as a matrix is divided into, for the threads of the last forward pass.
    let part = block.len().div_ceil(4 * pool.active()).next_multiple_of(LINE_WORDS);
    pool.run(block.len().div_ceil(part), &|index| {
        let words = &block[index * part..((index + 1) * part).min(block.len())];
        total.fetch_add(order(words), Ordering::Relaxed);
    });
    assert_eq!(total.into_inner(), block.len() as u64, "every word was read once");
}

/// The sum of all words, read in `STREAMS` streams side by side, a cache line of each in turn.
fn sum<const STREAMS: usize>(words: &[u64]) -> u64 {
    let (lines, rest) = words.as_chunks::<LINE_WORDS>();
    let length = lines.len() / STREAMS;
    let streams: [&[[u64; LINE_WORDS]]; STREAMS] =
        std::array::from_fn(|stream| &lines[stream * length..][..length]);
    let mut sums = [0u64; LINE_WORDS];
    let mut add = |line: &[u64; LINE_WORDS]| sums.iter_mut().zip(line).for_each(|(sum, word)| *sum += word);
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
    fn every_access_pattern_reads_every_word_once() {
        for length in [0, 7, 8, 9, 64, 129, 1000] {
            let words: Vec<u64> = (0..length).collect();
            for order in READERS {
                assert_eq!(order(&words), words.iter().sum::<u64>(), "{length} words");
            }
        }
    }

    #[test]
    fn a_block_is_read_by_any_number_of_threads() {
        for threads in [1, 2, 3] {
            let pool = ThreadPool::new(threads, &[]).expect("threads can be started");
            let mut memory = BandwidthProbe::new(1 << 20);
            memory.probe(&pool);
            memory.end_round(&pool);
            memory.end_round(&pool);
            assert!(matches!(memory.bandwidth()[..], [a, b] if a > 0.0 && b > 0.0));
        }
    }
}
