//! Publishes each change of an alert.

use super::EventLoop;
use crate::telemetry::alerts::Alert;
use crate::transport::mqtt::message::OutgoingMessage;

impl EventLoop {
    pub(super) fn on_alert(&mut self, alert: &Alert) {
        self.alert_queue.put(alert.kind.name(), serde_json::to_vec(alert).expect("an alert is plain data"));
    }

    /// Puts alerts that the broker does not have into the outbox, which drops them with the connection.
    pub(super) fn queue_alerts(&mut self) {
        if self.link.is_online() {
            let (outbox, topic) = (&mut self.outbox, self.topics.alert());
            self.alert_queue.push_all(|alert, ended| {
                outbox.push_status_retry(OutgoingMessage::json(topic.clone(), alert.to_vec()), ended)
            });
        }
    }
}
