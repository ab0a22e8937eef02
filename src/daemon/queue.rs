//! The border between the async doors and the worker: requests behind one lock.
//!
//! What is decided is [`Admission`]'s; here is only the waiting. Deliberately knows no model.

use super::admission::{Admission, QueuedRequest};
use super::answer_cache::{AnswerCache, CacheKey, CachedAnswer};
use super::locked;
use super::malloc_trim;
use super::memory_guard::{MemoryGuard, MemoryState, MemoryUse};
use super::memory_plan::MemoryPlan;
use crate::config::{CacheScope, Config};
use crate::protocol::Refusal;
use crate::telemetry::{Telemetry, sensors};
use crate::transport::{Cancel, Inbound};
use log::{info, warn};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Between two looks at whether the queue has drained.
const DRAIN_INTERVAL: Duration = Duration::from_millis(10);
/// Between two looks at the memory while it is short; with none, each new request is a look.
const MEMORY_INTERVAL: Duration = Duration::from_secs(1);

/// Requests between the doors and the worker. Its lock is held for moves only, never while an
/// answer is computed or a client is told.
#[derive(Debug)]
pub(super) struct Queue {
    admission: Mutex<Admission>,
    telemetry: Arc<Telemetry>,
    /// Answers given again; dropped first when memory is short.
    cache: Mutex<AnswerCache>,
    /// Whether a client may be given what was computed for another.
    is_cache_shared: AtomicBool,
    /// Wakes the worker.
    offered: Condvar,
    /// Wakes the sweeper.
    occupied: Notify,
    running: AtomicBool,
    /// Wakes who looks closer while something is computed.
    begun: Notify,
    /// Stops the request that runs, or ran last.
    current: Mutex<Option<Cancel>>,
    /// Threads that may compute.
    thread_limit: AtomicUsize,
    /// Ends the running answer: the drain deadline has passed.
    cut_off: AtomicBool,
    /// Counts what the worker does, for the watchdog.
    steps: AtomicU64,
    /// For requests that name none, in milliseconds.
    timeout_ms: AtomicU64,
    /// Tokens of context, and the bytes that each takes in the KV cache.
    context: usize,
    token_bytes: u64,
    /// The place in the context that was written to and never more.
    reach: AtomicUsize,
    /// Whether the process' memory is ours to watch.
    is_watched: AtomicBool,
    /// Wakes who looks while memory is short.
    short: Notify,
}

impl Queue {
    pub fn new(config: &Config, plan: &MemoryPlan, telemetry: Arc<Telemetry>) -> Self {
        let memory = MemoryGuard::new(plan.budget.bytes as u64, plan.footprint.mapped as u64);
        let queue = Queue {
            admission: Mutex::new(Admission::new(&config.queue, memory)),
            telemetry,
            cache: Mutex::default(),
            is_cache_shared: AtomicBool::default(),
            offered: Condvar::new(),
            occupied: Notify::new(),
            running: AtomicBool::new(false),
            begun: Notify::new(),
            current: Mutex::default(),
            thread_limit: AtomicUsize::new(usize::MAX),
            cut_off: AtomicBool::new(false),
            steps: AtomicU64::new(0),
            timeout_ms: AtomicU64::default(),
            context: plan.context,
            token_bytes: plan.footprint.cache_per_token as u64,
            reach: AtomicUsize::new(0),
            is_watched: AtomicBool::new(false),
            short: Notify::new(),
        };
        queue.adopt(config);
        queue
    }

    /// Takes over the settings that hold from now on.
    pub fn adopt(&self, config: &Config) {
        let ms = u64::try_from(config.queue.timeout.as_millis()).unwrap_or(u64::MAX);
        self.timeout_ms.store(ms, Ordering::Relaxed);
        self.is_cache_shared.store(config.cache.scope == CacheScope::All, Ordering::Relaxed);
        locked(&self.admission).set_client_percent(config.queue.client_percent);
    }

    /// Whether a client may be given what was computed for another.
    pub fn is_cache_shared(&self) -> bool {
        self.is_cache_shared.load(Ordering::Relaxed)
    }

    /// From now on no request is taken in while memory is short. To be called before the first one.
    pub fn watch_memory(&self, plan: &MemoryPlan) {
        let (resident, budget) = (self.held().resident >> 20, plan.budget.bytes as u64 >> 20);
        if resident > budget {
            warn!(
                "{resident} of {budget} MiB are held before the first request, which the plan does not explain (an \
                 emulator's own memory?): requests are taken in whatever the memory"
            );
        }
        self.is_watched.store(resident <= budget, Ordering::Relaxed);
    }

    /// Ends when memory has been short for a minute with nothing to do, and says so.
    pub async fn stuck(&self) -> String {
        loop {
            // It may have become short before anybody waited here: the daemon waits for other things as well.
            while !locked(&self.admission).is_short() {
                self.short.notified().await;
            }
            while locked(&self.admission).is_short() {
                tokio::time::sleep(MEMORY_INTERVAL).await;
                malloc_trim::malloc_trim();
                if self.look() == MemoryState::Stuck {
                    let resident = self.held().resident >> 20;
                    return format!("memory stays short with nothing to do: {resident} MiB are held; ending");
                }
            }
        }
    }

