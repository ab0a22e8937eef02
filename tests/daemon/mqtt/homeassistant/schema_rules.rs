//! What Home Assistant accepts of a device's description, as data: taken from `homeassistant/components/mqtt/
//! {schemas,config,sensor,binary_sensor,button,number,discovery}.py`, `components/sensor/const.py`,
//! `components/{binary_sensor,button}/__init__.py` and `const.py` of 2025.1 and 2026.11.
//! It ignores unknown keys; here they are errors, since they would go unnoticed.

use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// Keys that every entity may have (`MQTT_ENTITY_COMMON_SCHEMA`, `MQTT_BASE_SCHEMA`).
const COMMON: &[&str] = &[
    "platform",
    "unique_id",
    "name",
    "icon",
    "entity_category",
    "enabled_by_default",
    "json_attributes_topic",
    "json_attributes_template",
    "default_entity_id",
    "qos",
    "encoding",
];

/// One platform: its other keys, those of them that it must have, its device classes and its categories.
struct Platform {
    name: &'static str,
    keys: &'static [&'static str],
    required: &'static [&'static str],
    classes: &'static [&'static str],
    categories: &'static [&'static str],
}

const PLATFORMS: &[Platform] = &[
    Platform {
        name: "sensor",
        keys: &[
            "device_class",
            "expire_after",
            "force_update",
            "options",
            "state_class",
            "state_topic",
            "suggested_display_precision",
            "unit_of_measurement",
            "value_template",
        ],
        required: &["state_topic"],
        classes: &["power", "energy", "temperature", "duration", "data_size", "frequency", "data_rate"],
        categories: &["diagnostic"],
    },
    Platform {
        name: "binary_sensor",
        keys: &[
            "device_class",
            "expire_after",
            "force_update",
            "off_delay",
            "payload_off",
            "payload_on",
            "state_topic",
            "value_template",
        ],
        required: &["state_topic"],
        classes: &["battery", "connectivity", "heat", "power", "problem", "running", "safety", "update"],
        categories: &["diagnostic"],
    },
    Platform {
        name: "button",
        keys: &["command_template", "command_topic", "device_class", "payload_press", "retain"],
        required: &["command_topic"],
        classes: &["identify", "restart", "update"],
        categories: &["diagnostic", "config"],
    },
    Platform {
        name: "number",
        keys: &[
            "command_template",
            "command_topic",
            "device_class",
            "max",
            "min",
            "mode",
            "optimistic",
            "payload_reset",
            "retain",
            "state_topic",
            "step",
            "unit_of_measurement",
            "value_template",
        ],
        required: &["command_topic"],
        classes: &[],
        categories: &["diagnostic", "config"],
    },
];

/// Units of the device classes that we use (`DEVICE_CLASS_UNITS`), and their state classes (`DEVICE_CLASS_STATE_CLASSES`).
const CLASSES: &[(&str, &[&str], &[&str])] = &[
    ("power", &["mW", "W", "kW", "MW", "GW", "TW"], &["measurement"]),
    (
        "energy",
        &["J", "kJ", "MJ", "GJ", "mWh", "Wh", "kWh", "MWh", "GWh", "TWh"],
        &["total", "total_increasing"],
    ),
    ("temperature", &["°C", "°F", "K"], &["measurement"]),
    ("duration", &["d", "h", "min", "s", "ms", "μs"], &["measurement", "total", "total_increasing"]),
    (
        "data_size",
        &["B", "kB", "MB", "GB", "KiB", "MiB", "GiB"],
        &["measurement", "total", "total_increasing"],
    ),
];
/// What each entity takes over from the device's own level (`SHARED_OPTIONS`).
const SHARED: &[&str] = &["availability_topic", "state_topic", "command_topic", "qos", "encoding"];
/// `DEVICE_DISCOVERY_SCHEMA`; `components` may be left out only with child devices.
const DEVICE_LEVEL: (&[&str], &[&str]) = (SHARED, &["device", "components", "origin"]);
const DEVICE: &[&str] = &[
    "configuration_url",
    "connections",
    "hw_version",
    "identifiers",
    "manufacturer",
    "model",
    "model_id",
    "name",
    "serial_number",
    "suggested_area",
    "sw_version",
    "via_device",
];
const ORIGIN: (&[&str], &[&str]) = (&["sw_version", "support_url"], &["name"]);

