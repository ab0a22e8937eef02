//! A histogram of the last while, whose oldest part is forgotten piece by piece.

use super::histogram::{Histogram, Place};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Places that a piece gets room for at once: it seldom needs more, and twice what it has would be too much.
const GROWTH: usize = 16;

/// Durations of the last `span`, in pieces of one length each.
///
/// What is counted is in it for `span` at least, and for `span` and a piece at most: a piece is forgotten whole,
/// when the youngest that may be in it is too old. Time passes without a call: who asks says when.
#[derive(Debug)]
pub(super) struct Window {
    span: Duration,
    piece: Duration,
    /// Oldest first, begun one length apart at least: no more than `span / piece + 2`.
    pieces: VecDeque<Piece>,
}

/// What came within one length of time from `begun` on.
#[derive(Debug)]
struct Piece {
    begun: Instant,
    /// The places that something was counted in, rising, and how much was. A second's requests have few.
    counts: Vec<(Place, u16)>,
}

impl Window {
    pub fn new(span: Duration, piece: Duration) -> Self {
        Window { span, piece, pieces: VecDeque::new() }
    }

    /// Counts one duration.
    pub fn record(&mut self, now: Instant, place: Place) {
        while self.pieces.front().is_some_and(|oldest| self.is_past(oldest, now)) {
            self.pieces.pop_front();
        }
        let is_full = |piece: &Piece| now.saturating_duration_since(piece.begun) >= self.piece;
        if self.pieces.back().is_none_or(is_full) {
            self.pieces.push_back(Piece { begun: now, counts: Vec::new() });
        }
        self.pieces.back_mut().expect("there is one now").count(place);
    }

    /// All of them together.
    pub fn histogram(&self, now: Instant) -> Histogram {
        let mut histogram = Histogram::default();
        for piece in self.pieces.iter().filter(|piece| !self.is_past(piece, now)) {
            piece.counts.iter().for_each(|(place, count)| histogram.add(*place, u32::from(*count)));
        }
        histogram
    }

    fn is_past(&self, piece: &Piece, now: Instant) -> bool {
        now.saturating_duration_since(piece.begun) >= self.span + self.piece
    }

    /// Memory of all pieces.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        let counts: usize = self.pieces.iter().map(|piece| piece.counts.capacity()).sum();
        counts * size_of::<(Place, u16)>() + self.pieces.capacity() * size_of::<Piece>()
    }
}

impl Piece {
    fn count(&mut self, place: Place) {
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

    fn place(us: u64) -> Place {
        Place::of(Duration::from_micros(us))
    }

    #[test]
    fn what_is_counted_stays_for_its_span_and_is_gone_a_piece_later() {
        for offset_ms in [0, 1, 700, 1999] {
            let (mut window, start) = (Window::new(SPAN, PIECE), Instant::now());
            window.record(start, place(1));
            let at = start + Duration::from_millis(offset_ms);
            window.record(at, place(2));
            assert_eq!(window.histogram(at + SPAN).count(), 2);
            assert_eq!(window.histogram(at + SPAN + PIECE).count(), 0, "{offset_ms}");
        }
    }

    #[test]
    fn pieces_are_forgotten_one_after_the_other() {
        let (mut window, start) = (Window::new(SPAN, PIECE), Instant::now());
        (0..600).for_each(|n| window.record(start + Duration::from_millis(100 * n), place(n)));
        let end = start + Duration::from_secs(60);
        let counts: Vec<_> =
            (0..33).map(|n| window.histogram(end + Duration::from_secs(2 * n)).count()).collect();
        assert!(counts.windows(2).all(|pair| pair[0] >= pair[1] && pair[0] - pair[1] <= 20), "{counts:?}");
        assert_eq!((counts[0], counts[31]), (600, 0));
    }

    #[test]
    fn memory_is_bounded_whatever_comes() {
        let (mut window, start) = (Window::new(SPAN, PIECE), Instant::now());
        for second in 0..200 {
            for us in (0..37).flat_map(|octave| (0..32u64).map(move |n| (1 << octave) + (n << octave) / 32)) {
                window.record(start + Duration::from_secs(second), place(us));
            }
        }
        let most = (BUCKETS + GROWTH) * 4 * 32 + 64 * size_of::<Piece>();
        assert!(window.bytes() <= most, "{} of {most}", window.bytes());
        assert!(window.pieces.len() <= 32, "{}", window.pieces.len());
    }

    #[test]
    fn a_moment_before_the_last_one_is_no_harm() {
        let (mut window, start) = (Window::new(SPAN, PIECE), Instant::now());
        window.record(start + PIECE, place(1));
        window.record(start, place(1));
        assert_eq!(window.histogram(start).count(), 2);
    }
}
