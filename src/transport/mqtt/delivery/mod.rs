//! Delivery between the broker and the daemon: each prompt is answered once, and each answer reaches the broker,
//! also over lost connections and restarts.
//!
//! A prompt passes through `dedup` (new, or a redelivery?), `backlog` (until the worker has a free slot) and `requests`
//! (while it is answered); its events go to the `outbox`, which keeps them until the broker's PUBACK.
//! `recent_answers` answers a repeated prompt again, `alert_queue` keeps alerts, `retained_prompts` and
//! `refused_publishes` keep a refusal from being repeated. `answer_log` stores what must survive the process, and
//! `persistence` translates between it and the others.
//!
//! Deliberately knows neither the network nor the MQTT library.

pub mod alert_queue;
pub mod answer_log;
pub mod backlog;
pub mod clock;
pub mod dedup;
pub mod dedup_keys;
pub mod outbox;
pub mod persistence;
pub mod recent_answers;
mod refused_publishes;
pub mod requests;
pub mod retained_prompts;
