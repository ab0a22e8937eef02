//! The latest answers, for prompts that are received again.
//!
//! Pure and bounded. Deliberately knows nothing of deliveries: an answer is found by its number, or by the name of
//! its prompt.

use crate::protocol::RequestId;
use crate::transport::mqtt::delivery::dedup_keys::DedupKeys;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Maximum number of answers: twice what a broker may have unacknowledged.
const MAX_ANSWERS: usize = 512;
/// Maximum size of all of them in bytes: one kilobyte each.
const MAX_BYTES: usize = 512 << 10;
/// How long an answer is reused for the same request of the same client. Not for ever: a script may use one id,
/// such as `"id":"ha"`, every day.
const REUSE_PERIOD: Duration = Duration::from_secs(600);

/// An answer, and the keys of its prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAnswer {
    /// Identifies the answer.
    pub number: u64,
    /// The keys of its prompt.
    pub keys: DedupKeys,
    /// The request's id.
    pub id: RequestId,
    /// The event, as JSON; empty for an answer that must not be sent again.
    pub payload: Vec<u8>,
}

impl StoredAnswer {
    fn size(&self) -> usize {
        size_of::<Entry>() + self.id.len() + self.payload.len()
    }
}

#[derive(Debug)]
struct Entry {
    answer: StoredAnswer,
    /// Until then the same request gets it.
    reusable_until: Instant,
}

/// The answers, oldest first.
#[derive(Debug, Default)]
pub struct RecentAnswers {
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl RecentAnswers {
    /// Adds an answer that was delivered `age` ago.
    pub fn insert(&mut self, answer: StoredAnswer, age: Duration, now: Instant) {
        if let Some(at) = self.entries.iter().position(|entry| entry.answer.number == answer.number) {
            self.remove(at);
        }
        if answer.size() > MAX_BYTES {
            return;
        }
        self.bytes += answer.size();
        self.entries.push_back(Entry { answer, reusable_until: now + REUSE_PERIOD.saturating_sub(age) });
        while self.entries.len() > MAX_ANSWERS || self.bytes > MAX_BYTES {
            self.remove(0);
        }
    }

    /// Whether the answer of this number can be sent again.
    pub fn contains(&self, number: u64) -> bool {
        self.by_number(number).is_some()
    }

    /// The answer of this number, if it can be sent again.
    pub fn by_number(&self, number: u64) -> Option<&StoredAnswer> {
        self.find(|entry| entry.answer.number == number)
    }

    /// The latest answer to a request of this name, within the reuse period.
    pub fn by_name(&self, name: u128, now: Instant) -> Option<&StoredAnswer> {
        self.find(|entry| entry.answer.keys.name == Some(name) && now < entry.reusable_until)
    }

    fn find(&self, is_it: impl Fn(&Entry) -> bool) -> Option<&StoredAnswer> {
        let entry = self.entries.iter().rev().find(|entry| is_it(entry))?;
        Some(&entry.answer).filter(|answer| !answer.payload.is_empty())
    }

    /// The answers, oldest first, and the time since each was delivered.
    pub fn iter(&self, now: Instant) -> impl Iterator<Item = (&StoredAnswer, Duration)> {
        self.entries.iter().map(move |entry| (&entry.answer, age(entry, now)))
    }

    fn remove(&mut self, at: usize) {
        if let Some(entry) = self.entries.remove(at) {
            self.bytes -= entry.answer.size();
        }
    }
}

fn age(entry: &Entry, now: Instant) -> Duration {
    let left = entry.reusable_until.saturating_duration_since(now);
    REUSE_PERIOD.saturating_sub(left) + now.saturating_duration_since(entry.reusable_until)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(number: u64, bytes: usize) -> StoredAnswer {
        let keys = DedupKeys { name: Some(u128::from(number)), delivery: Some(u128::from(number) << 64) };
        StoredAnswer { number, keys, id: "a".into(), payload: vec![b'x'; bytes] }
    }

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn the_same_request_gets_the_stored_answer_for_ten_minutes() {
        let now = Instant::now();
        let mut recent = RecentAnswers::default();
        recent.insert(answer(1, 10), Duration::from_secs(100), now);
        assert_eq!(recent.by_name(1, at(now, 499)), Some(&answer(1, 10)));
        assert_eq!(recent.by_name(1, at(now, 500)), None);
        assert_eq!(recent.by_name(2, now), None);
        assert_eq!(recent.by_number(1), Some(&answer(1, 10)), "a redelivery gets it at any time");
        assert_eq!(recent.iter(at(now, 30)).next(), Some((&answer(1, 10), Duration::from_secs(130))));
    }

    #[test]
    fn an_empty_answer_is_not_sent_again() {
        let now = Instant::now();
        let mut recent = RecentAnswers::default();
        recent.insert(answer(1, 0), Duration::ZERO, now);
        assert!(recent.by_name(1, now).is_none() && !recent.contains(1));
    }

    #[test]
    fn count_and_bytes_are_bounded_and_the_latest_stay() {
        let now = Instant::now();
        let mut recent = RecentAnswers::default();
        for number in 0..100 {
            recent.insert(answer(number, 50_000), Duration::ZERO, now);
            assert!(recent.bytes <= MAX_BYTES);
        }
        assert!(recent.contains(99));
        recent.insert(answer(100, MAX_BYTES), Duration::ZERO, now);
        assert!(!recent.contains(100) && recent.contains(99), "one larger than all the memory is not kept");
        (0..1000).for_each(|number| recent.insert(answer(number, 10), Duration::ZERO, now));
        assert_eq!(
            (recent.entries.len(), recent.contains(487), recent.contains(488)),
            (MAX_ANSWERS, false, true)
        );
    }

    #[test]
    fn the_same_answer_again_takes_no_more_memory() {
        let now = Instant::now();
        let mut recent = RecentAnswers::default();
        (0..3).for_each(|_| recent.insert(answer(1, 10), Duration::ZERO, now));
        assert_eq!(recent.entries.len(), 1);
    }
}
