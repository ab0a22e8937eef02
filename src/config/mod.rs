//! The settings of the daemon: checked, complete, by value.
//!
//! There are two stages: `toml_schema` mirrors the TOML file, and the types here are what the program uses.
//! Deliberately knows nothing of where the settings are applied, and reads no environment: the caller passes in the
//! host.

mod alerts;
mod broker;
mod defaults;
mod diff;
mod governor;
mod guard;
mod home;
mod http;
mod key_error;
mod key_values;
mod listen;
mod log;
mod profile;
mod suggestion;
mod telemetry;
#[cfg(test)]
mod tests;
mod text_position;
mod toml_schema;

pub use alerts::Alerts;
pub use defaults::Defaults;
pub use diff::ConfigDiff;
pub use governor::{DailyHours, Governor};
pub use guard::{ControlCharacters, Guard};
pub use http::{Http, is_loopback};
pub use profile::Profile;

use crate::external_text::utf8;
use std::fmt;
use std::fs::OpenOptions;
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The configuration file when none is named.
pub const DEFAULT_FILE: &str = "/etc/bitnetd/bitnetd.toml";

/// All settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `profile`; its values are in the settings already, except those that depend on the model.
    pub profile: Option<Profile>,
    /// `[device]`
    pub device: Device,
    /// `[model]`
    pub model: Model,
    /// `[budget]`
    pub budget: Budget,
    /// `[socket]`
    pub socket: Socket,
    /// `[http]`
    pub http: Http,
    /// `[wyoming]`
    pub wyoming: Wyoming,
    /// `[mqtt]`; `None` without a host.
    pub mqtt: Option<Mqtt>,
    /// `[queue]`
    pub queue: Queue,
    /// `[home]`
    pub home: Home,
    /// `[defaults]`
    pub defaults: Defaults,
    /// `[cache]`
    pub cache: Cache,
    /// `[governor]`
    pub governor: Governor,
    /// `[guard]`
    pub guard: Guard,
    /// `[telemetry]`
    pub telemetry: Telemetry,
    /// `[alerts]`
    pub alerts: Alerts,
    /// `[history]`
    pub history: History,
    /// `[log]`
    pub log: Log,
}

/// The identity of this device.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// The device id, one MQTT topic level.
    pub id: String,
    /// Folder for what must outlive the process, such as answers; `None` stores nothing.
    pub state_dir: Option<PathBuf>,
}

/// The model, and how it is loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// A GGUF file; `None` is the built-in model.
    pub path: Option<PathBuf>,
    /// The model that answers where that one cannot be used; `None` ends the daemon instead.
    pub fallback: Option<FallbackModel>,
    /// Tokens of context; `None` is the model's own, shortened where memory requires it.
    pub context: Option<usize>,
    /// Layout of I2_S tensors; `None` is auto-detected when the model is loaded.
    pub i2s_layout: Option<I2sLayout>,
    /// Format of the output head (lm_head); `None` is the fastest one that chooses the same tokens.
    pub head: Option<Head>,
    /// Format of the KV cache.
    pub kv_cache: KvCachePrecision,
    /// `file`, `built-in` or the path of a chat template; `None` is the model file's own where it can be used.
    pub chat_template: Option<PathBuf>,
    /// Folder for what is derived from a model file once; `None` stores nothing.
    pub cache_dir: Option<PathBuf>,
    /// Whether a few tokens are computed before the daemon is ready.
    pub warm_up: bool,
}

impl Model {
    /// The settings of the fallback; `None` where there is none, or where it is the same model. What describes the file of the
    /// first model or how it is read is not the fallback's: it has its own context, head and chat template.
    pub fn fallback(&self) -> Option<Model> {
        let path = match self.fallback.as_ref()? {
            FallbackModel::BuiltIn => None,
            FallbackModel::File(path) => Some(path.clone()),
        };
        let fallback = Model {
            path,
            fallback: None,
            context: None,
            i2s_layout: None,
            head: None,
            chat_template: None,
            kv_cache: self.kv_cache,
            cache_dir: self.cache_dir.clone(),
            warm_up: self.warm_up,
        };
        (fallback.path != self.path).then_some(fallback)
    }

    /// Its file, or that it is the built-in model, for messages.
    pub fn place(&self) -> String {
        self.path.as_ref().map_or("the built-in model".into(), |path| path.display().to_string())
    }
}

/// The model that answers where the first one cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FallbackModel {
    /// The model inside the program.
    BuiltIn,
    /// A GGUF file.
    File(PathBuf),
}

/// Formats of the output head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// The file's own format.
    F16,
    /// Requantised to Q8_0, 8.5 bits per weight.
    Q8,
    /// Requantised to Q6_K, 6.6 bits per weight.
    Q6K,
    /// A shortlist from 2 and 4 bits per weight, and the file's own weights of the rows that can win.
    Shortlist,
}

/// Formats of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvCachePrecision {
    /// Two bytes per value.
    F16,
    /// A little more than one byte per value.
    Int8,
}

