//! Reloads the configuration: settings that can change while the daemon runs are applied, the others are named in
//! the log.
//!
//! Deliberately knows no file: its owner passes in how the configuration is read.

use super::governor::EffortGovernor;
use super::queue::Queue;
use super::{home, locked};
use crate::config::{Config, ConfigDiff};
use crate::home::SharedHome;
use crate::telemetry::{self, ReloadOutcome, SecurityEvent, Telemetry};
use log::{error, info, warn};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// Reads the configuration again, as it was read at the start; the error is one line that names file and line.
pub type ReadConfig = Box<dyn Fn() -> Result<Config, String> + Send>;

/// The settings in effect, and the parts of the daemon that they are applied to.
pub(super) struct LiveSettings {
    pub running: Config,
    pub read_config: ReadConfig,
    pub queue: Arc<Queue>,
    pub telemetry: Arc<Telemetry>,
    pub interval: watch::Sender<Duration>,
    pub textfile: watch::Sender<Option<PathBuf>>,
    /// `None` where no names of the home are read.
    pub home: Option<Arc<SharedHome>>,
    pub governor: Arc<Mutex<EffortGovernor>>,
}

impl LiveSettings {
    /// The settings of a start.
    pub fn new(running: Config, reread: ReadConfig, queue: Arc<Queue>, telemetry: Arc<Telemetry>) -> Self {
        let (interval, _) = watch::channel(running.telemetry.interval);
        let (textfile, _) = watch::channel(running.telemetry.textfile.clone());
        let governor = EffortGovernor::new(running.governor.clone(), running.budget.threads);
        let governor = Arc::new(Mutex::new(governor));
        LiveSettings {
            running,
            read_config: reread,
            queue,
            telemetry,
            interval,
            textfile,
            home: None,
            governor,
        }
    }

    /// Applies what changed. An invalid configuration changes nothing.
    pub fn reload(&mut self) {
        let outcome = match (self.read_config)() {
            Ok(wanted) => self.apply(&wanted),
            Err(message) => {
                error!("not reloaded, the settings stay as they were: {message}");
                ReloadOutcome::Refused
            }
        };
        self.telemetry.security.record(&SecurityEvent::reload(outcome));
    }

    fn apply(&mut self, wanted: &Config) -> ReloadOutcome {
        let changes = self.running.diff(wanted);
        self.running.adopt(wanted);
        self.queue.adopt(wanted);
        if let Some(shortage) = self.queue.answers.shortage(wanted.cache.answers_bytes) {
            warn!("{shortage}");
        }
        let filter = self.queue.reload_filter(wanted);
        if let Err(message) = &filter {
            error!("the filter stays as it was: {message}");
        }
        publish(&self.interval, &wanted.telemetry.interval);
        publish(&self.textfile, &wanted.telemetry.textfile);
        if let Some(names) = &self.home {
            home::reload(names, &wanted.home);
        }
        locked(&self.governor).adopt(&wanted.governor);
        self.telemetry.set_alert_rules(wanted.alerts.clone());
        telemetry::log::set_level(wanted.log.level);
        if changes.at_restart.is_empty() {
            info!("{}", summary(&changes));
        } else {
            warn!("{}", summary(&changes));
        }
        if filter.is_ok() { ReloadOutcome::Applied } else { ReloadOutcome::FilterKept }
    }
}

/// Sends a setting to its watchers, if it has changed.
fn publish<T: Clone + PartialEq>(to: &watch::Sender<T>, wanted: &T) {
    to.send_if_modified(|shown| std::mem::replace(shown, wanted.clone()) != *wanted);
}

/// A summary of the reload, in one line.
fn summary(changes: &ConfigDiff) -> String {
    let list = |what: &str, keys: &[&str]| match keys {
        [] => String::new(),
        keys => format!("; {what}: {}", keys.join(", ")),
    };
    let nothing = if changes.is_empty() { "; nothing has changed" } else { "" };
    let (changed, left) = (list("changed", &changes.live), list("needs a restart", &changes.at_restart));
    format!("configuration read again{nothing}{changed}{left}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_names_what_changed_and_what_needs_a_restart() {
        let nothing = ConfigDiff::default();
        assert_eq!(summary(&nothing), "configuration read again; nothing has changed");
        let both = ConfigDiff { live: vec!["log.level"], at_restart: vec!["budget.memory_mb", "model.path"] };
        assert_eq!(
            summary(&both),
            "configuration read again; changed: log.level; needs a restart: budget.memory_mb, model.path"
        );
    }
}
