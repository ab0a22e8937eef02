//! The health of the daemon, as it goes to `P/D/health`, the socket and `GET /health`.

use super::Timings;
use serde::Serialize;

/// The state of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthState {
    /// The model is being loaded: requests wait.
    Loading,
    /// Requests are answered, and nothing needs an operator.
    Ready,
    /// The daemon stops: what runs is answered, new requests are refused.
    Draining,
    /// Requests are answered, and an operator has to look at the reasons.
    Degraded,
}

impl HealthState {
    /// Its name in payloads.
    pub fn name(self) -> &'static str {
        match self {
            HealthState::Loading => "loading",
            HealthState::Ready => "ready",
            HealthState::Draining => "draining",
            HealthState::Degraded => "degraded",
        }
    }

    /// Whether requests are answered now.
    pub fn is_serving(self) -> bool {
        matches!(self, HealthState::Ready | HealthState::Degraded)
    }
}

/// The state with its reasons: what anybody may know, also without a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HealthSummary {
    /// The state.
    pub state: HealthState,
    /// Names of what an operator has to look at; also listed while the daemon drains.
    pub reasons: Vec<&'static str>,
}

/// The health of the daemon at one moment. What is not known is null.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Health {
    /// State and reasons.
    #[serde(flatten)]
    pub summary: HealthSummary,
    /// When this was so: RFC 3339, UTC.
    pub time: String,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// The model; null until it is loaded.
    pub model: Option<String>,
    /// The last answer that was computed; null before the first.
    pub last_answer: Option<LastAnswer>,
    /// The queue.
    pub queue: QueueLevel,
    /// Memory, and what was planned.
    pub memory: MemoryLevel,
    /// The broker link; null where none is configured, and until the model is loaded.
    pub broker: Option<BrokerHealth>,
    /// The last self-test of the kernels; null before it.
    pub self_test: Option<SelfTest>,
}

/// The times of the last answer that was computed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LastAnswer {
    /// When it ended: RFC 3339, UTC.
    pub time: String,
    /// Where its time went.
    #[serde(flatten)]
    pub timings: Timings,
}

/// How full the queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct QueueLevel {
    /// Requests that wait.
    pub waiting: u64,
    /// Requests that are answered now.
    pub running: u64,
    /// How many may wait: `queue.depth`.
    pub depth: u64,
}

/// Memory of the process against its plan, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct MemoryLevel {
    /// Resident memory of the process; null until it was read.
    pub process_bytes: Option<u64>,
    /// What the memory plan foresees, its reserve included.
    pub planned_bytes: u64,
    /// The budget.
    pub budget_bytes: u64,
}

/// The state of the broker link, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BrokerHealth {
    /// Whether the broker is connected.
    pub connected: bool,
    /// The present or last problem of the link.
    pub problem: Option<String>,
}

/// The outcome of a self-test of the kernels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SelfTest {
    /// When it was run: RFC 3339, UTC.
    pub time: String,
    /// The kernel table that was tested, which is the one that computes.
    pub kernel: &'static str,
    /// Whether it computes what the reference does.
    pub ok: bool,
    /// Where it differs from the reference.
    pub problem: Option<String>,
}
