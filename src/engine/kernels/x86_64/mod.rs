//! Kernels for x86-64: a folder for each instruction set, and the order in which all of them read rows.
//!
//! Deliberately knows nothing of which of them a processor runs: the table above asks.

pub(super) mod avx2;
pub(super) mod avx512;
pub(super) mod avx_vnni;
mod row_streams;
