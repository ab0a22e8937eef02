//! The body of a response: bytes that are known, or the events of a request as they come.
//!
//! Deliberately knows no API: the encoder writes the events.

use super::slots::TakenSlots;
use crate::protocol::Event;
use crate::protocol::api::AnswerEncoder;
use crate::transport::in_flight::{InFlight, InFlightRequest};
use hyper::body::{Body, Bytes, Frame, SizeHint};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Bytes collected for one write.
const BATCH: usize = 4 * 1024;

/// A body.
#[derive(Debug)]
pub(super) enum AnswerBody {
    /// Known bytes; `None` once they are sent.
    Whole(Option<Bytes>),
    /// The events of a request.
    Events(Box<EventBody>),
}

/// A body of events.
#[derive(Debug)]
pub(super) struct EventBody {
    /// What precedes the events to come; taken once.
    pub head: Vec<u8>,
    pub events: mpsc::Receiver<Event>,
    pub encoder: Box<dyn AnswerEncoder>,
    pub is_ended: bool,
    /// Cancels the request when the client is gone, which hyper shows by dropping the body.
    pub _call: CallGuard,
}

/// A call under way: while it lives, the connection is in use.
#[derive(Debug)]
pub(super) struct CallGuard {
    pub request: InFlightRequest,
    /// The slot of a request that is on its way to the model.
    pub slot: Option<TakenSlots>,
    /// The name of the token with which it was made.
    pub token_name: Option<String>,
}

impl CallGuard {
    /// A call that begins, whose id no other of the connection has.
    pub fn begin(id: String, in_flight: &Arc<InFlight>) -> Self {
        CallGuard { request: InFlightRequest::begin(id.into(), in_flight), slot: None, token_name: None }
    }
}

impl From<Vec<u8>> for AnswerBody {
    fn from(bytes: Vec<u8>) -> Self {
        AnswerBody::Whole(Some(bytes.into()))
    }
}

/// Bytes, and the place that they take until they are sent.
struct HeldBytes {
    bytes: Vec<u8>,
    _place: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AnswerBody {
    /// Known bytes that hold a place until they are sent, or the client is gone.
    pub fn holding(bytes: Vec<u8>, place: OwnedSemaphorePermit) -> Self {
        AnswerBody::Whole(Some(Bytes::from_owner(HeldBytes { bytes, _place: place })))
    }
}

impl EventBody {
    fn add(&mut self, event: &Event, bytes: &mut Vec<u8>) {
        self.is_ended = event.is_last();
        bytes.extend(self.encoder.event(event));
    }

    /// The next bytes; `None` at the end.
    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut bytes = std::mem::take(&mut self.head);
        while bytes.is_empty() && !self.is_ended {
            match ready!(self.events.poll_recv(cx)) {
                Some(event) => self.add(&event, &mut bytes),
                None => self.is_ended = true,
            }
        }
        while bytes.len() < BATCH
            && !self.is_ended
            && let Ok(event) = self.events.try_recv()
        {
            self.add(&event, &mut bytes);
        }
        Poll::Ready(if bytes.is_empty() { None } else { Some(bytes.into()) })
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = match self.get_mut() {
            AnswerBody::Whole(bytes) => bytes.take(),
            AnswerBody::Events(events) => ready!(events.poll_bytes(cx)),
        };
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            AnswerBody::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            AnswerBody::Events(events) => events.is_ended && events.head.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            AnswerBody::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            AnswerBody::Events(_) => SizeHint::default(),
        }
    }
}
