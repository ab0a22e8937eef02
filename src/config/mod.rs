//! The settings the daemon runs with: checked, complete, by value.
//!
//! Two stages: [`file`] mirrors what the owner wrote, this is what the program uses. Deliberately
//! knows nothing of where the settings go, and reads no environment: the caller passes the host in.

mod alerts;
mod changes;
mod file;

pub use alerts::Alerts;
pub use changes::Changes;

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

    pub(super) fn host() -> Host {
        Host {
            name: "cellar".into(),
            memory_bytes: 1 << 30,
            processors: 4,
            big: vec![],
            runtime_dir: "/run/bitnetd".into(),
            cache_dir: "/var/cache/bitnetd".into(),
            state_dir: "/var/lib/bitnetd".into(),
            credentials_dir: None,
        }
    }

    pub(super) fn error(text: &str) -> String {
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

    fn mqtt(keys: &str) -> Mqtt {
        let text = format!("[mqtt]\nhost = \"b\"\n{keys}");
        Config::parse(&text, "bitnetd.toml", &host()).expect("sound").mqtt.expect("a link")
    }

    #[test]
    fn the_broker_s_port_is_the_usual_one_with_and_without_encryption() {
        assert_eq!((mqtt("").port, mqtt("").tls), (1883, None));
        let encrypted = mqtt("tls = true\n");
        assert_eq!((encrypted.port, encrypted.tls), (8883, Some(Tls::default())));
        assert_eq!(mqtt("tls = true\nport = 1883\n").port, 1883);
    }

    #[test]
    fn files_for_an_encryption_that_is_off_are_refused_not_ignored() {
        for key in ["ca_file", "cert_file", "key_file"] {
            let said = error(&format!("[mqtt]\nhost = \"b\"\n{key} = \"/etc/x.pem\"\n"));
            assert!(said.starts_with(&format!("bitnetd.toml:3: mqtt.{key}: ")), "{said}");
            assert!(said.contains("tls = true"), "{said}");
        }
    }

    #[test]
    fn a_client_certificate_is_a_certificate_and_a_key() {
        let client = mqtt("tls = true\ncert_file = \"/c\"\nkey_file = \"/k\"\n").tls.expect("on").client;
        assert_eq!(client, Some(ClientCertificate { cert_file: "/c".into(), key_file: "/k".into() }));
        for (here, missing) in [("cert_file", "key_file"), ("key_file", "cert_file")] {
            let said = error(&format!("[mqtt]\nhost = \"b\"\ntls = true\n{here} = \"/x\"\n"));
            assert!(said.contains(&format!("mqtt.{missing}: missing")), "{said}");
        }
    }

    #[test]
    fn the_protocol_version_is_a_number_or_a_text() {
        for (written, version) in [
            ("5", MqttVersion::V5),
            ("\"5\"", MqttVersion::V5),
            ("5.0", MqttVersion::V5),
            ("\"3.1.1\"", MqttVersion::V311),
        ] {
            assert_eq!(mqtt(&format!("version = {written}\n")).version, version, "{written}");
        }
        for written in ["3", "4", "3.1", "\"3.1\"", "true"] {
            let said = error(&format!("[mqtt]\nhost = \"b\"\nversion = {written}\n"));
            assert!(said.starts_with("bitnetd.toml:3: mqtt.version: "), "{said}");
            assert!(said.contains("\"3.1.1\""), "{said}");
        }
    }

    #[test]
    fn a_group_is_one_topic_level_and_no_device() {
        assert_eq!(mqtt("group = \"kitchens\"\n").group.as_deref(), Some("kitchens"));
        assert!(error("[mqtt]\nhost = \"b\"\ngroup = \"a/b\"\n").contains("mqtt.group"));
        let said = error("[mqtt]\nhost = \"b\"\ngroup = \"cellar\"\n");
        assert!(said.contains("mqtt.group") && said.contains("device.id"), "{said}");
    }

    #[test]
    fn systemd_s_credential_is_the_password_of_a_user_without_a_file() {
        let folder = std::env::temp_dir().join(format!("bitnetd-credentials-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        let host = Host { credentials_dir: Some(folder.clone()), ..host() };
        let password = |keys: &str| {
            let text = format!("[mqtt]\nhost = \"b\"\nusername = \"u\"\n{keys}");
            let mqtt = Config::parse(&text, "bitnetd.toml", &host).expect("sound").mqtt.expect("a link");
            assert_eq!(mqtt.credentials, Some(folder.clone()));
            mqtt.login.expect("a user").password_file
        };
        assert_eq!(password(""), None, "a user without a password");
        let credential = folder.join("mqtt-password");
        std::fs::write(&credential, "secret").expect("a temporary folder");
        assert_eq!(password(""), Some(credential));
        assert_eq!(password("password_file = \"/own\"\n"), Some("/own".into()));
        std::fs::remove_dir_all(&folder).expect("ours");
    }

    #[test]
    fn a_user_without_a_broker_is_refused_not_ignored() {
        assert!(error("[mqtt]\nusername = \"b\"\n").contains("mqtt.host"));
        assert!(error("[mqtt]\nhost = \"b\"\npassword_file = \"/p\"\n").contains("mqtt.username"));
    }
}
