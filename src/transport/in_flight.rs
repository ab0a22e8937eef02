//! The requests in flight on one connection: those whose last event is not yet written.
//!
//! Deliberately knows nothing of bytes: it counts requests, finds them by id, and cancels those that are left when
//! the connection ends.

use crate::protocol::RequestId;
use crate::transport::Cancel;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Maximum number of requests in flight on one connection; its next line is read once one of them has ended. More
/// than the daemon's queue holds by default, so that a client receives `queue_full` rather than no answer.
pub const MAX_IN_FLIGHT: usize = 64;

/// How long a connection that has sent nothing yet, or only the beginning of a line, is not taken for idle: its client
/// is about to send the rest.
const UNFINISHED_LINE_GRACE: Duration = Duration::from_millis(200);

/// The requests in flight, by id. Dropping it cancels them.
#[derive(Debug)]
pub struct InFlight {
    state: Mutex<State>,
    /// Notified at each end of a request.
    ended: Notify,
    /// Notified when the connection is to be closed because it is idle and another client needs the slot.
    evicted: Notify,
}

#[derive(Debug)]
struct State {
    requests: HashMap<RequestId, Cancel>,
    /// Bytes are being written.
    is_writing: bool,
    /// When the client last sent or accepted bytes.
    last_used: Instant,
    /// What the client sent last was the end of a line; false while it has sent nothing.
    is_line_complete: bool,
    /// The connection is to be closed, and accepts nothing more.
    is_evicted: bool,
}

impl State {
    /// Whether nothing is under way on the connection.
    fn is_idle(&self, now: Instant) -> bool {
        let is_unused = self.requests.is_empty() && !self.is_writing && !self.is_evicted;
        let is_line_expected =
            !self.is_line_complete && now.saturating_duration_since(self.last_used) < UNFINISHED_LINE_GRACE;
        is_unused && !is_line_expected
    }
}

impl Default for InFlight {
    fn default() -> Self {
        let state = State {
            requests: HashMap::new(),
            is_writing: false,
            last_used: Instant::now(),
            is_line_complete: false,
            is_evicted: false,
        };
        InFlight { state: Mutex::new(state), ended: Notify::new(), evicted: Notify::new() }
    }
}

impl InFlight {
    /// Waits until one more request may start. Only one task may wait.
    pub async fn wait_for_slot(&self) {
        while self.state().requests.len() >= MAX_IN_FLIGHT {
            self.ended.notified().await;
        }
    }

    /// Registers a request; `None` where its id is already in flight.
    pub fn start(&self, id: &RequestId) -> Option<Cancel> {
        let requests = &mut self.state().requests;
        if requests.contains_key(id) {
            return None;
        }
        let cancel = Cancel::default();
        requests.insert(id.clone(), cancel.clone());
        Some(cancel)
    }

    /// Removes a request whose last event was sent.
    pub fn end(&self, id: &RequestId) {
        self.state().requests.remove(id);
        self.ended.notify_one();
    }

    /// Raises the cancel flag of one request; `false` where no request has that id.
    pub fn cancel(&self, id: &RequestId) -> bool {
        self.state().requests.get(id).map(Cancel::raise).is_some()
    }

    /// Whether a request of this id is in flight.
    pub fn is_running(&self, id: &RequestId) -> bool {
        self.state().requests.contains_key(id)
    }

    /// Notes that the client sent something, and whether that is the end of a line; `false` where the connection
    /// accepts nothing more.
    pub fn record_activity(&self, is_line_complete: bool) -> bool {
        let mut state = self.state();
        (state.last_used, state.is_line_complete) = (Instant::now(), is_line_complete);
        !state.is_evicted
    }

    /// Notes that bytes are being written, or no longer are.
    pub fn set_writing(&self, is_writing: bool) {
        let mut state = self.state();
        (state.is_writing, state.last_used) = (is_writing, Instant::now());
    }

    /// Since when the connection has been idle. `None` while a request is in flight, bytes are being written or the
    /// client is sending a line, and once it is evicted.
    pub fn idle_since(&self, now: Instant) -> Option<Instant> {
        let state = self.state();
        state.is_idle(now).then_some(state.last_used)
    }

