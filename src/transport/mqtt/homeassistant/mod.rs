//! The device's entry in Home Assistant (MQTT discovery): when its description is published, and when it is
//! removed.
//!
//! Published on each connection, when Home Assistant starts (its birth message), and when the sensors or the report
//! interval change. With `mqtt.discovery = false` a description published earlier is removed. Where the owner deletes the
//! device in Home Assistant, which empties the description's topic, it is not published again. Pure: time and random
//! numbers are passed in, messages are returned. `entities` has the description itself. Deliberately knows nothing
//! of Home Assistant but its discovery; whether one is listening is unknown.

pub(super) mod deletion_file;
mod entities;
#[cfg(test)]
mod tests;

pub use entities::SensorPresence;

use super::context::MqttContext;
use super::topics::{TopicFilter, Topics};
use crate::transport::mqtt::message::OutgoingMessage;
use crate::transport::mqtt::optional_subscription::OptionalSubscription;
use crate::transport::mqtt::strikes::Strikes;
use entities::DeviceInfo;
use sha2::{Digest, Sha256};
use std::time::{Duration, Instant};

/// Home Assistant's birth message (`components/mqtt/const.py`), unless its owner configured another.
const BIRTH_TOPIC: &str = "homeassistant/status";
const BIRTH_PAYLOAD: &[u8] = b"online";
/// Longest delay after a birth message, which every device of the home receives at once.
const BIRTH_SPREAD: Duration = Duration::from_secs(2);
/// Time from a description to the report that fills its entities: Home Assistant subscribes to the topics in
/// between.
const REPORT_DELAY: Duration = Duration::from_secs(2);
/// Intervals without a report after which a value is no longer shown, and some time for a slow network.
const MISSED_REPORTS: u32 = 3;
const EXPIRY_GRACE: Duration = Duration::from_secs(10);
/// Disconnects with the description in flight before it is taken for the cause and left out. More than for other
/// requests, since the description is published on each connection, also when a broker restarts a few times.
const GIVE_UP: u32 = 3;
/// A disconnect within this time after the description was sent may be caused by it: the broker's reaction takes a
/// round trip, over a slow network.
const BLAME_PERIOD: Duration = Duration::from_secs(30);
/// Time from giving the description up to the next attempt: a quota may be free again, an access list changed. A
/// forbidden description costs one connection in this time.
const RETRY_INTERVAL: Duration = Duration::from_secs(3600);

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Publish this, and pass its outbox entry to [`HomeAssistant::mark_queued`].
    Publish(OutgoingMessage),
    /// Publish a report: there are entities without a value.
    Report,
}

/// The state of the description, over all connections of one process.
#[derive(Debug)]
pub(super) struct HomeAssistant {
    device: DeviceInfo,
    /// The topic of the description.
    topic: String,
    birth_topics: Vec<String>,
    /// Of the birth topics and of the description's own.
    birth_subscription: OptionalSubscription,
    /// Whether the description is to be published, else removed.
    is_wanted: bool,
    /// The removal is done, or given up, or the owner deleted the device: nothing more is published in this process.
    is_finished: bool,
    /// Given up until then.
    retry_at: Option<Instant>,
    /// The problem was logged, and the broker has not accepted the description since.
    is_problem_reported: bool,
    sensors: SensorPresence,
    interval: Duration,
    /// When it is to be published.
    due: Option<Instant>,
    /// When a report is to follow.
    report_due: Option<Instant>,
    /// The description that the broker has not acknowledged.
    in_flight: Option<QueuedDescription>,
    /// Disconnects that the description may have caused.
    strikes: Strikes,
}

/// A description without a PUBACK.
#[derive(Debug, Clone, Copy)]
struct QueuedDescription {
    /// Its outbox entry.
    entry: u64,
    /// When it was handed to the connection.
    sent_at: Option<Instant>,
}

/// What the broker did with the description.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum DescriptionResult {
    /// It accepted it.
    Taken,
    /// It refused it; the text is to be logged, the first time.
    Refused(Option<String>),
}

impl HomeAssistant {
    /// `is_deleted`: the owner deleted the device while an earlier process ran.
    pub fn new(context: &MqttContext, topics: &Topics, is_deleted: bool) -> Self {
        let (prefix, device) = (&context.config.discovery_prefix, &context.device);
        let device_info = DeviceInfo {
            device: device.clone(),
            topics: topics.clone(),
            model: context.model.borrow().name.clone(),
            threads: context.threads,
        };
        let own_birth = format!("{prefix}/status");
        let birth_topics =
            [own_birth, BIRTH_TOPIC.to_owned()].into_iter().take(1 + usize::from(prefix != "homeassistant"));
        HomeAssistant {
            device: device_info,
            topic: format!("{prefix}/device/{}/config", object_id(device)),
            birth_topics: birth_topics.collect(),
            birth_subscription: OptionalSubscription::default(),
            is_wanted: context.config.discovery,
            is_finished: is_deleted && context.config.discovery,
            retry_at: None,
            is_problem_reported: false,
            sensors: SensorPresence::default(),
            interval: *context.report_interval.borrow(),
            due: None,
            report_due: None,
            in_flight: None,
            strikes: Strikes::default(),
        }
    }

