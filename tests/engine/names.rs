//! What converters of other engines write into a file beside its numbers: scaling by 1, names of
//! activations, and `bitnet` for every BitNet.

use crate::data;
use crate::tiny::{self, VOCAB, text, texts};
use bitnetd::engine::gguf::{Datum, Draft, Gguf, Map};
use bitnetd::engine::{Engine, ModelFile, Options};
use std::io::Write;

/// A reference file with other metadata.
fn changed(file: &str, change: impl FnOnce(&mut Draft)) -> Engine {
    let bytes = std::fs::read(data(&format!("reference/{file}.i2_s.gguf"))).expect("data");
    let file = Gguf::parse(Map::from(bytes)).expect("sound");
    let mut draft = Draft::default();
    file.metadata().iter().for_each(|(key, _)| draft.copy(&file, key));
    change(&mut draft);
    file.tensors().iter().for_each(|t| draft.tensor(&t.name, t.kind, &t.dims).expect("as it was"));
    let mut writer = draft.begin(Vec::new()).expect("in memory");
    for tensor in file.tensors() {
        writer.write_all(&file.data(tensor)).expect("in memory");
        writer.end_tensor().expect("all of it");
    }
    load(writer.finish().expect("all of them"))
}

fn load(bytes: Vec<u8>) -> Engine {
    let file = ModelFile::parse(Map::from(bytes), "m.gguf", None).expect("sound");
    file.load(&Options { threads: 1, ..Options::default() }).expect("sound")
}

fn logits(engine: &Engine) -> Vec<u32> {
    let mut bits = Vec::new();
    let each = |_, logits: &[f32]| bits.extend(logits.iter().map(|x| x.to_bits()));
    engine.session(16).logits(&[5, 300, 17, 900, 44], each).expect("fits");
    bits
}

#[test]
fn linear_scaling_by_1_changes_nothing_and_by_2_stretches_the_positions() {
    let plain = logits(&changed("bitnet-tiny", |_| {}));
    let scaled = |factor: f32| {
        logits(&changed("bitnet-tiny", |draft| {
            draft.set("bitnet.rope.scaling.type", "linear");
            draft.set("bitnet.rope.scaling.factor", Datum::F32(factor));
        }))
    };
    assert!(scaled(1.0) == plain);
    assert!(scaled(2.0) != plain);
}

#[test]
fn the_activation_that_the_file_names_counts() {
    let plain = logits(&changed("bitnet-tiny", |_| {}));
    let named =
        |name: &str| logits(&changed("bitnet-tiny", |draft| draft.set("bitnet.hidden_activation", name)));
    assert!(named("silu") == plain, "usual for bitnet");
    assert!(named("relu2") != plain);
}

#[test]
fn bitnet_with_the_whole_vocabulary_of_llama_3_is_the_2b_model() {
    const LLAMA3: usize = 128_256;
    let mut file = tiny::small();
    let key = |key: &[u8]| String::from_utf8_lossy(key).replace("bitnet-b1.58.", "bitnet.").into_bytes();
    file.metadata.iter_mut().for_each(|(name, _)| *name = key(name));
    file.set("general.architecture", text("bitnet"));
    let taken = |engine: &Engine| engine.notes().iter().any(|note| note.contains("BitNet-b1.58-2B-4T"));
    assert!(!taken(&load(file.bytes())));
    let mut tokens = tiny::byte_tokens();
    tokens.extend(["he", "the", "<|begin_of_text|>", "<|eot_id|>"].map(String::from));
    tokens.extend((VOCAB..LLAMA3).map(|id| format!("[{id}]")));
    file.set("tokenizer.ggml.tokens", texts(&tokens));
    file.remove("tokenizer.ggml.token_type");
    let embedding = file.tensor("token_embd.weight");
    embedding.dims[1] = LLAMA3 as u64;
    embedding.data.resize(2 * 8 * LLAMA3, 0);
    assert!(taken(&load(file.bytes())));
}
