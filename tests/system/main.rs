//! The real binary with the real engine, used as its users do: over its socket, over a real mosquitto, on the
//! command line, and with the environment that systemd passes. Under emulation `BITNETD_RUNNER` holds the command
//! of the emulator.

mod alerts;
mod answers;
mod ask;
mod chat;
mod commands;
mod configuration;
mod convert;
#[path = "../support/daemon.rs"]
mod daemon;
#[cfg(feature = "demo")]
mod defaults;
mod demo;
mod disk_prefixes;
mod endure;
mod fairness;
mod faults;
mod governor;
mod guard;
mod health;
mod home;
mod home_names;
mod hostile;
mod inbox;
mod intent_calls;
mod known_cves;
mod limits;
mod listener;
mod load;
mod model_swap;
mod models;
mod mqtt;
mod overhead;
mod power;
mod pull;
mod queueing;
mod reload;
mod report;
mod restart;
mod security;
mod shared_decoding;
mod soak;
mod speculation;
mod stop;
mod structured_output;
#[path = "../support/mod.rs"]
mod support;
mod surroundings;
mod suspension;
mod systemd;
mod terminal;
mod threads;
mod top;
mod watchdog;
mod wyoming;

use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

/// Longest wait for anything; the machines are shared and slow, and an emulated one is ten times slower.
const PATIENCE: Duration = Duration::from_secs(if cfg!(target_arch = "aarch64") { 300 } else { 120 });

/// A request that computes for a while: its temperature makes nearly every token as likely as the end token. The
/// tokens differ between processors, since rounding decides some samples.
const LONG: &str = r#"{"prompt":"go","temperature":10,"seed":0,"max_tokens":200,"cache":false}"#;

/// Polls until `look` returns something.
async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            match look() {
                Some(found) => return found,
                None => sleep(Duration::from_millis(10)).await,
            }
        }
    };
    timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("in time: {what}"))
}

/// A temporary folder of one test, removed when dropped.
#[derive(Debug)]
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Folder(TempDir::with_prefix("bitnetd-").expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).expect("a temporary folder");
        path
    }

    /// A configuration with its socket and its state in this folder.
    fn config(&self, settings: &str) -> PathBuf {
        // Most tests want to know which request runs and which waits.
        let parallel = if settings.contains("parallel = ") { "" } else { "parallel = 1\n" };
        let settings = &settings.replacen("[budget]\n", &format!("[budget]\n{parallel}"), 1);
        let budget = if settings.contains("[budget]") { "" } else { "[budget]\nthreads = 1\nparallel = 1\n" };
        let socket = self.path("s");
        // A state folder of its own, since tests that run as root would share the system's.
        let state = format!("[device]\nstate_dir = \"{}\"\n", self.path("state").display());
        let (before, settings) = match settings.contains("[device]\n") {
            _ if settings.contains("state_dir") => ("", settings.to_owned()),
            true => ("", settings.replacen("[device]\n", &state, 1)),
            false => (state.as_str(), settings.to_owned()),
        };
        // `settings` may begin with further keys of the section `[socket]`.
        let text = format!("{before}{budget}[socket]\npath = \"{}\"\n{settings}", socket.display());
        self.write("bitnetd.toml", &text)
    }
}

/// Settings for requests that never end: with greedy decoding the tiny model never generates its end token, and the
/// context is longer than any test lasts.
fn endless() -> String {
    let model = data("reference/b158-tiny.i2_s.gguf");
    format!("[model]\npath = \"{}\"\ncontext = 65536\n", model.display())
}

/// Settings for a broker link of the device `cellar`, with a report every second.
fn linked(port: u16) -> String {
    format!(
        "[device]\nid = \"cellar\"\n[mqtt]\nhost = \"127.0.0.1\"\nport = {port}\n[telemetry]\ninterval_s = 1\n"
    )
}

/// A file of `tests/data`.
fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// A prompt for the built-in model, with the reference implementation's answer.
#[derive(Deserialize)]
struct Case {
    prompt: String,
    answer: String,
    prompt_tokens: u64,
    finish_reason: String,
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("../../models/home-intents.cases.json")).expect("a list of cases")
}

/// A path in an argument.
fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
