//! Files that are damaged, hostile or of another kind: each is an error of one line that names the key or tensor, none
//! is a panic, and none makes the loader allocate more than is justified by its size.

pub mod command;
mod header;
mod hyperparameters;
mod known_cves;
mod sentencepiece;
mod tensors;
mod vocabulary;

use crate::allocations;
use crate::fixtures::{self, File};
use bitnetd::engine::error::LoadError;
use bitnetd::engine::gguf::FileMap;
use bitnetd::engine::{EngineOptions, ModelFile};

/// What reading any model takes whatever its size: its tables grow in powers of two.
const FIXED: usize = 16 << 10;

pub fn load(bytes: Vec<u8>) -> Result<(), LoadError> {
    let file = ModelFile::parse(FileMap::from(bytes), "m.gguf", None)?;
    // The plan is made before anything is loaded, so it must stand any numbers too.
    let _ = file.footprint().total(file.shape().context, 1);
    file.load(&EngineOptions { threads: 1, ..EngineOptions::default() }).map(drop)
}

/// The error of a damaged file, after checking what holds for every error.
#[track_caller]
fn error_of(bytes: Vec<u8>) -> String {
    let size = bytes.len();
    let (result, largest) = allocations::largest(|| load(bytes));
    let message = result.expect_err("a damaged file must not load").to_string();
    assert!(largest <= 4 * size + FIXED, "{largest} bytes at once for a file of {size}: {message}");
    assert!(message.starts_with("m.gguf: "), "{message}");
    assert!(!message.contains(char::is_control), "{message:?}");
    assert!((20..400).contains(&message.len()), "{message}");
    message
}

/// Damages the small model and looks for `wanted` in its error.
#[track_caller]
fn refused(wanted: &str, damage: impl FnOnce(&mut File)) {
    refused_of(fixtures::small(), wanted, damage);
}

/// The same with the model whose weights are I2_S.
#[track_caller]
fn refused_blocks(wanted: &str, damage: impl FnOnce(&mut File)) {
    refused_of(fixtures::blocks(), wanted, damage);
}

#[track_caller]
fn refused_of(mut file: File, wanted: &str, damage: impl FnOnce(&mut File)) {
    damage(&mut file);
    let message = error_of(file.bytes());
    assert!(message.contains(wanted), "{wanted:?} is not in {message:?}");
}

#[test]
fn the_files_that_are_damaged_here_were_sound_before() {
    for file in [fixtures::small(), fixtures::blocks()] {
        load(file.bytes()).expect("sound");
    }
}
