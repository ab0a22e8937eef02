//! The doors, with the real broker and real sockets; a worker of the tests' own answers. The whole
//! daemon with its engine is in `tests/system`.

mod mqtt;
#[path = "../support/mod.rs"]
mod support;
mod unix;
