//! The engine as a user of the library sees it: files with known right answers, damaged files, and
//! every kernel against the reference.

mod allocations;
mod caches;
mod convert;
mod damaged;
mod dense;
mod exactness;
mod formats;
mod four_codes;
mod heads;
mod intents;
mod kept;
mod kernels;
mod layouts;
mod names;
mod perplexity;
mod reference;
mod screen;
mod seeds;
mod shapes;
mod shared_rows;
mod templates;
mod threads;
mod tiny;
mod tokenizer;
mod tokenizer_answers;

use std::path::PathBuf;

/// A file of `tests/data`.
fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}
