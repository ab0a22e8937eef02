//! The answers that were given lately, in case their prompts come again.
//!
//! Pure and bounded. Knows nothing of deliveries: it is asked for a prompt by its keys.

use super::arrivals::Keys;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Answers kept: twice what a broker may hold unacknowledged.
const ANSWERS: usize = 512;
/// Bytes of them all: a kilobyte each.
const BYTES: usize = 512 << 10;
/// How long an answer counts for a copy of its prompt that the broker does not mark as a redelivery.
/// Not for ever: a script may use one id, such as `"id":"ha"`, every day.
const RECENT: Duration = Duration::from_secs(600);
/// A copy that comes this soon is an echo of the client or a bridge, which has the answer on its way.
const ECHO: Duration = Duration::from_secs(10);

/// An answer, and what its prompt is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The row it was, which tells it from others.
    pub number: u64,
    /// What its prompt is known by.
    pub keys: Keys,
    /// The request's id.
    pub id: String,
    /// The event, as JSON; empty where saying nothing is better than saying it again.
    pub payload: Vec<u8>,
}

impl Given {
    fn size(&self) -> usize {
        size_of::<Entry>() + self.id.len() + self.payload.len()
    }
}

#[derive(Debug)]
struct Entry {
    given: Given,
    /// While the answer counts for an unmarked copy.
    recent_until: Instant,
    /// While such a copy is an echo.
    echo_until: Instant,
    /// The connection on which the broker acknowledged the answer. What a broker had before it was
    /// gone for a while, it may have lost.
    acknowledged_on: Option<u64>,
}

/// What to do about a prompt that was answered.
#[derive(Debug, PartialEq, Eq)]
pub enum Copy {
    /// The broker has the answer: nothing.
    Silent,
    /// Give it again.
    Again(Given),
}

/// The answers, oldest first.
#[derive(Debug, Default)]
pub struct Answered {
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Answered {
    /// Keeps an answer that was given `age` ago, on this connection if it was one of this process.
    pub fn keep(&mut self, given: Given, age: Duration, connection: Option<u64>, now: Instant) {
        if let Some(at) = self.entries.iter().position(|entry| entry.given.number == given.number) {
            self.remove(at);
        }
        if given.size() > BYTES {
            return;
        }
        self.bytes += given.size();
        self.entries.push_back(Entry {
            given,
            recent_until: now + RECENT.saturating_sub(age),
            echo_until: now + ECHO.saturating_sub(age),
            acknowledged_on: connection,
        });
        while self.entries.len() > ANSWERS || self.bytes > BYTES {
            self.remove(0);
        }
    }

    /// What is known of a prompt with these keys that comes on this connection.
    pub fn find(&self, keys: Keys, redelivered: bool, connection: u64, now: Instant) -> Option<Copy> {
        let is_it = |entry: &&Entry| {
            entry.given.keys.meet(keys, redelivered) && (redelivered || now < entry.recent_until)
        };
        let entry = self.entries.iter().rev().find(is_it)?;
        let arrived = entry.acknowledged_on == Some(connection);
        if entry.given.payload.is_empty() || (arrived && (redelivered || now < entry.echo_until)) {
            return Some(Copy::Silent);
        }
        Some(Copy::Again(entry.given.clone()))
    }

    /// The answers, oldest first, and how long ago they were given.
    pub fn all(&self, now: Instant) -> impl Iterator<Item = (&Given, Duration)> {
        self.entries.iter().map(move |entry| (&entry.given, age(entry, now)))
    }

    fn remove(&mut self, at: usize) {
        if let Some(entry) = self.entries.remove(at) {
            self.bytes -= entry.given.size();
        }
    }
}

fn age(entry: &Entry, now: Instant) -> Duration {
    let left = entry.recent_until.saturating_duration_since(now);
    RECENT.saturating_sub(left) + now.saturating_duration_since(entry.recent_until)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(number: u64, bytes: usize) -> Given {
        let keys = Keys { name: Some(u128::from(number)), delivery: Some(u128::from(number) << 64) };
        Given { number, keys, id: "a".into(), payload: vec![b'x'; bytes] }
    }

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn an_unmarked_copy_is_an_echo_then_answered_again_then_new() {
        let now = Instant::now();
        let mut answered = Answered::default();
        let one = given(1, 10);
        answered.keep(one.clone(), Duration::ZERO, Some(1), now);
        let copy = |seconds| answered.find(one.keys, false, 1, at(now, seconds));
        assert_eq!(copy(9), Some(Copy::Silent));
        assert_eq!(copy(10), Some(Copy::Again(one.clone())));
        assert_eq!(copy(599), Some(Copy::Again(one.clone())));
        assert_eq!(copy(600), None);
    }

    #[test]
    fn a_redelivery_is_known_for_as_long_as_there_is_room() {
        let now = Instant::now();
        let mut answered = Answered::default();
        let one = given(1, 10);
        answered.keep(one.clone(), Duration::ZERO, Some(1), now);
        let by_packet = Keys { name: None, ..one.keys };
        assert_eq!(answered.find(by_packet, true, 1, at(now, 9_999)), Some(Copy::Silent));
        assert_eq!(answered.find(by_packet, false, 1, now), None, "a packet id alone says nothing");
        for number in 2..=ANSWERS as u64 + 1 {
            answered.keep(given(number, 10), Duration::ZERO, Some(1), now);
        }
        assert_eq!(answered.find(by_packet, true, 1, now), None);
    }

    #[test]
    fn after_a_new_connection_the_broker_may_have_lost_the_answer() {
        let now = Instant::now();
        let mut answered = Answered::default();
        let one = given(1, 10);
        answered.keep(one.clone(), Duration::ZERO, Some(1), now);
        for redelivered in [true, false] {
            assert_eq!(answered.find(one.keys, redelivered, 2, now), Some(Copy::Again(one.clone())));
        }
    }

    #[test]
    fn an_answer_of_an_earlier_process_is_given_again() {
        let now = Instant::now();
        let mut answered = Answered::default();
        let one = given(1, 10);
        answered.keep(one.clone(), Duration::from_secs(590), None, now);
        assert_eq!(answered.find(one.keys, false, 1, now), Some(Copy::Again(one.clone())));
        assert_eq!(answered.find(one.keys, false, 1, at(now, 10)), None);
        assert_eq!(answered.all(at(now, 30)).next(), Some((&one, Duration::from_secs(620))));
    }

    #[test]
    fn what_is_better_not_said_again_is_not() {
        let now = Instant::now();
        let mut answered = Answered::default();
        answered.keep(given(1, 0), Duration::ZERO, None, now);
        assert_eq!(answered.find(given(1, 0).keys, true, 1, now), Some(Copy::Silent));
    }

    #[test]
    fn bytes_are_bounded_and_the_latest_stay() {
        let now = Instant::now();
        let mut answered = Answered::default();
        for number in 0..100 {
            answered.keep(given(number, 50_000), Duration::ZERO, None, now);
            assert!(answered.bytes <= BYTES);
        }
        assert!(answered.find(given(99, 0).keys, true, 1, now).is_some());
        answered.keep(given(100, BYTES), Duration::ZERO, None, now);
        assert!(answered.find(given(100, 0).keys, true, 1, now).is_none(), "larger than all the room");
        assert!(answered.find(given(99, 0).keys, true, 1, now).is_some());
    }

    #[test]
    fn the_same_answer_again_takes_no_more_room() {
        let now = Instant::now();
        let mut answered = Answered::default();
        for _ in 0..3 {
            answered.keep(given(1, 10), Duration::ZERO, Some(1), now);
        }
        assert_eq!(answered.entries.len(), 1);
    }
}
