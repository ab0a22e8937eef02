//! Keeps the history over a restart: reads its file at the start, and writes it every ten minutes and at the stop.
//!
//! A power cut loses ten minutes at most; a flash card bears some 15 MB a day for many years. Deliberately knows nothing
//! of what the history says.

use super::{FLUSH_TIMEOUT, locked};
use crate::config::Config;
use crate::telemetry::Telemetry;
use crate::telemetry::history::HistorySteps;
use crate::telemetry::history::file::HistoryFile;
use crate::telemetry::history::format::encode;
use log::{info, warn};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::timeout;

/// Time between two writes.
const WRITE_INTERVAL: Duration = Duration::from_secs(600);

/// The history's file.
#[derive(Debug)]
pub(super) struct HistoryKeeper {
    file: HistoryFile,
    telemetry: Arc<Telemetry>,
    /// Whether the last write failed, which is logged once.
    has_failed: Arc<Mutex<bool>>,
}

impl HistoryKeeper {
    /// Begins the history of the telemetry, behind what the file has of earlier daemons. `None` where nothing is to be
    /// written.
    pub fn begin(config: &Config, telemetry: &Arc<Telemetry>) -> Option<Arc<Self>> {
        if !config.history.is_enabled {
            return None;
        }
        let file =
            config.device.state_dir.as_deref().map(|dir| HistoryFile::of_device(dir, &config.device.id));
        let (steps, problem) = file.as_ref().map_or((HistorySteps::default(), None), HistoryFile::load);
        if let Some(problem) = problem {
            warn!("history: {problem}");
        }
        telemetry.begin_history(steps);
        let (telemetry, has_failed) = (Arc::clone(telemetry), Arc::default());
        file.map(|file| Arc::new(HistoryKeeper { file, telemetry, has_failed }))
    }

    /// Writes the file every ten minutes.
    pub async fn run(self: Arc<Self>) {
        loop {
            tokio::time::sleep(WRITE_INTERVAL).await;
            self.write().await;
        }
    }

    /// Writes the file a last time. A disk that hangs does not hold up the stop.
    pub async fn finish(&self) {
        if timeout(FLUSH_TIMEOUT, self.write()).await.is_err() {
            warn!("history: {} is not written after {FLUSH_TIMEOUT:?}", self.file.path().display());
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "one write in ten minutes waits its turn on the blocking thread"
    )]
    async fn write(&self) {
        let Some(steps) = self.telemetry.history() else { return };
        let (file, has_failed) = (self.file.clone(), Arc::clone(&self.has_failed));
        let writing = tokio::task::spawn_blocking(move || {
            let written = file.save(&encode(&steps));
            let had_failed = std::mem::replace(&mut *locked(&has_failed), written.is_err());
            match written {
                Ok(()) if had_failed => info!("history: {} is written again", file.path().display()),
                Err(error) if !had_failed => {
                    warn!("history: {error}; it is not stored; see device.state_dir")
                }
                _ => {}
            }
        });
        // An error means that the runtime stops.
        let _ = writing.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Host;
    use std::path::Path;
    use std::time::{Instant, SystemTime};

    fn config(state_dir: &Path, text: &str) -> Config {
        let host = Host {
            name: "cellar".into(),
            memory_bytes: 1 << 30,
            processors: 1,
            big: vec![],
            runtime_dir: "/run".into(),
            cache_dir: "/cache".into(),
            state_dir: state_dir.to_owned(),
            credentials_dir: None,
        };
        Config::parse(text, "bitnetd.toml", &host).expect("sound")
    }

    fn started(config: &Config) -> (Arc<Telemetry>, Option<Arc<HistoryKeeper>>) {
        let telemetry = Arc::new(Telemetry::new(1 << 20));
        let keeper = HistoryKeeper::begin(config, &telemetry);
        (telemetry, keeper)
    }

    #[tokio::test]
    async fn what_was_observed_is_there_after_a_restart() {
        let folder = tempfile::TempDir::with_prefix("bitnetd-").expect("a temporary folder");
        let config = config(folder.path(), "");
        let (telemetry, keeper) = started(&config);
        telemetry.record_history(Instant::now(), SystemTime::now());
        telemetry.cache_hit(Duration::ZERO);
        telemetry.record_history(Instant::now(), SystemTime::now());
        let before = telemetry.history().expect("begun");
        keeper.expect("a folder").finish().await;
        let (telemetry, _) = started(&config);
        assert_eq!(telemetry.history(), Some(before));
    }

    #[test]
    fn without_a_folder_it_is_observed_and_switched_off_it_is_not() {
        let (telemetry, keeper) = started(&config(Path::new("/none"), "[device]\nstate_dir = \"\"\n"));
        assert!(keeper.is_none() && telemetry.history().is_some());
        let (telemetry, keeper) = started(&config(Path::new("/none"), "[history]\nenabled = false\n"));
        assert!(keeper.is_none() && telemetry.history().is_none());
    }
}
