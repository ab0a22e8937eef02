//! The two kinds of application message: received with a PUBLISH of the broker, and to be published to it.
//!
//! Plain data in the terms of MQTT 5. Deliberately knows nothing of what a payload means, of who receives it, or of the
//! MQTT library.

use std::time::{Duration, Instant};

/// Most QoS 1 publishes on their way at once; less where the broker's Receive Maximum is lower.
/// Below the 20 that mosquitto allows by default.
pub const MAX_IN_FLIGHT: usize = 16;
/// No PUBLISH has more bytes beside topic, payload and correlation: lengths, packet id, expiry,
/// payload format, content type.
const PROPERTIES_BYTES: usize = 64;

/// A message on one of our topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncomingMessage {
    pub topic: Vec<u8>,
    pub payload: Vec<u8>,
    /// `None` at QoS 0.
    pub packet: Option<u16>,
    pub redelivered: bool,
    pub retained: bool,
    pub response_topic: Option<String>,
    pub correlation: Option<Vec<u8>>,
    /// The user property `client`, as it came.
    pub client: Option<String>,
    pub expiry: Option<Duration>,
}

/// One message for the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingMessage {
    /// Checked by `topics`.
    pub topic: String,
    /// JSON, or a word.
    pub payload: Vec<u8>,
    /// Whether `payload` is JSON.
    pub json: bool,
    /// Whether the broker keeps it.
    pub retain: bool,
    /// The prompt's Correlation Data, unchanged.
    pub correlation: Option<Vec<u8>>,
    /// When nobody wants it any more.
    pub expires: Option<Instant>,
}

impl OutgoingMessage {
    /// A plain retained word.
    pub fn word(topic: String, word: &str) -> Self {
        let payload = word.as_bytes().to_vec();
        OutgoingMessage { topic, payload, json: false, retain: true, correlation: None, expires: None }
    }

    /// JSON that is not kept by the broker.
    pub fn json(topic: String, payload: Vec<u8>) -> Self {
        OutgoingMessage { topic, payload, json: true, retain: false, correlation: None, expires: None }
    }

    /// Seconds it is still wanted, rounded up, at least one.
    pub fn expiry(&self, now: Instant) -> Option<u32> {
        let left = self.expires?.saturating_duration_since(now);
        let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
        Some(u32::try_from(seconds.max(1)).unwrap_or(u32::MAX))
    }

    /// No PUBLISH of it is larger: topic, payload, correlation, and all else that is in one.
    pub fn size(&self) -> usize {
        let correlation = self.correlation.as_ref().map_or(0, Vec::len);
        self.topic.len() + self.payload.len() + correlation + PROPERTIES_BYTES
    }
}

/// What the present connection allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishLimits {
    /// The broker's Maximum Packet Size.
    pub packet: usize,
    /// QoS 1 publishes on their way.
    pub window: usize,
}
