//! A fixed set of threads that compute parts of one job at a time, and park when there is none.
//!
//! The thread that calls [`Pool::run`] works too, and takes every part that no other thread has
//! taken: a helper that the system does not schedule costs speed, never progress. Parts are handed
//! out through one atomic word, so a late helper can neither see a finished job nor take a part of
//! it. Deliberately knows nothing of what a part does.

use std::any::Any;
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Looks at the job word before a thread parks: some ten microseconds, the time between two jobs of
/// one decode step. Waking a parked thread costs more than that, spinning longer only burns power.
const SPINS: u32 = 2_000;
/// Most parts of one job: the job word has 16 bits for them.
const MAX_PARTS: usize = u16::MAX as usize;

/// The job word: generation (32 bits), number of parts (16), parts handed out (16).
fn word(generation: u64, parts: u64, next: u64) -> u64 {
    (generation & 0xffff_ffff) << 32 | parts << 16 | next
}

type Body<'a> = &'a (dyn Fn(usize) + Sync);

struct Shared {
    job: AtomicU64,
    /// The body of the current job: a pointer to a `Body` on the caller's stack, valid while a part
    /// of its generation is unfinished.
    body: AtomicPtr<()>,
    finished: AtomicUsize,
    /// Nanoseconds of callers that went into handing jobs over and waiting for helpers.
    waited: AtomicU64,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// `true` when the pool ends. Also what threads park on.
    closing: Mutex<bool>,
    wake: Condvar,
    done: Condvar,
}

/// The threads. Dropping it ends them.
pub struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// One job at a time.
    caller: Mutex<()>,
}