    /// Looks at the memory of the process, and drops what can be dropped when it becomes short.
    fn look(&self) -> MemoryState {
        if !self.is_watched.load(Ordering::Relaxed) {
            return MemoryState::Free;
        }
        let (was_short, mut state) = self.weigh();
        if !was_short && state != MemoryState::Free {
            *locked(&self.cache) = AnswerCache::default();
            malloc_trim::malloc_trim();
            (_, state) = self.weigh();
            if state != MemoryState::Free {
                self.short.notify_one();
                let resident = self.held().resident >> 20;
                warn!("memory is short, {resident} MiB are held: requests are refused");
            }
        } else if was_short && state == MemoryState::Free {
            info!("memory is there again: requests are taken in");
        }
        state
    }

    /// Whether memory was short before, and how it is now.
    fn weigh(&self) -> (bool, MemoryState) {
        let (held, is_running) = (self.held(), self.running.load(Ordering::Relaxed));
        let mut admission = locked(&self.admission);
        (admission.is_short(), admission.check_memory(held, is_running, Instant::now()))
    }

    /// What a request that was taken in before memory became short hears, if it is short now: each answer holds
    /// memory until its client has taken it.
    pub fn want_of_memory(&self) -> Option<Refusal> {
        (self.look() != MemoryState::Free).then(|| locked(&self.admission).memory_refusal())
    }

    fn held(&self) -> MemoryUse {
        let page = rustix::param::page_size();
        // Where it is not known nothing is refused over it.
        let (resident, of_files) = sensors::resident_memory(Path::new("/"), page).unwrap_or_default();
        let never_written = self.context.saturating_sub(self.reach.load(Ordering::Relaxed)) as u64;
        MemoryUse { resident, file_backed: of_files, reserved: never_written * self.token_bytes }
    }

    /// Notes that the KV cache was written to up to this place.
    pub fn note_reach(&self, place: usize) {
        self.reach.fetch_max(place, Ordering::Relaxed);
    }

    /// The answer to the same question, if it is kept.
    pub fn cached(&self, key: &CacheKey) -> Option<CachedAnswer> {
        locked(&self.cache).get(key)
    }

    /// Keeps an answer, to be given again.
    pub fn keep(&self, key: CacheKey, stored: CachedAnswer) {
        locked(&self.cache).insert(key, stored);
    }

    /// Takes a request in, or tells its client why not.
    pub fn offer(&self, inbound: Inbound) {
        self.look();
        let usual = Duration::from_millis(self.timeout_ms.load(Ordering::Relaxed));
        let timeout = inbound.request.timeout.unwrap_or(usual);
        let offered = locked(&self.admission).offer(inbound, timeout);
        match offered {
            Ok(replaced) => {
                self.offered.notify_one();
                self.occupied.notify_one();
                replaced.into_iter().for_each(|(job, refusal)| self.refuse(job.inbound, refusal));
            }
            Err(refused) => self.refuse(refused.0, refused.1),
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

    /// Waits until some request runs.
    pub async fn begun(&self) {
        while !self.running.load(Ordering::Relaxed) {
            self.begun.notified().await;
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

    /// Stops the request that is being answered; `false` where there is none.
    pub fn cancel_running(&self) -> bool {
        // Under the queue's lock, so that it is not the next one's turn in between.
        let _still = locked(&self.admission);
        let is_running = self.running.load(Ordering::Relaxed);
        let current = locked(&self.current);
        current.as_ref().filter(|_| is_running).map(Cancel::raise).is_some()
    }

    /// Lets at most so many threads compute, from the next request on.
    pub fn limit_threads(&self, threads: usize) {
        self.thread_limit.store(threads, Ordering::Relaxed);
    }

    /// Threads that may compute.
    pub fn thread_limit(&self) -> usize {
        self.thread_limit.load(Ordering::Relaxed)
    }

    /// Notes how long an answer took.
    pub fn note_pace(&self, took: Duration) {
        locked(&self.admission).record_duration(took);
    }

    /// No request runs any more, nor will one that waits.
    pub fn worker_ended(&self) {
        self.running.store(false, Ordering::Relaxed);
        self.close();
    }

    /// Waits for a request; `None` when the queue is closed.
    pub fn next(&self) -> Option<QueuedRequest> {
        let mut admission = locked(&self.admission);
        self.running.store(false, Ordering::Relaxed);
        admission.note_idle();
        loop {
            if let Some(job) = admission.next(Instant::now()) {
                self.running.store(true, Ordering::Relaxed);
                *locked(&self.current) = Some(job.inbound.cancel.clone());
                self.begun.notify_one();
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
        self.telemetry.failed(refusal.code, inbound.received.elapsed());
        info!(CLIENT = inbound.client.as_str(), REQUEST_ID = inbound.id.as_str(); "refused: {}", refusal.message);
        inbound.reply.refuse(refusal);
    }
}
