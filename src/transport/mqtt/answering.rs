//! Whether a request is being answered, as the topic `answering` shows it.
//!
//! Most answers of a small model take a few milliseconds. So a state is published at once, and stays for a moment before the
//! next one follows: however many requests there are, the broker gets two messages a second. Pure: the time is passed
//! in. Deliberately knows nothing of requests.

use std::time::{Duration, Instant};

/// How long a published state stays at least.
const MIN_STATE_TIME: Duration = Duration::from_millis(500);

/// The state that was published last, on this connection.
#[derive(Debug, Default)]
pub struct AnsweringState {
    published: Option<(bool, Instant)>,
}

impl AnsweringState {
    /// The state to publish now, where `is_answering` is the present one; to be called again at [`AnsweringState::due`].
    pub fn next(&mut self, is_answering: bool, now: Instant) -> Option<bool> {
        if self.due(is_answering).is_none_or(|due| now < due) {
            return None;
        }
        self.published = Some((is_answering, now));
        Some(is_answering)
    }

    /// When the present state is to be published; `None` where it was published already, or nothing was on this
    /// connection.
    pub fn due(&self, is_answering: bool) -> Option<Instant> {
        let (published, at) = self.published?;
        (published != is_answering).then(|| at + MIN_STATE_TIME)
    }

    /// The state is published now, whatever was published before: the connection is new, or somebody missed it.
    pub fn published(&mut self, is_answering: bool, now: Instant) {
        self.published = Some((is_answering, now));
    }

    /// The connection ended.
    pub fn disconnected(&mut self) {
        self.published = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn a_change_is_published_at_once_and_its_end_half_a_second_later_at_the_earliest() {
        let (now, mut state) = (Instant::now(), AnsweringState::default());
        state.published(false, now);
        assert_eq!(state.next(true, at(now, 1_000)), Some(true));
        assert_eq!(state.next(true, at(now, 2_000)), None);
        assert_eq!(state.next(false, at(now, 1_030)), None);
        assert_eq!(state.due(false), Some(at(now, 1_500)));
        assert_eq!(state.next(false, at(now, 1_500)), Some(false));
        assert_eq!(state.due(false), None);
    }

    #[test]
    fn a_flood_of_short_requests_makes_two_messages_a_second() {
        let (now, mut state) = (Instant::now(), AnsweringState::default());
        state.published(false, now);
        let made = (0..10_000).filter(|ms| state.next(ms / 10 % 2 == 0, at(now, *ms)).is_some()).count();
        assert!((15..=20).contains(&made), "{made}");
    }

    #[test]
    fn nothing_is_published_without_a_connection() {
        let (now, mut state) = (Instant::now(), AnsweringState::default());
        assert_eq!((state.next(true, now), state.due(true)), (None, None));
        state.published(true, now);
        state.disconnected();
        assert_eq!((state.next(false, at(now, 9_000)), state.due(false)), (None, None));
    }
}
