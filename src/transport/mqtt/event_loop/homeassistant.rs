//! What the desk does for Home Assistant: it passes on what `discovery` says, and what comes over its controls.

use super::{Desk, chance};
use crate::protocol::json::{self, Cancelled};
use crate::transport::Command;
use crate::transport::mqtt::client::IncomingMessage;
use crate::transport::mqtt::delivery::outbox::Packet;
use crate::transport::mqtt::homeassistant::{Discovery, Outcome, Sources, Task};
use crate::transport::mqtt::link::Disconnect;
use crate::transport::mqtt::topics::TopicFilter;
use std::time::{Instant, SystemTime};

impl Desk {
    fn may_tell_home(&self) -> bool {
        self.link.is_online() && self.closing.is_none()
    }

    /// When [`Desk::tell_home`] has something to do.
    pub(super) fn home_due(&self) -> Option<Instant> {
        self.discovery.as_ref().and_then(Discovery::due).filter(|_| self.may_tell_home())
    }

    /// What to subscribe to for Home Assistant.
    pub(super) fn home_filters(&mut self) -> Vec<TopicFilter> {
        let filters = self.discovery.as_mut().map_or(Ok(Vec::new()), Discovery::filters);
        filters.unwrap_or_else(|said| {
            log::warn!("{}: {said}", self.place());
            Vec::new()
        })
    }

    /// What the broker says of that.
    pub(super) fn home_granted(&mut self, granted: Option<Result<(), String>>) {
        let told = self.discovery.as_mut().zip(granted).and_then(|(home, granted)| home.granted(&granted));
        if let Some(said) = told {
            log::warn!("{}: {said}", self.place());
        }
    }

    /// Whether the broker is still to say it.
    pub(super) fn is_home_asking(&self) -> bool {
        self.discovery.as_ref().is_some_and(Discovery::is_asking)
    }

    /// A new connection.
    pub(super) fn home_connected(&mut self, now: Instant) {
        if let Some(discovery) = &mut self.discovery {
            discovery.connected(now);
        }
    }

    /// The connection is gone.
    pub(super) fn home_lost(&mut self, loss: &Disconnect, now: Instant) {
        let told = self.discovery.as_mut().and_then(|home| home.disconnected(loss.is_by_broker(), now));
        self.home_given_up(told);
    }

    /// Says why the description is given up. Where it is not wanted there, it most likely never was.
    fn home_given_up(&self, said: Option<String>) {
        let is_wanted = self.discovery.as_ref().is_some_and(Discovery::is_wanted);
        let level = if is_wanted { log::Level::Warn } else { log::Level::Info };
        if let Some(said) = said {
            log::log!(level, "{}: {said}", self.place());
        }
    }

    /// Whether a message is Home Assistant's word of itself.
    pub(super) fn is_birth(&mut self, message: &IncomingMessage, now: Instant) -> bool {
        let discovery = self.discovery.as_mut().filter(|home| home.is_birth(&message.topic));
        discovery.map(|discovery| discovery.heard(&message.payload, now, chance())).is_some()
    }

    /// Takes note of the sensors that answer, and of the interval of reports.
    pub(super) fn look_at_sources(&mut self, now: Instant) {
        if let Some(discovery) = &mut self.discovery {
            let sources = Sources::of(&self.door.counters.host());
            discovery.look(sources, *self.door.interval.borrow(), now);
        }
    }

    /// Does what is due to Home Assistant.
    pub(super) fn tell_home(&mut self, now: Instant) {
        if !self.may_tell_home() {
            return;
        }
        let Some(discovery) = &mut self.discovery else { return };
        match discovery.next(now) {
            None => {}
            Some(Task::Report) => {
                let report = self.door.counters.report(SystemTime::now());
                self.mention_report(serde_json::to_vec(&report).expect("a report is plain data"));
            }
            Some(Task::Publish(packet)) if packet.size() > self.limits.packet => {
                let said = discovery.too_large(packet.size(), self.limits.packet, now);
                self.home_given_up(said);
            }
            Some(Task::Publish(packet)) => {
                let packet = Packet { retain: self.retains, ..packet };
                discovery.sent(self.outbox.push_status(packet));
            }
        }
    }

    /// Whether the broker's word of a row was of the description.
    pub(super) fn is_home(&mut self, row: u64, taken: &Result<(), String>) -> bool {
        let place = self.place();
        let Some(discovery) = &mut self.discovery else { return false };
        match discovery.acknowledged(row, taken, Instant::now()) {
            None => return false,
            Some(Outcome::Refused(said)) => self.home_given_up(said),
            Some(Outcome::Taken) if discovery.is_wanted() => {
                log::debug!("{place}: described on {}", discovery.topic());
            }
            Some(Outcome::Taken) => log::info!("{place}: taken back what was on {}", discovery.topic()),
        }
        true
    }

    pub(super) fn on_cancel(&mut self, message: &IncomingMessage) {
        if is_stale(message) {
            return;
        }
        match json::cancel_topic(&message.payload) {
            Ok(Cancelled::Id(id)) => self.cancel(&id),
            Ok(Cancelled::Running) => self.control(message, Command::CancelRunning),
            // What came is not repeated: it may be a prompt that was sent to the wrong topic.
            Err(_) => {
                let topic = self.topics.cancel();
                log::warn!(
                    "{topic}: not understood; send an object with the request's id, or \"running\": true"
                );
            }
        }
    }

    pub(super) fn on_threads(&self, message: &IncomingMessage) {
        if is_stale(message) {
            return;
        }
        let (topic, most) = (self.topics.threads(), self.door.threads);
        match json::thread_limit(&message.payload) {
            Ok(threads) if (1..=most).contains(&threads) => {
                self.control(message, Command::Threads(threads));
            }
            Ok(threads) => log::warn!("{topic}: {threads} is outside 1 to {most}, which is budget.threads"),
            Err(refusal) => log::warn!("{topic}: {}", refusal.message),
        }
    }

    fn control(&self, message: &IncomingMessage, control: Command) {
        if self.door.controls.try_send(control).is_err() {
            let topic = String::from_utf8_lossy(&message.topic);
            log::warn!("{topic}: ignored, too many came at once; send it again");
        }
    }
}

/// What the broker kept is of another day, and would come again at each start. Says so; but an empty payload is
/// how it is taken back.
fn is_stale(message: &IncomingMessage) -> bool {
    if message.payload.is_empty() {
        return true;
    }
    if message.retained {
        let topic = String::from_utf8_lossy(&message.topic);
        log::warn!("{topic}: ignored, it is retained; publish it without retain");
    }
    message.retained
}
