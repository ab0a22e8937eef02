//! The guard: what a client may ask, and how often. Each part is off until the configuration sets it.
//!
//! Pure: the time is passed in. Deliberately knows no queue, no transport and no engine.

mod rate_limit;

use crate::config;
use crate::protocol::{Code, GuardReason, Refusal};
use rate_limit::RateLimiter;
use std::time::Instant;

/// A request that the guard refuses.
#[derive(Debug, Clone, PartialEq)]
pub struct Denied {
    /// Why, as it is counted.
    pub reason: GuardReason,
    /// What the client gets.
    pub refusal: Refusal,
}

/// The guard with its settings, and what it remembers of the clients.
#[derive(Debug)]
pub struct Guard {
    settings: config::Guard,
    rate: RateLimiter,
}

impl Guard {
    /// A guard that has seen no client yet; `now` is the beginning of its time.
    pub fn new(settings: config::Guard, now: Instant) -> Self {
        Guard { settings, rate: RateLimiter::new(now) }
    }

    /// Adopts other settings. What the clients sent in the last minute still counts.
    pub fn adopt(&mut self, settings: config::Guard) {
        self.settings = settings;
    }

    /// Checks a request of the client with this key, which no other client has.
    pub fn check(&mut self, client: &str, now: Instant) -> Result<(), Denied> {
        let Some(most) = self.settings.requests_per_minute else {
            self.rate.clear();
            return Ok(());
        };
        self.rate.admit(client, most, now).map_err(|wait| {
            let message =
                format!("this client may ask {most} times a minute, and has done so; ask again later");
            // Rounded up: a millisecond too early would be refused again.
            let ms = wait.as_nanos().div_ceil(1_000_000) as u64;
            let refusal = Refusal { retry_after_ms: Some(ms), ..Refusal::new(Code::RateLimited, message) };
            Denied { reason: GuardReason::RateLimited, refusal }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn guard(requests_per_minute: usize, now: Instant) -> Guard {
        let requests_per_minute = Some(requests_per_minute);
        Guard::new(config::Guard { requests_per_minute }, now)
    }

    #[test]
    fn a_refusal_says_to_the_millisecond_when_the_next_request_is_admitted() {
        let now = Instant::now();
        let mut guard = guard(2, now);
        let at = |micros: u64| now + Duration::from_micros(micros);
        assert!(guard.check("a", at(1)).is_ok() && guard.check("a", at(7_000_500)).is_ok());
        let denied = guard.check("a", at(20_000_000)).expect_err("the third");
        assert_eq!((denied.reason, denied.refusal.code), (GuardReason::RateLimited, Code::RateLimited));
        let ms = denied.refusal.retry_after_ms.expect("a time");
        assert_eq!(ms, 40_001, "40.000001 s, rounded up");
        assert!(guard.check("a", at(20_000_000 + (ms - 1) * 1000)).is_err());
        assert!(guard.check("a", at(20_000_000 + ms * 1000)).is_ok());
    }

    #[test]
    fn without_a_limit_everything_is_admitted_and_a_limit_that_comes_by_reload_counts_from_then_on() {
        let now = Instant::now();
        let mut guard = Guard::new(config::Guard::default(), now);
        assert!((0..1000).all(|_| guard.check("a", now).is_ok()));
        guard.adopt(config::Guard { requests_per_minute: Some(3) });
        assert_eq!((0..9).filter(|_| guard.check("a", now).is_ok()).count(), 3);
        guard.adopt(config::Guard { requests_per_minute: Some(5) });
        assert_eq!((0..9).filter(|_| guard.check("a", now).is_ok()).count(), 2, "three are remembered");
        guard.adopt(config::Guard { requests_per_minute: Some(1) });
        let denied = guard.check("a", now + Duration::from_secs(59)).expect_err("five in a minute");
        assert_eq!(denied.refusal.retry_after_ms, Some(1000));
    }
}