impl Pool {
    /// A pool of `threads`, the caller's own counted. With `cpus`, thread `i` keeps to processor
    /// `cpus[i % cpus.len()]`, the calling thread being thread 0.
    pub fn new(threads: usize, cpus: &[usize]) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            job: AtomicU64::new(0),
            body: AtomicPtr::new(std::ptr::null_mut()),
            finished: AtomicUsize::new(0),
            waited: AtomicU64::new(0),
            panic: Mutex::new(None),
            closing: Mutex::new(false),
            wake: Condvar::new(),
            done: Condvar::new(),
        });
        // Built first, so that an error half way ends the helpers that are there.
        let mut pool = Pool { shared, helpers: Vec::new(), caller: Mutex::new(()) };
        for index in 1..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            let cpu = cpus.get(index % cpus.len().max(1)).copied();
            let name = format!("compute-{index}");
            let helper = thread::Builder::new().name(name).spawn(move || {
                pin(cpu);
                shared.help();
            })?;
            pool.helpers.push(helper);
        }
        pin(cpus.first().copied());
        Ok(pool)
    }

    /// Threads that compute, the caller's own counted.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// What other threads cost the callers, in all: handing jobs over, and waiting for helpers to finish when
    /// their own parts were done.
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.shared.waited.load(Ordering::Relaxed))
    }

    /// Calls `body(0)`, …, `body(parts - 1)`, each once, on any threads; returns when all are done.
    /// A panic in a part is raised again here after the others are done; the pool stays usable.
    /// A body must not call this again: it would wait for itself.
    pub fn run(&self, parts: usize, body: Body<'_>) {
        if self.helpers.is_empty() || parts <= 1 {
            (0..parts).for_each(body);
            return;
        }
        assert!(parts <= MAX_PARTS, "{parts} parts in one job");
        let _one_at_a_time = lock(&self.caller);
        self.shared.run(parts, body);
    }

    /// Splits `out` into pieces of `size` and hands each with its index to `body`; at least `grain`
    /// pieces go to one thread.
    pub fn pieces<T: Send>(
        &self,
        out: &mut [T],
        size: usize,
        grain: usize,
        body: impl Fn(usize, &mut [T]) + Sync,
    ) {
        assert!(size > 0 && out.len().is_multiple_of(size), "{} in pieces of {size}", out.len());
        self.stripes(out, out.len(), size * grain, |mut stripe| {
            for (index, piece) in (stripe.cols.start / size..).zip(stripe.row(0).chunks_exact_mut(size)) {
                body(index, piece);
            }
        });
    }

    /// Splits a row-major matrix `[rows, width]` into stripes of columns, each starting at a
    /// multiple of `grain`, and hands them to `body`; about two for each thread, so that one slow
    /// thread does not hold up the rest.
    pub fn stripes<T: Send>(
        &self,
        out: &mut [T],
        width: usize,
        grain: usize,
        body: impl Fn(Stripe<'_, T>) + Sync,
    ) {
        if out.is_empty() {
            return;
        }
        assert!(grain > 0 && out.len().is_multiple_of(width), "{} in rows of {width}", out.len());
        let grains = width.div_ceil(grain);
        let wanted = if self.helpers.is_empty() { 1 } else { 2 * self.threads() };
        let per_part = grains.div_ceil(wanted) * grain;
        let rows = out.len() / width;
        let start = SendPtr(out.as_mut_ptr());
        self.run(width.div_ceil(per_part), &|part| {
            let cols = part * per_part..((part + 1) * per_part).min(width);
            body(Stripe { start: start.get(), width, rows, cols, matrix: std::marker::PhantomData });
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        *lock(&self.shared.closing) = true;
        self.shared.wake.notify_all();
        for helper in self.helpers.drain(..) {
            // A helper catches the panics of its parts; one of its own has nothing left to stop.
            let _ = helper.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

/// Some columns of a row-major matrix; no other stripe of the same job shares an element with it.
#[derive(Debug)]
pub struct Stripe<'a, T> {
    start: *mut T,
    width: usize,
    rows: usize,
    cols: Range<usize>,
    matrix: std::marker::PhantomData<&'a mut [T]>,
}

impl<T> Stripe<'_, T> {
    /// Its columns.
    pub fn cols(&self) -> Range<usize> {
        self.cols.clone()
    }

    /// Its part of a row: `[cols.len()]`.
    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows);
        // SAFETY: `start` points to `rows * width` elements borrowed mutably for the whole job;
        // `row` and `cols` lie within them, stripes of one job have disjoint columns, and this
        // borrow of the stripe keeps its own rows from being handed out twice at a time.
        unsafe {
            let first = self.start.add(row * self.width + self.cols.start);
            std::slice::from_raw_parts_mut(first, self.cols.len())
        }
    }
}

struct SendPtr<T>(*mut T);

// SAFETY: only ever used to build stripes with disjoint elements of a `T: Send`.
unsafe impl<T: Send> Sync for SendPtr<T> {}

impl<T> SendPtr<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

impl Shared {
    fn run(&self, parts: usize, body: Body<'_>) {
        let started = Instant::now();
        let generation = (self.job.load(Ordering::Relaxed) >> 32) + 1;
        let body_at: *const Body<'_> = &body;
        self.finished.store(0, Ordering::Relaxed);
        self.body.store(body_at.cast_mut().cast(), Ordering::Relaxed);
        // Publishes the two stores above to whoever takes a part.
        self.job.store(word(generation, parts as u64, 0), Ordering::Release);
        // Taking the lock orders this after a helper's last look before parking.
        drop(lock(&self.closing));
        self.wake.notify_all();
        self.note(started);
        while self.take_part() {}
        if self.finished.load(Ordering::Acquire) != parts {
            let started = Instant::now();
            self.wait_for(parts);
            self.note(started);
        }
        if let Some(panic) = lock(&self.panic).take() {
            resume_unwind(panic);
        }
    }

    /// Takes and computes one part of the current job; `false` when none is left to take.
    fn take_part(&self) -> bool {
        let mut job = self.job.load(Ordering::Acquire);
        loop {
            let (parts, next) = (job >> 16 & 0xffff, job & 0xffff);
            if next >= parts {
                return false;
            }
            match self.job.compare_exchange_weak(job, job + 1, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => {
                    self.compute(next as usize, parts as usize);
                    return true;
                }
                Err(now) => job = now,
            }
        }
    }

    fn compute(&self, part: usize, parts: usize) {
        let body = self.body.load(Ordering::Relaxed).cast::<Body<'_>>();
        // SAFETY: taking the part succeeded, so its generation is the current one and this part is
        // unfinished; the caller of `run` leaves, and its body with it, only when all parts of the
        // generation are finished. The store of the pointer happened before the job word was
        // published, and is not overwritten until then.
        let body = unsafe { *body };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(part))) {
            let mut first = lock(&self.panic);
            match *first {
                None => *first = Some(panic),
                // Dropping it could panic again, here where nobody catches it.
                Some(_) => std::mem::forget(panic),
            }
        }
        // Releases what the part wrote to the caller.
        if self.finished.fetch_add(1, Ordering::AcqRel) + 1 == parts {
            drop(lock(&self.closing));
            self.done.notify_all();
        }
    }

    fn note(&self, started: Instant) {
        self.waited.fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }

    fn wait_for(&self, parts: usize) {
        for _ in 0..SPINS {
            if self.finished.load(Ordering::Acquire) == parts {
                return;
            }
            std::hint::spin_loop();
        }
        let mut guard = lock(&self.closing);
        while self.finished.load(Ordering::Acquire) != parts {
            guard = self.done.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A helper's life.
    fn help(&self) {
        loop {
            while self.take_part() {}
            if self.spin_for_work() {
                continue;
            }
            let mut closing = lock(&self.closing);
            while !*closing && !self.has_work() {
                closing = self.wake.wait(closing).unwrap_or_else(PoisonError::into_inner);
            }
            if *closing {
                return;
            }
        }
    }

    fn spin_for_work(&self) -> bool {
        (0..SPINS).any(|_| {
            std::hint::spin_loop();
            self.has_work()
        })
    }

    fn has_work(&self) -> bool {
        let job = self.job.load(Ordering::Acquire);
        job & 0xffff < job >> 16 & 0xffff
    }
}

/// Locks even after a panic elsewhere: the data behind these locks is whole at every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the current thread to one processor. A refusal is no error: it costs speed only.
fn pin(cpu: Option<usize>) {
    if let Some(cpu) = cpu {
        let mut set = rustix::thread::CpuSet::new();
        set.set(cpu);
        let _ = rustix::thread::sched_setaffinity(None, &set);
    }
}

/// Processors this process may run on.
pub fn processors() -> Vec<usize> {
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
        Err(_) => vec![0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> Pool {
        Pool::new(threads, &[]).expect("threads can be started")
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

    #[test]
    fn parked_helpers_wake_for_the_next_job() {
        let pool = pool(2);
        for _ in 0..5 {
            // Longer than a helper spins.
            thread::park_timeout(Duration::from_millis(20));
            let seen = Mutex::new(std::collections::HashSet::new());
            pool.run(2, &|_| {
                lock(&seen).insert(thread::current().id());
                thread::park_timeout(Duration::from_millis(50));
            });
            assert!(!lock(&seen).is_empty());
        }
    }

    #[test]
    fn jobs_that_are_handed_over_cost_the_caller_time_and_others_none() {
        let pool = pool(2);
        pool.run(1, &|_| ());
        assert_eq!(pool.waited(), Duration::ZERO);
        // The clock may stand still for the one or other.
        let costs = (0..10_000).any(|_| {
            pool.run(2, &|_| ());
            pool.waited() > Duration::ZERO
        });
        assert!(costs);
    }

    #[test]
    fn stripes_cover_a_matrix_once() {
        let pool = pool(3);
        for (rows, width, grain) in [(1, 1, 1), (3, 100, 16), (2, 7, 64), (5, 33, 4)] {
            let mut out = vec![0u32; rows * width];
            pool.stripes(&mut out, width, grain, |mut stripe| {
                assert_eq!(stripe.cols.start % grain, 0);
                for row in 0..rows {
                    stripe.row(row).iter_mut().for_each(|x| *x += 1);
                }
            });
            assert!(out.iter().all(|x| *x == 1));
        }
    }

    #[test]
    fn pieces_come_with_their_index() {
        let mut out = vec![0usize; 12];
        pool(2).pieces(&mut out, 3, 1, |index, piece| piece.fill(index));
        assert_eq!(out, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]);
    }
}
