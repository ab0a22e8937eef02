//! How many threads of the pool each layer uses.

use super::{BATCH, Model};
use crate::engine::thread_tuner::{ThreadCounts, ThreadTuner};
use std::sync::{MutexGuard, PoisonError};
use std::time::Instant;

impl Model {
    /// From now on measures how many threads to use where `fixed` leaves it open; until then every pass uses all.
    /// The results of a pass do not depend on it.
    pub fn tune(&mut self, fixed: ThreadCounts) {
        self.tuner = ThreadTuner::new(self.pool.threads(), BATCH, fixed).into();
    }

    /// The numbers of threads that are settled.
    pub fn threads(&self) -> ThreadCounts {
        self.tuner().threads()
    }

    /// From now on no pass uses more than `threads` of the pool, but at least 1; the number of all threads lifts
    /// the limit. The results of a pass do not depend on it.
    pub fn limit_threads(&self, threads: usize) {
        self.tuner().limit(threads);
        self.set_threads_outside_layers();
    }

    /// Computes one layer of a pass of `tokens` on the number of threads whose turn it is. Where only `kept` of the
    /// tokens go through all of the layer, its time cannot be compared and is not recorded.
    pub(super) fn with_tuned_threads(&self, tokens: usize, kept: usize, layer: impl FnOnce()) {
        let trial = self.tuner().next(tokens);
        self.pool.set_active(trial.threads);
        let started = trial.is_timed.then(Instant::now);
        layer();
        if kept == tokens {
            self.tuner().record(tokens, started.map(|started| started.elapsed()));
        }
    }

    /// Sets the number of threads for the work outside the layers.
    pub(super) fn set_threads_outside_layers(&self) {
        self.pool.set_active(self.tuner().outside_layers());
    }

    fn tuner(&self) -> MutexGuard<'_, ThreadTuner> {
        self.tuner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
