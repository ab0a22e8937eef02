//! The requests of one connection that still owe it their last event.
//!
//! Deliberately knows nothing of bytes: it counts, finds ids, and stops what its owner leaves
//! behind.

use crate::transport::Cancel;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Most requests in flight on one connection; its next line is read when one has ended. More than
/// the daemon's queue holds by default, so that a client hears `queue_full` rather than silence.
pub(super) const MAX_IN_FLIGHT: usize = 64;

/// Requests in flight by id. Dropped with the connection, it cancels them.
#[derive(Debug, Default)]
pub(super) struct Flight {
    requests: Mutex<HashMap<String, Cancel>>,
    /// Told at each end of a request.
    ended: Notify,
}

impl Flight {
    /// Waits until one more request may start. One task only may wait.
    pub(super) async fn room(&self) {
        while self.requests().len() >= MAX_IN_FLIGHT {
            self.ended.notified().await;
        }
    }

    /// Notes a request; `None` where its id is in flight already.
    pub(super) fn start(&self, id: &str) -> Option<Cancel> {
        let mut requests = self.requests();
        if requests.contains_key(id) {
            return None;
        }
        let cancel = Cancel::default();
        requests.insert(id.to_owned(), cancel.clone());
        Some(cancel)
    }

    /// Forgets a request that has had its last event.
    pub(super) fn end(&self, id: &str) {
        self.requests().remove(id);
        self.ended.notify_one();
    }

    /// Asks one request to stop; `false` where there is none of that id.
    pub(super) fn cancel(&self, id: &str) -> bool {
        self.requests().get(id).map(Cancel::raise).is_some()
    }

    /// Asks all requests to stop.
    pub(super) fn cancel_all(&self) {
        self.requests().values().for_each(Cancel::raise);
    }

    /// The ids that still wait for their last event.
    pub(super) fn ids(&self) -> Vec<String> {
        self.requests().keys().cloned().collect()
    }

    /// Never held across an await. A map is whole after every call, so a panic elsewhere while it
    /// was locked is no reason to lose it.
    fn requests(&self) -> MutexGuard<'_, HashMap<String, Cancel>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.cancel_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_in_flight_once_and_free_again_at_its_end() {
        let flight = Flight::default();
        assert!(flight.start("a").is_some());
        assert!(flight.start("a").is_none());
        flight.end("a");
        assert!(flight.start("a").is_some());
    }

    #[test]
    fn cancelling_raises_the_flag_of_that_request_alone() {
        let flight = Flight::default();
        let a = flight.start("a").expect("new");
        let b = flight.start("b").expect("new");
        assert!(flight.cancel("a"));
        assert!(!flight.cancel("c"));
        assert_eq!((a.is_raised(), b.is_raised()), (true, false));
    }

    #[test]
    fn a_connection_that_goes_cancels_what_it_left() {
        let flight = Flight::default();
        let cancel = flight.start("a").expect("new");
        drop(flight);
        assert!(cancel.is_raised());
    }
}
