//! What need not be read each time.

use std::time::{Duration, Instant};

/// How long it holds what changes slowly: memory of host and control group, and the kernel's own means of ten seconds
/// and more. Read each second they were most of what an idle daemon did.
pub(super) const HOLDS: Duration = Duration::from_secs(5);

/// A value that is read again only once it is of some age.
#[derive(Debug)]
pub(super) struct Slow<T> {
    holds: Duration,
    read: Option<(Instant, T)>,
}

impl<T: Clone> Slow<T> {
    pub fn new(holds: Duration) -> Self {
        Slow { holds, read: None }
    }

    pub fn get(&mut self, now: Instant, read: impl FnOnce() -> T) -> T {
        let known = self.read.take().filter(|(at, _)| now.saturating_duration_since(*at) < self.holds);
        let (_, value) = self.read.insert(known.unwrap_or_else(|| (now, read())));
        value.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_again_when_it_is_too_old_and_not_before() {
        let (start, mut slow, mut reads) = (Instant::now(), Slow::new(HOLDS), 0);
        let mut at = |ms| {
            slow.get(start + Duration::from_millis(ms), || {
                reads += 1;
                reads
            })
        };
        assert_eq!([0, 1000, 4999, 5000, 9999, 10_000, 9000].map(&mut at), [1, 1, 1, 2, 2, 3, 3]);
    }
}
