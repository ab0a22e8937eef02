//! What the async side tells the worker while it computes, and the worker's progress for the watchdog.
//!
//! Deliberately knows no request: each is one atomic value.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};

/// The controls of the worker.
#[derive(Debug)]
pub(in crate::daemon) struct WorkerControls {
    /// The owner's limit, and the governor's.
    thread_limits: [AtomicUsize; 2],
    computing_percent: AtomicU8,
    is_cut_off: AtomicBool,
    steps: AtomicU64,
}

impl Default for WorkerControls {
    fn default() -> Self {
        WorkerControls {
            thread_limits: [const { AtomicUsize::new(usize::MAX) }; 2],
            computing_percent: AtomicU8::new(100),
            is_cut_off: AtomicBool::new(false),
            steps: AtomicU64::new(0),
        }
    }
}

impl WorkerControls {
    /// Limits how many threads compute, as the owner wants it.
    pub fn limit_threads(&self, threads: usize) {
        self.thread_limits[0].store(threads, Ordering::Relaxed);
    }

    /// Limits how many threads compute and for which part of the time, as the governor wants it.
    pub fn set_effort(&self, threads: usize, percent: u8) {
        self.thread_limits[1].store(threads, Ordering::Relaxed);
        self.computing_percent.store(percent, Ordering::Relaxed);
    }

    /// How many threads may compute.
    pub fn thread_limit(&self) -> usize {
        self.thread_limits.iter().map(|limit| limit.load(Ordering::Relaxed)).min().unwrap_or(usize::MAX)
    }

    /// The part of the time in which they may compute, in percent.
    pub fn computing_percent(&self) -> u8 {
        self.computing_percent.load(Ordering::Relaxed)
    }

    /// Ends the running answer, since the drain deadline has passed.
    pub fn cut_off(&self) {
        self.is_cut_off.store(true, Ordering::Relaxed);
    }

    /// Whether the running answer is to end.
    pub fn is_cut_off(&self) -> bool {
        self.is_cut_off.load(Ordering::Relaxed)
    }

    /// Counts one step of the worker.
    pub fn count_step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of steps that the worker has taken.
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }
}
