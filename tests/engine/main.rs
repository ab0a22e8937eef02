//! The engine as a user of the library sees it: files with known right answers, damaged files, and
//! every kernel against the reference.

mod allocations;
mod choices;
mod convert;
mod damaged;
mod dense_layers;
mod derived_cache;
mod exactness;
mod fixtures;
mod formats;
mod fuzz_seeds;
mod home_intents;
mod home_names;
mod i2s_layouts;
mod kernels;
mod kv_cache;
mod metadata_quirks;
mod perplexity;
mod prefix_store;
mod reference_logits;
mod shared_decoding;
mod shared_row_kernels;
mod shortlist;
mod speculation;
mod structured_output;
mod suspended_prefixes;
mod suspension;
mod synthetic;
mod templates;
mod thread_tuner;
mod tied_embedding;
mod tokenizer;
mod tokenizer_conformance;
mod two_bit_codes;

use std::path::PathBuf;

/// Whether the tests run under an emulator, where what computes takes fifty times as long: fewer cases of it run there.
fn is_emulated() -> bool {
    std::env::var_os("BITNETD_RUNNER").is_some_and(|runner| !runner.is_empty())
}

/// How many cases of a test run: so many under an emulator, all of them elsewhere.
fn few(cases: usize) -> usize {
    if is_emulated() { cases } else { usize::MAX }
}

/// A file of `tests/data`.
fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}
