//! The names of the home as its sources change, within fixed limits.
//!
//! Each retained topic is a source; an empty payload removes it. After a new subscription the broker delivers all that
//! is retained again, and what does not come then is gone. Deliberately knows no clock: the caller says when the
//! delivery of retained messages is over.

use super::discovery;
use super::names::{MAX_NAMES, MAX_TOTAL_BYTES, NameList};
use super::snapshot::Home;
use super::zigbee2mqtt::{self as zigbee, ZigbeeDevice, ZigbeeGroup};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

/// Memory in bytes that the memory plan reserves for the names: both sources in the store and in the home with its
/// index, the home before while an answer is made, and the parsed form of one message. Counted in a test, for the largest
/// home that is allowed: 12.0 MB, and a sixth more for what the allocator takes.
pub const HOME_BYTES: usize = 14 << 20;
/// Faults of single topics that are reported.
const MAX_REPORTS: usize = 20;

/// The topics from which names are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameTopics {
    /// Home Assistant's discovery prefix.
    pub discovery_prefix: String,
}

impl NameTopics {
    /// The topic filters to subscribe to.
    pub fn filters(&self) -> [String; 4] {
        let prefix = &self.discovery_prefix;
        [
            format!("{prefix}/+/+/config"),
            format!("{prefix}/+/+/+/config"),
            zigbee::DEVICES.to_owned(),
            zigbee::GROUPS.to_owned(),
        ]
    }

    /// Whether names are read from this topic.
    pub fn contains(&self, topic: &str) -> bool {
        matches!(topic, zigbee::DEVICES | zigbee::GROUPS)
            || discovery::component(topic, &self.discovery_prefix).is_some()
    }
}

/// The names of all sources.
#[derive(Debug)]
pub struct HomeNames {
    topics: NameTopics,
    file: NameList,
    /// Discovery topics by a hash of them with random keys, so that the length of a topic does not count.
    discovered: HashMap<u64, Source>,
    zigbee_devices: Vec<ZigbeeDevice>,
    zigbee_groups: Vec<ZigbeeGroup>,
    /// Names and bytes of the discovered sources.
    discovered_size: (usize, usize),
    hash: RandomState,
    /// Counts the deliveries of retained messages.
    delivery: u32,
    /// Whether the lists of Zigbee2MQTT came in this delivery.
    is_zigbee_current: [bool; 2],
    reported: HashSet<u64>,
    is_full_reported: bool,
    is_changed: bool,
    version: u64,
}

#[derive(Debug)]
struct Source {
    names: NameList,
    size: (usize, usize),
    delivery: u32,
}

impl HomeNames {
    /// The names of the owner's file, to which those on `topics` are added.
    pub fn new(file: NameList, topics: NameTopics) -> Self {
        HomeNames {
            topics,
            file,
            discovered: HashMap::new(),
            zigbee_devices: Vec::new(),
            zigbee_groups: Vec::new(),
            discovered_size: (0, 0),
            hash: RandomState::new(),
            delivery: 0,
            is_zigbee_current: [false; 2],
            reported: HashSet::new(),
            is_full_reported: false,
            is_changed: true,
            version: 0,
        }
    }

    /// The topics from which names are read.
    pub fn topics(&self) -> &NameTopics {
        &self.topics
    }

    /// Replaces the names of the owner's file.
    pub fn set_file(&mut self, file: NameList) {
        self.is_changed |= self.file != file;
        self.file = file;
    }

    /// Reads a message; `skipped_bytes` of its payload were not kept. The error is the problem to report, which is
    /// returned once for each topic.
    pub fn on_message(&mut self, topic: &str, payload: &[u8], skipped_bytes: usize) -> Result<(), String> {
        let key = self.hash.hash_one(topic);
        let read = if skipped_bytes > 0 {
            Err(format!("{} bytes are too many", payload.len() + skipped_bytes))
        } else {
            self.read(topic, key, payload)
        };
        match read {
            Ok(()) => {
                self.reported.remove(&key);
                Ok(())
            }
            Err(reason) => self.report(key, topic, &reason),
        }
    }

    /// Notes that all retained messages are about to be delivered again.
    pub fn delivery_began(&mut self) {
        self.delivery = self.delivery.wrapping_add(1);
        self.is_zigbee_current = [false; 2];
    }

    /// Notes that they were: what did not come is no longer retained.
    pub fn delivery_ended(&mut self) {
        let before = self.discovered.len();
        self.discovered.retain(|_, source| source.delivery == self.delivery);
        self.is_changed |= self.discovered.len() != before;
        self.discovered_size = self.discovered.values().fold((0, 0), |sum, source| add(sum, source.size));
        let [devices, groups] = self.is_zigbee_current;
        if !devices && !self.zigbee_devices.is_empty() {
            self.zigbee_devices = Vec::new();
            self.is_changed = true;
        }
        if !groups && !self.zigbee_groups.is_empty() {
            self.zigbee_groups = Vec::new();
            self.is_changed = true;
        }
    }