fn object(value: &Value) -> &Map<String, Value> {
    value.as_object().unwrap_or_else(|| panic!("no object: {value}"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

fn check_keys(address: &str, map: &Map<String, Value>, allowed: &[&[&str]], required: &[&str]) {
    for key in map.keys() {
        assert!(allowed.iter().any(|keys| keys.contains(&key.as_str())), "{address}: {key} is no key of it");
    }
    for key in required {
        assert!(map.contains_key(*key), "{address}: {key} is missing");
    }
}

/// `TOPIC_MATCHER` of `discovery.py`, for devices: node and object ids hold these characters only.
pub fn check_topic(prefix: &str, topic: &str) {
    let id = topic.strip_prefix(&format!("{prefix}/device/")).and_then(|rest| rest.strip_suffix("/config"));
    let id = id.unwrap_or_else(|| panic!("{topic}"));
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    assert!(!id.is_empty() && id.chars().all(is_plain), "{topic}");
}

/// Panics at the first thing that Home Assistant would refuse, or pass over.
pub fn check(description: &Value) {
    let root = object(description);
    check_keys("the description", root, &[DEVICE_LEVEL.0, DEVICE_LEVEL.1], DEVICE_LEVEL.1);
    let device = object(&root["device"]);
    check_keys("device", device, &[DEVICE], &["identifiers", "name"]);
    assert!(!device["identifiers"].as_array().expect("a list").is_empty());
    check_keys("origin", object(&root["origin"]), &[ORIGIN.0, ORIGIN.1], ORIGIN.1);
    let mut ids = BTreeSet::new();
    for (key, component) in object(&root["components"]) {
        check_component(key, component, root);
        let id = text(&component["unique_id"]).to_owned();
        assert!(ids.insert(id), "{key}: its unique_id is another's");
    }
}

fn check_component(key: &str, component: &Value, root: &Map<String, Value>) {
    let own = object(component);
    let platform = PLATFORMS.iter().find(|platform| own["platform"] == platform.name);
    let platform = platform.unwrap_or_else(|| panic!("{key}: no platform"));
    check_keys(key, own, &[COMMON, platform.keys], &["unique_id", "name"]);
    let mut merged = own.clone();
    for shared in SHARED.iter().filter(|shared| root.contains_key(**shared)) {
        merged.entry(*shared).or_insert_with(|| root[*shared].clone());
    }
    for required in platform.required {
        assert!(merged.contains_key(*required), "{key}: {required} is missing");
    }
    for topic in merged.iter().filter(|(key, _)| key.ends_with("_topic")) {
        let (key, topic) = (topic.0, text(topic.1));
        assert!(!topic.is_empty() && !topic.contains(['+', '#', '\0']), "{key}: {topic}");
    }
    if let Some(category) = own.get("entity_category") {
        assert!(platform.categories.contains(&text(category)), "{key}: {category} is no category of it");
    }
    if let Some(class) = own.get("device_class") {
        assert!(platform.classes.contains(&text(class)), "{key}: {class} is no class of it");
    }
    if let Some(icon) = own.get("icon") {
        assert!(text(icon).starts_with("mdi:"), "{key}: {icon}");
    }
    for count in ["expire_after", "suggested_display_precision"] {
        assert!(own.get(count).is_none_or(|count| count.as_u64().is_some()), "{key}: {count}");
    }
    match platform.name {
        "sensor" => check_units(key, own),
        "number" => check_range(key, own),
        _ => {}
    }
}

fn check_units(key: &str, own: &Map<String, Value>) {
    let unit = own.get("unit_of_measurement").map(text);
    let state_class = own.get("state_class").map(text);
    let known = ["measurement", "measurement_angle", "total", "total_increasing"];
    assert!(state_class.is_none_or(|class| known.contains(&class)), "{key}: {state_class:?}");
    let Some(class) = own.get("device_class").map(text) else { return };
    let (_, units, state_classes) =
        CLASSES.iter().find(|entry| entry.0 == class).expect("a class with units");
    assert!(unit.is_some_and(|unit| units.contains(&unit)), "{key}: {unit:?} is no unit of {class}");
    assert!(
        state_class.is_some_and(|class| state_classes.contains(&class)),
        "{key}: {state_class:?} of {class}"
    );
}

fn check_range(key: &str, own: &Map<String, Value>) {
    let number = |key: &str| own.get(key).map(|value| value.as_f64().expect("a number"));
    let (min, max) = (number("min").unwrap_or(1.0), number("max").unwrap_or(100.0));
    assert!(min <= max, "{key}: from {min} to {max}");
    assert!(number("step").unwrap_or(1.0) >= 0.001, "{key}");
    assert!(own.get("mode").is_none_or(|mode| ["auto", "box", "slider"].contains(&text(mode))), "{key}");
}
