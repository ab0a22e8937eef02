//! Reads the body of a call, within its limits of length, time and memory.
//!
//! Memory is set aside only for a body whose beginning has arrived, and a slow sender loses it to a call that waits for it. So
//! a body that does not come keeps no other call out, also where all of them are of one client, such as a proxy. Deliberately
//! knows no JSON.

use super::slots::{Slots, TakenSlots};
use crate::protocol::json::too_large;
use crate::protocol::{Code, Refusal};
use hyper::HeaderMap;
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::EXPECT;
use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How much of a body is read before memory is set aside for it: this is part of what a connection may take.
const FIRST_PART: usize = 16 << 10;

/// How long the client may take to send its body.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// How far a body may be behind [`STEADY_RATE`] while another call waits for its memory.
const MAX_LAG: Duration = Duration::from_secs(1);

/// What a client is expected to send in a second while another call waits, in bytes.
const STEADY_RATE: u32 = 256 << 10;

/// How often it is checked whether a body that does not come is in the way of another.
const LAG_CHECK: Duration = Duration::from_millis(100);

/// How long the rest of a refused body is read and ignored, so that its sender reads the response and not a connection
/// reset.
const LINGER: Duration = Duration::from_secs(1);

/// A body that has not been read yet.
#[derive(Debug)]
pub(super) struct UnreadBody {
    incoming: Incoming,
    /// The client sends it only once it is asked to: by `100 Continue`, which hyper sends where the body is first read.
    waits_for_continue: bool,
}

/// The memory for all bodies that are read at once: as much as two of the longest take, of which one client has one.
#[derive(Debug)]
pub(super) struct BodyMemory {
    /// One slot for each KiB.
    free: Slots,
    limit: usize,
}

/// A body, and its share of the memory.
pub(super) struct ReadBody {
    pub bytes: Vec<u8>,
    _memory: Option<TakenSlots>,
}

/// The part of a body that has arrived.
struct Arrived<'a> {
    bytes: Vec<u8>,
    body: &'a mut Incoming,
    limit: usize,
    /// When reading began; later by the time that was spent waiting for memory.
    begun: Instant,
}

impl UnreadBody {
    /// The body of a call with this head.
    pub fn new(headers: &HeaderMap, incoming: Incoming) -> Self {
        let waits_for_continue =
            headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        UnreadBody { incoming, waits_for_continue }
    }

    /// Its length, where the client gives it.
    fn length(&self) -> Option<usize> {
        self.incoming.size_hint().exact().map(|length| length as usize)
    }
}

impl BodyMemory {
    /// Memory for bodies of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        BodyMemory { free: Slots::new(2 * limit.div_ceil(1024)), limit }
    }

    /// Reads the body of a client's call to its end.
    pub async fn read(&self, client: &str, body: UnreadBody) -> Result<ReadBody, Refusal> {
        // What has no Content-Length may be as long as is allowed.
        let length = body.length().unwrap_or(self.limit);
        let UnreadBody { mut incoming, waits_for_continue } = body;
        if length > self.limit {
            if !waits_for_continue {
                discard(incoming).await;
            }
            return Err(too_large(length, self.limit));
        }
        match self.read_within(client, length, &mut incoming).await {
            Err(refusal) if refusal.code != Code::Timeout => {
                discard(incoming).await;
                Err(refusal)
            }
            read => read,
        }
    }

    /// Reads a body of at most `length` bytes.
    async fn read_within(
        &self,
        client: &str,
        length: usize,
        body: &mut Incoming,
    ) -> Result<ReadBody, Refusal> {
        let bytes = Vec::with_capacity(length.min(FIRST_PART));
        let mut arrived = Arrived { bytes, body, limit: self.limit, begun: Instant::now() };
        let mut memory = None;
        while let Some(data) = arrived.next(memory.as_ref()).await? {
            if memory.is_none() && arrived.bytes.len() + data.len() > FIRST_PART {
                let asked = Instant::now();
                memory = Some(self.free.take(client, length.div_ceil(1024)).await);
                arrived.begun += asked.elapsed();
                // A vector that grows would have twice the size in between.
                arrived.bytes.reserve_exact(length.saturating_sub(arrived.bytes.len()));
            }
            arrived.bytes.extend_from_slice(&data);
        }
        Ok(ReadBody { bytes: arrived.bytes, _memory: memory })
    }
}

impl Arrived<'_> {
    /// Waits for the next part of the body; `None` at its end. `memory` is what is set aside for the body.
    async fn next(&mut self, memory: Option<&TakenSlots>) -> Result<Option<Bytes>, Refusal> {
        loop {
            let frame = match timeout(LAG_CHECK, poll_fn(|cx| Pin::new(&mut *self.body).poll_frame(cx))).await
            {
                Ok(None) => return Ok(None),
                Ok(Some(frame)) => frame.map_err(|error| {
                    Refusal::new(Code::InvalidRequest, format!("the body breaks off: {error}"))
                })?,
                Err(_) => {
                    self.check_time(memory)?;
                    continue;
                }
            };
            self.check_time(memory)?;
            let Ok(data) = frame.into_data() else { continue };
            let length = self.bytes.len() + data.len();
            if length > self.limit {
                return Err(too_large(length, self.limit));
            }
            return Ok(Some(data));
        }
    }

    /// Refuses a body that is too slow.
    fn check_time(&self, memory: Option<&TakenSlots>) -> Result<(), Refusal> {
        let elapsed = self.begun.elapsed();
        if elapsed > READ_TIMEOUT {
            let message = format!("the body did not come within {READ_TIMEOUT:?}");
            return Err(Refusal::new(Code::Timeout, message));
        }
        let steady = Duration::from_secs(self.bytes.len() as u64) / STEADY_RATE;
        if elapsed > steady + MAX_LAG && memory.is_some_and(TakenSlots::are_wanted) {
            let message = "the body comes slowly, and another call needs its memory; send it again";
            return Err(Refusal::new(Code::Timeout, message));
        }
        Ok(())
    }
}

/// Reads what is left of a body for a moment, and keeps nothing of it.
async fn discard(mut body: Incoming) {
    let rest = async { while let Some(Ok(_)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {} };
    let _ = timeout(LINGER, rest).await; // whoever sends for longer meets a closed connection
}
