//! The MQTT front end: prompts are received on the device's topics, and their events are published.
//!
//! `event_loop` waits for whatever happens next and calls the other modules, which do no I/O:
//!
//! - `link`: when to connect, how long to wait after a failure; `protocol_limits`: violations of the protocol that
//!   rumqttc accepts;
//! - `topics`, `reply_topics`: the device's topics, and where clients may have answers published; `prompt_client`:
//!   who sent a prompt;
//! - `answering`: how often the state of that name is published;
//! - `delivery`: each prompt is answered once, and each answer reaches the broker, also over lost connections and
//!   restarts;
//! - `homeassistant`: the device's entry in Home Assistant; `home_subscription`: the retained descriptions of the home's
//!   devices, whose names it passes on;
//! - `optional_subscription`, `shared_subscription`, `subscription_check`: subscriptions the broker may refuse or
//!   lose; `strikes` counts what may be the cause of disconnects.
//!
//! `delivery::answer_log` does the disk I/O, and `client` is the only user of the MQTT library. `context` is what
//! the daemon passes in, `message` the messages received and published.
//!
//! Deliberately knows nothing of the engine, of other transports, or of the contents of a telemetry report: reports
//! are received as bytes, and the state of the link is published as [`MqttLink`](crate::protocol::MqttLink).

mod answering;
mod client;
mod context;
mod delivery;
mod event_loop;
mod home_subscription;
mod homeassistant;
mod link;
mod message;
mod optional_subscription;
mod prompt_client;
mod protocol_limits;
mod reply_topics;
mod shared_subscription;
mod strikes;
mod subscription_check;
mod topics;

pub use client::{BrokerLimits, ProbeReport, probe};
pub use context::{MqttContext, PublishedModel};
pub use delivery::answer_log::record;
pub use delivery::dedup_keys::DedupKeys;

pub use prompt_client::{ClientName, PromptClient};
pub use topics::{TopicKind, Topics};

use event_loop::EventLoop;
use std::time::Instant;

/// Memory in bytes that the memory plan reserves for the MQTT link: answers waiting for the broker (1 MiB, twice
/// that while it accepts none), recent answers for repeated prompts (512 KiB), one received packet of maximum size
/// (1 MiB), and the MQTT library. Waiting prompts come on top; the plan counts them as the inbox, and the memory
/// guard watches the rest.
pub const LINK_BYTES: usize = 4 << 20;

/// Runs the MQTT front end until `context.close` is cancelled; returns when the remaining answers are with the
/// broker, or the flush timeout is over.
pub async fn run(context: MqttContext) {
    let mut event_loop = EventLoop::new(context);
    event_loop.load().await;
    while !event_loop.is_finished(Instant::now()) {
        event_loop.step().await;
    }
    event_loop.close().await;
}
