//! What the daemon passes to the MQTT front end: settings, channels and cancellation tokens.
//!
//! Plain data; deliberately knows nothing of what is done with it.

use crate::config::Mqtt;
use crate::home::SharedHome;
use crate::protocol::MqttLink;
use crate::telemetry::Telemetry;
use crate::telemetry::alerts::Alert;
use crate::transport::{Command, Heartbeat, Inbound};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Everything the MQTT front end needs of the daemon.
#[derive(Debug)]
pub struct MqttContext {
    /// The broker and the options of the link.
    pub config: Mqtt,
    /// The device's level in every topic. One MQTT session belongs to it.
    pub device: String,
    /// Directory for answers and prompts that must survive the process; `None` keeps none on disk.
    pub state_dir: Option<PathBuf>,
    /// The model that answers, which a reload may change.
    pub model: watch::Receiver<PublishedModel>,
    /// Requests that are submitted to the daemon at a time; other prompts wait in the backlog.
    pub max_active: u16,
    /// How many requests the daemon answers at the same time.
    pub parallel: usize,
    /// Size in bytes of the durable inbox: prompts that may be acknowledged before they are answered, in
    /// `state_dir`.
    pub inbox_bytes: usize,
    /// Where requests are sent.
    pub requests: mpsc::Sender<Inbound>,
    /// Where commands are sent. When the channel is full a command is lost, which is logged.
    pub commands: mpsc::Sender<Command>,
    /// Whether the device has an entry in Home Assistant; if not, none is published or removed.
    pub has_homeassistant: bool,
    /// The names of the home, which retained descriptions change; `None`: none are read.
    pub home: Option<Arc<SharedHome>>,
    /// Threads that may compute: a thread limit is from 1 to this.
    pub threads: usize,
    /// The latest telemetry report, as JSON.
    pub reports: watch::Receiver<Option<Arc<Vec<u8>>>>,
    /// Whether a request is being answered.
    pub answering: watch::Receiver<bool>,
    /// Alerts that were raised or cleared.
    pub alerts: mpsc::Receiver<Alert>,
    /// Time between two reports, which may change while the daemon runs; a report expires after it.
    pub report_interval: watch::Receiver<Duration>,
    /// The state of the link, for the daemon.
    pub status: watch::Sender<MqttLink>,
    /// Counts the requests that are refused here, and makes reports on demand.
    pub local_telemetry: Arc<Telemetry>,
    /// Once cancelled, new prompts are left to the broker for the next start; at QoS 0, which the broker does not
    /// store, they are refused.
    pub draining: CancellationToken,
    /// Once cancelled, the remaining answers are sent and the link is closed.
    pub close: CancellationToken,
    /// Longest time for sending the remaining answers.
    pub flush_timeout: Duration,
    /// Beats at each iteration of the event loop.
    pub heartbeat: Heartbeat,
    /// Longest time between two iterations when there is nothing to do.
    pub max_idle: Duration,
}

/// What is published of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedModel {
    /// Its name, from its file, which the device's entry in Home Assistant contains.
    pub name: String,
    /// JSON for the `info` topic.
    pub info: Vec<u8>,
}
