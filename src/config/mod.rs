//! The settings the daemon runs with: checked, complete, by value.
//!
//! Two stages: [`file`] mirrors what the owner wrote, this is what the program uses. Deliberately
//! knows nothing of where the settings go, and reads no environment: the caller passes the host in.

mod file;

use std::fmt;
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
    /// `[telemetry]`
    pub telemetry: Telemetry,
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
    /// User and the file that holds the password.
    pub login: Option<Login>,
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
    /// Time allowed to a request that names none.
    pub timeout: Duration,
    /// Time that running and waiting requests get after a stop was asked for.
    pub drain: Duration,
}

/// Reports.
#[derive(Debug, Clone, PartialEq)]
pub struct Telemetry {
    /// Time between two.
    pub interval: Duration,
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

impl Config {
    /// The documented defaults on this host.
    pub fn defaults(host: &Host) -> Self {
        file::File::default().check("built-in defaults", "", host).expect("the defaults are sound")
    }

    /// Reads and checks a configuration file.
    pub fn load(path: &Path, host: &Host) -> Result<Self, ConfigError> {
        let place = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
            place: place.clone(),
            message: format!("cannot be read: {error}"),
        })?;
        Self::parse(&text, &place, host)
    }

    /// Checks a configuration given as text; `place` names it in errors.
    pub fn parse(text: &str, place: &str, host: &Host) -> Result<Self, ConfigError> {
        file::File::parse(text, place)?.check(place, text, host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host {
            name: "cellar".into(),
            memory_bytes: 1 << 30,
            processors: 4,
            big: vec![],
            runtime_dir: "/run/bitnetd".into(),
            cache_dir: "/var/cache/bitnetd".into(),
            state_dir: "/var/lib/bitnetd".into(),
        }
    }

    fn error(text: &str) -> String {
        Config::parse(text, "bitnetd.toml", &host()).expect_err("a mistake").to_string()
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        let config = Config::parse("", "bitnetd.toml", &host()).expect("sound");
        assert_eq!(config, Config::defaults(&host()));
        assert_eq!(config.device.id, "cellar");
        assert_eq!(config.mqtt, None);
        assert_eq!(config.budget.memory_bytes, 768 << 20);
        assert_eq!(config.socket.path, Path::new("/run/bitnetd/bitnetd.sock"));
    }

    #[test]
    fn the_reference_file_says_the_defaults() {
        let text = include_str!("../../config/bitnetd.toml");
        let config = Config::parse(text, "bitnetd.toml", &host()).expect("sound");
        assert_eq!(config, Config::defaults(&host()));
    }

    #[test]
    fn threads_keep_to_the_big_cores_unless_there_are_more_of_them() {
        let host = Host { processors: 8, big: vec![4, 5, 6, 7], ..host() };
        let budget = |text| Config::parse(text, "bitnetd.toml", &host).expect("sound").budget;
        assert_eq!((budget("").threads, budget("").keep_to), (4, vec![4, 5, 6, 7]));
        let some = budget("[budget]\nthreads = 2\n");
        assert_eq!((some.threads, some.keep_to), (2, vec![4, 5, 6, 7]));
        let most = budget("[budget]\nthreads = 5\n");
        assert_eq!((most.threads, most.keep_to), (5, vec![]));
    }

    #[test]
    fn numbers_of_threads_can_be_pinned_up_to_all_there_are() {
        let text = "[budget]\nthreads = 3\ndecode_threads = 2\nprefill_threads = 3\n";
        let budget = Config::parse(text, "bitnetd.toml", &host()).expect("sound").budget;
        assert_eq!((budget.decode_threads, budget.prefill_threads), (Some(2), Some(3)));
        for (key, number) in [("decode_threads", 0), ("decode_threads", 4), ("prefill_threads", 4)] {
            let said = error(&format!("[budget]\nthreads = 3\n{key} = {number}\n"));
            assert!(said.starts_with(&format!("bitnetd.toml:3: budget.{key}: {number} ")), "{said}");
            assert!(said.contains("1 to 3"), "{said}");
        }
        // Without a number of all, the processors are the most.
        assert!(error("[budget]\ndecode_threads = 5\n").contains("1 to 4"));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let said = error("[device]\nid = \"a\"\n[mqtt]\nhots = \"b\"\n");
        assert!(said.starts_with("bitnetd.toml:4: "), "{said}");
        assert!(said.contains("hots") && said.contains("host"), "{said}");
        assert!(!said.contains('\n'), "{said}");
        assert!(error("[nonsense]\nx = 1\n").contains("nonsense"));
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_named_with_its_line() {
        let said = error("[log]\nlevel = \"info\"\n[queue]\ndepth = \"many\"\n");
        assert!(said.starts_with("bitnetd.toml:4: queue.depth: "), "{said}");
        let said = error("[queue]\ndepth = 0\n");
        assert!(said.starts_with("bitnetd.toml:2: queue.depth"), "{said}");
        let said = error("[socket]\nmode = \"9\"\n");
        assert!(said.starts_with("bitnetd.toml:2: socket.mode"), "{said}");
    }

    #[test]
    fn the_cache_folder_is_an_absolute_path_or_empty() {
        let said = error("[device]\nid = \"a\"\n[model]\ncache_dir = \"cache\"\n");
        assert!(said.starts_with("bitnetd.toml:4: model.cache_dir: \"cache\" "), "{said}");
        assert!(said.contains("absolute"), "{said}");
        let keep_in = |folder: &str| {
            let text = format!("[model]\ncache_dir = \"{folder}\"\n");
            Config::parse(&text, "bitnetd.toml", &host()).expect("sound").model.keep_in
        };
        assert_eq!(keep_in(""), None);
        assert_eq!(keep_in("/srv/models"), Some("/srv/models".into()));
    }

    #[test]
    fn the_state_folder_is_an_absolute_path_or_empty() {
        let said = error("[device]\nid = \"a\"\nstate_dir = \"state\"\n");
        assert!(said.starts_with("bitnetd.toml:3: device.state_dir: \"state\" "), "{said}");
        let state_in =
            |text: &str| Config::parse(text, "bitnetd.toml", &host()).expect("sound").device.state_in;
        assert_eq!(state_in(""), Some("/var/lib/bitnetd".into()));
        assert_eq!(state_in("[device]\nstate_dir = \"\"\n"), None);
        assert_eq!(state_in("[device]\nstate_dir = \"/srv/state\"\n"), Some("/srv/state".into()));
    }

    #[test]
    fn a_device_id_is_one_topic_level() {
        for id in ["a/b", "a+", "#", ""] {
            let said = error(&format!("[device]\nid = \"{id}\"\n"));
            assert!(said.starts_with("bitnetd.toml:2: device.id"), "{said}");
        }
    }

    #[test]
    fn what_this_version_cannot_do_is_refused_not_ignored() {
        assert!(error("[mqtt]\nhost = \"b\"\ntls = true\n").contains("mqtt.tls"));
        assert!(error("[mqtt]\nhost = \"b\"\nversion = \"3.1.1\"\n").contains("mqtt.version"));
        assert!(error("[mqtt]\nusername = \"b\"\n").contains("mqtt.host"));
    }
}
