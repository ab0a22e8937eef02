//! The requests in flight on one connection: those whose last event is not yet written.
//!
//! Deliberately knows nothing of bytes: it counts requests, finds them by id, and cancels those that are left when
//! the connection ends.

use crate::transport::Cancel;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;

/// Maximum number of requests in flight on one connection; its next line is read once one of them has ended. More
/// than the daemon's queue holds by default, so that a client receives `queue_full` rather than no answer.
pub(super) const MAX_IN_FLIGHT: usize = 64;

/// The requests in flight, by id. Dropping it cancels them.
#[derive(Debug)]
pub(super) struct InFlight {
    state: Mutex<State>,
    /// Notified at each end of a request.
    ended: Notify,
    /// Notified when the connection is to be closed because it is idle and another client needs the slot.
    evicted: Notify,
}

#[derive(Debug)]
struct State {
    requests: HashMap<String, Cancel>,
    /// Bytes are being written.
    is_writing: bool,
    /// When the client last sent or accepted bytes.
    last_used: Instant,
    /// The connection is to be closed, and accepts nothing more.
    is_evicted: bool,
}

impl Default for InFlight {
    fn default() -> Self {
        let state = State {
            requests: HashMap::new(),
            is_writing: false,
            last_used: Instant::now(),
            is_evicted: false,
        };
        InFlight { state: Mutex::new(state), ended: Notify::new(), evicted: Notify::new() }
    }
}

impl InFlight {
    /// Waits until one more request may start. Only one task may wait.
    pub(super) async fn wait_for_slot(&self) {
        while self.state().requests.len() >= MAX_IN_FLIGHT {
            self.ended.notified().await;
        }
    }

    /// Registers a request; `None` where its id is already in flight.
    pub(super) fn start(&self, id: &str) -> Option<Cancel> {
        let requests = &mut self.state().requests;
        if requests.contains_key(id) {
            return None;
        }
        let cancel = Cancel::default();
        requests.insert(id.to_owned(), cancel.clone());
        Some(cancel)
    }

    /// Removes a request whose last event was sent.
    pub(super) fn end(&self, id: &str) {
        self.state().requests.remove(id);
        self.ended.notify_one();
    }

    /// Raises the cancel flag of one request; `false` where no request has that id.
    pub(super) fn cancel(&self, id: &str) -> bool {
        self.state().requests.get(id).map(Cancel::raise).is_some()
    }

    /// Whether a request of this id is in flight.
    pub(super) fn is_running(&self, id: &str) -> bool {
        self.state().requests.contains_key(id)
    }

    /// Notes that the client sent something; `false` where the connection accepts nothing more.
    pub(super) fn record_activity(&self) -> bool {
        let mut state = self.state();
        state.last_used = Instant::now();
        !state.is_evicted
    }

    /// Notes that bytes are being written, or no longer are.
    pub(super) fn set_writing(&self, is_writing: bool) {
        let mut state = self.state();
        (state.is_writing, state.last_used) = (is_writing, Instant::now());
    }

    /// Since when the connection has been idle. `None` while a request is in flight or bytes are being written, and
    /// once it is evicted.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        let is_idle = state.requests.is_empty() && !state.is_writing && !state.is_evicted;
        is_idle.then_some(state.last_used)
    }

    /// Whether the connection still counts against the limit.
    pub(super) fn is_open(&self) -> bool {
        !self.state().is_evicted
    }

    /// Closes the connection, unless it came into use in the meantime.
    pub(super) fn evict(&self) -> bool {
        let mut state = self.state();
        state.is_evicted = state.requests.is_empty() && !state.is_writing;
        if state.is_evicted {
            self.evicted.notify_one();
        }
        state.is_evicted
    }

    /// Waits until the connection is to end for want of use.
    pub(super) async fn dismissed(&self) {
        while self.is_open() {
            self.evicted.notified().await;
        }
    }

    /// Raises the cancel flags of all requests.
    pub(super) fn cancel_all(&self) {
        self.state().requests.values().for_each(Cancel::raise);
    }

    /// The ids of all requests in flight.
    pub(super) fn ids(&self) -> Vec<String> {
        self.state().requests.keys().cloned().collect()
    }

    /// Never held across an await. A map is whole after every call, so a panic elsewhere while it
    /// was locked is no reason to lose it.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.cancel_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_in_flight_once_and_free_again_at_its_end() {
        let in_flight = InFlight::default();
        assert!(in_flight.start("a").is_some());
        assert!(in_flight.start("a").is_none());
        in_flight.end("a");
        assert!(in_flight.start("a").is_some());
    }

    #[test]
    fn cancelling_raises_the_flag_of_that_request_alone() {
        let in_flight = InFlight::default();
        let a = in_flight.start("a").expect("new");
        let b = in_flight.start("b").expect("new");
        assert!(in_flight.cancel("a"));
        assert!(!in_flight.cancel("c"));
        assert_eq!((a.is_raised(), b.is_raised()), (true, false));
    }

    #[test]
    fn a_connection_in_use_is_not_idle_and_cannot_be_dismissed() {
        let in_flight = InFlight::default();
        assert!(in_flight.idle_since().is_some());
        in_flight.start("a").expect("new");
        assert!(in_flight.idle_since().is_none() && !in_flight.evict() && in_flight.is_open());
        in_flight.end("a");
        in_flight.set_writing(true);
        assert!(in_flight.idle_since().is_none() && !in_flight.evict() && in_flight.record_activity());
        in_flight.set_writing(false);
        assert!(in_flight.evict() && !in_flight.is_open());
        assert!(in_flight.idle_since().is_none() && !in_flight.record_activity(), "it is let go once");
    }

    #[test]
    fn a_connection_that_ends_cancels_its_requests() {
        let in_flight = InFlight::default();
        let cancel = in_flight.start("a").expect("new");
        drop(in_flight);
        assert!(cancel.is_raised());
    }
}
