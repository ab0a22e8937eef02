//! The one job that all threads of a pool share: how its parts are handed out, and how threads wait.
//!
//! A waiting thread spins for a short while and then parks. Waking a parked thread takes a system call, so nobody
//! makes one for a thread that still spins: each thread announces that it parks before it checks its condition for
//! the last time, and whoever changes that condition checks for the announcement after the change. Both use
//! sequentially consistent operations, so that at least one of the two sees what the other did.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// The most parts of one job: the job word has 16 bits for them.
pub(super) const MAX_PARTS: usize = u16::MAX as usize;
/// How long a thread spins before it parks: longer than one thread works between two jobs of a decode step, and
/// longer than the threads that share a prompt's job finish apart. Waking a parked thread costs 5 to 50
/// microseconds, and more under a hypervisor; spinning longer only wastes power. `tests/bench/RESULTS.md` has the
/// figures of other durations.
const SPIN: Duration = Duration::from_micros(500);
/// Checks between two readings of the clock, which costs as much as several checks.
const SPINS_PER_CLOCK_READ: u32 = 32;

/// The function that computes one part of a job.
pub(super) type Body<'a> = &'a (dyn Fn(usize) + Sync);

/// The job word: generation (32 bits), number of parts (16), parts handed out (16).
fn job_word(generation: u64, parts: u64, next: u64) -> u64 {
    (generation & 0xffff_ffff) << 32 | parts << 16 | next
}

/// A value on its own cache line, or on a pair of lines where two are fetched together: a thread that writes it
/// does not evict from other CPUs' caches what those only read.
#[derive(Default)]
#[repr(align(128))]
struct CachePadded<T>(T);

/// The state of a helper that others see.
#[derive(Default)]
struct HelperSlot {
    parked: AtomicBool,
    thread: OnceLock<Thread>,
}

/// The state that the threads of one pool share.
pub(super) struct Shared {
    slot: CachePadded<JobSlot>,
    /// Finished parts of the current job.
    finished: CachePadded<AtomicUsize>,
    /// Helpers with a lower index take parts; the others stay parked.
    active: AtomicUsize,
    closing: AtomicBool,
    caller_parked: AtomicBool,
    has_panicked: AtomicBool,
    helpers: Box<[CachePadded<HelperSlot>]>,
    /// Nanoseconds that callers spent on waking helpers and waiting for them.
    waited: AtomicU64,
    /// The thread that runs the current job, once it parks.
    caller: Mutex<Option<Thread>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// What a new job changes.
#[derive(Default)]
struct JobSlot {
    job: AtomicU64,
    /// The body of the current job: a pointer to a `Body` on the caller's stack, valid while a part
    /// of its generation is unfinished.
    body: AtomicPtr<()>,
}

impl Shared {
    pub fn new(helpers: usize) -> Self {
        Shared {
            slot: CachePadded::default(),
            finished: CachePadded::default(),
            active: AtomicUsize::new(helpers),
            closing: AtomicBool::new(false),
            caller_parked: AtomicBool::new(false),
            has_panicked: AtomicBool::new(false),
            helpers: (0..helpers).map(|_| CachePadded::default()).collect(),
            waited: AtomicU64::new(0),
            caller: Mutex::new(None),
            panic: Mutex::new(None),
        }
    }

