//! What the MQTT front end is given by the daemon: settings, channels and tokens.

use crate::config::Mqtt;
use crate::protocol::MqttLink;
use crate::telemetry::Telemetry;
use crate::telemetry::alerts::Alert;
use crate::transport::{Command, Heartbeat, Inbound};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// What the door needs.
#[derive(Debug)]
pub struct MqttContext {
    /// Where the broker is.
    pub config: Mqtt,
    /// The device's level in every topic; one MQTT session belongs to it.
    pub device: String,
    /// Folder for answers that must outlive the process; `None` keeps none.
    pub state_dir: Option<PathBuf>,
    /// JSON for the `info` topic.
    pub info: Vec<u8>,
    /// Prompts that are handed over at a time; the others wait here.
    pub max_active: u16,
    /// Bytes of prompts that may be acknowledged before they are answered, in the folder of `state_in`.
    pub inbox_bytes: usize,
    /// Where requests go.
    pub requests: mpsc::Sender<Inbound>,
    /// Where controls go. When it is full they are lost, and the log says so.
    pub commands: mpsc::Sender<Command>,
    /// What Home Assistant is told, as `config` says; `None`: neither told anything nor listened to.
    pub homeassistant: Option<HomeAssistantInfo>,
    /// Threads that compute: a limit of them is from 1 to these.
    pub threads: usize,
    /// The latest report, as JSON.
    pub reports: watch::Receiver<Option<Arc<Vec<u8>>>>,
    /// Alerts that were raised or cleared.
    pub alerts: mpsc::Receiver<Alert>,
    /// When a report is stale: the interval between two, which may change.
    pub report_interval: watch::Receiver<Duration>,
    /// How the link fares.
    pub status: watch::Sender<MqttLink>,
    /// Counts what is refused here already.
    pub local_telemetry: Arc<Telemetry>,
    /// From now on new prompts are left to the broker for the next start; at QoS 0, which it does not
    /// keep, they are refused.
    pub draining: CancellationToken,
    /// Send what is left and stop.
    pub close: CancellationToken,
    /// Longest time for sending what is left.
    pub flush_timeout: Duration,
    /// Beats at each turn of the door's loop.
    pub heartbeat: Heartbeat,
    /// Longest time between two turns, when there is nothing to do.
    pub max_idle: Duration,
}

/// What is known of this daemon beside its topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HomeAssistantInfo {
    /// The model, as its file calls it.
    pub model: String,
}