    /// Whether the names have changed since the last snapshot.
    pub fn is_changed(&self) -> bool {
        self.is_changed
    }

    /// The home as it is now.
    pub fn snapshot(&mut self) -> Home {
        self.is_changed = false;
        self.version += 1;
        let mut names = self.file.clone();
        let mut sources: Vec<&Source> = self.discovered.values().collect();
        // In an order that is the same after each delivery, so that the same of two equal names is kept.
        sources.sort_by(|a, b| sort_key(&a.names).cmp(&sort_key(&b.names)));
        sources.iter().for_each(|source| names.extend(&source.names));
        names.devices.extend(zigbee::named(&self.zigbee_devices, &self.zigbee_groups));
        Home::new(names, self.version)
    }

    fn read(&mut self, topic: &str, key: u64, payload: &[u8]) -> Result<(), String> {
        match topic {
            zigbee::DEVICES => {
                self.is_zigbee_current[0] = true;
                let devices = if payload.is_empty() { Ok(Vec::new()) } else { zigbee::devices(payload) };
                self.is_changed |= devices.as_ref() != Ok(&self.zigbee_devices);
                self.zigbee_devices = Vec::new();
                self.zigbee_devices = self.fitting(devices?, |devices| zigbee::size(devices, &[]))?;
            }
            zigbee::GROUPS => {
                self.is_zigbee_current[1] = true;
                let groups = if payload.is_empty() { Ok(Vec::new()) } else { zigbee::groups(payload) };
                self.is_changed |= groups.as_ref() != Ok(&self.zigbee_groups);
                self.zigbee_groups = Vec::new();
                self.zigbee_groups = self.fitting(groups?, |groups| zigbee::size(&[], groups))?;
            }
            discovered => {
                let component = discovery::component(discovered, &self.topics.discovery_prefix);
                let Some(component) = component.filter(|component| discovery::is_named(component)) else {
                    return Ok(());
                };
                let names = if payload.is_empty() {
                    Ok(NameList::default())
                } else {
                    discovery::names(component, payload)
                };
                let before = self.remove(key);
                let names = names.and_then(|names| self.fitting(names, NameList::size));
                let names = names.inspect_err(|_| self.is_changed |= before.is_some())?;
                self.is_changed |= before.unwrap_or_default() != names;
                if names != NameList::default() {
                    self.insert(key, names);
                }
            }
        }
        Ok(())
    }

    fn remove(&mut self, key: u64) -> Option<NameList> {
        let removed = self.discovered.remove(&key)?;
        self.discovered_size.0 -= removed.size.0;
        self.discovered_size.1 -= removed.size.1;
        Some(removed.names)
    }

    fn insert(&mut self, key: u64, names: NameList) {
        let size = names.size();
        self.discovered_size = add(self.discovered_size, size);
        self.discovered.insert(key, Source { names, size, delivery: self.delivery });
    }

    /// The value, if there is space for its names besides those of the other sources.
    fn fitting<T>(&self, value: T, size: impl FnOnce(&T) -> (usize, usize)) -> Result<T, String> {
        let zigbee = zigbee::size(&self.zigbee_devices, &self.zigbee_groups);
        let (count, bytes) = add(add(size(&value), zigbee), self.discovered_size);
        if count > MAX_NAMES || bytes > MAX_TOTAL_BYTES {
            return Err(FULL.to_owned());
        }
        Ok(value)
    }

    fn report(&mut self, key: u64, topic: &str, reason: &str) -> Result<(), String> {
        if reason == FULL {
            let is_new = !std::mem::replace(&mut self.is_full_reported, true);
            let text = format!(
                "the broker has more than {MAX_NAMES} names of this home, or {MAX_TOTAL_BYTES} bytes of them; those on \
                 {} and others are left out: remove descriptions of devices that are gone",
                shown(topic)
            );
            return if is_new { Err(text) } else { Ok(()) };
        }
        if self.reported.len() >= MAX_REPORTS || !self.reported.insert(key) {
            return Ok(());
        }
        let more = if self.reported.len() == MAX_REPORTS { "; further ones are not reported" } else { "" };
        Err(format!(
            "no names of the home are read from {}: {}; publish a sound description, or remove it{more}",
            shown(topic),
            shown(reason)
        ))
    }
}

/// The reason where there is no space for more names.
const FULL: &str = "there is no space for more names";

