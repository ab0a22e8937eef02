//! What several test binaries need: a broker, and certificates for it.

pub mod broker;
pub mod certificates;
