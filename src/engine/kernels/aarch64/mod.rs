//! The kernels for aarch64, with a folder for each instruction set.
//!
//! Deliberately knows nothing of which of them a CPU can run: [`super::cpu_features`] asks.

pub(super) mod neon;
pub(super) mod neon_dotprod;
