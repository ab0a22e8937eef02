//! The keys that differ between two configurations, and which of them can change while the daemon runs.
//!
//! Each section is destructured, so that a new setting does not compile before it is listed here. Deliberately does
//! not apply anything.

use super::{
    Alerts, Budget, Cache, ClientCertificate, Config, Device, Home, Log, Login, Model, Mqtt, Queue, Socket,
    Telemetry, Tls,
};
use std::path::Path;

/// The keys whose values differ, in the order of the reference file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigDiff {
    /// Those that [`Config::adopt`] applies.
    pub live: Vec<&'static str>,
    /// Those that need a restart.
    pub at_restart: Vec<&'static str>,
}

impl ConfigDiff {
    /// Whether both configurations are the same.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty() && self.at_restart.is_empty()
    }

    fn live(&mut self, key: &'static str, differs: bool) {
        self.live.extend(differs.then_some(key));
    }

    fn at_restart(&mut self, key: &'static str, differs: bool) {
        self.at_restart.extend(differs.then_some(key));
    }
}

impl Config {
    /// The differences between this configuration and `wanted`.
    pub fn diff(&self, wanted: &Config) -> ConfigDiff {
        let mut changes = ConfigDiff::default();
        let Config { device, model, budget, socket, mqtt, queue, home, cache, telemetry, alerts, log } = self;
        device.compare(&wanted.device, &mut changes);
        model.compare(&wanted.model, &mut changes);
        budget.compare(&wanted.budget, &mut changes);
        socket.compare(&wanted.socket, &mut changes);
        match (mqtt, &wanted.mqtt) {
            (Some(ours), Some(wanted)) => ours.compare(wanted, &mut changes),
            (ours, wanted) => changes.at_restart("mqtt.host", ours != wanted),
        }
        queue.compare(&wanted.queue, &mut changes);
        home.compare(&wanted.home, &mut changes);
        cache.compare(&wanted.cache, &mut changes);
        telemetry.compare(&wanted.telemetry, &mut changes);
        alerts.compare(&wanted.alerts, &mut changes);
        log.compare(&wanted.log, &mut changes);
        changes
    }

    /// Adopts the settings of `wanted` that can change while the daemon runs.
    pub fn adopt(&mut self, wanted: &Config) {
        self.queue.timeout = wanted.queue.timeout;
        self.queue.drain = wanted.queue.drain;
        self.queue.client_percent = wanted.queue.client_percent;
        self.home.is_constrained = wanted.home.is_constrained;
        self.home.file = wanted.home.file.clone();
        self.cache = wanted.cache.clone();
        // The power of the board changes at a restart only.
        self.telemetry.interval = wanted.telemetry.interval;
        self.telemetry.textfile = wanted.telemetry.textfile.clone();
        self.alerts = wanted.alerts.clone();
        self.log = wanted.log.clone();
    }
}

impl Device {
    fn compare(&self, wanted: &Self, changes: &mut ConfigDiff) {
        let Device { id, state_dir: state_in } = self;
        changes.at_restart("device.id", *id != wanted.id);
        changes.at_restart("device.state_dir", *state_in != wanted.state_dir);
    }
}

impl Model {
    fn compare(&self, wanted: &Self, changes: &mut ConfigDiff) {
        let Model { path, context, i2s_layout, head, kv_cache, chat_template, cache_dir: keep_in } = self;
        changes.at_restart("model.path", *path != wanted.path);
        changes.at_restart("model.context", *context != wanted.context);
        changes.at_restart("model.i2s_layout", *i2s_layout != wanted.i2s_layout);
        changes.at_restart("model.head", *head != wanted.head);
        changes.at_restart("model.kv_cache", *kv_cache != wanted.kv_cache);
        changes.at_restart("model.chat_template", *chat_template != wanted.chat_template);
        changes.at_restart("model.cache_dir", *keep_in != wanted.cache_dir);
    }
}

impl Budget {
    fn compare(&self, wanted: &Self, changes: &mut ConfigDiff) {
        // The processors follow from the number of threads.
        let Budget { memory_bytes, threads, decode_threads, prefill_threads, allowed_cpus: _, pin } = self;
        changes.at_restart("budget.memory_mb", *memory_bytes != wanted.memory_bytes);
        changes.at_restart("budget.threads", *threads != wanted.threads);
        changes.at_restart("budget.decode_threads", *decode_threads != wanted.decode_threads);
        changes.at_restart("budget.prefill_threads", *prefill_threads != wanted.prefill_threads);
        changes.at_restart("budget.pin", *pin != wanted.pin);
    }
}

