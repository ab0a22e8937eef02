//! The doors: they turn bytes into [`Inbound`] requests and events into bytes.
//!
//! Deliberately knows nothing of the engine, the queue or the model: a door hands a request on with
//! the way back inside it, and hears of it only through that way.

pub mod fair_queue;
pub mod line_framing;
pub mod mqtt;
pub mod unix;

use crate::protocol::{Code, Event, Refusal, Request};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;
use tokio::sync::mpsc;

/// A request with the way back to its client.
#[derive(Debug)]
pub struct Inbound {
    /// What is asked.
    pub request: Request,
    /// The id its events carry: the client's, else one of ours.
    pub id: String,
    /// Who asks, for the log and for what clients may not learn of each other: `unix:uid=1000`, `mqtt:kitchen`.
    pub client: String,
    /// Whose turn it takes among the requests that wait: `client`, or one of its processes where these are known.
    pub queue_key: String,
    /// What becomes of it when too many wait.
    pub when_full: WhenFull,
    /// When its last byte came; deadlines count from here.
    pub received: Instant,
    /// Way back 1: the events.
    pub reply: Reply,
    /// Way back 2: raised when the client is gone or asks to stop.
    pub cancel: Cancel,
}

/// What becomes of a request that comes when too many wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// It is refused with `queue_full`: its client hears that at once, and may ask again.
    Refuse,
    /// It waits all the same: its transport hands over at most `queue.depth` of these at a time and keeps the others
    /// waiting by itself.
    Wait,
}

/// The events' way to one client. Exactly one last event goes through it, whatever happens:
/// its place in the client's channel is reserved beforehand, and a reply dropped unanswered
/// says `internal`.
#[derive(Debug)]
pub struct Reply {
    id: String,
    tokens: mpsc::Sender<Event>,
    last: Option<mpsc::OwnedPermit<Event>>,
}

/// The client's channel is full or closed: it reads too slowly, or is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooSlow;

impl Reply {
    /// A way back through `channel`, with a place for the last event taken now.
    /// `None` when the channel is full or closed.
    pub fn new(id: &str, channel: &mpsc::Sender<Event>) -> Option<Self> {
        let last = channel.clone().try_reserve_owned().ok()?;
        Some(Reply { id: id.to_owned(), tokens: channel.clone(), last: Some(last) })
    }

    /// Hands on the next piece of text; never waits.
    pub fn token(&self, text: String) -> Result<(), TooSlow> {
        let event = Event::Token { id: self.id.clone(), text };
        self.tokens.try_send(event).map_err(|_| TooSlow)
    }

    /// Ends the request with `event`; never waits, and never fails while the client lives.
    pub fn finish(mut self, event: Event) {
        debug_assert!(event.is_last());
        if let Some(address) = self.last.take() {
            address.send(event);
        }
    }

    /// Ends the request with a refusal.
    pub fn refuse(self, refusal: Refusal) {
        let id = Some(self.id.clone());
        self.finish(Event::Error { id, refusal });
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(address) = self.last.take() {
            let refusal = Refusal::new(Code::Internal, "the daemon lost this request; ask again");
            address.send(Event::Error { id: Some(self.id.clone()), refusal });
        }
    }
}

/// What a door asks of the daemon beside requests. Goes through one bounded channel; nobody hears what became
/// of it but by the telemetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Stop the request that is being answered, whoever asked it.
    CancelRunning,
    /// Compute with at most so many threads, from the next request on until the daemon ends: 1 to `budget.threads`.
    Threads(usize),
}

/// A flag that stops a request, waiting or running; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks for the stop.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the stop was asked for.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts the turns of a loop that may wait but never stand still, for a watchdog; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Heartbeat(Arc<AtomicU64>);

impl Heartbeat {
    /// The loop turned.
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How often it has turned so far.
    pub fn beats(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_that_is_dropped_unanswered_says_internal() {
        let (sender, mut receiver) = mpsc::channel(1);
        drop(Reply::new("a", &sender));
        let Some(Event::Error { id, refusal }) = receiver.try_recv().ok() else { panic!() };
        assert_eq!((id.as_deref(), refusal.code), (Some("a"), Code::Internal));
    }

    #[test]
    fn the_last_event_finds_its_place_in_a_full_channel() {
        let (sender, mut receiver) = mpsc::channel(2);
        let reply = Reply::new("a", &sender).expect("room for the last event");
        assert_eq!(reply.token("x".into()), Ok(()));
        assert_eq!(reply.token("y".into()), Err(TooSlow));
        reply.refuse(Refusal::new(Code::Cancelled, "slow"));
        assert!(matches!(receiver.try_recv(), Ok(Event::Token { .. })));
        assert!(receiver.try_recv().expect("the place was reserved").is_last());
    }
}