fn add(a: (usize, usize), b: (usize, usize)) -> (usize, usize) {
    (a.0 + b.0, a.1 + b.1)
}

fn sort_key(names: &NameList) -> Option<(&str, &str)> {
    names.devices.first().map(|device| (device.name.as_str(), device.domain))
}

/// The beginning of a text of the broker, for a message.
fn shown(text: &str) -> String {
    text.chars().take(120).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> HomeNames {
        HomeNames::new(NameList::default(), NameTopics { discovery_prefix: "homeassistant".into() })
    }

    fn lamp(name: &str) -> Vec<u8> {
        format!(r#"{{"name":"{name}","uniq_id":"x"}}"#).into_bytes()
    }

    fn names(store: &mut HomeNames) -> Vec<String> {
        store.snapshot().names().devices.iter().map(|device| device.name.clone()).collect()
    }

    #[test]
    fn names_come_change_and_go_with_their_topics() {
        let mut store = store();
        let topic = "homeassistant/light/a/config";
        assert_eq!(store.on_message(topic, &lamp("Lamp"), 0), Ok(()));
        assert_eq!(store.on_message("homeassistant/light/b/config", &lamp("Other"), 0), Ok(()));
        assert_eq!(names(&mut store), ["Lamp", "Other"]);
        assert_eq!(store.on_message(topic, &lamp("Lamp"), 0), Ok(()));
        assert!(!store.is_changed());
        assert_eq!(store.on_message(topic, &lamp("Renamed"), 0), Ok(()));
        assert!(store.is_changed());
        assert_eq!(names(&mut store), ["Other", "Renamed"]);
        assert_eq!(store.on_message(topic, b"", 0), Ok(()));
        assert_eq!(names(&mut store), ["Other"]);
    }

    #[test]
    fn what_is_not_delivered_again_is_gone() {
        let mut store = store();
        let list =
            br#"[{"ieee_address":"0x2","friendly_name":"z","definition":{"exposes":[{"type":"light"}]}}]"#;
        store.delivery_began();
        for topic in ["homeassistant/light/a/config", "homeassistant/light/b/config"] {
            store.on_message(topic, &lamp(topic), 0).expect("sound");
        }
        store.on_message(zigbee::DEVICES, list, 0).expect("sound");
        store.delivery_ended();
        assert_eq!(names(&mut store).len(), 3);
        store.delivery_began();
        store.on_message("homeassistant/light/b/config", &lamp("b"), 0).expect("sound");
        assert_eq!(names(&mut store).len(), 3);
        store.delivery_ended();
        assert!(store.is_changed());
        assert_eq!(names(&mut store), ["b"]);
    }

    #[test]
    fn a_fault_is_reported_once_for_each_topic_and_takes_its_names_away() {
        let mut store = store();
        let topic = "homeassistant/light/a/config";
        store.on_message(topic, &lamp("Lamp"), 0).expect("sound");
        let text = store.on_message(topic, b"{", 0).expect_err("cut short");
        assert!(text.contains(topic), "{text}");
        assert_eq!(store.on_message(topic, b"{", 0), Ok(()));
        assert_eq!(names(&mut store), Vec::<String>::new());
        store.on_message(topic, &lamp("Lamp"), 0).expect("sound");
        assert!(store.on_message(topic, b"{", 7).is_err());
        let reported = (0..1000)
            .filter(|n| store.on_message(&format!("homeassistant/light/x{n}/config"), b"[]", 0).is_err());
        assert!(reported.count() <= MAX_REPORTS);
    }

    #[test]
    fn a_broker_cannot_fill_the_store() {
        let mut store = store();
        let reported = (0..3 * MAX_NAMES).filter(|n| {
            let topic = format!("homeassistant/light/{n}/config");
            store.on_message(&topic, &lamp(&format!("Lamp {n}")), 0).is_err()
        });
        assert_eq!(reported.count(), 1);
        assert_eq!(names(&mut store).len(), MAX_NAMES);
        // Once one is gone there is space again.
        store.on_message("homeassistant/light/5/config", b"", 0).expect("sound");
        store.on_message("homeassistant/light/new/config", &lamp("New"), 0).expect("sound");
        assert!(names(&mut store).contains(&"New".to_owned()));
        let long = format!(
            "[{}]",
            format!(r#"{{"friendly_name":"{}","members":[]}},"#, "x".repeat(100)).repeat(5000)
        );
        let long = long.replace(",]", "]");
        assert!(store.on_message(zigbee::GROUPS, long.as_bytes(), 0).is_ok());
        assert_eq!(names(&mut store).len(), MAX_NAMES);
    }
}
