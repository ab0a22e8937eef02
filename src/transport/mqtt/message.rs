//! The two kinds of application message: received with a PUBLISH of the broker, and to be published to it.
//!
//! Plain data in the terms of MQTT 5. Deliberately knows nothing of what a payload means, of who receives it, or of the
//! MQTT library.

use std::time::{Duration, Instant};

/// Maximum number of QoS 1 publishes in flight; lower where the broker's Receive Maximum is (MQTT 5, section
/// 3.2.2.3.3). Below the 20 that mosquitto allows by default.
pub const MAX_IN_FLIGHT: usize = 16;
/// Upper bound in bytes of everything in a PUBLISH besides topic, payload and Correlation Data: lengths, packet
/// identifier, expiry, payload format, content type.
const PROPERTIES_BYTES: usize = 64;

/// A PUBLISH received on one of the device's topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncomingMessage {
    pub topic: Vec<u8>,
    /// The payload, or its beginning.
    pub payload: Vec<u8>,
    /// Bytes of the payload after `payload`, which were not kept, since no request is so long.
    pub skipped_bytes: usize,
    /// The packet identifier; `None` at QoS 0.
    pub packet: Option<u16>,
    /// The DUP flag.
    pub redelivered: bool,
    /// The RETAIN flag.
    pub retained: bool,
    pub response_topic: Option<String>,
    /// The Correlation Data.
    pub correlation: Option<Vec<u8>>,
    /// The user property `client`, unchecked.
    pub client: Option<String>,
    /// The Message Expiry Interval.
    pub expiry: Option<Duration>,
}

/// A message to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingMessage {
    /// Checked by `topics`.
    pub topic: String,
    /// JSON, or a word.
    pub payload: Vec<u8>,
    /// Whether `payload` is JSON, which the Content Type names.
    pub json: bool,
    /// Whether the broker is to retain it.
    pub retain: bool,
    /// The prompt's Correlation Data, unchanged.
    pub correlation: Option<Vec<u8>>,
    /// When nobody wants it any more.
    pub expires: Option<Instant>,
}

impl IncomingMessage {
    /// A message at QoS 0 without properties.
    pub fn new(topic: Vec<u8>, payload: Vec<u8>) -> Self {
        IncomingMessage {
            topic,
            payload,
            skipped_bytes: 0,
            packet: None,
            redelivered: false,
            retained: false,
            response_topic: None,
            correlation: None,
            client: None,
            expiry: None,
        }
    }
}

impl OutgoingMessage {
    /// A retained message of one word.
    pub fn word(topic: String, word: &str) -> Self {
        let payload = word.as_bytes().to_vec();
        OutgoingMessage { topic, payload, json: false, retain: true, correlation: None, expires: None }
    }

    /// A JSON message that is not retained.
    pub fn json(topic: String, payload: Vec<u8>) -> Self {
        OutgoingMessage { topic, payload, json: true, retain: false, correlation: None, expires: None }
    }

    /// The Message Expiry Interval at `now` in seconds: rounded up, at least one.
    pub fn expiry(&self, now: Instant) -> Option<u32> {
        let left = self.expires?.saturating_duration_since(now);
        let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
        Some(u32::try_from(seconds.max(1)).unwrap_or(u32::MAX))
    }

    /// Upper bound of the size of its PUBLISH packet in bytes.
    pub fn size(&self) -> usize {
        let correlation = self.correlation.as_ref().map_or(0, Vec::len);
        self.topic.len() + self.payload.len() + correlation + PROPERTIES_BYTES
    }
}

/// What the present connection allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishLimits {
    /// The broker's Maximum Packet Size in bytes.
    pub packet: usize,
    /// QoS 1 publishes in flight: the broker's Receive Maximum.
    pub window: usize,
}
