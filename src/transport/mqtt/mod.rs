//! The MQTT door: prompts from the broker's topics in, events to its topics out.
//!
//! `desk` waits for whatever happens next and passes it to parts that do no I/O: `link` (when to
//! connect), `manners` (what a broker may not do), `arrivals` (the same prompt again? acknowledged
//! when?), `answered` (what it got then), `alarms` (alerts until the broker has them), `prompts` (to the worker and
//! back), `sharing` (the group's topics), `reply_topics` (where
//! clients may have answers sent), `refused_publishes` (which of ours the broker refuses), `discovery` (what Home Assistant is told), `outbox` (replies until the broker
//! has them) and `keeping` (which of these outlive the
//! process). `store` has them on disk; `client` is the one user of the MQTT library.
//!
//! Deliberately knows nothing of the engine, of other doors, or of what telemetry says but for which sensors answer:
//! reports come as bytes, and how the link fares goes out as [`LinkState`].

mod client;
mod delivery;
mod event_loop;
mod homeassistant;
mod link;
mod protocol_limits;
mod reply_topics;
mod shared_subscription;
mod subscription_check;
mod topics;

pub use client::{BrokerLimits, ProbeReport, probe};
pub use delivery::answer_log::record;
pub use delivery::dedup::DedupKeys;
pub use homeassistant::HomeAssistantInfo;
pub use topics::{TopicKind, Topics};

use crate::config::Mqtt;
use crate::telemetry::Telemetry;
use crate::telemetry::alerts::Alert;
use crate::transport::{Command, Heartbeat, Inbound};
use event_loop::EventLoop;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Memory that the door is planned with: replies for the broker (1 MiB, twice that when it takes none), the answers
/// kept for copies (512 KiB), a packet as large as we allow while it is read (1 MiB), and the library. Prompts held
/// at the door come on top where they are long on purpose; that is for the memory guard.
pub const LINK_BYTES: usize = 4 << 20;

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
    pub status: watch::Sender<LinkState>,
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

/// How the broker link fares.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkState {
    /// Whether the broker is connected.
    pub connected: bool,
    /// Whether it granted our subscriptions.
    pub subscribed: bool,
    /// Connections made since start.
    pub connects: u64,
    /// Connections on which the broker no longer knew our session.
    pub sessions_lost: u64,
    /// Replies not yet acknowledged by the broker.
    pub outbox: u64,
    /// Prompts without an answer yet.
    pub waiting: u64,
    /// Whether prompts do not reach us, though the broker is connected.
    pub deaf: bool,
    /// How often a subscription was found missing and asked for again.
    pub subscriptions_lost: u64,
    /// Prompts that the broker delivered again, which were not computed again.
    pub duplicates: u64,
    /// Prompts that were given a stored answer.
    pub resent: u64,
    /// Whether answers outlive a crash of the daemon.
    pub durable: bool,
    /// Why they do not, where they should.
    pub storage_problem: Option<String>,
    /// Replies given up, and prompts at QoS 0 that were ignored in a flood.
    pub dropped: u64,
    /// What keeps the link down, or did last.
    pub problem: Option<String>,
}

/// Serves until `door.close`; returns when what was left is with the broker, or its time is up.
pub async fn run(context: MqttContext) {
    let mut event_loop = EventLoop::new(context);
    event_loop.load().await;
    while !event_loop.is_finished(Instant::now()) {
        event_loop.step().await;
    }
    event_loop.close().await;
}
