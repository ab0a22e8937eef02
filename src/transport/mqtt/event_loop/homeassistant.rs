//! What the event loop does for Home Assistant: publishes what `homeassistant` returns, and passes on what happened
//! to it.

use super::{EventLoop, random_fraction};
use crate::transport::mqtt::homeassistant::{DescriptionResult, HomeAssistant, SensorPresence, Task};
use crate::transport::mqtt::link::Disconnect;
use crate::transport::mqtt::message::IncomingMessage;
use crate::transport::mqtt::message::OutgoingMessage;
use crate::transport::mqtt::topics::TopicFilter;
use std::time::{Instant, SystemTime};

impl EventLoop {
    /// Whether the description may be published now: online, and not about to close.
    fn may_publish_description(&self) -> bool {
        self.link.is_online() && self.flush_deadline.is_none()
    }

    /// When [`EventLoop::run_homeassistant_task`] has something to do.
    pub(super) fn homeassistant_due(&self) -> Option<Instant> {
        self.homeassistant.as_ref().and_then(HomeAssistant::due).filter(|_| self.may_publish_description())
    }

    /// The birth topics to subscribe to.
    pub(super) fn birth_filters(&mut self) -> Vec<TopicFilter> {
        let filters = self.homeassistant.as_mut().map_or(Ok(Vec::new()), HomeAssistant::filters);
        filters.unwrap_or_else(|text| {
            log::warn!("{}: {text}", self.broker_address());
            Vec::new()
        })
    }

    /// Handles the SUBACK for the birth topics.
    pub(super) fn on_birth_suback(&mut self, granted: Option<Result<(), String>>) {
        let reported = self
            .homeassistant
            .as_mut()
            .zip(granted)
            .and_then(|(homeassistant, granted)| homeassistant.birth_answered(&granted));
        if let Some(text) = reported {
            log::warn!("{}: {text}", self.broker_address());
        }
    }

    /// Whether that SUBACK is outstanding.
    pub(super) fn is_birth_subscription_pending(&self) -> bool {
        self.homeassistant.as_ref().is_some_and(HomeAssistant::is_birth_pending)
    }

    /// Handles a new connection.
    pub(super) fn homeassistant_connected(&mut self, now: Instant) {
        if let Some(homeassistant) = &mut self.homeassistant {
            homeassistant.connected(now);
        }
    }

    /// Handles the end of the connection.
    pub(super) fn homeassistant_disconnected(&mut self, disconnect: &Disconnect, now: Instant) {
        let reported = self
            .homeassistant
            .as_mut()
            .and_then(|homeassistant| homeassistant.disconnected(disconnect.is_by_broker(), now));
        self.log_description_problem(reported);
    }

    /// Logs why the description is given up. Where it is not wanted, it most likely was never published.
    fn log_description_problem(&self, text: Option<String>) {
        let is_wanted = self.homeassistant.as_ref().is_some_and(HomeAssistant::is_wanted);
        let level = if is_wanted { log::Level::Warn } else { log::Level::Info };
        if let Some(text) = text {
            log::log!(level, "{}: {text}", self.broker_address());
        }
    }

    /// Handles a message that may be on a birth topic; returns whether it was.
    pub(super) fn on_birth_message(&mut self, message: &IncomingMessage, now: Instant) -> bool {
        let homeassistant = self.homeassistant.as_mut();
        let Some(homeassistant) = homeassistant.filter(|ours| ours.is_birth_topic(&message.topic)) else {
            return false;
        };
        homeassistant.on_birth_message(&message.payload, now, random_fraction());
        true
    }

    /// Handles a message on the description's own topic. Returns whether nothing else is to be done with it: the names of
    /// the home are read from descriptions too.
    pub(super) fn on_own_description(&mut self, message: &IncomingMessage) -> bool {
        let homeassistant = self.homeassistant.as_mut();
        let Some(homeassistant) = homeassistant.filter(|ours| ours.is_own_topic(&message.topic)) else {
            return false;
        };
        if homeassistant.on_own_message(&message.payload) {
            let remembered = self.deletion.create();
            log::info!(
                "{}: this device was deleted in Home Assistant and is not announced again; to announce it, start once \
                 with mqtt.discovery = false{remembered}",
                self.broker_address()
            );
        }
        self.home.is_none()
    }

    /// Notes the sensors with a reading, and the report interval.
    pub(super) fn update_sensors(&mut self, now: Instant) {
        if let Some(homeassistant) = &mut self.homeassistant {
            let sensors = SensorPresence::detected(&self.context.local_telemetry.host());
            homeassistant.update_sensors(sensors, *self.context.report_interval.borrow(), now);
        }
    }

    /// Does what is due for Home Assistant.
    pub(super) fn run_homeassistant_task(&mut self, now: Instant) {
        if !self.may_publish_description() {
            return;
        }
        let Some(homeassistant) = &mut self.homeassistant else { return };
        match homeassistant.next_task(now) {
            None => {}
            Some(Task::Report) => {
                let report = self.context.local_telemetry.report(SystemTime::now());
                self.publish_report(serde_json::to_vec(&report).expect("a report is plain data"));
                self.publish_answering(now);
            }
            Some(Task::Publish(packet)) if packet.size() > self.limits.packet => {
                let text = homeassistant.too_large(packet.size(), self.limits.packet, now);
                self.log_description_problem(text);
            }
            Some(Task::Publish(packet)) => {
                let packet = OutgoingMessage { retain: self.has_retained_messages, ..packet };
                homeassistant.mark_queued(self.outbox.push_status(packet));
            }
        }
    }

    /// Handles a PUBACK that may be for the description; returns whether it was.
    pub(super) fn on_description_puback(&mut self, entry: u64, result: &Result<(), String>) -> bool {
        let address = self.broker_address();
        let Some(homeassistant) = &mut self.homeassistant else { return false };
        match homeassistant.acknowledged(entry, result, Instant::now()) {
            None => return false,
            Some(DescriptionResult::Refused(text)) => self.log_description_problem(text),
            Some(DescriptionResult::Taken) if homeassistant.is_wanted() => {
                log::debug!("{address}: described on {}", homeassistant.topic());
            }
            Some(DescriptionResult::Taken) => {
                log::info!("{address}: taken back what was on {}", homeassistant.topic())
            }
        }
        true
    }
}
