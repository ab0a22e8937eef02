//! The keys that differ between two configurations, and which of them can change while the daemon runs: one table has
//! them all.
//!
//! A test finds keys of the reference file that the table lacks. Deliberately knows nothing of who uses the settings.

use super::{ClientCertificate, Config, Mqtt};

/// The keys whose values differ, in the order of the table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigDiff {
    /// Those that [`Config::adopt`] applies.
    pub live: Vec<&'static str>,
    /// Those that say which model answers and how it is read: loading it applies them.
    pub model: Vec<&'static str>,
    /// Those that need a restart.
    pub at_restart: Vec<&'static str>,
}

impl ConfigDiff {
    /// Whether both configurations are the same.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty() && self.model.is_empty() && self.at_restart.is_empty()
    }
}

impl Config {
    /// The differences between this configuration and `wanted`.
    pub fn diff(&self, wanted: &Config) -> ConfigDiff {
        let mut changes = ConfigDiff::default();
        for key in KEYS.iter().filter(|key| (key.differs)(self, wanted)) {
            match key.applied {
                Applied::Live(_) => changes.live.push(key.name),
                Applied::WithModel(_) => changes.model.push(key.name),
                Applied::AtRestart => changes.at_restart.push(key.name),
            }
        }
        changes
    }

    /// Adopts the settings of `wanted` that can change while the daemon runs.
    pub fn adopt(&mut self, wanted: &Config) {
        for key in KEYS {
            if let Applied::Live(adopt) = key.applied {
                adopt(self, wanted);
            }
        }
    }

    /// Adopts the settings of `wanted` that say which model answers and how it is read.
    pub fn adopt_model(&mut self, wanted: &Config) {
        for key in KEYS {
            if let Applied::WithModel(adopt) = key.applied {
                adopt(self, wanted);
            }
        }
    }
}

/// A key of the configuration file.
struct Key {
    /// Its section and its name.
    name: &'static str,
    differs: fn(&Config, &Config) -> bool,
    applied: Applied,
}

/// When a changed value takes effect. The functions take it over from the second configuration.
enum Applied {
    Live(fn(&mut Config, &Config)),
    WithModel(fn(&mut Config, &Config)),
    AtRestart,
}

/// A key that changes while the daemon runs, and its field.
macro_rules! live {
    ($name:literal, $($field:ident).+) => {
        Key {
            name: $name,
            differs: |ours, wanted| ours.$($field).+ != wanted.$($field).+,
            applied: Applied::Live(|ours, wanted| ours.$($field).+.clone_from(&wanted.$($field).+)),
        }
    };
}

/// A key that changes with the model, and its field in the model's settings.
macro_rules! model {
    ($name:literal, $field:ident) => {
        Key {
            name: $name,
            differs: |ours, wanted| ours.model.$field != wanted.model.$field,
            applied: Applied::WithModel(|ours, wanted| ours.model.$field.clone_from(&wanted.model.$field)),
        }
    };
}

/// A key that needs a restart, and its value in a configuration.
macro_rules! at_restart {
    ($name:literal, |$config:ident| $value:expr) => {
        Key {
            name: $name,
            differs: |$config, wanted| {
                let ours = &$value;
                let $config = wanted;
                *ours != $value
            },
            applied: Applied::AtRestart,
        }
    };
}

/// A key of a broker, and its value. It does not differ where one configuration has no broker, which `mqtt.host` tells.
macro_rules! mqtt {
    ($name:literal, |$mqtt:ident| $value:expr) => {
        Key {
            name: $name,
            differs: |ours, wanted| {
                let (Some($mqtt), Some(wanted)) = (&ours.mqtt, &wanted.mqtt) else { return false };
                let ours = &$value;
                let $mqtt = wanted;
                *ours != $value
            },
            applied: Applied::AtRestart,
        }
    };
}