impl Socket {
    fn compare(&self, wanted: &Self, changes: &mut ConfigDiff) {
        let Socket { path, mode, connections } = self;
        changes.at_restart("socket.path", *path != wanted.path);
        changes.at_restart("socket.mode", *mode != wanted.mode);
        changes.at_restart("socket.connections", *connections != wanted.connections);
    }
}

impl Mqtt {
    /// All need a restart: an answer must go to the broker that its prompt came from, under the same topics. The
    /// contents of the files need none, since they are read at each connect.
    fn compare(&self, wanted: &Self, changes: &mut ConfigDiff) {
        // The folder of credentials is set by systemd, not by the owner.
        let Mqtt {
            host,
            port,
            prefix,
            version,
            group,
            login,
            tls,
            credentials: _,
            discovery,
            discovery_prefix,
            reply_topics,
        } = self;
        changes.at_restart("mqtt.host", *host != wanted.host);
        changes.at_restart("mqtt.port", *port != wanted.port);
        changes.at_restart("mqtt.prefix", *prefix != wanted.prefix);
        changes.at_restart("mqtt.group", *group != wanted.group);
        changes.at_restart("mqtt.version", *version != wanted.version);
        changes.at_restart("mqtt.discovery", *discovery != wanted.discovery);
        changes.at_restart("mqtt.discovery_prefix", *discovery_prefix != wanted.discovery_prefix);
        changes.at_restart("mqtt.reply_topics", *reply_topics != wanted.reply_topics);
        compare_login(login.as_ref(), wanted.login.as_ref(), changes);
        compare_tls(tls.as_ref(), wanted.tls.as_ref(), changes);
    }
}

fn compare_login(ours: Option<&Login>, wanted: Option<&Login>, changes: &mut ConfigDiff) {
    let username = |login: Option<&Login>| login.map(|Login { username, password_file: _ }| username.clone());
    fn password(login: Option<&Login>) -> Option<&Path> {
        login?.password_file.as_deref()
    }
    changes.at_restart("mqtt.username", username(ours) != username(wanted));
    changes.at_restart("mqtt.password_file", password(ours) != password(wanted));
}

fn compare_tls(ours: Option<&Tls>, wanted: Option<&Tls>, changes: &mut ConfigDiff) {
    fn files(tls: Option<&Tls>) -> [Option<&Path>; 3] {
        let Some(Tls { ca_file, client }) = tls else { return [None; 3] };
        let Some(ClientCertificate { cert_file, key_file }) = client else {
            return [ca_file.as_deref(), None, None];
        };
        [ca_file.as_deref(), Some(cert_file), Some(key_file)]
    }
    changes.at_restart("mqtt.tls", ours.is_some() != wanted.is_some());
    let keys = ["mqtt.ca_file", "mqtt.cert_file", "mqtt.key_file"];
    for (key, (ours, wanted)) in keys.into_iter().zip(files(ours).into_iter().zip(files(wanted))) {
        changes.at_restart(key, ours != wanted);
    }
}

impl Queue {
    /// The memory plan and the receive window of the broker depend on the depth.
    fn compare(&self, wanted: &Self, changes: &mut ConfigDiff) {
        let Queue { depth, client_percent, timeout, drain, inbox_bytes } = self;
        changes.at_restart("queue.depth", *depth != wanted.depth);
        changes.live("queue.client_percent", *client_percent != wanted.client_percent);
        changes.live("queue.timeout_ms", *timeout != wanted.timeout);
        changes.live("queue.drain_ms", *drain != wanted.drain);
        changes.at_restart("queue.inbox_mb", *inbox_bytes != wanted.inbox_bytes);
    }
}

impl Home {
    /// The subscriptions and the memory plan depend on whether there is a home. The file's contents are read again at
    /// each reload.
    fn compare(&self, wanted: &Self, changes: &mut ConfigDiff) {
        let Home { is_enabled, is_constrained, file } = self;
        changes.at_restart("home.enabled", *is_enabled != wanted.is_enabled);
        changes.live("home.constrain", *is_constrained != wanted.is_constrained);
        changes.live("home.file", *file != wanted.file);
    }
}

impl Cache {
    fn compare(&self, wanted: &Self, changes: &mut ConfigDiff) {
        let Cache { scope } = self;
        changes.live("cache.scope", *scope != wanted.scope);
    }
}

