//! What the event loop publishes of the model that answers. Deliberately knows nothing of why it changes.

use super::EventLoop;
use crate::transport::mqtt::message::OutgoingMessage;
use std::time::Instant;

impl EventLoop {
    /// Publishes the information about the daemon.
    pub(super) fn publish_info(&mut self) {
        let info = self.context.model.borrow_and_update().info.clone();
        let message = OutgoingMessage::json(self.topics.info(), info);
        self.outbox.push_status(OutgoingMessage { retain: self.has_retained_messages, ..message });
    }

    /// A reload has loaded another model.
    pub(super) fn on_model_change(&mut self, now: Instant) {
        let name = self.context.model.borrow().name.clone();
        self.homeassistant.iter_mut().for_each(|homeassistant| homeassistant.update_model(&name, now));
        // A new connection publishes it in any case.
        if self.link.is_online() {
            self.publish_info();
        }
    }
}
