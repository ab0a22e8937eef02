//! The border between the async doors and the worker: requests behind one lock.
//!
//! What is decided is [`Admission`]'s; here is only the waiting. Deliberately knows no model.

use super::admission::{Admission, Job};
use super::locked;
use crate::config;
use crate::protocol::{Code, Refusal};
use crate::telemetry::Telemetry;
use crate::transport::Inbound;
use log::info;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Between two looks at whether the queue has drained.
const DRAIN_INTERVAL: Duration = Duration::from_millis(10);

/// Requests between the doors and the worker. Its lock is held for moves only, never while an
/// answer is computed or a client is told.
#[derive(Debug)]
pub(super) struct Queue {
    admission: Mutex<Admission>,
    telemetry: Arc<Telemetry>,
    /// Wakes the worker.
    offered: Condvar,
    /// Wakes the sweeper.
    occupied: Notify,
    running: AtomicBool,
    /// Ends the running answer: the drain deadline has passed.
    cut_off: AtomicBool,
    /// Counts what the worker does, for the watchdog.
    steps: AtomicU64,
    timeout: Duration,
}

impl Queue {
    pub fn new(config: &config::Queue, telemetry: Arc<Telemetry>) -> Self {
        Queue {
            admission: Mutex::new(Admission::new(config.depth)),
            telemetry,
            offered: Condvar::new(),
            occupied: Notify::new(),
            running: AtomicBool::new(false),
            cut_off: AtomicBool::new(false),
            steps: AtomicU64::new(0),
            timeout: config.timeout,
        }
    }

    /// Takes a request in, or tells its client why not.
    pub fn offer(&self, inbound: Inbound) {
        let timeout = inbound.request.timeout.unwrap_or(self.timeout);
        let offered = locked(&self.admission).offer(inbound, timeout);
        match offered {
            Ok(()) => {
                self.offered.notify_one();
                self.occupied.notify_one();
            }
            Err((inbound, refusal)) => self.refuse(*inbound, refusal),
        }
    }

    /// Tells waiting requests that nobody waits for any more.
    pub fn sweep(&self, now: Instant) {
        let swept = locked(&self.admission).sweep(now);
        swept.into_iter().for_each(|(job, refusal)| self.refuse(job.inbound, refusal));
    }

    /// Waits until some request waits.
    pub async fn occupied(&self) {
        while locked(&self.admission).waiting() == 0 {
            self.occupied.notified().await;
        }
    }

    /// Waits until no request waits or runs, or `deadline`.
    pub async fn drained(&self, deadline: Instant) {
        while self.level() != (0, 0) && Instant::now() < deadline {
            tokio::time::sleep(DRAIN_INTERVAL).await;
        }
    }

    /// Ends what runs, tells what waits, and takes nothing in any more; the worker ends.
    pub fn close(&self) {
        self.cut_off.store(true, Ordering::Relaxed);
        let left = locked(&self.admission).close();
        self.offered.notify_all();
        left.into_iter().for_each(|(job, refusal)| self.refuse(job.inbound, refusal));
    }

    /// Requests that wait, and that run.
    pub fn level(&self) -> (usize, usize) {
        let admission = locked(&self.admission);
        (admission.waiting(), usize::from(self.running.load(Ordering::Relaxed)))
    }

    /// What the worker has done so far.
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Notes that the worker did something.
    pub fn step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the running answer is to end.
    pub fn is_cut_off(&self) -> bool {
        self.cut_off.load(Ordering::Relaxed)
    }

    /// Notes how long an answer took.
    pub fn note_pace(&self, took: Duration) {
        locked(&self.admission).note_pace(took);
    }

    /// No request runs any more, nor will one that waits.
    pub fn worker_ended(&self) {
        self.running.store(false, Ordering::Relaxed);
        self.close();
    }

    /// Waits for a request; `None` when the queue is closed.
    pub fn next(&self) -> Option<Job> {
        let mut admission = locked(&self.admission);
        self.running.store(false, Ordering::Relaxed);
        admission.note_idle();
        loop {
            if let Some(job) = admission.next() {
                self.running.store(true, Ordering::Relaxed);
                return Some(job);
            }
            if admission.is_closed() {
                return None;
            }
            admission = self.offered.wait(admission).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Tells a client why its request gets no answer.
    pub fn refuse(&self, inbound: Inbound, refusal: Refusal) {
        match refusal.code {
            Code::Cancelled => self.telemetry.cancelled(),
            Code::Timeout => self.telemetry.timed_out(),
            _ => {}
        }
        self.telemetry.refused();
        info!(CLIENT = inbound.client.as_str(), REQUEST_ID = inbound.id.as_str(); "refused: {}", refusal.message);
        inbound.reply.refuse(refusal);
    }
}
