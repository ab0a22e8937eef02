//! Watches the memory of the process: measures it, has the guard evaluate it, and frees what can be freed when it
//! becomes short.
//!
//! Deliberately decides nothing: the thresholds are those of [`MemoryGuard`](crate::daemon::memory_guard::MemoryGuard).

use crate::daemon::admission::Admission;
use crate::daemon::answer_cache::SharedAnswers;
use crate::daemon::memory_guard::{MemoryState, MemoryUse};
use crate::daemon::memory_plan::MemoryPlan;
use crate::daemon::running::RunningRequests;
use crate::daemon::{locked, malloc_trim};
use crate::protocol::Refusal;
use crate::telemetry::sensors;
use log::{info, warn};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Time between two checks of the memory while it is short; otherwise it is checked at each new request.
const MEMORY_INTERVAL: Duration = Duration::from_secs(1);

/// The watch over the memory of the process.
#[derive(Debug)]
pub(in crate::daemon) struct MemoryWatch {
    admission: Arc<Mutex<Admission>>,
    /// The cache of answers, which is dropped first.
    answers: Arc<SharedAnswers>,
    running: Arc<RunningRequests>,
    /// Tokens of the KV cache.
    cache_tokens: AtomicUsize,
    /// Bytes of the KV cache for each token.
    token_bytes: AtomicU64,
    /// Tokens of the KV cache that were ever written.
    written: AtomicUsize,
    /// Whether requests are refused when memory is short.
    is_watching: AtomicBool,
    /// Wakes the task that checks more often while memory is short.
    became_short: Notify,
}

impl MemoryWatch {
    /// A watch for this plan, which does not refuse anything before [`start`](Self::start).
    pub fn new(
        plan: &MemoryPlan,
        admission: Arc<Mutex<Admission>>,
        answers: Arc<SharedAnswers>,
        running: Arc<RunningRequests>,
    ) -> Self {
        MemoryWatch {
            admission,
            answers,
            running,
            cache_tokens: AtomicUsize::new(plan.cache_tokens()),
            token_bytes: AtomicU64::new(plan.footprint.cache_per_token as u64),
            written: AtomicUsize::new(0),
            is_watching: AtomicBool::new(false),
            became_short: Notify::new(),
        }
    }

    /// Another model is loaded: nothing of its KV cache was written yet.
    pub fn adopt_plan(&self, plan: &MemoryPlan) {
        self.cache_tokens.store(plan.cache_tokens(), Ordering::Relaxed);
        self.token_bytes.store(plan.footprint.cache_per_token as u64, Ordering::Relaxed);
        self.written.store(0, Ordering::Relaxed);
    }

    /// From now on no request is admitted while memory is short. To be called before the first request.
    pub fn start(&self, plan: &MemoryPlan) {
        let (resident, budget) = (self.measure().resident >> 20, plan.budget.bytes as u64 >> 20);
        if resident > budget {
            warn!(
                "{resident} of {budget} MiB are in use before the first request, more than the memory plan explains \
                 (perhaps an emulator's own memory): requests are accepted without a memory check"
            );
        }
        self.is_watching.store(resident <= budget, Ordering::Relaxed);
    }

    /// Resolves when memory has been short for a minute while the daemon was idle, with a message.
    pub async fn stuck(&self) -> String {
        loop {
            // It may have become short before this was polled: the daemon waits for other things as well.
            while !locked(&self.admission).is_short() {
                self.became_short.notified().await;
            }
            while locked(&self.admission).is_short() {
                tokio::time::sleep(MEMORY_INTERVAL).await;
                malloc_trim::malloc_trim();
                if self.check() == MemoryState::Stuck {
                    let resident = self.measure().resident >> 20;
                    return format!(
                        "memory stays short with nothing to do: {resident} MiB are in use; ending"
                    );
                }
            }
        }
    }

    /// Checks the memory of the process. Frees what can be freed before it counts as short: otherwise a request that
    /// arrives meanwhile would be refused although there is memory for it.
    pub fn check(&self) -> MemoryState {
        if !self.is_watching.load(Ordering::Relaxed) {
            return MemoryState::Free;
        }
        let used = self.measure();
        let is_becoming_short = locked(&self.admission).is_becoming_short(used);
        if is_becoming_short {
            self.answers.clear();
            malloc_trim::malloc_trim();
        }
        let (was_short, state) = self.update_guard(is_becoming_short);
        match (was_short, state != MemoryState::Free) {
            (false, true) => {
                self.became_short.notify_one();
                let resident = self.measure().resident >> 20;
                warn!("memory is short, {resident} MiB are in use: requests over the socket are refused");
            }
            (true, false) => info!("enough memory is free again: requests are accepted"),
            _ => {}
        }
        state
    }

    /// Whether requests are refused because memory is short.
    pub fn is_short(&self) -> bool {
        locked(&self.admission).is_short()
    }

    /// Whether memory was short before, and its state now.
    fn update_guard(&self, was_freed: bool) -> (bool, MemoryState) {
        let (used, is_running) = (self.measure(), self.running.is_running());
        let mut admission = locked(&self.admission);
        (admission.is_short(), admission.check_memory(used, is_running, was_freed, Instant::now()))
    }

    /// The refusal of a request that was admitted before memory became short, if it is short now: each answer takes
    /// memory until its client has received it.
    pub fn refusal(&self) -> Option<Refusal> {
        (self.check() != MemoryState::Free).then(|| locked(&self.admission).memory_refusal())
    }

    fn measure(&self) -> MemoryUse {
        let page = rustix::param::page_size();
        // Where it is unknown no request is refused because of it.
        let (resident, file_backed) = sensors::resident_memory(Path::new("/"), page).unwrap_or_default();
        let written = self.written.load(Ordering::Relaxed);
        let never_written = self.cache_tokens.load(Ordering::Relaxed).saturating_sub(written) as u64;
        let reserved = never_written.saturating_mul(self.token_bytes.load(Ordering::Relaxed));
        MemoryUse { resident, file_backed, reserved }
    }

    /// Records that the KV cache was written for so many tokens.
    pub fn record_written(&self, tokens: usize) {
        self.written.fetch_max(tokens, Ordering::Relaxed);
    }
}
