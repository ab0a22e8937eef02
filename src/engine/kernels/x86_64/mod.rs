//! The kernels for x86-64, with a folder for each instruction set.
//!
//! Deliberately knows nothing of which of them a CPU can run: [`super::cpu_features`] asks.

pub(super) mod avx2;
pub(super) mod avx512;
pub(super) mod avx_vnni;
mod row_streams;
