//! How many threads of the pool each layer uses.

use super::{BATCH, Model};
use crate::engine::thread_tuner::{ThreadCounts, ThreadTuner};
use std::sync::{MutexGuard, PoisonError};
use std::time::Instant;

impl Model {
    /// From now on finds out how many threads to use where `said` leaves it open; until then every pass uses
    /// all. The results of a pass do not depend on it.
    pub fn tune(&mut self, fixed: ThreadCounts) {
        self.tuner = ThreadTuner::new(self.pool.threads(), BATCH, fixed).into();
    }

    /// Threads that passes use, as far as that is settled.
    pub fn threads(&self) -> ThreadCounts {
        self.tuner().threads()
    }

    /// From now on no pass uses more than `threads` of the pool's, 1 at least; as many as there are lifts the
    /// limit. The results of a pass do not depend on it.
    pub fn limit_threads(&self, threads: usize) {
        self.tuner().limit(threads);
        self.set_threads_outside_layers();
    }

    /// Computes one layer of a pass of `tokens` on as many threads as it is due. It tells nothing of others where not
    /// all go on to its end.
    pub(super) fn with_tuned_threads(&self, tokens: usize, kept: usize, layer: impl FnOnce()) {
        let trial = self.tuner().next(tokens);
        self.pool.set_active(trial.threads);
        let started = trial.is_timed.then(Instant::now);
        layer();
        if kept == tokens {
            self.tuner().record(tokens, started.map(|started| started.elapsed()));
        }
    }

    /// Sets the threads for what comes after the layers.
    pub(super) fn set_threads_outside_layers(&self) {
        self.pool.set_active(self.tuner().outside_layers());
    }

    fn tuner(&self) -> MutexGuard<'_, ThreadTuner> {
        self.tuner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