    /// The time that helpers have cost the callers so far.
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.waited.load(Relaxed))
    }

    /// Helpers that take parts.
    pub fn active(&self) -> usize {
        self.active.load(Relaxed)
    }

    /// From the next job on, only `helpers` of them take parts.
    pub fn set_active(&self, helpers: usize) {
        self.active.store(helpers.min(self.helpers.len()), SeqCst);
    }

    /// Computes a job. The caller ensures that there is one at a time.
    pub fn run(&self, parts: usize, body: Body<'_>) {
        let generation = (self.slot.0.job.load(Relaxed) >> 32) + 1;
        let body_at: *const Body<'_> = &body;
        self.finished.0.store(0, Relaxed);
        self.slot.0.body.store(body_at.cast_mut().cast(), Relaxed);
        // Publishes the two stores above to whoever takes a part. The first part is the caller's own.
        self.slot.0.job.store(job_word(generation, parts as u64, 1), SeqCst);
        self.wake(self.active().min(parts - 1));
        self.compute(0, parts);
        while self.take_part() {}
        self.wait_for(parts);
        if self.has_panicked.load(Relaxed)
            && let Some(panic) = lock(&self.panic).take()
        {
            self.has_panicked.store(false, Relaxed);
            resume_unwind(panic);
        }
    }

    /// Wakes those of the first `helpers` helpers that are parked, after a change that they have to see.
    fn wake(&self, helpers: usize) {
        for CachePadded(seat) in &self.helpers[..helpers] {
            if seat.parked.load(SeqCst)
                && let Some(thread) = seat.thread.get()
            {
                self.time_wait(|| thread.unpark());
            }
        }
    }

    /// Takes and computes one part of the current job; `false` when none is left to take.
    fn take_part(&self) -> bool {
        let mut job = self.slot.0.job.load(Acquire);
        loop {
            let (parts, next) = (job >> 16 & 0xffff, job & 0xffff);
            if next >= parts {
                return false;
            }
            match self.slot.0.job.compare_exchange_weak(job, job + 1, Acquire, Acquire) {
                Ok(_) => {
                    self.compute(next as usize, parts as usize);
                    return true;
                }
                Err(now) => job = now,
            }
        }
    }

    fn compute(&self, part: usize, parts: usize) {
        let body = self.slot.0.body.load(Relaxed).cast::<Body<'_>>();
        // SAFETY: taking the part succeeded, so its generation is the current one and this part is
        // unfinished; the caller of `run` leaves, and its body with it, only when all parts of the
        // generation are finished. The store of the pointer happened before the job word was
        // published, and is not overwritten until then.
        let body = unsafe { *body };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(part))) {
            let mut first = lock(&self.panic);
            match *first {
                None => *first = Some(panic),
                // Dropping the payload could panic again, here where nobody catches it.
                Some(_) => std::mem::forget(panic),
            }
            self.has_panicked.store(true, Relaxed);
        }
        // Releases what the part wrote to the caller.
        if self.finished.0.fetch_add(1, SeqCst) + 1 == parts
            && self.caller_parked.load(SeqCst)
            && let Some(caller) = &*lock(&self.caller)
        {
            caller.unpark();
        }
    }

    fn wait_for(&self, parts: usize) {
        let is_done = || self.finished.0.load(SeqCst) == parts;
        if is_done() {
            return;
        }
        self.time_wait(|| {
            if !spin(is_done) {
                *lock(&self.caller) = Some(thread::current());
                park(&self.caller_parked, is_done);
            }
        });
    }

    /// Measures a wait with two readings of the clock, which are skipped where nobody is woken or waited for.
    fn time_wait(&self, wait: impl FnOnce()) {
        let started = Instant::now();
        wait();
        self.waited.fetch_add(started.elapsed().as_nanos() as u64, Relaxed);
    }

    /// The main loop of helper `index`.
    pub fn run_helper(&self, index: usize) {
        let CachePadded(seat) = &self.helpers[index];
        seat.thread.get_or_init(thread::current);
        let is_called = || self.has_work(index) || self.closing.load(SeqCst);
        while !self.closing.load(Relaxed) {
            while self.has_work(index) && self.take_part() {}
            if !spin(is_called) {
                park(&seat.parked, is_called);
            }
        }
    }

    /// Ends all helpers.
    pub fn close(&self) {
        self.closing.store(true, SeqCst);
        self.wake(self.helpers.len());
    }

    fn has_work(&self, index: usize) -> bool {
        let job = self.slot.0.job.load(SeqCst);
        job & 0xffff < job >> 16 & 0xffff && index < self.active.load(SeqCst)
    }
}

/// Spins for a short while; `false` when the condition did not become true.
fn spin(is_so: impl Fn() -> bool) -> bool {
    let mut started = None;
    loop {
        for _ in 0..SPINS_PER_CLOCK_READ {
            if is_so() {
                return true;
            }
            std::hint::spin_loop();
        }
        if started.get_or_insert_with(Instant::now).elapsed() >= SPIN {
            return false;
        }
    }
}

/// Parks until the condition is true. `parked` tells whoever makes it true to wake this thread.
fn park(parked: &AtomicBool, is_so: impl Fn() -> bool) {
    loop {
        // Set before the condition is checked; see the module's documentation.
        parked.store(true, SeqCst);
        if is_so() {
            break;
        }
        thread::park();
    }
    parked.store(false, Relaxed);
}

/// Locks even after a panic elsewhere: the data behind these locks is whole at every step.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
