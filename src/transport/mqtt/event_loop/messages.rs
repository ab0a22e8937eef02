//! What the event loop does with a received message, by its topic.

use super::EventLoop;
use crate::transport::mqtt::message::IncomingMessage;
use crate::transport::mqtt::topics::TopicKind;
use std::time::Instant;

impl EventLoop {
    pub(super) fn on_message(&mut self, message: &IncomingMessage, now: Instant) {
        if message.skipped_bytes > 0 {
            self.link.oversized_taken();
        }
        self.drop_stale_subscriptions(&message.topic);
        if self.on_own_description(message)
            || self.on_description(message, now)
            || self.on_birth_message(message, now)
        {
            return self.dedup.ack_only(message.packet);
        }
        match self.topics.parse(&message.topic) {
            // An empty message removes a retained one: it is no prompt, and nobody waits for an answer.
            Some(TopicKind::Prompt(_)) if message.payload.is_empty() => self.dedup.ack_only(message.packet),
            Some(TopicKind::Prompt(client)) => {
                let (name, response_topic) = (message.client.as_deref(), message.response_topic.as_deref());
                self.on_prompt(message, client.with_properties(name, response_topic), now);
            }
            Some(TopicKind::Cancel) => {
                self.on_cancel(message);
                self.dedup.ack_only(message.packet);
            }
            Some(TopicKind::Threads) => {
                self.on_thread_limit(message);
                self.dedup.ack_only(message.packet);
            }
            // None of the device's topics.
            None => self.dedup.ack_only(message.packet),
        }
    }

    /// A message stored for an earlier prefix or group is answered, and its subscription is ended.
    fn drop_stale_subscriptions(&self, topic: &[u8]) {
        let filters = self.topics.stale_filters(topic);
        let Some(connection) = self.connection.as_ref().filter(|_| !filters.is_empty()) else { return };
        let topic = String::from_utf8_lossy(topic);
        log::warn!("{}: {topic} is of an earlier prefix or group; unsubscribed", self.broker_address());
        for filter in &filters {
            // If the request channel is full, the next message leads here again.
            connection.unsubscribe(filter);
        }
    }
}
