//! Metadata quirks of other engines' converters: scaling by 1, names of activations, and `bitnet` for every BitNet.

use crate::data;
use crate::fixtures::{self, VOCAB, text, texts};
use bitnetd::engine::gguf::{FileMap, Gguf, GgufDraft, NewValue};
use bitnetd::engine::{Engine, EngineOptions, ModelFile};
use std::io::Write;

/// A reference file with other metadata.
fn changed(file: &str, change: impl FnOnce(&mut GgufDraft)) -> Engine {
    let bytes = std::fs::read(data(&format!("reference/{file}.i2_s.gguf"))).expect("data");
    let file = Gguf::parse(FileMap::from(bytes)).expect("sound");
    let mut draft = GgufDraft::default();
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
    let file = ModelFile::parse(FileMap::from(bytes), "m.gguf", None).expect("sound");
    file.load(&EngineOptions { threads: 1, ..EngineOptions::default() }).expect("sound")
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
            draft.set("bitnet.rope.scaling.factor", NewValue::F32(factor));
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
    let mut file = fixtures::small();
    let key = |key: &[u8]| String::from_utf8_lossy(key).replace("bitnet-b1.58.", "bitnet.").into_bytes();
    file.metadata.iter_mut().for_each(|(name, _)| *name = key(name));
    file.set("general.architecture", text("bitnet"));
    let taken = |engine: &Engine| engine.notes().iter().any(|note| note.contains("BitNet-b1.58-2B-4T"));
    assert!(!taken(&load(file.bytes())));
    let mut tokens = fixtures::byte_tokens();
    tokens.extend(["he", "the", "<|begin_of_text|>", "<|eot_id|>"].map(String::from));
    tokens.extend((VOCAB..LLAMA3).map(|id| format!("[{id}]")));
    file.set("tokenizer.ggml.tokens", texts(&tokens));
    file.remove("tokenizer.ggml.token_type");
    let embedding = file.tensor("token_embd.weight");
    embedding.dims[1] = LLAMA3 as u64;
    embedding.data.resize(2 * 8 * LLAMA3, 0);
    assert!(taken(&load(file.bytes())));
}

/// What a changed file is refused with.
fn error(change: impl FnOnce(&mut fixtures::File)) -> String {
    let mut file = fixtures::small();
    change(&mut file);
    let parsed = ModelFile::parse(FileMap::from(file.bytes()), "m.gguf", None);
    let message = parsed
        .and_then(|file| file.load(&EngineOptions { threads: 1, ..EngineOptions::default() }).map(drop));
    message.expect_err("what changes the result").to_string()
}

#[test]
fn keys_that_change_a_result_are_refused_by_name_and_others_are_not() {
    for (key, value) in [
        ("bitnet-b1.58.attention.sliding_window", fixtures::number(128)),
        ("bitnet-b1.58.expert_count", fixtures::number(8)),
        ("bitnet-b1.58.rope.scaling.yarn_log_multiplier", fixtures::float(0.1)),
        ("bitnet-b1.58.attention.unheard_of", fixtures::flag(true)),
        ("bitnet-b1.58.logit_scale", fixtures::float(0.5)),
        ("general.type", text("adapter")),
        ("tokenizer.ggml.add_eos_token", fixtures::flag(true)),
        ("tokenizer.ggml.precompiled_charsmap", fixtures::array(0, 3, &[1, 2, 3])),
        ("tokenizer.ggml.unheard_of", fixtures::number(1)),
    ] {
        let message = error(|file| file.set(key, value));
        assert!(message.starts_with(&format!("m.gguf: metadata key {key}: ")), "{key}: {message}");
    }
    let mut file = fixtures::small();
    for (key, value) in [
        ("bitnet-b1.58.attention.sliding_window", fixtures::number(0)),
        ("bitnet-b1.58.expert_count", fixtures::number(0)),
        ("bitnet-b1.58.attention.causal", fixtures::flag(true)),
        ("llama.attention.sliding_window", fixtures::number(128)),
        ("general.type", text("model")),
        ("general.unheard_of", fixtures::number(1)),
        ("tokenizer.ggml.add_eos_token", fixtures::flag(false)),
        ("tokenizer.chat_template.tool_use", text("x")),
        ("split.count", fixtures::number(1)),
    ] {
        file.set(key, value);
    }
    load(file.bytes());
}

#[test]
fn a_part_of_a_split_file_is_called_so() {
    let message = error(|file| {
        file.set("split.no", fixtures::number(1));
        file.set("split.count", fixtures::number(3));
    });
    assert!(message.contains("split.count") && message.contains("part 2 of 3"), "{message}");
}

#[test]
fn every_end_token_of_a_list_ends_an_answer() {
    let mut file = fixtures::small();
    file.set("tokenizer.ggml.eos_token_ids", fixtures::integers(&[3, -1, 5]));
    file.set("tokenizer.ggml.eot_token_id", fixtures::array(4, 1, &7u32.to_le_bytes()));
    let engine = load(file.bytes());
    let ends: Vec<u32> = (0..10).filter(|id| engine.tokenizer().is_end(*id)).collect();
    assert_eq!(ends, [3, 5, 7]);
    let message = error(|file| file.set("tokenizer.ggml.eos_token_ids", fixtures::integers(&[1 << 20])));
    assert!(message.contains("eos_token_ids") && message.contains("outside"), "{message}");
}
