//! Retained prompts that a broker delivers again at every subscription.
//!
//! Pure. An MQTT 5 subscriber can exclude retained messages (Retain Handling, section 3.8.3.1); an MQTT 3.1.1
//! subscriber cannot, and there only these messages have the RETAIN flag. Each of them is refused once, and not on
//! every connection.

use crate::config::MqttVersion;
use crate::transport::mqtt::message::IncomingMessage;
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

/// Maximum number of prompts that are remembered: more than anybody retains on the topics of one daemon.
const MAX_REMEMBERED: usize = 256;

/// The retained prompts that were refused by this process.
#[derive(Debug)]
pub struct RetainedPrompts {
    /// Hashes of the prompts; `None` with MQTT 5, where the broker does not deliver them.
    seen: Option<HashSet<u64>>,
    hasher: RandomState,
}

impl RetainedPrompts {
    /// Nothing was refused yet.
    pub fn new(version: MqttVersion) -> Self {
        let seen = (version == MqttVersion::V311).then(HashSet::new);
        RetainedPrompts { seen, hasher: RandomState::new() }
    }

    /// Whether the message is a retained prompt that was refused before; notes one that was not.
    pub fn is_known_retained(&mut self, message: &IncomingMessage) -> bool {
        let Some(seen) = self.seen.as_mut().filter(|_| message.retained) else { return false };
        if seen.len() >= MAX_REMEMBERED {
            seen.clear();
        }
        !seen.insert(self.hasher.hash_one((&message.topic, &message.payload)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(retained: bool, payload: &[u8]) -> IncomingMessage {
        IncomingMessage {
            packet: Some(1),
            retained,
            ..IncomingMessage::new(b"bitnetd/cellar/prompt".to_vec(), payload.to_vec())
        }
    }

    #[test]
    fn with_mqtt_3_1_1_a_retained_prompt_is_refused_once() {
        let mut retained = RetainedPrompts::new(MqttVersion::V311);
        let seen = |retained: &mut RetainedPrompts, flag, text: &str| {
            retained.is_known_retained(&message(flag, text.as_bytes()))
        };
        assert!(!seen(&mut retained, true, "a") && seen(&mut retained, true, "a"));
        assert!(!seen(&mut retained, true, "b"), "another one");
        assert!(!seen(&mut retained, false, "a") && !seen(&mut retained, false, "a"), "prompts as usual");
    }

    #[test]
    fn with_mqtt_5_each_retained_publish_is_a_prompt_that_somebody_sent_now() {
        let mut retained = RetainedPrompts::new(MqttVersion::V5);
        assert!((0..3).all(|_| !retained.is_known_retained(&message(true, b"a"))));
    }
}
