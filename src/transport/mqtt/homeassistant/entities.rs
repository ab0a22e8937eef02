//! The description: the device and its entities, in the form of Home Assistant's MQTT device discovery.
//!
//! Keys, platforms, device classes and units are those of `homeassistant/components/mqtt/{schemas,sensor,
//! binary_sensor,button,number}.py` and `components/sensor/const.py`, 2024.12 to 2026.11;
//! `tests/daemon/mqtt/homeassistant` checks them as rules. A template that renders `None` makes an entity "unknown"
//! (`PAYLOAD_NONE`); one that renders nothing would leave the previous value. Deliberately knows nothing of when it
//! is published.

use crate::telemetry::sensors::Snapshot;
use crate::transport::mqtt::topics::Topics;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// The sensors that the device has. A sensor it never had gets no entity, since one that is always unknown is
/// useless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SensorPresence {
    power: bool,
    temperature: bool,
    throttling: bool,
    under_voltage: bool,
    fan: bool,
    memory: bool,
}

impl SensorPresence {
    /// Those with a reading now.
    pub fn detected(host: &Snapshot) -> Self {
        let thermal = &host.thermal;
        SensorPresence {
            power: host.power.is_some(),
            temperature: thermal.cpu.is_some(),
            throttling: thermal.throttling.is_some(),
            under_voltage: thermal.under_voltage.is_some() || thermal.throttling.is_some(),
            fan: thermal.fan.is_some(),
            memory: host.memory.process_bytes.is_some(),
        }
    }

    /// Those in either set. A sensor without a reading for a while is still present.
    pub fn union(self, other: Self) -> Self {
        SensorPresence {
            power: self.power || other.power,
            temperature: self.temperature || other.temperature,
            throttling: self.throttling || other.throttling,
            under_voltage: self.under_voltage || other.under_voltage,
            fan: self.fan || other.fan,
            memory: self.memory || other.memory,
        }
    }
}

/// What does not change while the process runs.
#[derive(Debug)]
pub struct DeviceInfo {
    pub device: String,
    pub topics: Topics,
    /// The model's name, from its file.
    pub model: String,
    /// Threads that compute.
    pub threads: usize,
}

impl DeviceInfo {
    /// The payload of the description, as JSON. A value expires after `expires`.
    pub fn describe(&self, sensors: SensorPresence, expires: Duration) -> Vec<u8> {
        let mut entities = Entities { device: &self.device, expires: expires.as_secs(), all: Map::new() };
        entities.energy(sensors);
        entities.host(sensors);
        entities.speed();
        entities.sharing();
        entities.requests(&self.topics);
        entities.problems(&self.topics, sensors);
        entities.controls(&self.topics, self.threads);
        let version = env!("CARGO_PKG_VERSION");
        let description = json!({
            "device": {
                "identifiers": [identifier(&self.device)],
                "name": format!("bitnetd {}", self.device),
                "manufacturer": "bitnetd",
                "model": self.model,
                "sw_version": version,
            },
            "origin": { "name": "bitnetd", "sw_version": version },
            "availability_topic": self.topics.availability(),
            "state_topic": self.topics.telemetry(),
            "components": entities.all,
        });
        serde_json::to_vec(&description).expect("strings and numbers")
    }
}

/// Identifies the device among all that Home Assistant knows.
fn identifier(device: &str) -> String {
    format!("bitnetd_{device}")
}

/// Collects the entities.
struct Entities<'a> {
    device: &'a str,
    /// Seconds after which a value expires.
    expires: u64,
    all: Map<String, Value>,
}

