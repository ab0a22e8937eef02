//! Zigbee2MQTT's retained lists of devices and groups: `zigbee2mqtt/bridge/devices` and `zigbee2mqtt/bridge/groups`.
//!
//! A device's domain follows from what it exposes, a group's from its members. Deliberately knows nothing of what else
//! a device can do.

use super::capped::Capped;
use super::names::{MAX_NAMES, NamedDevice, cleaned};
use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use std::collections::HashMap;
use std::fmt;

/// Topic of the devices.
pub const DEVICES: &str = "zigbee2mqtt/bridge/devices";
/// Topic of the groups.
pub const GROUPS: &str = "zigbee2mqtt/bridge/groups";
/// Maximum number of members of a group that are read.
const MAX_MEMBERS: usize = 64;
/// Types of Zigbee2MQTT that are domains of Home Assistant, the most telling first.
const TYPES: &[&str] = &["light", "cover", "lock", "climate", "fan", "switch"];

/// A device of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZigbeeDevice {
    address: String,
    name: String,
    domain: &'static str,
}

/// A group of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZigbeeGroup {
    name: String,
    /// Addresses.
    members: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct DeviceKeys {
    #[serde(default)]
    ieee_address: String,
    friendly_name: Option<String>,
    #[serde(default)]
    r#type: Option<String>,
    #[serde(default)]
    disabled: Option<bool>,
    #[serde(default)]
    definition: Option<Definition>,
}

#[derive(Debug, Deserialize)]
struct Definition {
    #[serde(default)]
    exposes: Exposes,
}

#[derive(Debug, Deserialize)]
struct Expose {
    #[serde(default)]
    r#type: Option<String>,
}

/// The domain that follows from a list of what a device exposes.
#[derive(Debug, Default)]
struct Exposes(Option<&'static str>);

#[derive(Debug, Deserialize)]
struct GroupKeys {
    friendly_name: Option<String>,
    #[serde(default)]
    members: Capped<Member, MAX_MEMBERS>,
}

#[derive(Debug, Deserialize)]
struct Member {
    #[serde(default)]
    ieee_address: String,
}

/// The devices in a payload on [`DEVICES`]. The error is a short description of what is wrong.
pub fn devices(payload: &[u8]) -> Result<Vec<ZigbeeDevice>, String> {
    let list: Capped<DeviceKeys, MAX_NAMES> = read(payload)?;
    Ok(list.0.into_iter().filter_map(device).collect())
}

/// The groups in a payload on [`GROUPS`].
pub fn groups(payload: &[u8]) -> Result<Vec<ZigbeeGroup>, String> {
    let list: Capped<GroupKeys, MAX_NAMES> = read(payload)?;
    let group = |keys: GroupKeys| {
        let members =
            keys.members.0.into_iter().map(|member| member.ieee_address).filter(|text| is_address(text));
        Some(ZigbeeGroup { name: cleaned(&keys.friendly_name?)?, members: members.collect() })
    };
    Ok(list.0.into_iter().filter_map(group).collect())
}

/// The names of devices and groups; a group has the domain of its first known member, and is a light without one.
pub(super) fn named(devices: &[ZigbeeDevice], groups: &[ZigbeeGroup]) -> Vec<NamedDevice> {
    let domains: HashMap<&str, &'static str> =
        devices.iter().map(|device| (device.address.as_str(), device.domain)).collect();
    let domain_of = |group: &ZigbeeGroup| {
        group.members.iter().find_map(|member| domains.get(member.as_str()).copied()).unwrap_or("light")
    };
    let named =
        |name: &str, domain| NamedDevice { domain, name: name.to_owned(), area: None, aliases: Vec::new() };
    let devices = devices.iter().map(|device| named(&device.name, device.domain));
    devices.chain(groups.iter().map(|group| named(&group.name, domain_of(group)))).collect()
}

/// How many names there are, and their bytes.
pub(super) fn size(devices: &[ZigbeeDevice], groups: &[ZigbeeGroup]) -> (usize, usize) {
    let devices_bytes: usize = devices.iter().map(|device| device.name.len() + device.address.len()).sum();
    let group_bytes =
        |group: &ZigbeeGroup| group.name.len() + group.members.iter().map(String::len).sum::<usize>();
    (devices.len() + groups.len(), devices_bytes + groups.iter().map(group_bytes).sum::<usize>())
}

fn read<'de, T: Deserialize<'de>>(payload: &'de [u8]) -> Result<T, String> {
    if payload.trim_ascii_start().first() != Some(&b'[') {
        return Err("it is no JSON array".into());
    }
    serde_json::from_slice(payload).map_err(|error| error.to_string())
}

/// The coordinator is no device of the home, and what is disabled or unknown cannot be commanded.
fn device(keys: DeviceKeys) -> Option<ZigbeeDevice> {
    if keys.r#type.as_deref() == Some("Coordinator") || keys.disabled == Some(true) {
        return None;
    }
    let domain = keys.definition?.exposes.0?;
    let address = Some(keys.ieee_address).filter(|text| is_address(text)).unwrap_or_default();
    Some(ZigbeeDevice { address, name: cleaned(&keys.friendly_name?)?, domain })
}

