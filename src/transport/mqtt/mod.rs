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
mod context;
mod delivery;
mod event_loop;
mod homeassistant;
mod link;
mod message;
mod optional_subscription;
mod protocol_limits;
mod reply_topics;
mod shared_subscription;
mod strikes;
mod subscription_check;
mod topics;

pub use client::{BrokerLimits, ProbeReport, probe};
pub use context::{HomeAssistantInfo, MqttContext};
pub use delivery::answer_log::record;
pub use delivery::dedup_keys::DedupKeys;

pub use topics::{TopicKind, Topics};

use event_loop::EventLoop;
use std::time::Instant;

/// Memory that the door is planned with: replies for the broker (1 MiB, twice that when it takes none), the answers
/// kept for copies (512 KiB), a packet as large as we allow while it is read (1 MiB), and the library. Prompts held
/// at the door come on top where they are long on purpose; that is for the memory guard.
pub const LINK_BYTES: usize = 4 << 20;

/// Serves until `door.close`; returns when what was left is with the broker, or its time is up.
pub async fn run(context: MqttContext) {
    let mut event_loop = EventLoop::new(context);
    event_loop.load().await;
    while !event_loop.is_finished(Instant::now()) {
        event_loop.step().await;
    }
    event_loop.close().await;
}
