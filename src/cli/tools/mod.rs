//! The commands that examine or prepare a model, which a device does not need daily.
//!
//! Deliberately knows no configuration file and no running daemon: each command works on a model file by itself.

pub(super) mod bench;
pub(super) mod convert;
pub(super) mod eval;
pub(super) mod logits;
pub(super) mod perplexity;
pub(super) mod tokenize;