    /// Whether the connection still counts against the limit.
    pub fn is_open(&self) -> bool {
        !self.state().is_evicted
    }

    /// Closes the connection, unless it came into use in the meantime.
    pub fn evict(&self, now: Instant) -> bool {
        let mut state = self.state();
        let is_idle = state.is_idle(now);
        if is_idle {
            state.is_evicted = true;
            self.evicted.notify_one();
        }
        is_idle
    }

    /// Waits until the connection is to end for want of use.
    pub async fn dismissed(&self) {
        while self.is_open() {
            self.evicted.notified().await;
        }
    }

    /// Raises the cancel flags of all requests.
    pub fn cancel_all(&self) {
        self.state().requests.values().for_each(Cancel::raise);
    }

    /// The ids of all requests in flight.
    pub fn ids(&self) -> Vec<RequestId> {
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

/// A request in flight until it is dropped, which cancels it; that changes nothing once its last event is there.
#[derive(Debug)]
pub struct InFlightRequest {
    /// Its id.
    pub id: RequestId,
    /// Its cancel flag.
    pub cancel: Cancel,
    in_flight: Arc<InFlight>,
}

impl InFlightRequest {
    /// A request that begins, whose id no other of the connection has.
    pub fn begin(id: RequestId, in_flight: &Arc<InFlight>) -> Self {
        let cancel = in_flight.start(&id).unwrap_or_default();
        InFlightRequest { id, cancel, in_flight: Arc::clone(in_flight) }
    }
}

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        self.cancel.raise();
        self.in_flight.end(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_in_flight_once_and_free_again_at_its_end() {
        let in_flight = InFlight::default();
        assert!(in_flight.start(&"a".into()).is_some());
        assert!(in_flight.start(&"a".into()).is_none());
        in_flight.end(&"a".into());
        assert!(in_flight.start(&"a".into()).is_some());
    }

    #[test]
    fn cancelling_raises_the_flag_of_that_request_alone() {
        let in_flight = InFlight::default();
        let a = in_flight.start(&"a".into()).expect("new");
        let b = in_flight.start(&"b".into()).expect("new");
        assert!(in_flight.cancel(&"a".into()));
        assert!(!in_flight.cancel(&"c".into()));
        assert_eq!((a.is_raised(), b.is_raised()), (true, false));
    }

    #[test]
    fn a_connection_in_use_is_not_idle_and_cannot_be_dismissed() {
        let in_flight = InFlight::default();
        assert!(in_flight.record_activity(true));
        let now = Instant::now();
        assert!(in_flight.idle_since(now).is_some());
        in_flight.start(&"a".into()).expect("new");
        assert!(in_flight.idle_since(now).is_none() && !in_flight.evict(now) && in_flight.is_open());
        in_flight.end(&"a".into());
        in_flight.set_writing(true);
        assert!(in_flight.idle_since(now).is_none() && !in_flight.evict(now));
        assert!(in_flight.record_activity(true));
        in_flight.set_writing(false);
        assert!(in_flight.evict(now) && !in_flight.is_open());
        assert!(in_flight.idle_since(now).is_none() && !in_flight.record_activity(true), "it is let go once");
        assert!(!in_flight.evict(now) && !in_flight.is_open());
    }

    #[test]
    fn a_client_has_a_moment_for_its_first_line_and_for_the_rest_of_one() {
        let in_flight = InFlight::default();
        let soon = Instant::now();
        let later = || Instant::now() + UNFINISHED_LINE_GRACE;
        assert!(in_flight.idle_since(soon).is_none() && !in_flight.evict(soon), "it has just connected");
        assert!(in_flight.idle_since(later()).is_some());
        in_flight.record_activity(true);
        assert!(in_flight.idle_since(Instant::now()).is_some());
        in_flight.record_activity(false);
        assert!(in_flight.idle_since(Instant::now()).is_none(), "the rest of the line is on its way");
        assert!(in_flight.evict(later()), "half a line does not keep the connection open");
    }

    #[test]
    fn a_connection_that_ends_cancels_its_requests() {
        let in_flight = InFlight::default();
        let cancel = in_flight.start(&"a".into()).expect("new");
        drop(in_flight);
        assert!(cancel.is_raised());
    }
}
