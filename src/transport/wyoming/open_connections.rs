//! The open connections, counted against the limit. An idle one makes place for a new client.
//!
//! Deliberately knows no bytes and no requests.

use super::MAX_CONNECTIONS;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How long a connection that is idle may stay in any case: its client has just connected and is about to send something,
/// or reads the last answer.
const GRACE: Duration = Duration::from_millis(200);

/// Since when a connection has been idle, and whether it has to end for that.
#[derive(Debug)]
pub(super) struct Activity {
    /// `None` while an event is read or answered.
    idle_since: Mutex<Option<Instant>>,
    evicted: CancellationToken,
}

impl Activity {
    /// Notes that an event is being read or answered.
    pub(super) fn busy(&self) {
        self.set(None);
    }

    /// Notes that nothing is under way.
    pub(super) fn idle(&self) {
        self.set(Some(Instant::now()));
    }

    /// Waits until the connection has to end so that another client can be served.
    pub(super) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }

    fn set(&self, since: Option<Instant>) {
        *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    fn since(&self) -> Option<Instant> {
        *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The open connections.
#[derive(Debug, Default)]
pub(super) struct OpenConnections(Vec<Weak<Activity>>);

impl OpenConnections {
    /// Opens one more, if need be after evicting the one that has been idle longest. `None` where none is idle.
    pub(super) fn open(&mut self, now: Instant) -> Option<Arc<Activity>> {
        let counts = |open: &Weak<Activity>| open.upgrade().is_some_and(|open| !open.evicted.is_cancelled());
        self.0.retain(counts);
        if self.0.len() >= MAX_CONNECTIONS {
            let open = self.0.iter().filter_map(Weak::upgrade);
            let idle = open.filter_map(|open| Some((open.since()?, open)));
            let is_unused = |(since, _): &(Instant, _)| now.saturating_duration_since(*since) >= GRACE;
            let (_, longest) = idle.filter(is_unused).min_by_key(|(since, _)| *since)?;
            longest.evicted.cancel();
            self.0.retain(counts);
        }
        let activity = Activity { idle_since: Mutex::new(Some(now)), evicted: CancellationToken::new() };
        let activity = Arc::new(activity);
        self.0.push(Arc::downgrade(&activity));
        Some(activity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connection_that_is_idle_longest_makes_place() {
        let mut connections = OpenConnections::default();
        let start = Instant::now();
        let mut open: Vec<_> = (0..MAX_CONNECTIONS).map(|_| connections.open(start).expect("free")).collect();
        assert!(connections.open(start).is_none(), "all have just connected");
        let later = start + GRACE;
        open.iter().for_each(|activity| activity.busy());
        assert!(connections.open(later).is_none(), "all are in use");
        open[3].set(Some(start));
        open[5].set(Some(start + GRACE / 2));
        let _another = connections.open(later).expect("one is idle");
        assert!(open[3].evicted.is_cancelled() && !open[5].evicted.is_cancelled());
        drop(open.pop());
        let _last = connections.open(later).expect("one has ended");
        assert!(!open[5].evicted.is_cancelled() && connections.0.len() == MAX_CONNECTIONS);
    }
}
