//! How often a client may ask: a sliding window over the times of its last requests, which is exact at every moment, unlike
//! counts by the minute of the clock.
//!
//! Bounded, however many clients come: the clients that have been silent longest are forgotten first. Who can take any
//! number of names has any number of limits in any case, so nothing is gained by it. Deliberately knows no settings.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// The length of the window.
const WINDOW: Duration = Duration::from_secs(60);
/// Clients that are remembered.
const MAX_CLIENTS: usize = 1024;
/// Times that are remembered of all clients together: 8 bytes each, doubled at most by the growth of the queues.
const MAX_TIMES: usize = 32_768;

/// The times of the requests of the last minute, by client.
#[derive(Debug)]
pub(super) struct RequestWindows {
    /// Times are nanoseconds from here.
    origin: Instant,
    /// Keyed with a random key, so that no client can choose a name that collides with another's.
    hasher: RandomState,
    by_client: HashMap<u64, VecDeque<u64>>,
    times: usize,
}

impl RequestWindows {
    pub fn new(now: Instant) -> Self {
        RequestWindows { origin: now, hasher: RandomState::new(), by_client: HashMap::new(), times: 0 }
    }

    /// Forgets all clients.
    pub fn clear(&mut self) {
        if !self.by_client.is_empty() {
            (self.by_client, self.times) = (HashMap::new(), 0);
        }
    }

    /// Counts a request, where fewer than `most` of the client were counted in the last minute; otherwise returns after
    /// what time one more will be. Requests that are not admitted do not count, so that a client that waits so long is
    /// admitted.
    pub fn admit(&mut self, client: &str, most: usize, now: Instant) -> Result<(), Duration> {
        let now = nanoseconds(now.saturating_duration_since(self.origin));
        let client = self.hasher.hash_one(client);
        if let Some(times) = self.by_client.get_mut(&client) {
            let expired = times.iter().take_while(|time| **time + nanoseconds(WINDOW) <= now).count();
            times.drain(..expired);
            self.times -= expired;
            // After a reload there may be more of them than are allowed now.
            if let Some(oldest) = times.len().checked_sub(most).and_then(|at| times.get(at)) {
                return Err(Duration::from_nanos(oldest + nanoseconds(WINDOW) - now));
            }
        }
        self.make_space(client, now);
        self.by_client.entry(client).or_default().push_back(now);
        self.times += 1;
        Ok(())
    }

    /// Forgets other clients until there is space for one more request of this one: first those without a request in the
    /// window, then those that have been silent longest.
    fn make_space(&mut self, client: u64, now: u64) {
        let is_full = |limiter: &Self| {
            let is_known = limiter.by_client.contains_key(&client);
            limiter.times >= MAX_TIMES || (!is_known && limiter.by_client.len() >= MAX_CLIENTS)
        };
        if !is_full(self) {
            return;
        }
        let is_over =
            |times: &VecDeque<u64>| times.back().is_none_or(|last| last + nanoseconds(WINDOW) <= now);
        self.by_client.retain(|_, times| !is_over(times));
        self.times = self.by_client.values().map(VecDeque::len).sum();
        while is_full(self) {
            let others = self.by_client.iter().filter(|(other, _)| **other != client);
            let Some(silent) = others.min_by_key(|(_, times)| times.back().copied()).map(|(other, _)| *other)
            else {
                return;
            };
            self.times -= self.by_client.remove(&silent).map_or(0, |times| times.len());
        }
    }
}

/// A time that fits for 500 years.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Lcg;

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    #[test]
    fn no_minute_however_it_is_cut_has_more_requests_than_are_allowed() {
        let (now, mut numbers) = (Instant::now(), Lcg::new(7));
        let mut limiter = RequestWindows::new(now);
        let (mut at, mut admitted) = (0, Vec::<u64>::new());
        for _ in 0..20_000 {
            at += u64::from(numbers.next_u32() % 3000);
            let fits = admitted.iter().rev().take_while(|time| **time + 60_000 > at).count() < 20;
            let outcome = limiter.admit("a", 20, now + ms(at));
            assert_eq!(outcome.is_ok(), fits, "exactly where the last 60 s have fewer than 20");
            match outcome {
                Ok(()) => admitted.push(at),
                Err(wait) => {
                    assert!(limiter.admit("a", 20, now + ms(at) + wait - Duration::from_nanos(1)).is_err());
                    assert_eq!(wait, ms(admitted[admitted.len() - 20] + 60_000 - at));
                }
            }
        }
    }

    #[test]
    fn clients_do_not_share_a_window() {
        let now = Instant::now();
        let mut limiter = RequestWindows::new(now);
        assert!(limiter.admit("a", 1, now).is_ok() && limiter.admit("b", 1, now).is_ok());
        assert!(limiter.admit("a", 1, now).is_err() && limiter.admit("b", 1, now).is_err());
    }

    #[test]
    fn memory_is_bounded_and_the_clients_that_asked_last_stay_limited() {
        let now = Instant::now();
        let mut limiter = RequestWindows::new(now);
        for number in 0..100_000_u64 {
            assert!(limiter.admit(&format!("client {number}"), 1, now + ms(number / 100)).is_ok());
            assert!(limiter.by_client.len() <= MAX_CLIENTS && limiter.times <= MAX_TIMES);
        }
        let last = now + ms(1000);
        assert!(limiter.admit("client 99500", 1, last).is_err());
        // Many requests of few clients are bounded too.
        for number in 0..60_000 {
            assert!(limiter.admit(["x", "y", "z"][number % 3], 100_000, last).is_ok());
            assert!(limiter.times <= MAX_TIMES);
        }
        assert_eq!(limiter.times, limiter.by_client.values().map(VecDeque::len).sum::<usize>());
        let later = last + WINDOW;
        limiter.make_space(0, nanoseconds(later.duration_since(now)));
        limiter.clear();
        assert_eq!((limiter.by_client.len(), limiter.times), (0, 0));
    }
}