impl Telemetry {
    fn compare(&self, wanted: &Self, changes: &mut ConfigDiff) {
        let Telemetry { interval, board_watts, textfile } = self;
        changes.live("telemetry.interval_s", *interval != wanted.interval);
        // Energy that was counted with one estimate cannot be continued with another.
        let (idle, full) = (board_watts.map(|watts| watts.idle), board_watts.map(|watts| watts.full));
        changes.at_restart("telemetry.idle_watts", idle != wanted.board_watts.map(|watts| watts.idle));
        changes.at_restart("telemetry.full_watts", full != wanted.board_watts.map(|watts| watts.full));
        changes.live("telemetry.textfile", *textfile != wanted.textfile);
    }
}

impl Alerts {
    fn compare(&self, wanted: &Self, changes: &mut ConfigDiff) {
        let Alerts {
            hold,
            temperature_c,
            throttled,
            under_voltage,
            memory_percent,
            cpu_percent,
            tokens_per_second,
            error_percent,
            ttft_ms,
            queue_percent,
            broker_link_s,
            subscription,
            storage,
        } = self;
        changes.live("alerts.hold_s", *hold != wanted.hold);
        changes.live("alerts.temperature_c", *temperature_c != wanted.temperature_c);
        changes.live("alerts.throttled", *throttled != wanted.throttled);
        changes.live("alerts.under_voltage", *under_voltage != wanted.under_voltage);
        changes.live("alerts.memory_percent", *memory_percent != wanted.memory_percent);
        changes.live("alerts.cpu_percent", *cpu_percent != wanted.cpu_percent);
        changes.live("alerts.tokens_per_second", *tokens_per_second != wanted.tokens_per_second);
        changes.live("alerts.error_percent", *error_percent != wanted.error_percent);
        changes.live("alerts.ttft_ms", *ttft_ms != wanted.ttft_ms);
        changes.live("alerts.queue_percent", *queue_percent != wanted.queue_percent);
        changes.live("alerts.broker_link_s", *broker_link_s != wanted.broker_link_s);
        changes.live("alerts.subscription", *subscription != wanted.subscription);
        changes.live("alerts.storage", *storage != wanted.storage);
    }
}

impl Log {
    fn compare(&self, wanted: &Self, changes: &mut ConfigDiff) {
        let Log { level } = self;
        changes.live("log.level", *level != wanted.level);
    }
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
        device = { id = "attic", state_dir = "" }
        model = { path = "/m", context = 64, i2s_layout = "64", head = "q8", kv_cache = "int8", chat_template = "file", cache_dir = "" }
        budget = { memory_mb = 9, threads = 2, decode_threads = 1, prefill_threads = 1, pin = true }
        socket = { path = "/s", mode = "0600", connections = 3 }
        queue = { depth = 1, client_percent = 20, timeout_ms = 2, drain_ms = 3, inbox_mb = 1 }
        home = { enabled = true, constrain = false, file = "/h.toml" }
        cache.scope = "all"
        telemetry = { interval_s = 4, idle_watts = 2, full_watts = 6.5, textfile = "/t.prom" }
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
    "#;

    #[test]
    fn the_same_settings_are_no_change() {
        assert!(config(AFTER).diff(&config(AFTER)).is_empty());
        assert!(config("").diff(&config("")).is_empty());
    }

    #[test]
    fn every_key_of_the_reference_file_is_named_when_it_changes() {
        let changes = config(BEFORE).diff(&config(AFTER));
        let named: Vec<&str> = [&changes.live[..], &changes.at_restart].concat();
        let mut section = "";
        for line in include_str!("../../config/bitnetd.toml").lines() {
            if let Some(name) = line.strip_prefix('[') {
                section = name.trim_end_matches(']');
            } else if let Some((key, _)) = line.trim_start_matches('#').split_once(" = ")
                && !line.starts_with("# ")
            {
                let key = format!("{section}.{key}");
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
            "queue.client_percent",
            "queue.timeout_ms",
            "queue.drain_ms",
            "home.constrain",
            "home.file",
            "cache.scope",
            "telemetry.interval_s",
            "telemetry.textfile",
            "log.level",
        ];
        assert_eq!(others, live);
        assert_eq!(alerts.len(), 13);
        running.adopt(&wanted);
        let after = running.diff(&wanted);
        assert_eq!(after, ConfigDiff { live: vec![], at_restart: before.at_restart });
    }

    #[test]
    fn a_broker_that_comes_or_goes_is_named_by_its_host() {
        for (before, after) in [("", BEFORE), (BEFORE, "")] {
            assert_eq!(config(before).diff(&config(after)).at_restart, ["mqtt.host"]);
        }
    }
}