/// Addresses are written as 0x and 16 digits.
fn is_address(text: &str) -> bool {
    (1..=32).contains(&text.len())
}

impl<'de> Deserialize<'de> for Exposes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MostTelling)
    }
}

struct MostTelling;

impl<'de> Visitor<'de> for MostTelling {
    type Value = Exposes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of what the device exposes")
    }

    fn visit_unit<E>(self) -> Result<Exposes, E> {
        Ok(Exposes(None))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Exposes, A::Error> {
        /// After all of [`TYPES`].
        const OTHERS: [(&str, &str); 2] = [("binary", "binary_sensor"), ("numeric", "sensor")];
        let mut best: Option<(usize, &'static str)> = None;
        while let Some(Expose { r#type }) = list.next_element()? {
            let Some(kind) = r#type else { continue };
            let known = TYPES.iter().map(|name| (*name, *name)).chain(OTHERS).enumerate();
            let found = known.into_iter().find(|(_, (name, _))| *name == kind);
            let found = found.map(|(rank, (_, domain))| (rank, domain));
            best = best.into_iter().chain(found).min();
        }
        Ok(Exposes(best.map(|(_, domain)| domain)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"[
        {"ieee_address":"0x1","type":"Coordinator","friendly_name":"Coordinator"},
        {"ieee_address":"0x2","type":"Router","friendly_name":"hall lamp","definition":{"exposes":[
            {"type":"numeric","property":"linkquality"},{"type":"light","features":[{"type":"binary"}]}]}},
        {"ieee_address":"0x3","type":"Router","friendly_name":"Fridge plug","definition":{"exposes":[
            {"type":"switch","features":[]},{"type":"numeric","property":"power"}]}},
        {"ieee_address":"0x4","type":"EndDevice","friendly_name":"Window","definition":{"exposes":[
            {"type":"numeric","property":"battery"},{"type":"binary","property":"contact"}]}},
        {"ieee_address":"0x5","type":"EndDevice","friendly_name":"Off","disabled":true,"definition":{"exposes":[{"type":"light"}]}},
        {"ieee_address":"0x6","type":"EndDevice","friendly_name":"Unknown","definition":null}
    ]"#;

    #[test]
    fn a_device_has_the_most_telling_of_what_it_exposes_as_its_domain() {
        let found = named(&devices(LIST.as_bytes()).expect("sound"), &[]);
        let found: Vec<_> = found.iter().map(|device| (device.domain, device.name.as_str())).collect();
        assert_eq!(found, [("light", "hall lamp"), ("switch", "Fridge plug"), ("binary_sensor", "Window")]);
    }

    #[test]
    fn a_group_has_the_domain_of_its_members() {
        let list = r#"[{"id":1,"friendly_name":"plugs","members":[{"ieee_address":"0x9"},{"ieee_address":"0x3","endpoint":1}]},
            {"id":2,"friendly_name":"empty","members":[]},{"id":3}]"#;
        let found =
            named(&devices(LIST.as_bytes()).expect("sound"), &groups(list.as_bytes()).expect("sound"));
        let found: Vec<_> = found[3..].iter().map(|device| (device.domain, device.name.as_str())).collect();
        assert_eq!(found, [("switch", "plugs"), ("light", "empty")]);
    }

    #[test]
    fn what_is_no_list_is_an_error() {
        for payload in ["", "{}", "null", "[7]", "[{}", r#"[{"friendly_name":{}}]"#] {
            assert!(devices(payload.as_bytes()).is_err() && groups(payload.as_bytes()).is_err(), "{payload}");
        }
    }
}
