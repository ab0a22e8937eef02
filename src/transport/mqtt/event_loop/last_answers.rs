//! Retains the last event of each client's latest answer (`mqtt.keep_last`), for clients that listen only after they
//! have asked.
//!
//! Only answers on `reply/<client>/<id>` are retained, on `last/<client>`: who may read the one topic may read the other.

use super::EventLoop;
use crate::transport::mqtt::message::OutgoingMessage;
use std::time::{Duration, Instant};

/// How long the broker retains it: long enough for a script that listens a little too late, short enough that it is not taken
/// for the answer to a later prompt.
const RETENTION: Duration = Duration::from_secs(60);

impl EventLoop {
    /// The retained copy of a last event, where there is to be one.
    pub(super) fn retained_copy(&self, reply: &OutgoingMessage, now: Instant) -> Option<OutgoingMessage> {
        if !self.context.config.keep_last || !self.has_retained_messages {
            return None;
        }
        let expires = reply.expires.map_or(now + RETENTION, |expires| expires.min(now + RETENTION));
        let topic = self.topics.last(&reply.topic)?;
        Some(OutgoingMessage { topic, retain: true, expires: Some(expires), ..reply.clone() })
    }

    /// Retains the answers of an earlier process that are still to be delivered.
    pub(super) fn keep_restored_answers(&mut self, now: Instant) {
        let copies: Vec<_> = self
            .outbox
            .pending_answers()
            .filter_map(|answer| Some((answer.number, self.retained_copy(answer.packet, now)?)))
            .collect();
        copies.into_iter().for_each(|(number, copy)| self.outbox.push_copy(number, copy));
    }
}
