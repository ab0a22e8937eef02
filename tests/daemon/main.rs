//! The transports with a real broker and real sockets; the tests' own worker answers. The whole daemon with its
//! engine is in `tests/system`.

mod home_assistant;
mod http;
mod mqtt;
#[path = "../support/mod.rs"]
mod support;
mod unix;