    /// The birth topics, and the description's own, to subscribe to on a new connection; none while the description is
    /// given up, or after the owner deleted the device. The error is the problem to report, returned once.
    ///
    /// At QoS 0: a birth message must not wait behind a full window of prompts, nor take a place in it.
    pub fn filters(&mut self) -> Result<Vec<TopicFilter>, String> {
        if !self.is_wanted || self.is_finished || self.retry_at.is_some() {
            return Ok(Vec::new());
        }
        if !self.birth_subscription.request() {
            return self.report_birth("the broker ends the connection over it").map_or(Ok(Vec::new()), Err);
        }
        let filter =
            |topic: &String| TopicFilter { topic: topic.clone(), is_qos_1: false, wants_retained: false };
        Ok(self.birth_topics.iter().chain([&self.topic]).map(filter).collect())
    }

    /// Notes the SUBACK for the birth topics. Returns the problem to report, if there is a new one.
    pub fn birth_answered(&mut self, granted: &Result<(), String>) -> Option<String> {
        self.birth_subscription.answered(granted.is_ok());
        granted.as_ref().err().and_then(|reason| self.report_birth(reason))
    }

    fn report_birth(&mut self, reason: &str) -> Option<String> {
        let topics = self.birth_topics.join(", ");
        self.birth_subscription.report_once().then(|| {
            format!(
                "may not subscribe to Home Assistant's birth on {topics} and to {} ({reason}), so this device may be \
                 announced at connects only, and also after it was deleted in Home Assistant; allow it at the broker, or \
                 set mqtt.discovery = false",
                self.topic
            )
        })
    }

    /// Whether the SUBACK for the birth topics is outstanding: a connection that ends now may end over them.
    pub fn is_birth_pending(&self) -> bool {
        self.birth_subscription.is_pending()
    }

    /// Topics that an earlier process may have subscribed to and this one does not want.
    pub fn unwanted(&self) -> impl Iterator<Item = &String> {
        let is_unwanted = !self.is_wanted || self.is_finished;
        self.birth_topics.iter().chain([&self.topic]).filter(move |_| is_unwanted)
    }

    /// Whether this is a topic of Home Assistant's birth messages.
    pub fn is_birth_topic(&self, topic: &[u8]) -> bool {
        self.birth_topics.iter().any(|birth| birth.as_bytes() == topic)
    }

    /// Whether this is the description's own topic.
    pub fn is_own_topic(&self, topic: &[u8]) -> bool {
        self.topic.as_bytes() == topic
    }

    /// A message on the description's own topic. Returns whether it says that the owner deleted the device: Home
    /// Assistant then empties the topic (`async_remove_discovery_payload` of `components/mqtt/entity.py`), once for each
    /// entity. The description itself comes back too, and says nothing.
    pub fn on_own_message(&mut self, payload: &[u8]) -> bool {
        if !payload.is_empty() || !self.is_wanted || self.is_finished {
            return false;
        }
        (self.is_finished, self.due, self.report_due) = (true, None, None);
        true
    }

    /// Where the description is.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Whether the description is to be there.
    pub fn is_wanted(&self) -> bool {
        self.is_wanted
    }

    /// A new connection: the broker may have lost the retained description.
    pub fn connected(&mut self, now: Instant) {
        self.in_flight = None;
        self.due = Some(now);
    }

    /// A message of Home Assistant on a birth topic. `random`, from 0 to 1, spreads the devices over time.
    pub fn on_birth_message(&mut self, word: &[u8], now: Instant, random: f64) {
        if self.is_wanted && !self.is_finished && word == BIRTH_PAYLOAD && self.due.is_none() {
            self.due = Some(now + BIRTH_SPREAD.mul_f64(random.clamp(0.0, 1.0)));
        }
    }

    /// Notes the sensors that have a reading now, and the report interval; where they differ from before, the
    /// description is due.
    pub fn update_sensors(&mut self, sensors: SensorPresence, interval: Duration, now: Instant) {
        let sensors = sensors.union(self.sensors);
        if self.is_wanted && !self.is_finished && (sensors, interval) != (self.sensors, self.interval) {
            self.due.get_or_insert(now);
        }
        (self.sensors, self.interval) = (sensors, interval);
    }

    /// Notes the model that answers now; where it is another one, the description is due.
    pub fn update_model(&mut self, name: &str, now: Instant) {
        if self.device.model == name {
            return;
        }
        self.device.model = name.to_owned();
        if self.is_wanted && !self.is_finished {
            self.due.get_or_insert(now);
        }
    }

