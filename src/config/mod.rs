//! The settings the daemon runs with: checked, complete, by value.
//!
//! Two stages: [`file`] mirrors what the owner wrote, this is what the program uses. Deliberately
//! knows nothing of where the settings go, and reads no environment: the caller passes the host in.

mod alerts;
mod broker;
mod changes;
mod file;
#[cfg(test)]
mod tests;
mod text_position;

pub use alerts::Alerts;
pub use changes::Changes;

use crate::external_text::utf8;
use std::fmt;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the configuration is looked for when none is named.
pub const DEFAULT_FILE: &str = "/etc/bitnetd/bitnetd.toml";

/// Everything the daemon can be told.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `[device]`
    pub device: Device,
    /// `[model]`
    pub model: Model,
    /// `[budget]`
    pub budget: Budget,
    /// `[socket]`
    pub socket: Socket,
    /// `[mqtt]`; `None` without a host.
    pub mqtt: Option<Mqtt>,
    /// `[queue]`
    pub queue: Queue,
    /// `[cache]`
    pub cache: Cache,
    /// `[telemetry]`
    pub telemetry: Telemetry,
    /// `[alerts]`
    pub alerts: Alerts,
    /// `[log]`
    pub log: Log,
}

/// What this device is called.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// One MQTT topic level.
    pub id: String,
    /// Folder for what must outlive the process, such as answers; `None` keeps nothing.
    pub state_in: Option<PathBuf>,
}

/// Which model, and how it is read.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// A GGUF file; `None` is the built-in model.
    pub path: Option<PathBuf>,
    /// Tokens of context; `None` is the model's own, shortened where memory asks for it.
    pub context: Option<usize>,
    /// How I2_S tensors are laid out; `None` is found out when the model is loaded.
    pub i2s_layout: Option<I2sLayout>,
    /// How the head is read; `None` is the fastest way that chooses the same tokens.
    pub head: Option<Head>,
    /// What keys and values are kept in.
    pub kv_cache: KvCache,
    /// `file`, `built-in` or the path of a chat template; `None` is the file's own where it can be used.
    pub chat_template: Option<PathBuf>,
    /// Folder for what is worked out of a model file once; `None` keeps nothing.
    pub keep_in: Option<PathBuf>,
}

/// The forms of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// As the file has it.
    F16,
    /// Written again in 8.5 bits a number.
    Q8,
    /// Written again in 6.6 bits a number.
    Q6K,
    /// Four bits of all rows, and the file's own numbers of those that can win.
    Screened,
}

/// The formats of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvCache {
    /// Two bytes a number.
    F16,
    /// A little more than one.
    Int8,
}

/// The block layouts of I2_S, which share one type id in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum I2sLayout {
    /// 128 weights in 32 bytes: the official one.
    Blocks128,
    /// 64 weights in 16 bytes: what bitnet.cpp writes on Arm since November 2025.
    Blocks64,
    /// Four rows of one column to a byte: what bitnet.cpp writes on x86, built without `ACT_PARALLEL`.
    Rows4,
}

/// What the daemon may use.
#[derive(Debug, Clone, PartialEq)]
pub struct Budget {
    /// Resident memory, in bytes.
    pub memory_bytes: u64,
    /// Threads that compute.
    pub threads: usize,
    /// How many of them generate; `None` is found out.
    pub decode_threads: Option<usize>,
    /// How many of them read prompts; `None` is found out.
    pub prefill_threads: Option<usize>,
    /// Processors that they keep to; empty is all.
    pub keep_to: Vec<usize>,
    /// Whether each compute thread keeps to one processor.
    pub pin: bool,
}

/// The Unix socket.
#[derive(Debug, Clone, PartialEq)]
pub struct Socket {
    /// Where it is.
    pub path: PathBuf,
    /// Its permission bits.
    pub mode: u32,
    /// Most clients at once.
    pub connections: usize,
}

/// The broker link.
#[derive(Debug, Clone, PartialEq)]
pub struct Mqtt {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// First level of every topic.
    pub prefix: String,
    /// Protocol version.
    pub version: MqttVersion,
    /// Devices that take turns; one topic level.
    pub group: Option<String>,
    /// User and the file that holds the password.
    pub login: Option<Login>,
    /// Encryption; `None` is none.
    pub tls: Option<Tls>,
    /// Folder whose files only the daemon may read, whatever their mode says: systemd's credentials.
    pub credentials: Option<PathBuf>,
    /// Whether Home Assistant is told of this device; if not, what it was told is taken back.
    pub discovery: bool,
    /// First level or levels of the topics on which Home Assistant hears of devices.
    pub discovery_prefix: String,
    /// Topic filters, one of which a Response Topic has to match; `None`: any that is not reserved.
    pub reply_topics: Option<Vec<String>>,
}

impl Mqtt {
    /// A plain link to this broker, all else by default.
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
        }
    }
}

/// The protocol versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MqttVersion {
    /// MQTT 5.
    V5,
    /// MQTT 3.1.1, which knows no Response Topic and no expiry.
    V311,
}

/// How the broker's identity is checked, and how we prove ours. Files are read at each connect, so that they
/// can be renewed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tls {
    /// Certificates of authorities, PEM; `None` is the system's store.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate.
    pub client: Option<ClientCertificate>,
}

