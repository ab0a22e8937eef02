//! Publishes the health of the daemon and the list of raised alerts, retained: on each connection, and whenever they change.
//! Of the health only its state and reasons count as a change.
//!
//! At QoS 0 and past the outbox, as telemetry: they take no place of an answer, and the next state is more useful than a late
//! one. What is lost with a connection is published again on the next.

use super::EventLoop;
use crate::protocol::{BrokerHealth, HealthSummary};
use crate::telemetry::DaemonPhase;
use crate::transport::mqtt::message::OutgoingMessage;
use std::time::{Instant, SystemTime};

/// What was published on the present connection.
#[derive(Debug, Default)]
pub(super) struct PublishedState {
    health: Option<HealthSummary>,
    /// How many changes of alerts are in the list.
    alert_changes: Option<u64>,
    /// The event loop was woken because the daemon stops.
    pub is_stop_noticed: bool,
}

impl PublishedState {
    /// The connection ended.
    pub fn disconnected(&mut self) {
        (self.health, self.alert_changes) = (None, None);
    }
}

impl EventLoop {
    /// Publishes what has changed since it was published on this connection. What the connection does not take is tried again
    /// at the next step.
    pub(super) fn publish_state_changes(&mut self) {
        if !self.link.is_online() {
            return;
        }
        // The broker link begins once the model is loaded.
        let phase = DaemonPhase::of(true, self.is_stopping());
        let summary = self.context.local_telemetry.health_summary(phase);
        if self.published_state.health.as_ref() != Some(&summary) && self.publish_health(phase) {
            self.published_state.health = Some(summary);
        }
        let known = self.published_state.alert_changes;
        if let Some((list, changes)) = self.context.local_telemetry.raised_alerts_since(known)
            && self.publish_retained(self.topics.alerts(), list)
        {
            self.published_state.alert_changes = Some(changes);
        }
    }

    fn publish_health(&self, phase: DaemonPhase) -> bool {
        let mut health = self.context.local_telemetry.health(phase, SystemTime::now());
        // The daemon's own view of the link is up to a second old, and this message comes with the connection.
        let problem = self.status.problem.clone().filter(|_| !self.is_link_problem);
        health.broker = Some(BrokerHealth { connected: true, problem });
        self.publish_retained(self.topics.health(), serde_json::to_vec(&health).expect("plain data"))
    }

    /// `false` where it is to be tried again.
    fn publish_retained(&self, topic: String, payload: Vec<u8>) -> bool {
        let Some(connection) = &self.connection else { return false };
        let packet = OutgoingMessage::json(topic, payload);
        let packet = OutgoingMessage { retain: self.has_retained_messages, ..packet };
        // A packet that the broker does not allow would end the connection.
        packet.size() > self.limits.packet || connection.try_publish_at_qos_0(&packet, Instant::now())
    }
}
