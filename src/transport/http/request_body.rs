//! Reads the body of a call, within its limits of length and time.
//!
//! Deliberately knows no JSON.

use super::slots::{Slots, TakenSlots};
use crate::protocol::json::too_large;
use crate::protocol::{Code, Refusal};
use hyper::body::{Body, Incoming};
use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;
use tokio::time::timeout;

/// How long the client may take to send its body.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a call waits for the memory that its body needs, while other bodies are read.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the rest of a refused body is read and ignored, so that its sender reads the response and not a connection
/// reset.
const LINGER: Duration = Duration::from_secs(1);

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
    _memory: TakenSlots,
}

impl BodyMemory {
    /// Memory for bodies of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        BodyMemory { free: Slots::new(2 * limit.div_ceil(1024)), limit }
    }

    /// Reads the body of a client's call to its end.
    pub async fn read(&self, client: &str, mut body: Incoming) -> Result<ReadBody, Refusal> {
        // What has no Content-Length may be as long as is allowed.
        let length = body.size_hint().exact().map_or(self.limit, |length| length as usize);
        if length > self.limit {
            discard(body).await;
            return Err(too_large(length, self.limit));
        }
        let memory = timeout(MEMORY_TIMEOUT, self.free.take(client, length.div_ceil(1024))).await;
        let memory = memory.map_err(|_| Refusal {
            retry_after_ms: Some(1000),
            ..Refusal::new(
                Code::BudgetExceeded,
                "the bodies of other calls fill the memory for them; ask again later",
            )
        })?;
        // A vector that grows would have twice the size in between.
        let mut bytes = Vec::with_capacity(length);
        let read = timeout(READ_TIMEOUT, self.read_within(&mut body, &mut bytes)).await;
        match read {
            Ok(Ok(())) => Ok(ReadBody { bytes, _memory: memory }),
            Ok(Err(refusal)) => {
                discard(body).await;
                Err(refusal)
            }
            Err(_) => {
                let message = format!("the body did not come within {READ_TIMEOUT:?}");
                Err(Refusal::new(Code::Timeout, message))
            }
        }
    }

    async fn read_within(&self, body: &mut Incoming, bytes: &mut Vec<u8>) -> Result<(), Refusal> {
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
            let frame = frame.map_err(|error| {
                Refusal::new(Code::InvalidRequest, format!("the body breaks off: {error}"))
            })?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > self.limit {
                return Err(too_large(bytes.len() + data.len(), self.limit));
            }
            bytes.extend_from_slice(&data);
        }
        Ok(())
    }
}

/// Reads what is left of a body for a moment, and keeps nothing of it.
async fn discard(mut body: Incoming) {
    let rest = async { while let Some(Ok(_)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {} };
    let _ = timeout(LINGER, rest).await; // whoever sends for longer meets a closed connection
}
