//! A fixed set of threads that compute the parts of one job at a time, and park when there is none.
//!
//! The thread that calls [`ThreadPool::run`] works too, and takes every part that no other thread has taken: a
//! helper that the system does not schedule costs speed, never progress. Parts are handed out through one atomic
//! word, so that a late helper can neither see a finished job nor take a part of it.
//!
//! Deliberately knows nothing of what a part computes.

mod affinity;
mod disjoint;
mod job;
mod partition;

pub use affinity::{pin_to, processors};
pub use disjoint::ColumnStripe;

use disjoint::{DisjointRows, SendPtr};
use job::{Body, MAX_PARTS, Shared, lock};
use partition::Partition;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A row-major matrix to write to: `[rows, width]`.
#[derive(Debug)]
pub struct MatrixMut<'a, T> {
    data: &'a mut [T],
    width: usize,
}

impl<'a, T> MatrixMut<'a, T> {
    /// Rows of `width` elements; `data` holds whole ones.
    pub fn new(data: &'a mut [T], width: usize) -> Self {
        MatrixMut { data, width }
    }

    /// No matrix at all, where [`ThreadPool::for_each_row`] needs fewer than three: its rows are empty.
    pub fn none() -> Self {
        MatrixMut { data: &mut [], width: 0 }
    }
}

/// The threads of the pool. Dropping it ends them.
pub struct ThreadPool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// Held while a job runs: there is one at a time.
    caller: Mutex<()>,
}