/// A client certificate.
#[derive(Debug, Clone, PartialEq)]
pub struct ClientCertificate {
    /// The certificate and those between it and its authority, PEM.
    pub cert_file: PathBuf,
    /// Its private key, PEM.
    pub key_file: PathBuf,
}

/// How the broker knows us.
#[derive(Debug, Clone, PartialEq)]
pub struct Login {
    /// User name.
    pub username: String,
    /// The password's file; read at each connect, so that it can change. `None`: no password.
    pub password_file: Option<PathBuf>,
}

/// Waiting requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Queue {
    /// How many may wait.
    pub depth: usize,
    /// Percent of these that one client may hold while others wait.
    pub client_percent: usize,
    /// Time allowed to a request that names none.
    pub timeout: Duration,
    /// Time that running and waiting requests get after a stop was asked for.
    pub drain: Duration,
    /// Bytes of prompts that the broker link may acknowledge before they are answered, on disk and in memory.
    pub inbox_bytes: usize,
}

/// Answers given again.
#[derive(Debug, Clone, PartialEq)]
pub struct Cache {
    /// To whom.
    pub scope: CacheScope,
}

/// Whose questions an answer may have been computed for that is given again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheScope {
    /// The same client's: no client learns what another asked.
    Client,
    /// Anybody's.
    All,
}

/// Reports.
#[derive(Debug, Clone, PartialEq)]
pub struct Telemetry {
    /// Time between two.
    pub interval: Duration,
    /// What the owner says that the board draws; power is estimated from it where nothing measures it.
    pub board_watts: Option<BoardWatts>,
    /// A file that node_exporter reads, written with each; `None`: none.
    pub textfile: Option<PathBuf>,
}

/// What a board draws, in watts, as its owner measured it once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BoardWatts {
    /// With nothing to do.
    pub idle: f64,
    /// With all processors at work; more than `idle`.
    pub full: f64,
}

/// The journal.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// Least level that is written.
    pub level: Level,
}

/// Levels of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// What the defaults depend on.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    /// Becomes the device id.
    pub name: String,
    /// Memory this process may count on: the machine's, or its control group's limit if lower.
    pub memory_bytes: u64,
    /// Processors it may run on.
    pub processors: usize,
    /// The numbers of the fast ones, where some are slow; else empty.
    pub big: Vec<usize>,
    /// Where the socket goes.
    pub runtime_dir: PathBuf,
    /// Where what can be made again is kept.
    pub cache_dir: PathBuf,
    /// Where what must outlive the process is kept.
    pub state_dir: PathBuf,
    /// Where systemd puts what `LoadCredential=` names.
    pub credentials_dir: Option<PathBuf>,
}

impl Host {
    /// Threads that compute where no number is named: one for each processor, the slow ones left out. A job
    /// is over when its slowest part is.
    pub fn threads(&self) -> usize {
        let fast = if self.big.is_empty() { self.processors } else { self.big.len() };
        fast.clamp(1, 256)
    }

    /// Processors that so many threads keep to: the fast ones, if there are enough. Empty is all.
    pub fn keep_to(&self, threads: usize) -> Vec<usize> {
        if threads <= self.big.len() { self.big.clone() } else { Vec::new() }
    }
}

/// One mistake in the configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfigError {
    /// File and line, where known.
    pub place: String,
    /// What is wrong and the way out.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl std::error::Error for ConfigError {}

/// Largest configuration file: many times one that says everything.
const LARGEST: u64 = 1 << 20;

/// The text of a configuration file. Anything else that has the name, such as a device or a FIFO, is neither read nor
/// waited for.
fn read(path: &Path) -> Result<String, String> {
    let cannot = |error: std::io::Error| format!("cannot be read: {error}");
    let at_once = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(at_once).open(path).map_err(cannot)?;
    if !file.metadata().map_err(cannot)?.is_file() {
        return Err("cannot be read: it is no regular file; give the path of a TOML file".into());
    }
    let mut text = String::new();
    let length = file.take(LARGEST + 1).read_to_string(&mut text).map_err(cannot)?;
    if length as u64 > LARGEST {
        return Err("is larger than 1 MiB; a configuration is a few KiB, so this is another file".into());
    }
    Ok(text)
}

impl Config {
    /// The documented defaults on this host.
    pub fn defaults(host: &Host) -> Self {
        file::File::default().check("built-in defaults", "", host).expect("the defaults are sound")
    }

    /// Reads and checks a configuration file.
    pub fn load(path: &Path, host: &Host) -> Result<Self, ConfigError> {
        let place = path.display().to_string();
        let text = read(path).map_err(|message| ConfigError { place: place.clone(), message })?;
        Self::parse(&text, &place, host)
    }

    /// Checks a configuration given as text; `place` names it in errors.
    pub fn parse(text: &str, place: &str, host: &Host) -> Result<Self, ConfigError> {
        let text = utf8(text.as_bytes()).map_err(|message| ConfigError {
            place: place.to_owned(),
            message: format!("the file {message}"),
        })?;
        file::File::parse(text, place)?.check(place, text, host)
    }
}
