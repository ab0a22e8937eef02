//! The transports: the MQTT, the Unix-socket and the Wyoming front ends. They turn bytes into [`Inbound`] requests, and the
//! events of those requests into bytes.
//!
//! Deliberately knows nothing of the engine, of the daemon's queue or of the model: a request carries its reply
//! channel, and the transport learns of the request's fate only through that channel.

pub mod fair_queue;
pub mod http;
pub mod in_flight;
pub mod line_framing;
pub mod mqtt;
pub mod named_file;
pub mod open_connections;
pub mod tcp_accept;
pub mod unix;
pub mod wyoming;

use crate::protocol::{
    ClientInterface, Code, Event, Metadata, Refusal, ReloadReport, Request, RequestId, TokenLogprob,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// A request together with its reply channel and its cancel flag.
#[derive(Debug)]
pub struct Inbound {
    /// The parsed request.
    pub request: Request,
    /// The id that its events carry: the client's own, else one that the transport made.
    pub id: RequestId,
    /// The interface that it came over.
    pub interface: ClientInterface,
    /// Who sent it, as the log shows it: `unix:uid=1000`, `mqtt:kitchen`. Two clients may be shown alike.
    pub client: String,
    /// Identifies the client for stored answers: no two clients have the same one.
    pub cache_key: String,
    /// The key of the fair queue under which it waits: the client's, or that of one of its processes where they are
    /// known.
    pub queue_key: String,
    /// Identifies the client for limits: the same for all its connections and processes, and for no other client.
    pub limit_key: String,
    /// What happens if the daemon's queue is full.
    pub when_full: WhenFull,
    /// When its last byte was received; deadlines count from here.
    pub received: Instant,
    /// Where its events are sent.
    pub reply: Reply,
    /// Raised by the transport when the client is gone or asks for the request to be stopped.
    pub cancel: Cancel,
}

/// What happens to a request that is received while the daemon's queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// It is refused with `queue_full`, so that its client learns of it at once and may ask again.
    Refuse,
    /// It is queued all the same: its transport submits at most `queue.depth` such requests at a time and keeps the
    /// others in a queue of its own.
    Wait,
}

/// The sending half of one request's reply channel. Exactly one last event is sent through it in every case: its
/// slot in the client's channel is reserved beforehand, and a reply that is dropped without one sends an `internal`
/// error.
#[derive(Debug)]
pub struct Reply {
    id: RequestId,
    metadata: Option<Metadata>,
    tokens: mpsc::Sender<Event>,
    last: Option<mpsc::OwnedPermit<Event>>,
}

/// The client's channel is full or closed: the client reads too slowly, or is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooSlow;

impl Reply {
    /// A reply through `channel`, with the slot for the last event reserved. `None` when the channel is full or
    /// closed.
    pub fn new(id: &RequestId, channel: &mpsc::Sender<Event>) -> Option<Self> {
        let last = channel.clone().try_reserve_owned().ok()?;
        Some(Reply { id: id.clone(), metadata: None, tokens: channel.clone(), last: Some(last) })
    }

    /// The same reply with the request's metadata, which each of its events repeats.
    pub fn with_metadata(self, metadata: Option<&Metadata>) -> Self {
        let mut reply = self;
        reply.metadata = metadata.cloned();
        reply
    }

    /// Sends the next piece of text; never waits.
    pub fn token(&self, text: String) -> Result<(), TooSlow> {
        self.token_of(None, text, Vec::new())
    }

    /// Sends the next piece of one of several answers, where `index` says which, with the log-probabilities of its
    /// tokens; never waits.
    pub fn token_of(
        &self,
        index: Option<u32>,
        text: String,
        logprobs: Vec<TokenLogprob>,
    ) -> Result<(), TooSlow> {
        let metadata = self.metadata.clone();
        let event = Event::Token { id: self.id.clone(), text, index, logprobs, metadata };
        self.tokens.try_send(event).map_err(|_| TooSlow)
    }

    /// Ends the request with `event`; never waits, and never fails while the client lives.
    pub fn finish(mut self, mut event: Event) {
        debug_assert!(event.is_last());
        match &mut event {
            Event::Done(done) => done.details.metadata = self.metadata.take(),
            Event::Error { metadata, .. } | Event::Token { metadata, .. } => *metadata = self.metadata.take(),
        }
        if let Some(permit) = self.last.take() {
            permit.send(event);
        }
    }

    /// Ends the request with a refusal.
    pub fn refuse(self, refusal: Refusal) {
        let id = Some(self.id.clone());
        self.finish(Event::error(id, refusal));
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(permit) = self.last.take() {
            let refusal = Refusal::new(Code::Internal, "the daemon lost this request; ask again");
            let (id, metadata) = (Some(self.id.clone()), self.metadata.take());
            permit.send(Event::Error { id, refusal, metadata });
        }
    }
}

/// What a transport asks of the daemon besides requests. Sent through one bounded channel; the result is visible
/// only in the telemetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Cancel the request that is being answered, whichever client sent it.
    CancelRunning,
    /// Compute with at most this many threads, from the next request on until the daemon ends: 1 to
    /// `budget.threads`.
    Threads(usize),
}

/// A client's request to read the configuration again; what became of it is sent back.
pub type ReloadRequest = oneshot::Sender<ReloadReport>;

/// What happens to clients that connect while the daemon is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BacklogPolicy {
    /// They are accepted and refused with `shutting_down`: nobody listens on this socket afterwards.
    Refuse,
    /// They stay in the listen backlog of a socket that another process holds open, and the next daemon serves
    /// them.
    LeaveQueued,
}

impl BacklogPolicy {
    /// The token after which no client is accepted any more; `draining` is cancelled when the daemon begins to stop, and
    /// `close` at the end.
    fn end_of_accepting<'t>(
        self,
        draining: &'t CancellationToken,
        close: &'t CancellationToken,
    ) -> &'t CancellationToken {
        match self {
            BacklogPolicy::Refuse => close,
            BacklogPolicy::LeaveQueued => draining,
        }
    }
}

/// A flag that cancels a request, waiting or running; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Requests the cancellation.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the cancellation was requested.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts the iterations of a loop that may wait but must not hang, for a watchdog; clones share the count.
#[derive(Debug, Clone, Default)]
pub struct Heartbeat(Arc<AtomicU64>);

impl Heartbeat {
    /// Counts one iteration of the loop.
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of iterations so far.
    pub fn beats(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_that_is_dropped_unanswered_sends_internal() {
        let (sender, mut receiver) = mpsc::channel(1);
        drop(Reply::new(&"a".into(), &sender));
        let Some(Event::Error { id, refusal, .. }) = receiver.try_recv().ok() else { panic!() };
        assert_eq!((id, refusal.code), (Some("a".into()), Code::Internal));
    }

    #[test]
    fn the_last_event_has_a_slot_in_a_full_channel() {
        let (sender, mut receiver) = mpsc::channel(2);
        let reply = Reply::new(&"a".into(), &sender).expect("a free slot for the last event");
        assert_eq!(reply.token("x".into()), Ok(()));
        assert_eq!(reply.token("y".into()), Err(TooSlow));
        reply.refuse(Refusal::new(Code::Cancelled, "slow"));
        assert!(matches!(receiver.try_recv(), Ok(Event::Token { .. })));
        assert!(receiver.try_recv().expect("the slot was reserved").is_last());
    }
}
