//! The configuration read again: what can change while the daemon runs does, the rest is named.
//!
//! Deliberately knows no file: its owner says how the configuration is read.

use super::queue::Queue;
use crate::config::{Changes, Config};
use crate::telemetry::{self, Telemetry};
use log::{error, info, warn};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Reads the configuration again, as it was read at the start; the error is one line with the place.
pub type Reread = Box<dyn Fn() -> Result<Config, String> + Send>;

/// The settings that the daemon runs with, and where they act.
pub(super) struct Settings {
    pub running: Config,
    pub reread: Reread,
    pub queue: Arc<Queue>,
    pub telemetry: Arc<Telemetry>,
    pub interval: watch::Sender<Duration>,
    pub textfile: watch::Sender<Option<PathBuf>>,
}

impl Settings {
    /// The settings of a start.
    pub fn new(running: Config, reread: Reread, queue: Arc<Queue>, telemetry: Arc<Telemetry>) -> Self {
        let (interval, _) = watch::channel(running.telemetry.interval);
        let (textfile, _) = watch::channel(running.telemetry.textfile.clone());
        Settings { running, reread, queue, telemetry, interval, textfile }
    }

    /// Takes over what changed. A configuration that cannot be used changes nothing.
    pub fn reload(&mut self) {
        match (self.reread)() {
            Ok(wanted) => self.take_over(&wanted),
            Err(said) => error!("not reloaded, the settings stay as they were: {said}"),
        }
    }

    fn take_over(&mut self, wanted: &Config) {
        let changes = self.running.changes(wanted);
        self.running.adopt(wanted);
        self.queue.adopt(wanted);
        show(&self.interval, &wanted.telemetry.interval);
        show(&self.textfile, &wanted.telemetry.textfile);
        self.telemetry.set_alert_rules(wanted.alerts.clone());
        telemetry::log::set_level(wanted.log.level);
        if changes.at_restart.is_empty() {
            info!("{}", said(&changes));
        } else {
            warn!("{}", said(&changes));
        }
    }
}

/// Shows a setting to those who watch it, if it has changed.
fn show<T: Clone + PartialEq>(to: &watch::Sender<T>, wanted: &T) {
    to.send_if_modified(|shown| std::mem::replace(shown, wanted.clone()) != *wanted);
}

/// What was done, in one line.
fn said(changes: &Changes) -> String {
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
    fn one_line_says_what_changed_and_what_needs_a_restart() {
        let nothing = Changes::default();
        assert_eq!(said(&nothing), "configuration read again; nothing has changed");
        let both = Changes { live: vec!["log.level"], at_restart: vec!["budget.memory_mb", "model.path"] };
        assert_eq!(
            said(&both),
            "configuration read again; changed: log.level; needs a restart: budget.memory_mb, model.path"
        );
    }
}
