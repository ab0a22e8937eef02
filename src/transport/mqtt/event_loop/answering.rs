//! Publishes whether a request is being answered.

use super::EventLoop;
use crate::transport::mqtt::message::OutgoingMessage;
use std::time::Instant;

impl EventLoop {
    pub(super) fn is_answering(&self) -> bool {
        *self.context.answering.borrow()
    }

    /// Publishes the state if it has changed, unless another one was published only a moment ago.
    pub(super) fn publish_answering_change(&mut self, now: Instant) {
        if let Some(is_answering) = self.answering.next(self.is_answering(), now) {
            self.send_answering(is_answering, now);
        }
    }

    /// Publishes the present state.
    pub(super) fn publish_answering(&mut self, now: Instant) {
        let is_answering = self.is_answering();
        self.answering.published(is_answering, now);
        self.send_answering(is_answering, now);
    }

    /// At QoS 0 and past the outbox, as telemetry: the next state is more useful than a late one.
    fn send_answering(&self, is_answering: bool, now: Instant) {
        if let Some(connection) = self.connection.as_ref().filter(|_| self.link.is_online()) {
            let word = if is_answering { "ON" } else { "OFF" };
            let packet = OutgoingMessage::word(self.topics.answering(), word);
            let packet = OutgoingMessage { retain: self.has_retained_messages, ..packet };
            connection.publish_at_qos_0(&packet, now);
        }
    }
}
