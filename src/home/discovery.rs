//! Home Assistant's MQTT discovery: the names in one retained description.
//!
//! Two forms: of a single component, `<prefix>/<component>/[<node>/]<object>/config`, and of a device with all its
//! components, `<prefix>/device/<object>/config`. Keys may be abbreviated (`components/mqtt/abbreviations.py` of Home
//! Assistant). Deliberately knows nothing of what else is in a description.

use super::capped::Capped;
use super::names::{NameList, NamedDevice, cleaned, domain};
use serde::Deserialize;
use serde::de::IgnoredAny;

/// Maximum number of components of one device that are read.
const MAX_COMPONENTS: usize = 512;
/// The origin of the descriptions that this daemon publishes.
const OWN_ORIGIN: &str = "bitnetd";
/// Domains whose entities are commanded by their own name too, where the device's name comes before it.
const COMMANDED: &[&str] = &[
    "climate",
    "cover",
    "fan",
    "humidifier",
    "lawn_mower",
    "light",
    "lock",
    "scene",
    "siren",
    "switch",
    "vacuum",
    "valve",
    "water_heater",
];

/// A description, or a component in one.
#[derive(Debug, Deserialize)]
struct Description {
    #[serde(default)]
    name: Option<String>,
    #[serde(default, alias = "dev")]
    device: Option<DeviceKeys>,
    #[serde(default, alias = "ent_cat")]
    entity_category: Option<String>,
    #[serde(default, alias = "en")]
    enabled_by_default: Option<bool>,
    #[serde(default, alias = "o")]
    origin: Option<Origin>,
    #[serde(default, alias = "cmps")]
    components: Capped<Component, MAX_COMPONENTS>,
}

/// A component of a device description.
#[derive(Debug, Deserialize)]
struct Component {
    #[serde(default)]
    name: Option<String>,
    #[serde(default, alias = "p")]
    platform: Option<String>,
    #[serde(default, alias = "ent_cat")]
    entity_category: Option<String>,
    #[serde(default, alias = "en")]
    enabled_by_default: Option<bool>,
    /// Every component has one; what has only its platform is a removed component.
    #[serde(default, alias = "uniq_id")]
    unique_id: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
struct DeviceKeys {
    #[serde(default)]
    name: Option<String>,
    #[serde(default, alias = "sa")]
    suggested_area: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Origin {
    #[serde(default)]
    name: Option<String>,
}

/// The component of a discovery topic below `prefix`: `light` of `homeassistant/light/x/config`, or `device`. `None`
/// where the topic is no discovery topic.
pub fn component<'t>(topic: &'t str, prefix: &str) -> Option<&'t str> {
    let rest = topic.strip_prefix(prefix)?.strip_prefix('/')?.strip_suffix("/config")?;
    let (component, object) = rest.split_once('/')?;
    let is_sound = object.split('/').count() <= 2 && object.split('/').all(|level| !level.is_empty());
    is_sound.then_some(component)
}

/// Whether descriptions of this component can have names that are asked for.
pub fn is_named(component: &str) -> bool {
    component == "device" || domain(component).is_some()
}

/// The names in a description of this component. The error is a short description of what is wrong.
pub fn names(component: &str, payload: &[u8]) -> Result<NameList, String> {
    if payload.trim_ascii_start().first() != Some(&b'{') {
        return Err("it is no JSON object".into());
    }
    let description: Description = serde_json::from_slice(payload).map_err(|error| error.to_string())?;
    if description.origin.and_then(|origin| origin.name).as_deref() == Some(OWN_ORIGIN) {
        return Ok(NameList::default());
    }
    let device = description.device.as_ref();
    let components = match component {
        "device" => description.components.0,
        single => vec![Component {
            name: description.name,
            platform: Some(single.to_owned()),
            entity_category: description.entity_category,
            enabled_by_default: description.enabled_by_default,
            unique_id: Some(IgnoredAny),
        }],
    };
    let devices = components.iter().filter_map(|component| named(component, device)).collect();
    Ok(NameList { devices, ..NameList::default() })
}

