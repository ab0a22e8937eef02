//! The first release of BitNet-b1.58-2B-4T: named `bitnet-25`, with a copy of the embedding as head.

use crate::fixtures::{self, File, VOCAB, Weights, number, text};
use bitnetd::engine::gguf::FileMap;
use bitnetd::engine::{Engine, EngineOptions, ModelFile};

const DIM: usize = 128;

/// The same model under its first name.
fn first_release() -> File {
    let mut file = fixtures::model(DIM, Weights::I2S);
    let renamed =
        |key: &[u8]| String::from_utf8_lossy(key).replace("bitnet-b1.58.", "bitnet-25.").into_bytes();
    file.metadata.iter_mut().for_each(|(key, _)| *key = renamed(key));
    file.set("general.architecture", text("bitnet-25"));
    file.set("bitnet-25.rope.dimension_count", number(DIM as u32 / 2));
    file
}

fn add_head(file: &mut File, change: impl FnOnce(&mut Vec<u8>)) {
    let embedding = file.tensor("token_embd.weight").clone();
    let mut data = embedding.data;
    change(&mut data);
    file.add("output.weight", embedding.kind, &[DIM as u64, VOCAB as u64], data);
}

fn open(file: &File) -> ModelFile {
    ModelFile::parse(FileMap::from(file.bytes()), "m.gguf", None).expect("sound")
}

fn load(file: &File) -> Engine {
    open(file).load(&EngineOptions { threads: 1, ..EngineOptions::default() }).expect("sound")
}

fn logits(engine: &Engine) -> Vec<u32> {
    let mut bits = Vec::new();
    let each = |_, logits: &[f32]| bits.extend(logits.iter().map(|x| x.to_bits()));
    engine.session(8).logits(&[1, 200, 259], each).expect("fits");
    bits
}

#[test]
fn a_head_that_is_a_copy_of_the_embedding_is_not_read() {
    let without = first_release();
    let mut with = without.clone();
    add_head(&mut with, |_| {});
    assert_eq!(open(&with).footprint(), open(&without).footprint(), "no memory is planned for it");
    let (engine, same) = (load(&with), load(&without));
    assert_eq!(logits(&engine), logits(&same));
    assert_eq!(engine.model().bytes_per_token(), same.model().bytes_per_token());
    let message = |engine: &Engine| engine.notes().iter().any(|note| note.contains("copy of the embedding"));
    assert!(message(&engine) && !message(&same), "{:?}", engine.notes());
}

#[test]
fn a_head_of_its_own_is_read() {
    let without = first_release();
    let mut with = without.clone();
    // One row of those that are compared would be enough; a head of its own differs in all.
    add_head(&mut with, |data| data.reverse());
    assert!(open(&with).footprint().mapped > open(&without).footprint().mapped);
    assert_ne!(logits(&load(&with)), logits(&load(&without)));
}