const KEYS: &[Key] = &[
    at_restart!("device.id", |config| config.device.id),
    at_restart!("device.state_dir", |config| config.device.state_dir),
    model!("model.path", path),
    live!("model.fallback", model.fallback),
    model!("model.context", context),
    model!("model.i2s_layout", i2s_layout),
    at_restart!("profile", |config| config.profile),
    model!("model.head", head),
    model!("model.kv_cache", kv_cache),
    model!("model.chat_template", chat_template),
    model!("model.cache_dir", cache_dir),
    at_restart!("cache.disk_mb", |config| config.cache.disk_bytes),
    live!("model.warm_up", model.warm_up),
    at_restart!("budget.memory_mb", |config| config.budget.memory_bytes),
    // The processors that are allowed follow from the number of threads.
    at_restart!("budget.threads", |config| config.budget.threads),
    at_restart!("budget.decode_threads", |config| config.budget.decode_threads),
    at_restart!("budget.prefill_threads", |config| config.budget.prefill_threads),
    at_restart!("budget.parallel", |config| config.budget.parallel),
    at_restart!("budget.pin", |config| config.budget.pin),
    at_restart!("socket.path", |config| config.socket.path),
    at_restart!("socket.mode", |config| config.socket.mode),
    at_restart!("socket.connections", |config| config.socket.connections),
    at_restart!("http.listen", |config| config.http.listen),
    at_restart!("http.token_file", |config| config.http.token_file),
    at_restart!("http.hosts", |config| config.http.hosts),
    at_restart!("http.origins", |config| config.http.origins),
    at_restart!("http.body_kb", |config| config.http.body_bytes),
    at_restart!("wyoming.listen", |config| config.wyoming.listen),
    // All of the broker's need a restart: an answer must go to the broker that its prompt came from, under the same
    // topics. The contents of the files need none, since they are read at each connect. The folder of credentials is
    // set by systemd, not by the owner.
    at_restart!("mqtt.host", |config| config.mqtt.as_ref().map(|mqtt| &mqtt.host)),
    mqtt!("mqtt.port", |mqtt| mqtt.port),
    mqtt!("mqtt.prefix", |mqtt| mqtt.prefix),
    mqtt!("mqtt.group", |mqtt| mqtt.group),
    mqtt!("mqtt.version", |mqtt| mqtt.version),
    mqtt!("mqtt.discovery", |mqtt| mqtt.discovery),
    mqtt!("mqtt.discovery_prefix", |mqtt| mqtt.discovery_prefix),
    mqtt!("mqtt.reply_topics", |mqtt| mqtt.reply_topics),
    mqtt!("mqtt.keep_last", |mqtt| mqtt.keep_last),
    mqtt!("mqtt.username", |mqtt| mqtt.login.as_ref().map(|login| &login.username)),
    mqtt!("mqtt.password_file", |mqtt| mqtt.login.as_ref().and_then(|login| login.password_file.as_ref())),
    mqtt!("mqtt.tls", |mqtt| mqtt.tls.is_some()),
    mqtt!("mqtt.ca_file", |mqtt| mqtt.tls.as_ref().and_then(|tls| tls.ca_file.as_ref())),
    mqtt!("mqtt.cert_file", |mqtt| client_certificate(mqtt).map(|client| &client.cert_file)),
    mqtt!("mqtt.key_file", |mqtt| client_certificate(mqtt).map(|client| &client.key_file)),
    // The memory plan and the receive window of the broker depend on the depth.
    at_restart!("queue.depth", |config| config.queue.depth),
    live!("queue.client_percent", queue.client_percent),
    live!("queue.timeout_ms", queue.timeout),
    live!("queue.drain_ms", queue.drain),
    at_restart!("queue.inbox_mb", |config| config.queue.inbox_bytes),
    // The subscriptions and the memory plan depend on whether there is a home.
    at_restart!("home.enabled", |config| config.home.is_enabled),
    live!("home.constrain", home.is_constrained),
    live!("home.file", home.file),
    live!("defaults.system", defaults.system),
    live!("defaults.temperature", defaults.temperature),
    live!("defaults.top_p", defaults.top_p),
    live!("defaults.top_k", defaults.top_k),
    live!("defaults.min_p", defaults.min_p),
    live!("defaults.repetition_penalty", defaults.repetition_penalty),
    live!("defaults.max_tokens", defaults.max_tokens),
    live!("defaults.speculate", defaults.speculate),
    live!("cache.scope", cache.scope),
    live!("cache.answers_kb", cache.answers_bytes),
    live!("governor.target_c", governor.target_c),
    live!("governor.limit_watts", governor.limit_watts),
    live!("governor.quiet_hours", governor.quiet_hours),
    live!("governor.on_battery", governor.on_battery),
    live!("governor.reduced_percent", governor.reduced_percent),
    live!("guard.requests_per_minute", guard.requests_per_minute),
    live!("guard.max_prompt_bytes", guard.max_prompt_bytes),
    live!("guard.max_prompt_tokens", guard.max_prompt_tokens),
    live!("guard.max_output_tokens", guard.max_output_tokens),
    live!("guard.control_characters", guard.control_characters),
    live!("guard.filter_file", guard.filter_file),
    live!("guard.clear_ids", guard.clear_ids),
    live!("telemetry.interval_s", telemetry.interval),
    // Energy that was counted with one estimate cannot be continued with another.
    at_restart!("telemetry.idle_watts", |config| config.telemetry.board_watts.map(|watts| watts.idle)),
    at_restart!("telemetry.full_watts", |config| config.telemetry.board_watts.map(|watts| watts.full)),
    live!("telemetry.textfile", telemetry.textfile),
    live!("alerts.hold_s", alerts.hold),
    live!("alerts.temperature_c", alerts.temperature_c),
    live!("alerts.throttled", alerts.throttled),
    live!("alerts.under_voltage", alerts.under_voltage),
    live!("alerts.memory_percent", alerts.memory_percent),
    live!("alerts.cpu_percent", alerts.cpu_percent),
    live!("alerts.tokens_per_second", alerts.tokens_per_second),
    live!("alerts.error_percent", alerts.error_percent),
    live!("alerts.ttft_ms", alerts.ttft_ms),
    live!("alerts.queue_percent", alerts.queue_percent),
    live!("alerts.broker_link_s", alerts.broker_link_s),
    live!("alerts.subscription", alerts.subscription),
    live!("alerts.storage", alerts.storage),
    live!("alerts.fallback", alerts.fallback),
    // The memory plan depends on it.
    at_restart!("history.enabled", |config| config.history.is_enabled),
    live!("log.level", log.level),
];