/// The entity of a component, if a sentence may name it: settings and diagnoses are not, nor what is disabled.
fn named(component: &Component, device: Option<&DeviceKeys>) -> Option<NamedDevice> {
    let domain = domain(component.platform.as_deref()?)?;
    let is_hidden = component.entity_category.is_some() || component.enabled_by_default == Some(false);
    if is_hidden || component.unique_id.is_none() {
        return None;
    }
    let own = component.name.as_deref().and_then(cleaned);
    let of_device = device.and_then(|device| device.name.as_deref()).and_then(cleaned);
    let (name, aliases) = friendly_name(own, of_device, domain)?;
    let area = device.and_then(|device| device.suggested_area.as_deref()).and_then(cleaned);
    Some(NamedDevice { domain, name, area, aliases })
}

/// The name that Home Assistant shows: the device's, followed by the entity's where it has one. And the other names.
fn friendly_name(
    own: Option<String>,
    of_device: Option<String>,
    domain: &str,
) -> Option<(String, Vec<String>)> {
    match (own, of_device) {
        (Some(own), Some(device)) if own.to_lowercase().starts_with(&device.to_lowercase()) => {
            Some((own, Vec::new()))
        }
        (Some(own), Some(device)) => {
            let name = cleaned(&format!("{device} {own}"))?;
            Some((name, if COMMANDED.contains(&domain) { vec![own] } else { Vec::new() }))
        }
        (Some(name), None) | (None, Some(name)) => Some((name, Vec::new())),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(component: &str, payload: &str) -> Vec<NamedDevice> {
        names(component, payload.as_bytes()).expect("sound").devices
    }

    #[test]
    fn a_topic_names_its_component() {
        for (topic, expected) in [
            ("homeassistant/light/kitchen/config", Some("light")),
            ("homeassistant/light/node/kitchen/config", Some("light")),
            ("homeassistant/device/x/config", Some("device")),
            ("homeassistant/light/config", None),
            ("homeassistant/light//config", None),
            ("homeassistant/light/a/b/c/config", None),
            ("homeassistant/light/kitchen/state", None),
            ("other/light/kitchen/config", None),
            ("homeassistant/status", None),
        ] {
            assert_eq!(component(topic, "homeassistant"), expected, "{topic}");
        }
    }

    #[test]
    fn a_single_component_has_the_name_that_home_assistant_shows() {
        let lamp = found(
            "light",
            r#"{"~":"z/lamp","name":null,"uniq_id":"1","cmd_t":"~/set","dev":{"ids":["1"],"name":"Wall lamp","sa":"Office"}}"#,
        );
        let expected = NamedDevice {
            domain: "light",
            name: "Wall lamp".into(),
            area: Some("Office".into()),
            aliases: vec![],
        };
        assert_eq!(lamp, [expected]);
        let relay = found("switch", r#"{"name":"Pump","uniq_id":"2","device":{"name":"Shelly 1"}}"#);
        assert_eq!(
            (relay[0].name.as_str(), relay[0].aliases.as_slice()),
            ("Shelly 1 Pump", &["Pump".to_owned()][..])
        );
        let power = found("sensor", r#"{"name":"Power","device":{"name":"Shelly 1"}}"#);
        assert_eq!((power[0].name.as_str(), power[0].aliases.len()), ("Shelly 1 Power", 0));
        assert_eq!(found("light", r#"{"name":"Old lamp","cmd_t":"x"}"#)[0].name, "Old lamp");
    }

    #[test]
    fn a_device_description_gives_its_components() {
        let found = found(
            "device",
            r#"{"dev":{"ids":"x","name":"Boiler"},"o":{"name":"other"},"cmps":{
                "a":{"p":"switch","uniq_id":"a"},
                "b":{"platform":"sensor","unique_id":"b","name":"Temperature"},
                "c":{"p":"sensor","uniq_id":"c","name":"Signal","ent_cat":"diagnostic"},
                "d":{"p":"sensor"},
                "e":{"p":"device_automation","uniq_id":"e"}}}"#,
        );
        let names: Vec<&str> = found.iter().map(|device| device.name.as_str()).collect();
        assert_eq!(names, ["Boiler", "Boiler Temperature"]);
    }

    #[test]
    fn our_own_description_gives_no_names() {
        let payload = r#"{"dev":{"name":"bitnetd cellar"},"o":{"name":"bitnetd"},"cmps":{"a":{"p":"sensor","uniq_id":"a"}}}"#;
        assert_eq!(found("device", payload), []);
    }

    #[test]
    fn what_is_no_description_is_an_error() {
        for payload in ["", "x", "[]", "7", r#"{"name":7}"#, r#"{"cmps":{"a":7}}"#] {
            assert!(names("device", payload.as_bytes()).is_err(), "{payload}");
        }
    }
}
