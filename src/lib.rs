//! bitnetd: a daemon that runs a ternary language model on a small device and answers over MQTT and a Unix socket.
//!
//! ```text
//!  unix  http  mqtt  wyoming ── protocol ──> Inbound ──> guard ──> admission ──> scheduler ══> engine session:
//!    ^                           │ (1) reply sender <── Event per token ────────────┐    prefill > step* (one pass a step
//!    └───── (2) cancel flag: client gone, deadline, drain ──────────────────────────┼──> checked at every step    for all)
//!  sensors ──(3) read-only host snapshot                                            │
//!  telemetry <── worker folds timings and energy ───────────────────────────────────┘
//! ```
//!
//! Imports run one way, from left to right. At run time exactly the three numbered things come back, and the few
//! settings that a reload may change. Commands (cancel the running request, limit the threads) go the way of requests,
//! but past admission.
//!
//! - [`external_text`]: byte-order marks and duplicate keys, for every module that reads text from outside.
//! - [`random`]: pseudo-random numbers that are the same on every machine, for synthetic models and tests.
//! - [`config`]: checked settings. [`protocol`]: requests and events. Both are plain data.
//! - [`guard`]: what a client may ask, and how often.
//! - [`home`]: the names of the home, and the grammar of the answers that it allows.
//! - [`telemetry`]: sensors, counters, latencies, energy, alerts and the log.
//! - [`transport`]: the MQTT, Unix-socket and Wyoming front ends. They know nothing of the engine.
//! - [`engine`]: inference. It knows nothing of the daemon: no tokio, no log, no environment.
//! - [`daemon`]: the only module that sees both sides.
//! - [`cli`]: the command line, one file for each command.
//!
//! Invariants: no registry of clients, since each request carries its reply channel; no unbounded channel; no lock held
//! across an await; no allocation in the decode loop; no panic on bad input. `tests/tidy` checks which module may
//! import which.

pub mod cli;
pub mod config;
pub mod daemon;
pub mod engine;
pub mod external_text;
pub mod guard;
pub mod home;
pub mod protocol;
pub mod random;
pub mod telemetry;
pub mod transport;