/// Block layouts of I2_S, which share one type id in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum I2sLayout {
    /// 128 weights in 32 bytes: the official layout.
    Blocks128,
    /// 64 weights in 16 bytes: what bitnet.cpp writes on Arm since November 2025.
    Blocks64,
    /// Four rows of one column to a byte: what bitnet.cpp writes on x86, built without `ACT_PARALLEL`.
    Rows4,
}

/// The resources that the daemon may use.
#[derive(Debug, Clone, PartialEq)]
pub struct Budget {
    /// Resident memory, in bytes.
    pub memory_bytes: u64,
    /// Threads that compute.
    pub threads: usize,
    /// How many of them generate tokens; `None` is measured.
    pub decode_threads: Option<usize>,
    /// How many of them read prompts; `None` is measured.
    pub prefill_threads: Option<usize>,
    /// How many requests are answered at the same time; `None` is chosen by the memory plan.
    pub parallel: Option<usize>,
    /// Processors that they may run on; empty is all.
    pub allowed_cpus: Vec<usize>,
    /// Whether each compute thread is pinned to one processor.
    pub pin: bool,
}

/// The Unix socket.
#[derive(Debug, Clone, PartialEq)]
pub struct Socket {
    /// Its path.
    pub path: PathBuf,
    /// Its permission bits.
    pub mode: u32,
    /// Most clients connected at once.
    pub connections: usize,
}

/// The Wyoming protocol.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Wyoming {
    /// Where to listen; `None` is nowhere.
    pub listen: Option<SocketAddr>,
}

/// The link to the MQTT broker.
#[derive(Debug, Clone, PartialEq)]
pub struct Mqtt {
    /// Name or address of the broker.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// First level or levels of every topic.
    pub prefix: String,
    /// Protocol version.
    pub version: MqttVersion,
    /// Name of the group of devices that share prompts; one topic level.
    pub group: Option<String>,
    /// User name and password file.
    pub login: Option<Login>,
    /// Encryption; `None` is none.
    pub tls: Option<Tls>,
    /// systemd's folder of credentials, whose files only the daemon can read whatever their mode is.
    pub credentials: Option<PathBuf>,
    /// Whether the device is announced to Home Assistant; if not, an earlier announcement is removed.
    pub discovery: bool,
    /// The discovery prefix of Home Assistant: first level or levels of its discovery topics.
    pub discovery_prefix: String,
    /// Topic filters, one of which a Response Topic must match; `None` is any that is not reserved.
    pub reply_topics: Option<Vec<String>>,
    /// Whether the last answer of each client that its prompts' topic names is also retained at the broker.
    pub keep_last: bool,
}

impl Mqtt {
    /// An unencrypted link to this broker, with defaults for all else.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Mqtt {
            host: host.into(),
            port,
            prefix: "bitnetd".into(),
            version: MqttVersion::V5,
            group: None,
            login: None,
            tls: None,
            credentials: None,
            discovery: true,
            discovery_prefix: "homeassistant".into(),
            reply_topics: None,
            keep_last: false,
        }
    }
}

/// The protocol versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MqttVersion {
    /// MQTT 5.
    V5,
    /// MQTT 3.1.1, which has no Response Topic and no expiry.
    V311,
}

/// TLS: the certificate authorities and the client certificate. Files are read at each connect, so that they can be
/// renewed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tls {
    /// Certificates of authorities, PEM; `None` is the system's store.
    pub ca_file: Option<PathBuf>,
    /// The client certificate.
    pub client: Option<ClientCertificate>,
}

/// A client certificate.
#[derive(Debug, Clone, PartialEq)]
pub struct ClientCertificate {
    /// The certificate and its intermediate certificates, PEM.
    pub cert_file: PathBuf,
    /// Its private key, PEM.
    pub key_file: PathBuf,
}

/// The login at the broker.
#[derive(Debug, Clone, PartialEq)]
pub struct Login {
    /// User name.
    pub username: String,
    /// The password's file; read at each connect, so that it can change. `None`: no password.
    pub password_file: Option<PathBuf>,
}

/// The queue of requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Queue {
    /// How many requests may wait.
    pub depth: usize,
    /// Percent of the places that one client may hold while others wait.
    pub client_percent: usize,
    /// Time allowed for a request that names no timeout.
    pub timeout: Duration,
    /// Time allowed for running and waiting requests after a stop was requested.
    pub drain: Duration,
    /// Bytes of prompts that the broker link may acknowledge before they are answered, on disk and in memory.
    pub inbox_bytes: usize,
}

/// The names of the home.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Home {
    /// Whether names are read from the broker and the file.
    pub is_enabled: bool,
    /// Whether all answers of the built-in model keep to these names, also where a request does not ask for it.
    pub is_constrained: bool,
    /// The owner's file of names, TOML or JSON.
    pub file: Option<PathBuf>,
}

/// The caches of answers and of the beginnings of prompts.
#[derive(Debug, Clone, PartialEq)]
pub struct Cache {
    /// Bytes that the beginnings of prompts may take on disk, in the folder for what is derived from the model; 0 stores
    /// none.
    pub disk_bytes: u64,
    /// Bytes that stored answers may take in memory; 0 stores none.
    pub answers_bytes: usize,
    /// Which clients share answers.
    pub scope: CacheScope,
}

