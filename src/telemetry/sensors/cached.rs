//! A value that is read again only when it is too old. Deliberately knows no sensor.

use std::time::{Duration, Instant};

/// How long slowly changing values are reused: memory of host and control group, and the kernel's own means over
/// ten seconds and more. Reading them each second was most of the work of an idle daemon.
pub(super) const CACHE_FOR: Duration = Duration::from_secs(5);

/// A value with its age.
#[derive(Debug)]
pub(super) struct Cached<T> {
    max_age: Duration,
    last: Option<(Instant, T)>,
}

impl<T: Clone> Cached<T> {
    pub fn new(holds: Duration) -> Self {
        Cached { max_age: holds, last: None }
    }

    pub fn get(&mut self, now: Instant, read: impl FnOnce() -> T) -> T {
        let known = self.last.take().filter(|(at, _)| now.saturating_duration_since(*at) < self.max_age);
        let (_, value) = self.last.insert(known.unwrap_or_else(|| (now, read())));
        value.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_again_when_it_is_too_old_and_not_before() {
        let (start, mut slow, mut reads) = (Instant::now(), Cached::new(CACHE_FOR), 0);
        let mut at = |ms| {
            slow.get(start + Duration::from_millis(ms), || {
                reads += 1;
                reads
            })
        };
        assert_eq!([0, 1000, 4999, 5000, 9999, 10_000, 9000].map(&mut at), [1, 1, 1, 2, 2, 3, 3]);
    }
}
