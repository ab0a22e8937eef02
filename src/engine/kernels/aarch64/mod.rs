//! Kernels for aarch64: a folder for each instruction set.
//!
//! Deliberately knows nothing of which of them a processor runs: the table above asks.

pub(super) mod neon;
pub(super) mod neon_dotprod;
