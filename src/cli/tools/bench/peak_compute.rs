//! Measures the peak speed of a thread pool at multiply-accumulates: the prefill kernel with all its data in the
//! caches. Deliberately knows no model.

use crate::engine::kernels::Kernels;
use crate::engine::model::BATCH;
use crate::engine::quant::packed_row;
use crate::engine::thread_pool::ThreadPool;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The size of a matrix that fits the L2 cache together with its derived tables, and on which the kernel is hardly
/// slower than on larger ones (Zen 4, GMAC/s: 223 with 128 rows of 512 columns, 283 with 448 of 1024, 290 with
/// this, 294 with 896 of 2560).
const ROWS: usize = 896;
const COLS: usize = 512;
/// How long a probe takes before a prompt, and again after it.
const EACH: Duration = Duration::from_millis(20);

/// A matrix, the activations of some tokens, and the measurements so far.
pub(super) struct ComputeProbe {
    kernels: Kernels,
    weights: Vec<u8>,
    q: Vec<i8>,
    /// `[tokens, ROWS]` for each thread.
    outs: Vec<Mutex<Vec<i32>>>,
    /// Multiply-accumulates of this round, and their time.
    count: usize,
    took: Duration,
    /// Multiply-accumulates per second of every round.
    speeds: Vec<f64>,
}

impl ComputeProbe {
    /// A probe for a prompt of `tokens`, or as many of them as `kernels` take in one call.
    pub fn new(kernels: Kernels, pool: &ThreadPool, tokens: usize) -> Self {
        let tokens = tokens.min(kernels.batch_min_tokens().map_or(kernels.tile_tokens(), |_| BATCH));
        ComputeProbe {
            kernels,
            weights: vec![0b10_01_00_01; ROWS * packed_row(COLS)],
            q: vec![1; tokens * COLS],
            // Filled with ones, so that the pages are mapped.
            outs: (0..pool.threads()).map(|_| vec![1; tokens * ROWS].into()).collect(),
            count: 0,
            took: Duration::ZERO,
            speeds: Vec::new(),
        }
    }

    /// Multiplies for a while on `threads` of the pool. The speed of a shared machine varies by a third from one
    /// moment to the next, so it is probed right before and after what it is compared with.
    pub fn probe(&mut self, pool: &ThreadPool, threads: usize) {
        let (active, count, tokens) = (pool.active(), AtomicUsize::new(0), self.q.len() / COLS);
        pool.set_active(threads);
        let started = Instant::now();
        pool.run(threads, &|thread| {
            let mut out = self.outs[thread].lock().unwrap_or_else(PoisonError::into_inner);
            while started.elapsed() < EACH {
                self.kernels.ternary_gemm_codes(&self.weights, &self.q, tokens, &mut out);
                count.fetch_add(tokens * ROWS * COLS, Ordering::Relaxed);
            }
        });
        self.took += started.elapsed();
        self.count += count.into_inner();
        pool.set_active(active);
    }

    /// Ends a round with at least one probe.
    pub fn end_round(&mut self) {
        let (count, took) = (std::mem::take(&mut self.count), std::mem::take(&mut self.took));
        self.speeds.push(count as f64 / took.as_secs_f64());
    }

    /// Multiply-accumulates per second of each round.
    pub fn speeds(self) -> Vec<f64> {
        self.speeds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_is_measured_on_any_number_of_threads() {
        for kernels in Kernels::all() {
            for (threads, tokens) in [(1, 1), (2, 9), (3, 200)] {
                let pool = ThreadPool::new(threads, &[]).expect("threads can be started");
                let mut arithmetic = ComputeProbe::new(kernels, &pool, tokens);
                pool.set_active(1);
                arithmetic.probe(&pool, threads);
                assert_eq!(pool.active(), 1, "as it was before");
                arithmetic.end_round();
                let row = arithmetic.outs[0].lock().expect("no thread panicked")[0];
                assert_eq!(row, COLS as i32, "the mean of the codes is 1");
                assert!(matches!(arithmetic.speeds()[..], [speed] if speed > 0.0));
            }
        }
    }
}