fn client_certificate(mqtt: &Mqtt) -> Option<&ClientCertificate> {
    mqtt.tls.as_ref()?.client.as_ref()
}

#[cfg(test)]
mod tests {
    use super::super::tests::host;
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(text, "bitnetd.toml", &host()).expect("sound")
    }

    const BEFORE: &str = "[mqtt]\nhost = \"a\"\n";

    /// Every key there is with a value that is neither its default nor `BEFORE`'s.
    const AFTER: &str = r#"
        profile = "mobile"
        device = { id = "attic", state_dir = "" }
        model = { path = "/m", fallback = "built-in", context = 64, i2s_layout = "64", head = "q8", kv_cache = "int8", chat_template = "file", cache_dir = "/c", warm_up = false }
        budget = { memory_mb = 9, threads = 2, decode_threads = 1, prefill_threads = 1, parallel = 3, pin = true }
        socket = { path = "/s", mode = "0600", connections = 3 }
        http = { listen = "127.0.0.1:1", token_file = "/t", hosts = ["a"], origins = ["*"], body_kb = 64 }
        wyoming.listen = "127.0.0.1:10400"
        queue = { depth = 1, client_percent = 20, timeout_ms = 2, drain_ms = 3, inbox_mb = 1 }
        home = { enabled = true, constrain = false, file = "/h.toml" }
        defaults = { system = "be brief", temperature = 0.7, top_p = 0.9, top_k = 40, min_p = 0.05, repetition_penalty = 1.1, max_tokens = 9, speculate = false }
        cache = { scope = "all", disk_mb = 5, answers_kb = 64 }
        governor = { target_c = 70, limit_watts = 5, quiet_hours = "22:00-07:00", on_battery = true, reduced_percent = 30 }
        guard = { requests_per_minute = 60, max_prompt_bytes = 4096, max_prompt_tokens = 9, max_output_tokens = 8, control_characters = "refuse", filter_file = "/f", clear_ids = true }
        telemetry = { interval_s = 4, idle_watts = 2, full_watts = 6.5, textfile = "/t.prom" }
        history.enabled = false
        log.level = "warn"
        [alerts]
        hold_s = 1
        temperature_c = 70
        throttled = false
        under_voltage = false
        memory_percent = 90
        cpu_percent = 99
        tokens_per_second = 0.5
        error_percent = 10
        ttft_ms = 3000
        queue_percent = 50
        broker_link_s = 10
        subscription = false
        storage = false
        fallback = false
        [mqtt]
        host = "b"
        port = 1884
        prefix = "c"
        username = "u"
        password_file = "/p"
        tls = true
        ca_file = "/a"
        cert_file = "/c"
        key_file = "/k"
        version = "3.1.1"
        group = "g"
        discovery = false
        discovery_prefix = "ha"
        reply_topics = ["home/#"]
        keep_last = true
    "#;

    #[test]
    fn the_same_settings_are_no_change() {
        assert!(config(AFTER).diff(&config(AFTER)).is_empty());
        assert!(config("").diff(&config("")).is_empty());
    }

    #[test]
    fn every_key_of_the_reference_file_is_named_when_it_changes() {
        let changes = config(BEFORE).diff(&config(AFTER));
        let named: Vec<&str> = [&changes.live[..], &changes.model, &changes.at_restart].concat();
        let mut section = "";
        for line in include_str!("../../config/bitnetd.toml").lines() {
            if let Some(name) = line.strip_prefix('[') {
                section = name.trim_end_matches(']');
            } else if let Some((key, _)) = line.trim_start_matches('#').split_once(" = ")
                && !line.starts_with("# ")
            {
                let key = format!("{section}.{key}");
                let key = key.trim_start_matches('.').to_owned();
                assert!(named.contains(&key.as_str()), "{key}");
            }
        }
    }

    #[test]
    fn what_was_adopted_differs_no_more_and_the_rest_still_does() {
        let (mut running, wanted) = (config(BEFORE), config(AFTER));
        let before = running.diff(&wanted);
        let (alerts, others): (Vec<_>, Vec<_>) =
            before.live.iter().copied().partition(|key| key.starts_with("alerts."));
        let live = [
            "model.fallback",
            "model.warm_up",
            "queue.client_percent",
            "queue.timeout_ms",
            "queue.drain_ms",
            "home.constrain",
            "home.file",
            "defaults.system",
            "defaults.temperature",
            "defaults.top_p",
            "defaults.top_k",
            "defaults.min_p",
            "defaults.repetition_penalty",
            "defaults.max_tokens",
            "defaults.speculate",
            "cache.scope",
            "cache.answers_kb",
            "governor.target_c",
            "governor.limit_watts",
            "governor.quiet_hours",
            "governor.on_battery",
            "governor.reduced_percent",
            "guard.requests_per_minute",
            "guard.max_prompt_bytes",
            "guard.max_prompt_tokens",
            "guard.max_output_tokens",
            "guard.control_characters",
            "guard.filter_file",
            "guard.clear_ids",
            "telemetry.interval_s",
            "telemetry.textfile",
            "log.level",
        ];
        assert_eq!(others, live);
        assert_eq!(alerts.len(), 14);
        running.adopt(&wanted);
        let after = running.diff(&wanted);
        assert_eq!(after, ConfigDiff { live: vec![], ..before.clone() });
        running.adopt_model(&wanted);
        assert_eq!(running.model, wanted.model);
        assert_eq!(
            running.diff(&wanted),
            ConfigDiff { at_restart: before.at_restart, ..ConfigDiff::default() }
        );
    }

    #[test]
    fn a_broker_that_comes_or_goes_is_named_by_its_host() {
        for (before, after) in [("", BEFORE), (BEFORE, "")] {
            assert_eq!(config(before).diff(&config(after)).at_restart, ["mqtt.host"]);
        }
    }
}
