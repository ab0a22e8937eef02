//! The map of bitnetd: a daemon that runs a ternary language model on a small device and answers
//! over MQTT and a Unix socket.
//!
//! ```text
//!  unix  mqtt ── frame, json ──> Inbound ──> admission ──> worker ══> engine session:
//!   ^                               │ (1) reply  <── Event per token ──┐   tokenise > prefill > step*
//!   └───────── (2) cancel flag: client gone, deadline, drain ──────────┼──> checked at every step
//!  sensors ──(3) read-only host snapshot                               │
//!  telemetry <── worker folds timings and energy ──────────────────────┘
//! ```
//!
//! Imports run one way, from left to right; exactly the three numbered things come back, and the few
//! settings that a reload may change. Controls (cancel what runs, limit the threads) go the way of requests, past
//! admission.
//!
//! - [`external_text`]: byte-order marks and duplicate keys, for every module that reads text from outside.
//! - [`config`]: checked settings. [`protocol`]: requests and events. Neither does any work.
//! - [`telemetry`]: what the host and the daemon are doing.
//! - [`transport`]: the doors. They know nothing of the engine.
//! - [`engine`]: the model. It knows nothing of the daemon: no tokio, no log, no environment.
//! - [`daemon`]: the only place that sees both sides.
//! - [`cli`]: one file a command.
//!
//! Invariants, as absences: no registry of clients; no unbounded channel; no lock held across an
//! await; no allocation in the decode loop; no panic on bad input. `tests/tidy` checks the doors
//! between the rooms.

pub mod cli;
pub mod config;
pub mod daemon;
pub mod engine;
pub mod external_text;
pub mod protocol;
pub mod telemetry;
pub mod transport;
