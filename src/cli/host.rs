//! The properties of this host and user that the defaults of the configuration depend on. Deliberately knows no key
//! of the configuration.

use crate::config::Host;
use crate::engine::thread_pool;
use crate::telemetry::sensors::{self, Processors};
use std::path::{Path, PathBuf};

/// This machine and this user.
pub(super) fn host() -> Host {
    let processors = processors();
    Host {
        name: name(),
        memory_bytes: sensors::host_memory(Path::new("/")),
        processors: processors.big.len() + processors.little.len(),
        big: if processors.little.is_empty() { Vec::new() } else { processors.big },
        runtime_dir: runtime_dir(),
        cache_dir: cache_dir(),
        state_dir: state_dir(),
        credentials_dir: env_path("CREDENTIALS_DIRECTORY"),
    }
}

/// Processors that this process may run on. They are sorted here because the engine does not read sensors.
pub(super) fn processors() -> Processors {
    sensors::processors(Path::new("/"), &thread_pool::processors())
}

/// The host name up to its first dot, as one MQTT topic level.
fn name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let short = name.split('.').next().unwrap_or_default();
    let level: String =
        short.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).collect();
    if level.is_empty() { "device".into() } else { level }
}

/// The path in an environment variable.
fn env_path(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The cache folder: systemd's, `/var/cache/bitnetd` for root, otherwise the user's own.
pub(super) fn cache_dir() -> PathBuf {
    own_dir("CACHE_DIRECTORY", "/var/cache/bitnetd", "XDG_CACHE_HOME", ".cache")
}

/// The state folder, in the same way.
fn state_dir() -> PathBuf {
    own_dir("STATE_DIRECTORY", "/var/lib/bitnetd", "XDG_STATE_HOME", ".local/state")
}

/// The folder for downloaded models: where the service can read them for root, otherwise the user's own.
pub(super) fn model_dir() -> PathBuf {
    let own = || env_path("XDG_DATA_HOME").or_else(|| Some(env_path("HOME")?.join(".local/share")));
    match own().filter(|_| !rustix::process::geteuid().is_root()) {
        Some(data) => data.join("bitnetd/models"),
        None => PathBuf::from("/var/lib/bitnetd/models"),
    }
}

/// The model server to ask instead of Hugging Face.
pub(super) fn mirror() -> Option<String> {
    std::env::var("BITNETD_MIRROR").ok().filter(|mirror| !mirror.is_empty())
}

fn own_dir(systemds: &str, roots: &str, users: &str, below_home: &str) -> PathBuf {
    let own = || env_path(users).or_else(|| Some(env_path("HOME")?.join(below_home)));
    match env_path(systemds) {
        Some(systemds) => systemds,
        None if rustix::process::geteuid().is_root() => PathBuf::from(roots),
        None => own().map_or_else(|| PathBuf::from(roots), |dir| dir.join("bitnetd")),
    }
}

/// The runtime folder: `/run/bitnetd` for root and where the user has none, otherwise the user's own.
fn runtime_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/run/bitnetd");
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => PathBuf::from("/run/bitnetd"),
    }
}
