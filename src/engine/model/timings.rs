//! Where the time of passes went, as the thread that runs them saw it.

use crate::engine::thread_pool::ThreadPool;
use std::time::{Duration, Instant};

/// Time of some passes, by what it was spent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// The matrices of attention, and attention itself.
    pub attention: Duration,
    /// The matrices of the feed-forward layers.
    pub feed_forward: Duration,
    /// The matrix that gives the logits.
    pub head: Duration,
    /// Handing parts of these to other threads, and waiting for them.
    pub waiting: Duration,
    /// Between them: normalising, quantising, rotating, activating, filling the cache.
    pub between: Duration,
}

impl Timings {
    /// All of it.
    pub fn total(&self) -> Duration {
        self.attention + self.feed_forward + self.head + self.waiting + self.between
    }
}

/// What a lap of the watch was spent on.
#[derive(Debug, Clone, Copy)]
pub(super) enum TimedPart {
    Attention,
    FeedForward,
    Head,
    Between,
}

/// A stop watch that goes from lap to lap: one look at the clock for each, and no gap between two.
#[derive(Debug)]
pub(super) struct Stopwatch {
    timings: Timings,
    last: Instant,
    /// What the pool had waited at `last`.
    waited: Duration,
}

impl Stopwatch {
    pub fn new() -> Self {
        Stopwatch { timings: Timings::default(), last: Instant::now(), waited: Duration::ZERO }
    }

    /// Begins a lap; what passed since the last one counts for nothing.
    pub fn start(&mut self, pool: &ThreadPool) {
        (self.last, self.waited) = (Instant::now(), pool.waited());
    }

    /// Ends a lap, which was spent on `part` and on waiting, and begins the next.
    pub fn lap(&mut self, part: TimedPart, pool: &ThreadPool) {
        let (now, waited) = (Instant::now(), pool.waited());
        let waiting = waited.saturating_sub(self.waited);
        let timings = &mut self.timings;
        timings.waiting += waiting;
        let spent = match part {
            TimedPart::Attention => &mut timings.attention,
            TimedPart::FeedForward => &mut timings.feed_forward,
            TimedPart::Head => &mut timings.head,
            TimedPart::Between => &mut timings.between,
        };
        *spent += (now - self.last).saturating_sub(waiting);
        (self.last, self.waited) = (now, waited);
    }

    /// What was measured since the last call.
    pub fn take(&mut self) -> Timings {
        std::mem::take(&mut self.timings)
    }
}
