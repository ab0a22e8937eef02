//! The writing side of a connection: the events of all its requests, one a line.
//!
//! Deliberately knows nothing of what was asked. It holds one bounded channel's worth of events; a
//! client that reads more slowly than that loses its requests, and nobody else's time.

use super::in_flight::InFlight;
use crate::protocol::{Code, Event, Refusal, json};
use std::io;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::WriteHalf;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Events that may wait for a slow client: some ten seconds of tokens on a small device, and a
/// place for the last event of each request in flight.
pub(super) const EVENTS: usize = 256;

/// How long a client may take nothing at all before it is dropped.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

/// Time from `close` to the end of the connection.
pub(super) const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes collected for one write: each write costs the kernel about a page of its own.
const BATCH: usize = 4 * 1024;

/// An answer to what became no request.
pub(super) struct OutgoingBytes {
    /// As they go over the socket.
    pub(super) bytes: Vec<u8>,
    /// Told when all of them are written, where somebody waits for it.
    pub(super) written: Option<oneshot::Sender<()>>,
}

/// Where a connection's answers come together.
pub(super) struct Writer<'a> {
    /// The socket.
    pub(super) half: WriteHalf<'a>,
    /// From the requests, by way of their replies.
    pub(super) events: mpsc::Receiver<Event>,
    /// From the reading side.
    pub(super) answers: mpsc::Receiver<OutgoingBytes>,
    /// Hears of each request's last event.
    pub(super) in_flight: &'a InFlight,
    /// Bytes collected and not yet taken by the client.
    pub(super) out: Vec<u8>,
    /// Who waits for the last answer among them to be written.
    pub(super) written: Option<oneshot::Sender<()>>,
}

impl Writer<'_> {
    /// Writes until every request has ended and nobody can send another, or the client fails, or
    /// `close` and [`FLUSH`] are over.
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
            // A long answer's memory goes back at once.
            self.out.shrink_to(BATCH);
            if let Some(written) = self.written.take() {
                let _ = written.send(()); // the reader may have ended
            }
        }
        Ok(())
    }

    /// Waits for something to write and takes what else is there; `false` when nothing more comes.
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

    /// Ends what the daemon did not end in time, unless the client has stopped reading.
    fn send_remaining(&mut self) -> io::Result<()> {
        if !self.out.is_empty() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        for id in self.in_flight.ids() {
            let refusal = Refusal::new(Code::ShuttingDown, "the daemon stopped; ask again");
            self.add(&Event::Error { id: Some(id), refusal });
        }
        self.half.try_write(&self.out).map(drop)
    }
}

/// An event as it goes over the socket.
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