impl ThreadPool {
    /// Starts a pool of `threads`, which include the calling thread. With `cpus`, thread `i` is pinned to CPU
    /// `cpus[i % cpus.len()]`, where the calling thread is thread 0; without, all threads run where the calling
    /// thread may run.
    pub fn new(threads: usize, cpus: &[usize]) -> io::Result<Self> {
        let threads = threads.max(1);
        let shared = Arc::new(Shared::new(threads - 1));
        // Built first, so that an error half way ends the helpers that were already started.
        let mut pool = ThreadPool { shared, helpers: Vec::new(), caller: Mutex::new(()) };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let cpu = cpus.get(index % cpus.len().max(1)).copied();
            let name = format!("compute-{index}");
            let helper = thread::Builder::new().name(name).spawn(move || {
                pin_to(cpu.as_slice());
                shared.run_helper(index - 1);
            })?;
            pool.helpers.push(helper);
        }
        pin_to(&cpus[..cpus.len().min(1)]);
        Ok(pool)
    }

    /// Threads of the pool, including the caller's.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Threads that jobs use, including the caller's: all, unless [`ThreadPool::set_active`] changed it.
    pub fn active(&self) -> usize {
        self.shared.active() + 1
    }

    /// Lets jobs use `threads` from now on, at least the caller's own and at most those of the pool; the others
    /// stay parked. No result may depend on it.
    pub fn set_active(&self, threads: usize) {
        self.shared.set_active(threads.max(1) - 1);
    }

    /// The time that callers spent on other threads, in all: waking those that had parked, and waiting for helpers
    /// to finish after their own parts were done.
    pub fn waited(&self) -> Duration {
        self.shared.waited()
    }

    /// Calls `body(0)`, …, `body(parts - 1)`, each once, on any thread; returns when all are done. A panic in a
    /// part is raised again here after the others are done, and the pool stays usable. A body must not call this
    /// again: it would wait for itself.
    pub fn run(&self, parts: usize, body: Body<'_>) {
        if self.shared.active() == 0 || parts <= 1 {
            (0..parts).for_each(body);
            return;
        }
        assert!(parts <= MAX_PARTS, "{parts} parts in one job");
        let _one_at_a_time = lock(&self.caller);
        self.shared.run(parts, body);
    }

    /// Splits `out` into chunks of `size` and calls `body` with the index of each chunk and the chunk; one thread
    /// gets at least `grain` chunks.
    pub fn for_each_chunk<T: Send>(
        &self,
        out: &mut [T],
        size: usize,
        grain: usize,
        body: impl Fn(usize, &mut [T]) + Sync,
    ) {
        assert!(size > 0 && out.len().is_multiple_of(size), "{} in pieces of {size}", out.len());
        self.for_each_stripe(out, out.len(), size * grain, |mut stripe| {
            for (index, piece) in (stripe.cols().start / size..).zip(stripe.row(0).chunks_exact_mut(size)) {
                body(index, piece);
            }
        });
    }

    /// Splits a row-major matrix `[rows, width]` into stripes of columns that each start at a multiple of `grain`,
    /// and calls `body` with each; every active thread gets a few of them, the largest first.
    pub fn for_each_stripe<T: Send>(
        &self,
        out: &mut [T],
        width: usize,
        grain: usize,
        body: impl Fn(ColumnStripe<'_, T>) + Sync,
    ) {
        self.for_each_stripe_of([MatrixMut::new(out, width)], grain, |_, stripe| body(stripe));
    }

    /// The same for several matrices in one job; `body` also gets the index of the matrix. With a job for each
    /// matrix, threads would wait for the last one at the end of each job.
    pub fn for_each_stripe_of<T: Send, const N: usize>(
        &self,
        matrices: [MatrixMut<'_, T>; N],
        grain: usize,
        body: impl Fn(usize, ColumnStripe<'_, T>) + Sync,
    ) {
        let widths = matrices.each_ref().map(|matrix| matrix.width);
        let starts = matrices.map(|MatrixMut { data, width }| {
            assert!(
                grain > 0 && data.len().is_multiple_of(width.max(1)),
                "{} in rows of {width}",
                data.len()
            );
            (data.len() / width.max(1), SendPtr::new(data))
        });
        // All matrices together may be less than what is worth sharing.
        let threads = if widths.iter().sum::<usize>() <= grain { 1 } else { self.active() };
        // Columns are handed out in grains, those of one matrix after those of the other.
        let cuts = Partition::new(widths.iter().map(|width| width.div_ceil(grain)).sum(), threads);
        let compute = |part: usize| {
            let Range { start, end } = cuts.part(part);
            let mut before = 0;
            for (which, (width, (rows, matrix))) in widths.iter().zip(&starts).enumerate() {
                let here = |cut: usize| (cut.saturating_sub(before) * grain).min(*width);
                let cols = here(start)..here(end);
                if !cols.is_empty() {
                    // SAFETY: the matrix has `rows` rows of its width, and the columns of two parts do not overlap.
                    body(which, unsafe { matrix.stripe(*width, *rows, cols) });
                }
                before += width.div_ceil(grain);
            }
        };
        self.run(cuts.parts(), &compute);
    }

    /// Calls `body` with `i` and row `i` of three matrices; one thread gets at least `grain` rows. A matrix of
    /// width 0 has as many rows as the first one, all empty.
    pub fn for_each_row<A: Send, B: Send, C: Send>(
        &self,
        a: MatrixMut<'_, A>,
        b: MatrixMut<'_, B>,
        c: MatrixMut<'_, C>,
        grain: usize,
        body: impl Fn(usize, &mut [A], &mut [B], &mut [C]) + Sync,
    ) {
        let rows = a.data.len() / a.width.max(1);
        let a = DisjointRows::new(a.data, a.width, rows);
        let b = DisjointRows::new(b.data, b.width, rows);
        let c = DisjointRows::new(c.data, c.width, rows);
        let cuts = Partition::new(rows.div_ceil(grain), self.active());
        self.run(cuts.parts(), &|part| {
            let Range { start, end } = cuts.part(part);
            for row in start * grain..(end * grain).min(rows) {
                // SAFETY: the matrices have that many rows, and no two parts have a row in common.
                let (a, b, c) = unsafe { (a.row(row), b.row(row), c.row(row)) };
                body(row, a, b, c);
            }
        });
    }

    /// The number of equal parts to split work into where the speed of a part is known.
    pub fn preferred_parts(&self) -> usize {
        if self.active() == 1 { 1 } else { 4 * self.active() }
    }

    /// How long it takes to hand a job over and get it back: the median of `rounds` jobs of two empty parts, each
    /// on its own thread, one after the other. `None` where only one thread is active.
    pub fn handoff_latency(&self, rounds: usize) -> Option<Duration> {
        if self.active() == 1 || rounds == 0 {
            return None;
        }
        let mut times: Vec<Duration> = (0..rounds).map(|_| self.handoff_once()).collect();
        times.sort_unstable();
        Some(times[rounds / 2])
    }

    fn handoff_once(&self) -> Duration {
        let is_taken = AtomicBool::new(false);
        let started = Instant::now();
        self.run(2, &|part| match part {
            // Without this wait the thread would be done with both parts before another has seen the job.
            0 => spin_briefly(|| is_taken.load(Ordering::Relaxed)),
            _ => is_taken.store(true, Ordering::Relaxed),
        });
        started.elapsed()
    }
}

/// Waits one millisecond at most, because the other thread may not be scheduled.
fn spin_briefly(is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() && started.elapsed() < Duration::from_millis(1) {
        std::hint::spin_loop();
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.close();
        for helper in self.helpers.drain(..) {
            // A helper catches the panics of its parts; a panic of its own has nothing left to stop.
            let _ = helper.join();
        }
    }
}

impl std::fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::AtomicUsize;

    fn pool(threads: usize) -> ThreadPool {
        ThreadPool::new(threads, &[]).expect("threads can be started")
    }

    #[test]
    fn every_part_is_computed_once() {
        for threads in [1, 2, 3, 8] {
            let pool = pool(threads);
            for round in 0..300 {
                let parts = round % 17;
                let counts: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
                pool.run(parts, &|part| {
                    counts[part].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_panic_in_a_part_reaches_the_caller_and_the_pool_goes_on() {
        let pool = pool(3);
        let finished = AtomicUsize::new(0);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.run(8, &|part| {
                assert_ne!(part, 5, "part five fails");
                finished.fetch_add(1, Ordering::Relaxed);
            });
        }));
        assert!(caught.is_err());
        assert_eq!(finished.load(Ordering::Relaxed), 7);
        let again = AtomicUsize::new(0);
        pool.run(8, &|_| {
            again.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(again.load(Ordering::Relaxed), 8);
    }

    /// Whether the second of two parts begins while the first one waits for it.
    fn is_shared(pool: &ThreadPool) -> bool {
        let (begun, seen) = (AtomicBool::new(false), AtomicBool::new(false));
        pool.run(2, &|part| match part {
            0 => seen.store(comes_true(&begun), Ordering::SeqCst),
            _ => begun.store(true, Ordering::SeqCst),
        });
        seen.into_inner()
    }

    fn comes_true(flag: &AtomicBool) -> bool {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !flag.load(Ordering::SeqCst) && Instant::now() < deadline {
            thread::yield_now();
        }
        flag.load(Ordering::SeqCst)
    }

    #[test]
    fn a_helper_takes_part_whether_it_was_spinning_or_parked() {
        let pool = pool(2);
        for round in 0..200 {
            assert!(is_shared(&pool));
            // From none to several times as long as a helper looks before it parks.
            thread::park_timeout(Duration::from_micros(round % 20 * 100));
        }
    }

    #[test]
    fn a_caller_that_parks_is_woken_by_the_last_part_and_only_waiting_is_counted() {
        let pool = pool(2);
        pool.run(1, &|_| ());
        assert_eq!(pool.waited(), Duration::ZERO);
        // A caller that the kernel delays may find its part done, and then it does not wait.
        for _ in 0..200 {
            if pool.waited() >= Duration::from_millis(1) {
                break;
            }
            let begun = AtomicBool::new(false);
            pool.run(2, &|part| match part {
                0 => assert!(comes_true(&begun)),
                _ => {
                    begun.store(true, Ordering::SeqCst);
                    thread::park_timeout(Duration::from_millis(5));
                }
            });
        }
        assert!(pool.waited() >= Duration::from_millis(1));
    }

    #[test]
    fn only_active_threads_take_parts_and_others_may_return() {
        let pool = pool(3);
        let names = |active| {
            pool.set_active(active);
            let seen = Mutex::new(std::collections::BTreeSet::new());
            let me = thread::current().id();
            for _ in 0..300 {
                pool.run(6, &|_| {
                    let now = thread::current();
                    let name = if now.id() == me { "caller" } else { now.name().unwrap_or_default() };
                    lock(&seen).insert(name.to_owned());
                });
            }
            seen.into_inner().expect("no panic")
        };
        assert_eq!(Vec::from_iter(names(1)), ["caller"]);
        assert!(!names(2).contains("compute-2"));
        assert_eq!((pool.threads(), pool.active()), (3, 2));
        pool.set_active(99);
        assert_eq!(pool.active(), 3);
        assert!(is_shared(&pool));
        pool.set_active(0);
        assert_eq!(pool.active(), 1);
    }

    #[test]
    fn handoff_latency_is_measured_only_with_a_second_thread() {
        let pool = pool(2);
        assert!(pool.handoff_latency(101).is_some_and(|median| median > Duration::ZERO));
        pool.set_active(1);
        assert_eq!(pool.handoff_latency(101), None);
    }

    #[test]
    fn stripes_cover_a_matrix_once() {
        let pool = pool(3);
        for (rows, width, grain) in [(1, 1, 1), (3, 100, 16), (2, 7, 64), (5, 33, 4)] {
            let mut out = vec![0u32; rows * width];
            pool.for_each_stripe(&mut out, width, grain, |mut stripe| {
                assert_eq!(stripe.cols().start % grain, 0);
                for row in 0..rows {
                    stripe.row(row).iter_mut().for_each(|x| *x += 1);
                }
            });
            assert!(out.iter().all(|x| *x == 1));
        }
    }

    #[test]
    fn stripes_of_several_matrices_cover_each_once() {
        for threads in [1, 3] {
            let pool = pool(threads);
            for (rows, widths, grain) in
                [(1, [1, 1, 1], 1), (3, [100, 20, 20], 16), (2, [7, 0, 3], 64), (5, [33, 64, 1], 4)]
            {
                let mut outs = widths.map(|width| vec![0usize; rows * width]);
                let [a, b, c] = &mut outs;
                let mut width = widths.into_iter();
                let matrices = [a, b, c].map(|out| MatrixMut::new(out, width.next().unwrap_or(0)));
                pool.for_each_stripe_of(matrices, grain, |which, mut stripe| {
                    assert_eq!(stripe.cols().start % grain, 0);
                    for row in 0..rows {
                        stripe.row(row).iter_mut().for_each(|x| *x += which + 1);
                    }
                });
                for (which, out) in outs.iter().enumerate() {
                    assert!(out.iter().all(|x| *x == which + 1), "{which} of {widths:?}");
                }
            }
        }
    }

    #[test]
    fn rows_of_three_matrices_come_together_and_once() {
        for (threads, rows, grain) in [(1, 5, 1), (3, 1, 1), (3, 50, 1), (2, 9, 4), (3, 0, 2)] {
            let (mut a, mut b) = (vec![0usize; 3 * rows], vec![0u8; rows]);
            let (left, right) = (MatrixMut::new(&mut a[..], 3), MatrixMut::new(&mut b[..], 1));
            pool(threads).for_each_row(left, MatrixMut::<()>::none(), right, grain, |row, a, none, b| {
                assert_eq!((a.len(), none.len(), b.len()), (3, 0, 1));
                a.iter_mut().for_each(|x| *x += row + 1);
                b[0] += row as u8 + 1;
            });
            assert!(a.iter().enumerate().all(|(at, x)| *x == at / 3 + 1));
            assert!(b.iter().enumerate().all(|(at, x)| usize::from(*x) == at + 1));
        }
    }

    #[test]
    fn pieces_come_with_their_index() {
        let mut out = vec![0usize; 12];
        pool(2).for_each_chunk(&mut out, 3, 1, |index, piece| piece.fill(index));
        assert_eq!(out, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]);
    }
}
