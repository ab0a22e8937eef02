//! What the desk does for Home Assistant: it passes on what `discovery` says, and what comes over its controls.

use super::{EventLoop, random_fraction};
use crate::protocol::json::{self, Cancelled};
use crate::transport::Command;
use crate::transport::mqtt::homeassistant::{DescriptionResult, HomeAssistant, SensorPresence, Task};
use crate::transport::mqtt::link::Disconnect;
use crate::transport::mqtt::message::IncomingMessage;
use crate::transport::mqtt::message::OutgoingMessage;
use crate::transport::mqtt::topics::TopicFilter;
use std::time::{Instant, SystemTime};

impl EventLoop {
    fn may_publish_description(&self) -> bool {
        self.link.is_online() && self.flush_deadline.is_none()
    }

    /// When [`Desk::tell_home`] has something to do.
    pub(super) fn homeassistant_due(&self) -> Option<Instant> {
        self.homeassistant.as_ref().and_then(HomeAssistant::due).filter(|_| self.may_publish_description())
    }

    /// What to subscribe to for Home Assistant.
    pub(super) fn birth_filters(&mut self) -> Vec<TopicFilter> {
        let filters = self.homeassistant.as_mut().map_or(Ok(Vec::new()), HomeAssistant::filters);
        filters.unwrap_or_else(|text| {
            log::warn!("{}: {text}", self.broker_address());
            Vec::new()
        })
    }

    /// What the broker says of that.
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

    /// Whether the broker is still to say it.
    pub(super) fn is_birth_subscription_pending(&self) -> bool {
        self.homeassistant.as_ref().is_some_and(HomeAssistant::is_birth_pending)
    }

    /// A new connection.
    pub(super) fn homeassistant_connected(&mut self, now: Instant) {
        if let Some(homeassistant) = &mut self.homeassistant {
            homeassistant.connected(now);
        }
    }

    /// The connection is gone.
    pub(super) fn homeassistant_disconnected(&mut self, disconnect: &Disconnect, now: Instant) {
        let reported = self
            .homeassistant
            .as_mut()
            .and_then(|homeassistant| homeassistant.disconnected(disconnect.is_by_broker(), now));
        self.log_description_problem(reported);
    }

    /// Says why the description is given up. Where it is not wanted there, it most likely never was.
    fn log_description_problem(&self, text: Option<String>) {
        let is_wanted = self.homeassistant.as_ref().is_some_and(HomeAssistant::is_wanted);
        let level = if is_wanted { log::Level::Warn } else { log::Level::Info };
        if let Some(text) = text {
            log::log!(level, "{}: {text}", self.broker_address());
        }
    }

    /// Whether a message is Home Assistant's word of itself.
    pub(super) fn on_birth_message(&mut self, message: &IncomingMessage, now: Instant) -> bool {
        let discovery =
            self.homeassistant.as_mut().filter(|homeassistant| homeassistant.is_birth_topic(&message.topic));
        discovery
            .map(|discovery| discovery.on_birth_message(&message.payload, now, random_fraction()))
            .is_some()
    }

    /// Takes note of the sensors that answer, and of the interval of reports.
    pub(super) fn update_sensors(&mut self, now: Instant) {
        if let Some(homeassistant) = &mut self.homeassistant {
            let sensors = SensorPresence::detected(&self.context.local_telemetry.host());
            homeassistant.update_sensors(sensors, *self.context.report_interval.borrow(), now);
        }
    }

    /// Does what is due to Home Assistant.
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

    /// Whether the broker's word of a row was of the description.
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

    pub(super) fn on_cancel(&mut self, message: &IncomingMessage) {
        if is_ignored_command(message) {
            return;
        }
        match json::cancel_topic(&message.payload) {
            Ok(Cancelled::Id(id)) => self.cancel(&id),
            Ok(Cancelled::Running) => self.send_command(message, Command::CancelRunning),
            // What came is not repeated: it may be a prompt that was sent to the wrong topic.
            Err(_) => {
                let topic = self.topics.cancel();
                log::warn!(
                    "{topic}: not understood; send an object with the request's id, or \"running\": true"
                );
            }
        }
    }

    pub(super) fn on_thread_limit(&self, message: &IncomingMessage) {
        if is_ignored_command(message) {
            return;
        }
        let (topic, most) = (self.topics.threads(), self.context.threads);
        match json::thread_limit(&message.payload) {
            Ok(threads) if (1..=most).contains(&threads) => {
                self.send_command(message, Command::Threads(threads));
            }
            Ok(threads) => log::warn!("{topic}: {threads} is outside 1 to {most}, which is budget.threads"),
            Err(refusal) => log::warn!("{topic}: {}", refusal.message),
        }
    }

    fn send_command(&self, message: &IncomingMessage, control: Command) {
        if self.context.commands.try_send(control).is_err() {
            let topic = String::from_utf8_lossy(&message.topic);
            log::warn!("{topic}: ignored, too many came at once; send it again");
        }
    }
}

/// What the broker kept is of another day, and would come again at each start. Says so; but an empty payload is
/// how it is taken back.
fn is_ignored_command(message: &IncomingMessage) -> bool {
    if message.payload.is_empty() {
        return true;
    }
    if message.retained {
        let topic = String::from_utf8_lossy(&message.topic);
        log::warn!("{topic}: ignored, it is retained; publish it without retain");
    }
    message.retained
}