impl Entities<'_> {
    fn add(&mut self, key: &str, platform: &str, name: &str, rest: Value) {
        let mut entity = Map::new();
        entity.insert("platform".into(), platform.into());
        entity.insert("unique_id".into(), format!("{}_{key}", identifier(self.device)).into());
        entity.insert("name".into(), name.into());
        if let Value::Object(rest) = rest {
            entity.extend(rest);
        }
        self.all.insert(key.to_owned(), entity.into());
    }

    /// A number of the report.
    fn sensor(&mut self, key: &str, name: &str, template: &str, mut rest: Value) {
        rest["value_template"] = template.into();
        rest["expire_after"] = self.expires.into();
        if rest.get("state_class").is_none() {
            rest["state_class"] = "measurement".into();
        }
        self.add(key, "sensor", name, rest);
    }

    /// A binary sensor of the report: on where `is`, off otherwise, unknown where not `known`.
    fn flag(&mut self, key: &str, name: &str, known: &str, is: &str, mut rest: Value) {
        rest["value_template"] = format!("{{{{ ('ON' if {is} else 'OFF') if {known} else None }}}}").into();
        rest["expire_after"] = self.expires.into();
        self.add(key, "binary_sensor", name, rest);
    }

    fn energy(&mut self, sensors: SensorPresence) {
        if !sensors.power {
            return;
        }
        self.sensor(
            "power",
            "Power",
            "{{ value_json.power.value if value_json.power else None }}",
            json!({ "device_class": "power", "unit_of_measurement": "W", "suggested_display_precision": 2 }),
        );
        // In Wh: every Home Assistant that knows device discovery has it in the Energy dashboard. It begins at nothing with
        // the daemon, which a total that increases may.
        self.sensor(
            "energy",
            "Energy",
            "{{ (value_json.energy.joules / 3600) | round(4) if value_json.energy else None }}",
            json!({
                "device_class": "energy", "unit_of_measurement": "Wh", "state_class": "total_increasing",
                "suggested_display_precision": 2,
            }),
        );
        self.sensor(
            "energy_per_token",
            "Energy per token",
            "{{ value_json.energy.joules_per_token if value_json.energy else None }}",
            // Without a device class: `energy` is for totals.
            json!({ "unit_of_measurement": "J", "icon": "mdi:leaf", "suggested_display_precision": 3 }),
        );
    }

    fn host(&mut self, sensors: SensorPresence) {
        if sensors.temperature {
            self.sensor(
                "temperature",
                "Temperature",
                "{{ value_json.thermal.cpu.value if value_json.thermal.cpu else None }}",
                json!({
                    "device_class": "temperature", "unit_of_measurement": "°C", "suggested_display_precision": 1,
                }),
            );
        }
        if sensors.fan {
            self.sensor(
                "fan",
                "Fan",
                "{{ value_json.thermal.fan.value if value_json.thermal.fan else None }}",
                json!({ "unit_of_measurement": "1/min", "icon": "mdi:fan", "entity_category": "diagnostic" }),
            );
        }
        if sensors.memory {
            self.sensor(
                "memory",
                "Memory",
                "{{ (value_json.memory.process_bytes / 1048576) | round(1) \
                 if value_json.memory.process_bytes is not none else None }}",
                json!({
                    "device_class": "data_size", "unit_of_measurement": "MiB", "entity_category": "diagnostic",
                }),
            );
        }
    }

    fn speed(&mut self) {
        self.sensor(
            "tokens_per_second",
            "Generation speed",
            "{{ value_json.throughput.tokens_per_second }}",
            json!({
                "unit_of_measurement": "tokens/s", "icon": "mdi:speedometer", "suggested_display_precision": 1,
            }),
        );
        self.sensor(
            "ttft_p95",
            "Time to first token, 95 % of the last hour",
            "{{ value_json.latency.ttft_ms.last_hour.p95 }}",
            json!({ "device_class": "duration", "unit_of_measurement": "ms", "suggested_display_precision": 0 }),
        );
        self.sensor(
            "tokens",
            "Generated tokens",
            "{{ value_json.throughput.completion_tokens }}",
            json!({
                "unit_of_measurement": "tokens", "icon": "mdi:counter", "state_class": "total_increasing",
                "entity_category": "diagnostic",
            }),
        );
    }

    /// What requests share, and what speculation saves. All are means since the start.
    fn sharing(&mut self) {
        self.sensor(
            "requests_per_step",
            "Requests answered together",
            "{{ (value_json.decoding.step_requests / value_json.decoding.steps) | round(2) \
             if value_json.decoding.steps else None }}",
            json!({
                "icon": "mdi:set-center", "suggested_display_precision": 1, "entity_category": "diagnostic",
            }),
        );
        self.sensor(
            "prompt_tokens_found",
            "Prompt tokens found in the cache",
            "{{ (100 * value_json.decoding.prefix_tokens / value_json.throughput.prompt_tokens) | round(1) \
             if value_json.throughput.prompt_tokens else None }}",
            json!({
                "unit_of_measurement": "%", "icon": "mdi:cached", "suggested_display_precision": 0,
                "entity_category": "diagnostic",
            }),
        );
        self.sensor(
            "looked_up_tokens_accepted",
            "Looked-up tokens accepted",
            "{{ (100 * value_json.decoding.accepted_tokens / value_json.decoding.proposed_tokens) | round(1) \
             if value_json.decoding.proposed_tokens else None }}",
            json!({
                "unit_of_measurement": "%", "icon": "mdi:fast-forward", "suggested_display_precision": 0,
                "entity_category": "diagnostic",
            }),
        );
    }

    fn requests(&mut self, topics: &Topics) {
        // Which clients' requests these are is an attribute of the entity.
        let clients = "{{ {'clients': value_json.waiting | selectattr('waiting') | list} | tojson }}";
        self.sensor(
            "queue",
            "Waiting requests",
            "{{ value_json.requests.queued }}",
            json!({
                "unit_of_measurement": "requests", "icon": "mdi:tray-full",
                "json_attributes_topic": topics.telemetry(), "json_attributes_template": clients,
            }),
        );
        // On a topic of its own, since most answers are over long before the next report.
        let running = json!({ "state_topic": topics.answering(), "device_class": "running" });
        self.add("running", "binary_sensor", "Answering", running);
    }

    fn problems(&mut self, topics: &Topics, sensors: SensorPresence) {
        let problem = || json!({ "device_class": "problem", "entity_category": "diagnostic" });
        if sensors.throttling {
            let now = "value_json.thermal.throttling.now";
            let is = format!("{now}.throttled or {now}.frequency_capped or {now}.soft_temperature_limit");
            self.flag("throttled", "Throttled", "value_json.thermal.throttling", &is, problem());
        }
        if sensors.under_voltage {
            let (flag, throttling) = ("value_json.thermal.under_voltage", "value_json.thermal.throttling");
            let known = format!("{flag} or {throttling}");
            let is = format!("({flag}.value if {flag} else {throttling}.now.under_voltage)");
            self.flag("under_voltage", "Under-voltage", &known, &is, problem());
        }
        // The names of the alerts are an attribute of the entity.
        let mut rest = json!({
            "device_class": "problem",
            "json_attributes_template": "{{ {'alerts': value_json.alerts} | tojson }}",
        });
        rest["json_attributes_topic"] = topics.telemetry().into();
        self.flag("problem", "Problem", "true", "value_json.alerts", rest);
    }

    fn controls(&mut self, topics: &Topics, threads: usize) {
        let cancel = json!({
            "command_topic": topics.cancel(), "payload_press": r#"{"running":true}"#, "icon": "mdi:stop-circle-outline",
        });
        self.add("cancel", "button", "Cancel the running request", cancel);
        // With one thread there is nothing to limit.
        if threads > 1 {
            let limit = json!({
                "command_topic": topics.threads(), "value_template": "{{ value_json.cpu.thread_limit }}",
                "min": 1, "max": threads, "step": 1, "mode": "slider", "entity_category": "config",
                "icon": "mdi:cpu-64-bit",
            });
            self.add("threads", "number", "Thread limit", limit);
        }
    }
}
