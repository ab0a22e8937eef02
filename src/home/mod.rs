//! The names of the home: which devices, areas and floors there are, and what a sentence may call them.
//!
//! ```text
//! discovery, zigbee2mqtt ──> HomeNames ── snapshot ──> Home ── mentions ──> intent grammar ──> intent answer
//! file, overview ──────────────^
//! ```
//!
//! `discovery` and `zigbee2mqtt` read what a broker retains, `file` what the owner wrote, `overview` what
//! Home Assistant writes into a request; `store` merges the first three within
//! fixed limits. A [`Home`] is what they say at one moment: it never changes, and is shared by reference. `mention`
//! finds its names in a prompt, `intents` is the list of Home Assistant's intents, `grammar` makes of both the grammar
//! of an answer, `answer` turns what was decoded into the answer that is sent, and `tool_call` makes a call of it where
//! a client offers functions that have the names of intents.
//!
//! Pure: payloads come in, texts go out. Deliberately knows no broker, no model and no engine.

mod answer;
mod capped;
pub mod discovery;
mod evidence;
pub mod file;
mod grammar;
mod intents;
mod mention;
mod names;
pub mod overview;
mod shared;
mod snapshot;
mod store;
pub mod tool_call;
mod words;
pub mod zigbee2mqtt;

pub use answer::{Decision, IntentPrompt, IntentScope, NOTHING_FITS, THRESHOLD};
pub use intents::{IntentCheck, check_intent};
pub use names::{MAX_NAME_BYTES, MAX_NAMES, NameList, NamedDevice, NamedPlace};
pub use shared::SharedHome;
pub use snapshot::Home;
pub use store::{HOME_BYTES, HomeNames, NameTopics};