    /// When [`HomeAssistant::next_task`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        self.description_due().into_iter().chain(self.report_due).min()
    }

    fn description_due(&self) -> Option<Instant> {
        self.due.filter(|_| !self.is_finished).map(|due| self.retry_at.map_or(due, |again| due.max(again)))
    }

    /// What to do now; to be called again until it returns `None`.
    pub fn next_task(&mut self, now: Instant) -> Option<Task> {
        if self.report_due.is_some_and(|due| now >= due) {
            self.report_due = None;
            return Some(Task::Report);
        }
        if self.description_due().is_none_or(|due| now < due) {
            return None;
        }
        self.due = None;
        if !self.is_wanted {
            return Some(Task::Publish(OutgoingMessage::word(self.topic.clone(), "")));
        }
        self.report_due = Some(now + REPORT_DELAY);
        let description = self.device.describe(self.sensors, self.interval * MISSED_REPORTS + EXPIRY_GRACE);
        Some(Task::Publish(OutgoingMessage {
            retain: true,
            ..OutgoingMessage::json(self.topic.clone(), description)
        }))
    }

    /// The description is in this outbox entry.
    pub fn mark_queued(&mut self, entry: u64) {
        self.in_flight = Some(QueuedDescription { entry, sent_at: None });
    }

    /// The entry was handed to the connection: a disconnect before that cannot be caused by it.
    pub fn mark_sent(&mut self, entry: u64, now: Instant) {
        if let Some(ours) = self.in_flight.as_mut().filter(|ours| ours.entry == entry) {
            ours.sent_at = Some(now);
        }
    }

    /// The broker accepted this entry, or refused it for this reason; `None` where the entry is not the
    /// description.
    pub fn acknowledged(
        &mut self,
        entry: u64,
        result: &Result<(), String>,
        now: Instant,
    ) -> Option<DescriptionResult> {
        self.in_flight.take_if(|ours| ours.entry == entry)?;
        self.strikes.clear();
        Some(match result {
            Ok(()) => {
                (self.retry_at, self.is_problem_reported) = (None, false);
                // A removed description stays removed.
                self.is_finished |= !self.is_wanted;
                DescriptionResult::Taken
            }
            Err(reason) => {
                self.due = Some(now);
                DescriptionResult::Refused(self.give_up(&format!("the broker refuses it ({reason})"), now))
            }
        })
    }

    /// The connection ended, perhaps because of the description. Returns what to log.
    pub fn disconnected(&mut self, by_broker: bool, now: Instant) -> Option<String> {
        (self.due, self.report_due) = (None, None);
        let sent_at = self.in_flight.take().and_then(|ours| ours.sent_at);
        let is_soon = sent_at.is_some_and(|sent_at| now.saturating_duration_since(sent_at) < BLAME_PERIOD);
        let is_blamed = is_soon && by_broker && !self.is_birth_pending();
        self.birth_subscription.disconnected(by_broker);
        self.strikes.add_if(is_blamed);
        if !is_blamed || !self.strikes.has_reached(GIVE_UP) {
            return None;
        }
        // One more disconnect after the next attempt is enough to give up again.
        self.strikes.set_to_last_chance(GIVE_UP);
        self.give_up("the broker ends the connection over it", now)
    }

    /// The description is larger than the broker's Maximum Packet Size. Returns what to log.
    pub fn too_large(&mut self, size: usize, limit: usize, now: Instant) -> Option<String> {
        (self.due, self.report_due) = (Some(now), None);
        self.give_up(&format!("it has {size} bytes and the broker takes packets of {limit}"), now)
    }

    /// A removal is not attempted a second time.
    fn give_up(&mut self, why: &str, now: Instant) -> Option<String> {
        self.is_finished |= !self.is_wanted;
        self.retry_at = Some(now + RETRY_INTERVAL);
        let first = !std::mem::replace(&mut self.is_problem_reported, true);
        first.then(|| self.give_up_text(why))
    }

    fn give_up_text(&self, why: &str) -> String {
        let topic = &self.topic;
        if self.is_wanted {
            let remedy = "allow it at the broker, or set mqtt.discovery = false; tried again every hour";
            format!("this device is not announced to Home Assistant on {topic}: {why}; {remedy}")
        } else {
            let remedy = format!(
                "where it ever was, who may write there takes it back: mosquitto_pub -r -n -t {topic}"
            );
            format!("Home Assistant may still know this device on {topic}: {why}; {remedy}")
        }
    }
}

/// The topic level that names the device. Home Assistant ignores one with other characters (`TOPIC_MATCHER` of
/// `components/mqtt/discovery.py`), so they become `_`, and a hash tells such names apart.
fn object_id(device: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if device.chars().all(is_plain) {
        return format!("bitnetd_{device}");
    }
    let plain: String = device.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    let digest = Sha256::digest(device);
    let number = u32::from_be_bytes(digest[..4].try_into().expect("four of thirty-two bytes"));
    format!("bitnetd_{plain}_{number:08x}")
}
