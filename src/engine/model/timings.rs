//! Where the time of passes went, measured on the thread that runs them.

use crate::engine::thread_pool::ThreadPool;
use std::ops::AddAssign;
use std::time::{Duration, Instant};

/// The time of some passes, by what it was spent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PassTimings {
    /// The matrices of attention, and attention itself.
    pub attention: Duration,
    /// The matrices of the feed-forward layers.
    pub feed_forward: Duration,
    /// The head.
    pub head: Duration,
    /// Handing parts to other threads, and waiting for them.
    pub waiting: Duration,
    /// The steps between: normalisation, quantisation, rotation, activation, storing keys and values.
    pub between: Duration,
}

impl PassTimings {
    /// The sum of all.
    pub fn total(&self) -> Duration {
        self.attention + self.feed_forward + self.head + self.waiting + self.between
    }
}

impl AddAssign for PassTimings {
    fn add_assign(&mut self, other: Self) {
        self.attention += other.attention;
        self.feed_forward += other.feed_forward;
        self.head += other.head;
        self.waiting += other.waiting;
        self.between += other.between;
    }
}

/// What a lap of the stopwatch was spent on.
#[derive(Debug, Clone, Copy)]
pub(super) enum TimedPart {
    Attention,
    FeedForward,
    Head,
    Between,
}

/// A stopwatch with one reading of the clock for each lap, and no gap between two laps.
#[derive(Debug)]
pub(super) struct Stopwatch {
    timings: PassTimings,
    last: Instant,
    /// The pool's waiting time at `last`.
    waited: Duration,
}

impl Stopwatch {
    pub fn new() -> Self {
        Stopwatch { timings: PassTimings::default(), last: Instant::now(), waited: Duration::ZERO }
    }

    /// Begins a lap; the time since the last lap is not counted.
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

    /// The measurements since the last call.
    pub fn take(&mut self) -> PassTimings {
        std::mem::take(&mut self.timings)
    }
}
