//! The schema of the TOML file, and the checks that turn it into settings.
//!
//! Field names are the keys; an unknown one is refused. Deliberately knows no default that
//! `config/bitnetd.toml` does not state.

mod defaults;
mod mqtt;

use crate::config::alerts::{AlertValue, switch, threshold};
use crate::config::key_error::{KeyError, KeyResult, within};
use crate::config::key_values::{folder, one_of, shown, topic_level};
use crate::config::suggestion::with_suggestion;
use crate::config::text_position::{key_on, line_at, line_of};
use crate::config::{
    Alerts, Budget, Cache, CacheScope, Config, ConfigError, Device, FallbackModel, Governor, Guard, Head,
    History, Host, Http, I2sLayout, KvCachePrecision, Log, Model, Profile, Queue, Socket, Telemetry, Wyoming,
    governor, guard, http, listen, log, telemetry,
};
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    profile: Option<String>,
    device: DeviceKeys,
    model: ModelKeys,
    budget: BudgetKeys,
    socket: SocketKeys,
    http: HttpKeys,
    wyoming: WyomingKeys,
    mqtt: MqttKeys,
    queue: QueueKeys,
    home: HomeKeys,
    defaults: DefaultsKeys,
    cache: CacheKeys,
    governor: GovernorKeys,
    guard: GuardKeys,
    telemetry: TelemetryKeys,
    alerts: AlertsKeys,
    history: HistoryKeys,
    log: LogKeys,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DeviceKeys {
    id: Option<String>,
    state_dir: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ModelKeys {
    path: Option<PathBuf>,
    fallback: Option<PathBuf>,
    context: Option<usize>,
    i2s_layout: Option<String>,
    head: Option<String>,
    kv_cache: Option<String>,
    chat_template: Option<PathBuf>,
    cache_dir: Option<PathBuf>,
    warm_up: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct BudgetKeys {
    memory_mb: Option<u64>,
    threads: Option<usize>,
    decode_threads: Option<usize>,
    prefill_threads: Option<usize>,
    parallel: Option<usize>,
    pin: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SocketKeys {
    path: Option<PathBuf>,
    mode: Option<String>,
    connections: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HttpKeys {
    listen: Option<String>,
    token_file: Option<PathBuf>,
    hosts: Option<Vec<String>>,
    origins: Option<Vec<String>>,
    body_kb: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WyomingKeys {
    listen: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MqttKeys {
    host: Option<String>,
    port: Option<u16>,
    prefix: Option<String>,
    username: Option<String>,
    password_file: Option<PathBuf>,
    tls: Option<bool>,
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    version: Option<Version>,
    group: Option<String>,
    discovery: Option<bool>,
    discovery_prefix: Option<String>,
    reply_topics: Option<Vec<String>>,
    keep_last: Option<bool>,
}

/// `5` and `"5"` mean the same; 3.1 is a number too, which is refused with a hint.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "not known; use 5 or \"3.1.1\"")]
enum Version {
    Number(u64),
    Broken(f64),
    Text(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct QueueKeys {
    depth: Option<usize>,
    client_percent: Option<u64>,
    timeout_ms: Option<u64>,
    drain_ms: Option<u64>,
    inbox_mb: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HomeKeys {
    enabled: Option<bool>,
    constrain: Option<bool>,
    file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DefaultsKeys {
    system: Option<String>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<u64>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
    max_tokens: Option<u64>,
    speculate: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CacheKeys {
    scope: Option<String>,
    disk_mb: Option<u64>,
    answers_kb: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct GovernorKeys {
    target_c: Option<f64>,
    limit_watts: Option<f64>,
    quiet_hours: Option<String>,
    on_battery: Option<bool>,
    reduced_percent: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct GuardKeys {
    requests_per_minute: Option<u64>,
    max_prompt_bytes: Option<u64>,
    max_prompt_tokens: Option<u64>,
    max_output_tokens: Option<u64>,
    control_characters: Option<String>,
    filter_file: Option<PathBuf>,
    clear_ids: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TelemetryKeys {
    interval_s: Option<u64>,
    idle_watts: Option<f64>,
    full_watts: Option<f64>,
    textfile: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AlertsKeys {
    hold_s: Option<u64>,
    temperature_c: Option<AlertValue>,
    throttled: Option<AlertValue>,
    under_voltage: Option<AlertValue>,
    memory_percent: Option<AlertValue>,
    cpu_percent: Option<AlertValue>,
    tokens_per_second: Option<AlertValue>,
    error_percent: Option<AlertValue>,
    ttft_ms: Option<AlertValue>,
    queue_percent: Option<AlertValue>,
    broker_link_s: Option<AlertValue>,
    subscription: Option<AlertValue>,
    storage: Option<AlertValue>,
    fallback: Option<AlertValue>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HistoryKeys {
    enabled: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LogKeys {
    level: Option<String>,
}

impl File {
    pub(super) fn parse(text: &str, place: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_at(text, span.start));
            // The library's message may have several lines; ours has one.
            let message = with_suggestion(&error.message().split_whitespace().collect::<Vec<_>>().join(" "));
            // The library names an unknown key, but not a key whose value is invalid.
            let message = match key_on(text, line).filter(|(_, key)| !message.contains(key)) {
                Some((section, key)) => format!("{section}.{key}: {message}"),
                None => message,
            };
            ConfigError { place: format!("{place}:{line}"), message }
        })
    }

    pub(super) fn check(self, place: &str, text: &str, host: &Host) -> Result<Config, ConfigError> {
        self.checked(host).map_err(|KeyError(section, key, message)| ConfigError {
            place: match line_of(text, section, key) {
                Some(line) => format!("{place}:{line}"),
                None => place.to_owned(),
            },
            message: format!("{}{key}: {message}", section_prefix(section)),
        })
    }

    fn checked(mut self, host: &Host) -> KeyResult<Config> {
        let profile = Profile::checked(self.profile.as_deref())?;
        if let Some(profile) = profile {
            self.budget.threads.get_or_insert_with(|| profile.threads(host));
            self.budget.memory_mb.get_or_insert_with(|| profile.memory_mb(host));
            self.queue.depth.get_or_insert_with(|| profile.queue_depth());
        }
        let (device, model, cache) =
            (self.device.checked(host)?, self.model.checked(host)?, self.cache.checked()?);
        if cache.disk_bytes > 0 && model.cache_dir.is_none() {
            let reason = "there is no folder for it: model.cache_dir is \"\"";
            return Err(KeyError("cache", "disk_mb", reason.into()));
        }
        Ok(Config {
            profile,
            model,
            budget: self.budget.checked(host)?,
            socket: self.socket.checked(host)?,
            http: self.http.checked(host)?,
            wyoming: Wyoming { listen: listen::address("wyoming", self.wyoming.listen.as_deref(), 10400)? },
            mqtt: self.mqtt.checked(&device, host)?,
            device,
            queue: self.queue.checked()?,
            home: super::home::checked(self.home.enabled, self.home.constrain, self.home.file)?,
            defaults: self.defaults.checked()?,
            cache,
            governor: self.governor.checked()?,
            guard: self.guard.checked()?,
            telemetry: self.telemetry.checked()?,
            alerts: self.alerts.checked()?,
            history: History { is_enabled: self.history.enabled.unwrap_or(true) },
            log: Log { level: log::level(self.log.level.as_deref())? },
        })
    }
}

/// The name of a section before that of its key; keys before the first section have none.
fn section_prefix(section: &str) -> String {
    if section.is_empty() { String::new() } else { format!("{section}.") }
}

impl DeviceKeys {
    fn checked(self, host: &Host) -> KeyResult<Device> {
        let id = self.id.unwrap_or_else(|| host.name.clone());
        topic_level(&id, "device", "id")?;
        let state_in = folder("device", "state_dir", self.state_dir, &host.state_dir)?;
        Ok(Device { id, state_dir: state_in })
    }
}

/// The smallest cache of answers: one answer may take an eighth of it.
const LEAST_ANSWERS_KB: u64 = 16;
/// The most requests that are answered at the same time: the engine's `MAX_SEQUENCES`.
const MAX_PARALLEL: u64 = 16;

const LAYOUTS: [(&str, Option<I2sLayout>); 4] = [
    ("auto", None),
    ("128", Some(I2sLayout::Blocks128)),
    ("64", Some(I2sLayout::Blocks64)),
    ("1x4", Some(I2sLayout::Rows4)),
];
const HEADS: [(&str, Option<Head>); 5] = [
    ("auto", None),
    ("f16", Some(Head::F16)),
    ("q8", Some(Head::Q8)),
    ("q6_k", Some(Head::Q6K)),
    ("screened", Some(Head::Shortlist)),
];
const KV_CACHES: [(&str, KvCachePrecision); 2] =
    [("f16", KvCachePrecision::F16), ("int8", KvCachePrecision::Int8)];

impl ModelKeys {
    fn checked(self, host: &Host) -> KeyResult<Model> {
        if let Some(context) = self.context {
            within("model", "context", context as u64, 16..=1 << 20)?;
        }
        if self.chat_template.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            let reason = "empty; use \"file\", \"built-in\" or the path of a template, or leave it out";
            return Err(KeyError("model", "chat_template", reason.into()));
        }
        Ok(Model {
            path: self.path,
            fallback: fallback_model(self.fallback)?,
            context: self.context,
            i2s_layout: one_of("model", "i2s_layout", self.i2s_layout, &LAYOUTS)?,
            head: one_of("model", "head", self.head, &HEADS)?,
            kv_cache: one_of("model", "kv_cache", self.kv_cache, &KV_CACHES)?,
            chat_template: self.chat_template,
            cache_dir: folder("model", "cache_dir", self.cache_dir, &host.cache_dir)?,
            warm_up: self.warm_up.unwrap_or(true),
        })
    }
}

/// A relative path would depend on where the daemon was started.
fn fallback_model(path: Option<PathBuf>) -> KeyResult<Option<FallbackModel>> {
    match path {
        None => Ok(None),
        Some(path) if path.as_os_str() == "built-in" => Ok(Some(FallbackModel::BuiltIn)),
        Some(path) if path.is_absolute() => Ok(Some(FallbackModel::File(path))),
        Some(path) => {
            let reason = format!(
                "\"{}\" is neither \"built-in\" nor an absolute path",
                shown(&path.to_string_lossy())
            );
            Err(KeyError("model", "fallback", reason))
        }
    }
}

impl BudgetKeys {
    fn checked(self, host: &Host) -> KeyResult<Budget> {
        let memory_bytes = match self.memory_mb {
            Some(mb) => within("budget", "memory_mb", mb, 8..=1 << 24)? << 20,
            // The rest is left for the system and for other programs.
            None => host.memory_bytes / 4 * 3,
        };
        let threads = match self.threads {
            Some(threads) => within("budget", "threads", threads as u64, 1..=256)? as usize,
            None => host.threads(),
        };
        Ok(Budget {
            memory_bytes,
            threads,
            decode_threads: part_of(threads, "decode_threads", self.decode_threads)?,
            prefill_threads: part_of(threads, "prefill_threads", self.prefill_threads)?,
            parallel: match self.parallel {
                Some(count) => Some(within("budget", "parallel", count as u64, 1..=MAX_PARALLEL)? as usize),
                None => None,
            },
            allowed_cpus: host.keep_to(threads),
            pin: self.pin.unwrap_or(false),
        })
    }
}

impl SocketKeys {
    fn checked(self, host: &Host) -> KeyResult<Socket> {
        let path = self.path.unwrap_or_else(|| host.runtime_dir.join("bitnetd.sock"));
        if path.as_os_str().is_empty() {
            return Err(KeyError("socket", "path", "empty; leave it out for the default".into()));
        }
        // sun_path of unix(7) holds 108 bytes with its closing zero.
        if path.as_os_str().len() > 107 {
            let reason = "longer than 107 bytes, which no Unix socket can be; choose a shorter one";
            return Err(KeyError("socket", "path", reason.into()));
        }
        let mode = self.mode.as_deref().unwrap_or("0660");
        let mode = u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o777).ok_or_else(|| {
            let reason = format!("\"{mode}\" are no permission bits; write them in octal, as \"0660\"");
            KeyError("socket", "mode", reason)
        })?;
        let connections = within("socket", "connections", self.connections.unwrap_or(64) as u64, 1..=4096)?;
        Ok(Socket { path, mode, connections: connections as usize })
    }
}

impl QueueKeys {
    fn checked(self) -> KeyResult<Queue> {
        let depth = within("queue", "depth", self.depth.unwrap_or(16) as u64, 1..=10_000)?;
        let day_ms = 86_400_000;
        let timeout = self.timeout_ms.unwrap_or(120_000);
        let drain = self.drain_ms.unwrap_or(10_000);
        Ok(Queue {
            depth: depth as usize,
            client_percent: within("queue", "client_percent", self.client_percent.unwrap_or(50), 1..=100)?
                as usize,
            timeout: Duration::from_millis(within("queue", "timeout_ms", timeout, 1..=day_ms)?),
            drain: Duration::from_millis(within("queue", "drain_ms", drain, 0..=day_ms)?),
            inbox_bytes: (within("queue", "inbox_mb", self.inbox_mb.unwrap_or(4), 0..=64)? as usize) << 20,
        })
    }
}

impl CacheKeys {
    fn checked(self) -> KeyResult<Cache> {
        let scope = match self.scope.as_deref() {
            None | Some("client") => CacheScope::Client,
            Some("all") => CacheScope::All,
            Some(other) => {
                let reason = format!("\"{}\" is neither \"client\" nor \"all\"", shown(other));
                return Err(KeyError("cache", "scope", reason));
            }
        };
        let disk_mb = within("cache", "disk_mb", self.disk_mb.unwrap_or(0), 0..=65_536)?;
        // By default enough for all commands of a home.
        let answers_kb = within("cache", "answers_kb", self.answers_kb.unwrap_or(256), 0..=65_536)?;
        if (1..LEAST_ANSWERS_KB).contains(&answers_kb) {
            let reason = format!("{answers_kb} KiB hold no answer; use 0, or at least {LEAST_ANSWERS_KB}");
            return Err(KeyError("cache", "answers_kb", reason));
        }
        Ok(Cache { scope, disk_bytes: disk_mb << 20, answers_bytes: (answers_kb as usize) << 10 })
    }
}

impl GuardKeys {
    fn checked(self) -> KeyResult<Guard> {
        let (characters, words) = (self.control_characters, &guard::CONTROL_CHARACTERS);
        Ok(Guard {
            requests_per_minute: guard::limit("requests_per_minute", self.requests_per_minute)?,
            max_prompt_bytes: guard::limit("max_prompt_bytes", self.max_prompt_bytes)?,
            max_prompt_tokens: guard::limit("max_prompt_tokens", self.max_prompt_tokens)?,
            max_output_tokens: guard::limit("max_output_tokens", self.max_output_tokens)?,
            control_characters: one_of("guard", "control_characters", characters, words)?,
            filter_file: guard::filter_file(self.filter_file)?,
            clear_ids: self.clear_ids.unwrap_or(false),
        })
    }
}

impl HttpKeys {
    fn checked(self, host: &Host) -> KeyResult<Http> {
        let (hosts, origins) = (self.hosts.unwrap_or_default(), self.origins.unwrap_or_default());
        http::checked(self.listen.as_deref(), self.token_file, hosts, origins, self.body_kb, host)
    }
}

impl GovernorKeys {
    fn checked(self) -> KeyResult<Governor> {
        let GovernorKeys { target_c, limit_watts, quiet_hours, on_battery, reduced_percent } = self;
        governor::checked(governor::Written {
            target_c,
            limit_watts,
            quiet_hours,
            on_battery,
            reduced_percent,
        })
    }
}

impl TelemetryKeys {
    fn checked(self) -> KeyResult<Telemetry> {
        let seconds = within("telemetry", "interval_s", self.interval_s.unwrap_or(30), 1..=86_400)?;
        let board_watts = telemetry::board_watts(self.idle_watts, self.full_watts)?;
        let textfile = self.textfile.filter(|path| !path.as_os_str().is_empty());
        if let Some(path) = &textfile {
            telemetry::check_textfile(path)?;
        }
        Ok(Telemetry { interval: Duration::from_secs(seconds), board_watts, textfile })
    }
}

impl AlertsKeys {
    fn checked(self) -> KeyResult<Alerts> {
        let hold = within("alerts", "hold_s", self.hold_s.unwrap_or(20), 0..=3600)?;
        Ok(Alerts {
            hold: Duration::from_secs(hold),
            temperature_c: threshold("temperature_c", self.temperature_c, 80.0, 120.0)?,
            throttled: switch("throttled", self.throttled)?,
            under_voltage: switch("under_voltage", self.under_voltage)?,
            memory_percent: threshold("memory_percent", self.memory_percent, 95.0, 100.0)?,
            cpu_percent: threshold("cpu_percent", self.cpu_percent, 0.0, 100.0)?,
            tokens_per_second: threshold("tokens_per_second", self.tokens_per_second, 0.0, 1e6)?,
            error_percent: threshold("error_percent", self.error_percent, 50.0, 100.0)?,
            ttft_ms: threshold("ttft_ms", self.ttft_ms, 0.0, 86_400_000.0)?,
            queue_percent: threshold("queue_percent", self.queue_percent, 90.0, 100.0)?,
            broker_link_s: threshold("broker_link_s", self.broker_link_s, 60.0, 86_400.0)?,
            subscription: switch("subscription", self.subscription)?,
            storage: switch("storage", self.storage)?,
            fallback: switch("fallback", self.fallback)?,
        })
    }
}

/// A number of threads, at most `threads`.
fn part_of(threads: usize, key: &'static str, value: Option<usize>) -> KeyResult<Option<usize>> {
    let Some(value) = value else { return Ok(None) };
    if (1..=threads).contains(&value) {
        return Ok(Some(value));
    }
    Err(KeyError("budget", key, format!("{value} is outside 1 to {threads}, the threads there are")))
}