/// Which clients share cached answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheScope {
    /// Only the client that asked before, so that no client learns what another asked.
    Client,
    /// All clients.
    All,
}

/// The telemetry.
#[derive(Debug, Clone, PartialEq)]
pub struct Telemetry {
    /// Time between two reports.
    pub interval: Duration,
    /// The power of the board as the owner measured it; power is estimated from it where no sensor measures it.
    pub board_watts: Option<BoardWatts>,
    /// A file for node_exporter, written with each report; `None` is none.
    pub textfile: Option<PathBuf>,
}

/// The power of a board in watts, as its owner measured it once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BoardWatts {
    /// When idle.
    pub idle: f64,
    /// With all processors busy; more than `idle`.
    pub full: f64,
}

/// The history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History {
    /// Whether it is observed, and written to the state folder.
    pub is_enabled: bool,
}

/// The log.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// The lowest level that is written.
    pub level: Level,
}

/// Levels of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// The properties of the host that the defaults depend on.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    /// The default of the device id.
    pub name: String,
    /// Memory that the process may use, in bytes: the machine's, or its control group's limit if lower.
    pub memory_bytes: u64,
    /// Number of processors that it may run on.
    pub processors: usize,
    /// The numbers of the big processors, where some are little; otherwise empty.
    pub big: Vec<usize>,
    /// The folder of the socket.
    pub runtime_dir: PathBuf,
    /// The folder for what can be derived again.
    pub cache_dir: PathBuf,
    /// The folder for what must outlive the process.
    pub state_dir: PathBuf,
    /// The folder of systemd's `LoadCredential=`.
    pub credentials_dir: Option<PathBuf>,
}

impl Host {
    /// The default number of compute threads: one for each processor, without the little ones, since a job takes as
    /// long as its slowest part.
    pub fn threads(&self) -> usize {
        let fast = if self.big.is_empty() { self.processors } else { self.big.len() };
        fast.clamp(1, 256)
    }

    /// The processors that this number of threads may run on: the big ones, if there are enough. Empty is all.
    pub fn keep_to(&self, threads: usize) -> Vec<usize> {
        if threads <= self.big.len() { self.big.clone() } else { Vec::new() }
    }
}

/// An error in the configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfigError {
    /// File and line, where known.
    pub place: String,
    /// What is wrong, and a remedy.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl std::error::Error for ConfigError {}

/// The largest configuration file in bytes, many times the size of one with every key.
const MAX_FILE: u64 = 1 << 20;

/// Reads the text of a configuration file, or of one that it names. Anything but a regular file, such as a device or a
/// FIFO, is an error, and opening it does not block.
pub fn read_text(path: &Path) -> Result<String, String> {
    let cannot = |error: std::io::Error| format!("cannot be read: {error}");
    let at_once = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(at_once).open(path).map_err(cannot)?;
    if !file.metadata().map_err(cannot)?.is_file() {
        return Err("cannot be read: it is no regular file; give the path of a text file".into());
    }
    let mut text = String::new();
    let length = file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(cannot)?;
    if length as u64 > MAX_FILE {
        return Err("is larger than 1 MiB, so it is another file than the one meant".into());
    }
    Ok(text)
}

impl Config {
    /// The documented defaults on this host.
    pub fn defaults(host: &Host) -> Self {
        toml_schema::File::default().check("built-in defaults", "", host).expect("the defaults are sound")
    }

    /// Reads and checks a configuration file; the error names file and line.
    pub fn load(path: &Path, host: &Host) -> Result<Self, ConfigError> {
        let place = path.display().to_string();
        let text = read_text(path).map_err(|message| ConfigError { place: place.clone(), message })?;
        Self::parse(&text, &place, host)
    }

    /// Checks a configuration given as text; `place` names it in errors.
    pub fn parse(text: &str, place: &str, host: &Host) -> Result<Self, ConfigError> {
        let text = utf8(text.as_bytes()).map_err(|message| ConfigError {
            place: place.to_owned(),
            message: format!("the file {message}"),
        })?;
        toml_schema::File::parse(text, place)
            .and_then(|file| file.check(place, text, host))
            .map_err(|error| ConfigError { message: with_short_values(&error.message), ..error })
    }
}

/// Maximum number of characters of a value in a message.
const MAX_VALUE: usize = 200;

/// The message with whatever stands between quotation marks or backticks cut to 200 characters.
pub fn with_short_values(message: &str) -> String {
    let mut shown = String::with_capacity(message.len());
    let (mut mark, mut length) = (None, 0);
    for c in message.chars() {
        match mark {
            Some(end) if c == end => mark = None,
            Some(_) => length += 1,
            None if matches!(c, '"' | '`') => (mark, length) = (Some(c), 0),
            None => {}
        }
        if mark.is_none() || length <= MAX_VALUE {
            shown.push(c);
        } else if length == MAX_VALUE + 1 {
            shown.push('…');
        }
    }
    shown
}
