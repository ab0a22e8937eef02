//! Checkpoint folders, converted and run: the logits are those that transformers computes;
//! `tests/data/checkpoints/README.md` says how these were made.

use super::{converted, engine, folder, options};
use crate::data;
use bitnetd::engine::Engine;
use bitnetd::engine::convert::ConvertOptions;
use bitnetd::engine::gguf::{FileMap, Gguf};
use bitnetd::engine::quant::TensorType;
use serde::Deserialize;

#[derive(Deserialize)]
struct Expected {
    tokens: Vec<u32>,
    logits_file: String,
}

fn expected(name: &str) -> Expected {
    let text = std::fs::read(data(&format!("checkpoints/{name}/expected.json"))).expect("data");
    serde_json::from_slice(&text).expect("data")
}

/// Largest difference of a logit, as a share of the largest logit.
fn off(engine: &Engine, name: &str) -> f32 {
    let expected = expected(name);
    let want = std::fs::read(data(&format!("checkpoints/{name}/{}", expected.logits_file))).expect("data");
    let want: Vec<f32> = want.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let mut got = Vec::new();
    let row = |_, logits: &[f32]| got.extend_from_slice(logits);
    engine.exact_session(64).logits(&expected.tokens, row).expect("a sound prompt");
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    got.iter().zip(&want).fold(0.0f32, |worst, (x, y)| worst.max((x - y).abs())) / largest
}

#[track_caller]
fn check(name: &str, options: &ConvertOptions, most: f32) {
    let engine = engine(converted(&folder(name), options));
    let off = off(&engine, name);
    println!("{name} {options:?}: {off:.1e}");
    assert!(off <= most, "{name}: {off} of the largest logit");
}

#[test]
fn master_weights_become_the_model_that_transformers_runs() {
    check("b158-tiny", &options(), 1e-5);
}

#[test]
fn packed_weights_become_the_model_that_transformers_runs() {
    check("b158-tiny-packed", &options(), 1e-5);
}

#[test]
fn packed_weights_whose_scale_divides_become_a_llama_with_stretched_wavelengths() {
    check("llama-tiny-packed", &options(), 1e-5);
}

#[test]
fn a_checkpoint_in_several_files_with_wide_heads_becomes_the_model_that_transformers_runs() {
    check("falcon-tiny-sharded", &options(), 1e-5);
}

#[test]
fn matrices_that_fit_no_ternary_block_become_the_model_that_transformers_runs() {
    check("bitnet-tiny-f16", &options(), 1e-5);
    let file = Gguf::parse(FileMap::from(converted(&folder("bitnet-tiny-f16"), &options()))).expect("sound");
    let kind = |name: &str| file.tensor(name).map(|tensor| tensor.kind);
    // 200 columns are whole blocks of no kind, 96 are three of 32.
    assert_eq!(kind("blk.0.attn_q.weight"), Some(TensorType::F16));
    assert_eq!(kind("blk.0.ffn_down.weight"), Some(TensorType::Q4_0));
    assert_eq!(kind("blk.0.ffn_down.scale"), Some(TensorType::F32));
}

#[test]
fn the_vocabularies_of_checkpoints_cut_text_as_their_own_tokenizers_do() {
    let prompts = ["turn on the kitchen lights", "set the heating in the bedroom to twenty degrees"];
    for (name, prompt) in [
        ("llama-tiny-packed", prompts[0]),
        ("falcon-tiny-sharded", prompts[0]),
        ("bitnet-tiny-f16", prompts[1]),
    ] {
        let engine = engine(converted(&folder(name), &options()));
        // The prompt's first token begins the text.
        assert_eq!(engine.tokenizer().encode(prompt), expected(name).tokens[1..], "{name}");
        assert_eq!(engine.tokenizer().bos(), Some(expected(name).tokens[0]), "{name}");
    }
}
