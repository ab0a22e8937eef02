//! Reloads the configuration: settings that can change while the daemon runs are applied, the others are named in
//! the log.
//!
//! Deliberately knows no file: its owner passes in how the configuration is read.

use super::governor::EffortGovernor;
use super::model_swap::LoadedModel;
use super::queue::Queue;
use super::{home, locked};
use crate::config::{Config, ConfigDiff};
use crate::home::SharedHome;
use crate::protocol::ReloadReport;
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
    pub loaded: LoadedModel,
}

impl LiveSettings {
    /// The settings of a start.
    pub fn new(
        running: Config,
        reread: ReadConfig,
        queue: Arc<Queue>,
        telemetry: Arc<Telemetry>,
        loaded: LoadedModel,
    ) -> Self {
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
            loaded,
        }
    }

    /// Reads the configuration and applies what changed, but for the model. An invalid configuration changes nothing.
    pub fn reload(&mut self) -> AppliedReload {
        match (self.read_config)() {
            Ok(wanted) => self.apply(wanted),
            Err(message) => {
                error!("not reloaded, the settings stay as they were: {message}");
                AppliedReload {
                    outcome: ReloadOutcome::Refused,
                    changes: ConfigDiff::default(),
                    problem: Some(message),
                    wanted: None,
                }
            }
        }
    }

    fn apply(&mut self, wanted: Config) -> AppliedReload {
        let changes = self.running.diff(&wanted);
        self.running.adopt(&wanted);
        self.queue.adopt(&wanted);
        let problem = self.queue.reload_filter(&wanted).err();
        if let Some(message) = &problem {
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
        let is_retried = self.loaded.is_fallback;
        if changes.at_restart.is_empty() {
            info!("{}", summary(&changes, is_retried));
        } else {
            warn!("{}", summary(&changes, is_retried));
        }
        let outcome = if problem.is_none() { ReloadOutcome::Applied } else { ReloadOutcome::FilterKept };
        // A fallback is in the place of the configured model, which may be sound by now.
        let is_model_wanted = !changes.model.is_empty() || self.loaded.is_fallback;
        let wanted = is_model_wanted.then_some(wanted);
        AppliedReload { outcome, changes, problem, wanted }
    }

    /// The settings in effect with the model of `wanted`.
    pub fn with_model_of(&self, wanted: &Config) -> Config {
        let mut config = self.running.clone();
        config.adopt_model(wanted);
        config
    }
}

/// What a reload has applied before the model, which takes a while.
pub(super) struct AppliedReload {
    outcome: ReloadOutcome,
    changes: ConfigDiff,
    problem: Option<String>,
    /// The configuration whose model is to be loaded; `None` where the running one stays.
    pub wanted: Option<Config>,
}

impl AppliedReload {
    /// The model stays as it was.
    pub fn model_kept(&mut self, reason: &str) {
        let problem = format!("the model stays as it was: {reason}");
        error!("{problem}");
        self.outcome = ReloadOutcome::ModelKept;
        self.problem =
            Some(self.problem.take().map_or(problem.clone(), |first| format!("{first}; {problem}")));
        self.changes.model.clear();
    }

    /// Records the reload in the security record, and returns what became of it.
    pub fn finish(self, telemetry: &Telemetry) -> ReloadReport {
        let AppliedReload { outcome, changes, problem, .. } = self;
        telemetry.security.record(&SecurityEvent::reload(outcome));
        ReloadReport {
            outcome: outcome.name(),
            model: telemetry.about().map(|about| about.model.clone()).unwrap_or_default(),
            changed: [changes.live, changes.model].concat(),
            needs_restart: changes.at_restart,
            problem,
        }
    }
}

/// Sends a setting to its watchers, if it has changed.
fn publish<T: Clone + PartialEq>(to: &watch::Sender<T>, wanted: &T) {
    to.send_if_modified(|shown| std::mem::replace(shown, wanted.clone()) != *wanted);
}

/// A summary of the reload, in one line. `is_retried`: the configured model is loaded, since the fallback is in its place.
fn summary(changes: &ConfigDiff, is_retried: bool) -> String {
    let list = |what: &str, keys: &[&str]| match keys {
        [] => String::new(),
        keys => format!("; {what}: {}", keys.join(", ")),
    };
    let nothing = if changes.is_empty() { "; nothing has changed" } else { "" };
    let (changed, left) = (list("changed", &changes.live), list("needs a restart", &changes.at_restart));
    let model = list("loads the model for", &changes.model);
    let retried = if is_retried { "; tries the configured model again" } else { "" };
    format!("configuration read again{nothing}{changed}{model}{retried}{left}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_names_what_changed_and_what_needs_a_restart() {
        let nothing = ConfigDiff::default();
        assert_eq!(summary(&nothing, false), "configuration read again; nothing has changed");
        let retried = summary(&nothing, true);
        assert!(retried.ends_with("nothing has changed; tries the configured model again"), "{retried}");
        let all = ConfigDiff {
            live: vec!["log.level"],
            model: vec!["model.path"],
            at_restart: vec!["budget.memory_mb", "device.id"],
        };
        assert_eq!(
            summary(&all, false),
            "configuration read again; changed: log.level; loads the model for: model.path; needs a restart: \
             budget.memory_mb, device.id"
        );
    }
}
