//! Placeholder until the system tests land.
fn main() {}
