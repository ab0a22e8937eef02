//! Delivery of prompts and answers between the broker and the daemon: at least once, and answered once.
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
