//! The writing half of a connection: the events of all its requests, one per line.
//!
//! Deliberately knows nothing of the requests. It holds at most one bounded channel of events; a client that reads
//! too slowly has its requests cancelled, and delays no other client.

use crate::protocol::{Code, Event, Refusal, json};
use crate::transport::in_flight::InFlight;
use std::io;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::WriteHalf;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Capacity of the event channel: about ten seconds of tokens on a small device, and one slot for the last event of
/// each request in flight.
pub(super) const EVENTS: usize = 256;

/// How long a client may accept no bytes at all before its connection is closed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

/// Time from `close` to the end of the connection.
pub(super) const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes collected for one write: each write costs the kernel about a page of its own.
const BATCH: usize = 4 * 1024;

/// Bytes to be written that are no event of a request: a refusal, a report, an HTTP response.
pub(super) struct OutgoingBytes {
    /// As they are written to the socket.
    pub(super) bytes: Vec<u8>,
    /// Signalled once all of them are written, where somebody waits for it.
    pub(super) written: Option<oneshot::Sender<()>>,
}

/// Merges everything that is written to one connection.
pub(super) struct EventWriter<'a> {
    /// The writing half of the socket.
    pub(super) half: WriteHalf<'a>,
    /// The events of all requests.
    pub(super) events: mpsc::Receiver<Event>,
    /// Other bytes, from the reading half.
    pub(super) answers: mpsc::Receiver<OutgoingBytes>,
    /// Where the end of each request is noted.
    pub(super) in_flight: &'a InFlight,
    /// Bytes collected and not yet accepted by the socket.
    pub(super) out: Vec<u8>,
    /// Signalled once the last bytes of `out` are written.
    pub(super) written: Option<oneshot::Sender<()>>,
}

impl EventWriter<'_> {
    /// Writes until every request has ended and no other can be received, until the client fails, or until
    /// [`FLUSH_TIMEOUT`] after `close`.
    pub(super) async fn run(mut self, close: &CancellationToken) -> io::Result<()> {
        let in_flight = self.in_flight;
        let written = tokio::select! {
            written = self.write_all() => Some(written),
            () = end_of_flush(close, in_flight) => None,
        };
        match written {
            Some(written) => written,
            None => self.send_remaining(),
        }
    }

    async fn write_all(&mut self) -> io::Result<()> {
        let in_flight = self.in_flight;
        while self.collect().await {
            while !self.out.is_empty() {
                let written = timeout(WRITE_TIMEOUT, self.half.write(&self.out)).await??;
                if written == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                self.out.drain(..written);
            }
            in_flight.set_writing(false);
            // The memory of a long answer is released at once.
            self.out.shrink_to(BATCH);
            if let Some(written) = self.written.take() {
                let _ = written.send(()); // an error means that the reader has ended
            }
        }
        Ok(())
    }

    /// Waits for something to write and collects what else is ready; `false` when nothing more can follow.
    async fn collect(&mut self) -> bool {
        tokio::select! {
            Some(event) = self.events.recv() => self.add(&event),
            Some(answer) = self.answers.recv() => {
                if self.out.is_empty() {
                    self.out = answer.bytes;
                } else {
                    self.out.extend(answer.bytes);
                }
                self.written = answer.written;
            }
            else => return false,
        }
        while self.out.len() < BATCH
            && let Ok(event) = self.events.try_recv()
        {
            self.add(&event);
        }
        self.in_flight.set_writing(true);
        true
    }

    fn add(&mut self, event: &Event) {
        self.out.extend(event_line(event));
        match event {
            Event::Done(done) => self.in_flight.end(&done.id),
            Event::Error { id: Some(id), .. } => self.in_flight.end(id),
            Event::Error { id: None, .. } | Event::Token { .. } => {}
        }
    }

    /// Ends the requests that the daemon did not end in time, unless the client has stopped reading.
    fn send_remaining(&mut self) -> io::Result<()> {
        if !self.out.is_empty() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        for id in self.in_flight.ids() {
            let refusal = Refusal::new(Code::ShuttingDown, "the daemon stopped; ask again");
            self.add(&Event::error(Some(id), refusal));
        }
        self.half.try_write(&self.out).map(drop)
    }
}

/// An event as it is written to the socket.
pub(super) fn event_line(event: &Event) -> Vec<u8> {
    let mut line = json::event(event);
    line.push(b'\n');
    line
}

async fn end_of_flush(close: &CancellationToken, in_flight: &InFlight) {
    close.cancelled().await;
    in_flight.cancel_all();
    tokio::time::sleep(FLUSH_TIMEOUT).await;
}
