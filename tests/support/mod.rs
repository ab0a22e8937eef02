//! What several test binaries need: a broker.

pub mod broker;
