//! A histogram over a sliding window of time, in slices that are dropped when they are too old. Deliberately knows
//! no clock: the time is passed in.

use super::histogram::{BucketIndex, Histogram};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How many entries the vector of a slice grows by: doubling it would waste memory, since most slices have few
/// entries.
const GROWTH: usize = 16;

/// Durations of the last `span`, in slices of equal length.
///
/// A duration stays for at least `span` and at most `span` and one slice, since a slice is dropped as a whole when
/// its youngest duration is too old.
#[derive(Debug)]
pub(super) struct SlidingWindow {
    span: Duration,
    slice: Duration,
    /// Oldest first, at least one slice length apart: at most `span / slice + 2`.
    slices: VecDeque<Slice>,
}

/// The durations that were counted within one slice length from `begun` on.
#[derive(Debug)]
struct Slice {
    begun: Instant,
    /// The buckets that are not empty, in rising order, with their counts.
    counts: Vec<(BucketIndex, u16)>,
}

impl SlidingWindow {
    pub fn new(span: Duration, piece: Duration) -> Self {
        SlidingWindow { span, slice: piece, slices: VecDeque::new() }
    }

    /// Counts one duration.
    pub fn record(&mut self, now: Instant, place: BucketIndex) {
        while self.slices.front().is_some_and(|oldest| self.is_past(oldest, now)) {
            self.slices.pop_front();
        }
        let is_full = |piece: &Slice| now.saturating_duration_since(piece.begun) >= self.slice;
        if self.slices.back().is_none_or(is_full) {
            self.slices.push_back(Slice { begun: now, counts: Vec::new() });
        }
        self.slices.back_mut().expect("there is one now").count(place);
    }

    /// The histogram of all durations in the window at `now`.
    pub fn histogram(&self, now: Instant) -> Histogram {
        let mut histogram = Histogram::default();
        for piece in self.slices.iter().filter(|piece| !self.is_past(piece, now)) {
            piece.counts.iter().for_each(|(place, count)| histogram.add(*place, u32::from(*count)));
        }
        histogram
    }

    fn is_past(&self, piece: &Slice, now: Instant) -> bool {
        now.saturating_duration_since(piece.begun) >= self.span + self.slice
    }

    /// Bytes of all slices.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        let counts: usize = self.slices.iter().map(|piece| piece.counts.capacity()).sum();
        counts * size_of::<(BucketIndex, u16)>() + self.slices.capacity() * size_of::<Slice>()
    }
}

impl Slice {
    fn count(&mut self, place: BucketIndex) {
        match self.counts.binary_search_by_key(&place, |(known, _)| *known) {
            Ok(at) => self.counts[at].1 = self.counts[at].1.saturating_add(1),
            Err(at) => {
                if self.counts.len() == self.counts.capacity() {
                    self.counts.reserve_exact(GROWTH);
                }
                self.counts.insert(at, (place, 1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::histogram::BUCKETS;
    use super::*;

    const SPAN: Duration = Duration::from_secs(60);
    const PIECE: Duration = Duration::from_secs(2);

    fn place(us: u64) -> BucketIndex {
        BucketIndex::of(Duration::from_micros(us))
    }

    #[test]
    fn what_is_counted_stays_for_its_span_and_is_gone_a_piece_later() {
        for offset_ms in [0, 1, 700, 1999] {
            let (mut window, start) = (SlidingWindow::new(SPAN, PIECE), Instant::now());
            window.record(start, place(1));
            let at = start + Duration::from_millis(offset_ms);
            window.record(at, place(2));
            assert_eq!(window.histogram(at + SPAN).count(), 2);
            assert_eq!(window.histogram(at + SPAN + PIECE).count(), 0, "{offset_ms}");
        }
    }

    #[test]
    fn pieces_are_forgotten_one_after_the_other() {
        let (mut window, start) = (SlidingWindow::new(SPAN, PIECE), Instant::now());
        (0..600).for_each(|n| window.record(start + Duration::from_millis(100 * n), place(n)));
        let end = start + Duration::from_secs(60);
        let counts: Vec<_> =
            (0..33).map(|n| window.histogram(end + Duration::from_secs(2 * n)).count()).collect();
        assert!(counts.windows(2).all(|pair| pair[0] >= pair[1] && pair[0] - pair[1] <= 20), "{counts:?}");
        assert_eq!((counts[0], counts[31]), (600, 0));
    }

    #[test]
    fn memory_is_bounded_whatever_comes() {
        let (mut window, start) = (SlidingWindow::new(SPAN, PIECE), Instant::now());
        for second in 0..200 {
            for us in (0..37).flat_map(|octave| (0..32u64).map(move |n| (1 << octave) + (n << octave) / 32)) {
                window.record(start + Duration::from_secs(second), place(us));
            }
        }
        let most = (BUCKETS + GROWTH) * 4 * 32 + 64 * size_of::<Slice>();
        assert!(window.bytes() <= most, "{} of {most}", window.bytes());
        assert!(window.slices.len() <= 32, "{}", window.slices.len());
    }

    #[test]
    fn a_moment_before_the_last_one_is_no_harm() {
        let (mut window, start) = (SlidingWindow::new(SPAN, PIECE), Instant::now());
        window.record(start + PIECE, place(1));
        window.record(start, place(1));
        assert_eq!(window.histogram(start).count(), 2);
    }
}
