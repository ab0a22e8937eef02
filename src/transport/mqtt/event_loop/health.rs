//! Publishes the health of the daemon and the list of raised alerts, retained: on each connection, and whenever they change.
//! Of the health only its state and reasons count as a change.

use super::EventLoop;
use crate::protocol::{BrokerHealth, HealthState, HealthSummary};
use crate::telemetry::DaemonPhase;
use crate::transport::mqtt::message::OutgoingMessage;
use std::time::SystemTime;

/// What was published on the present connection.
#[derive(Debug, Default)]
pub(super) struct PublishedState {
    health: Option<HealthSummary>,
    /// How many changes of alerts are in the list.
    alert_changes: Option<u64>,
}

impl EventLoop {
    /// Publishes what has changed since it was published on this connection.
    pub(super) fn publish_state_changes(&mut self) {
        if !self.link.is_online() {
            self.published_state = PublishedState::default();
            return;
        }
        let phase = self.phase();
        let summary = self.context.local_telemetry.health_summary(phase);
        if self.published_state.health.as_ref() != Some(&summary) {
            self.published_state.health = Some(summary);
            self.publish_health(phase);
        }
        let known = self.published_state.alert_changes;
        if let Some((list, changes)) = self.context.local_telemetry.raised_alerts_since(known) {
            self.published_state.alert_changes = Some(changes);
            self.publish_retained(self.topics.alerts(), list);
        }
    }

    /// Whether the state that was published last says that the daemon stops, or there is nobody to tell.
    pub(super) fn is_stop_published(&self) -> bool {
        let published = self.published_state.health.as_ref();
        published.is_none_or(|summary| summary.state == HealthState::Draining)
    }

    /// The broker link begins once the model is loaded.
    fn phase(&self) -> DaemonPhase {
        DaemonPhase::of(true, self.is_stopping())
    }

    fn publish_health(&mut self, phase: DaemonPhase) {
        let mut health = self.context.local_telemetry.health(phase, SystemTime::now());
        // The daemon's own view of the link is up to a second old, and this message comes with the connection.
        let problem = self.status.problem.clone().filter(|_| !self.is_link_problem);
        health.broker = Some(BrokerHealth { connected: true, problem });
        let payload = serde_json::to_vec(&health).expect("plain data");
        self.publish_retained(self.topics.health(), payload);
    }

    fn publish_retained(&mut self, topic: String, payload: Vec<u8>) {
        let packet = OutgoingMessage::json(topic, payload);
        self.outbox.push_status(OutgoingMessage { retain: self.has_retained_messages, ..packet });
    }
}
