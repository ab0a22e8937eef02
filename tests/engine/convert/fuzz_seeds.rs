//! The seeds of the fuzz target `safetensors`, made here: checkpoints of a few kilobytes.

use super::{engine, options};
use crate::fixtures::byte_tokens;
use crate::is_emulated;
use bitnetd::engine::convert::{CheckpointFolder, ConvertError, ConvertPlan};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

const DIM: usize = 8;
const VOCAB: usize = 260;
/// One, as BF16.
const ONE: [u8; 2] = [0x80, 0x3f];

/// The files of a checkpoint, with a zero byte between them.
fn seed(config: &Value, tensors: &[(String, &str, Vec<usize>, Vec<u8>)]) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len();
        data.extend(bytes);
        header.insert(
            name.clone(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]}),
        );
    }
    let header = Value::from(header).to_string().into_bytes();
    let len = (header.len() as u64).to_le_bytes().to_vec();
    let json =
        [config.clone(), tokenizer(), companion(), json!({"eos_token_id": [258, 3], "temperature": 0.6})];
    let mut parts: Vec<Vec<u8>> = json.iter().map(|value| value.to_string().into_bytes()).collect();
    parts.push([len, header, data].concat());
    parts.join(&0)
}

/// Files of a seed, in the order of its parts; the last may hold any byte.
const NAMES: [&str; 5] =
    ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors"];

fn parts(seed: &[u8]) -> CheckpointFolder {
    let parts = seed.splitn(NAMES.len(), |byte| *byte == 0).map(<[u8]>::to_vec);
    CheckpointFolder::memory(NAMES.map(String::from).into_iter().zip(parts))
}

fn companion() -> Value {
    json!({
        "bos_token": "<s>", "eos_token": {"content": "<s>", "lstrip": false}, "add_bos_token": true,
        "added_tokens_decoder": {"258": {"content": "<s>", "special": true}}, "additional_special_tokens": ["<s>"],
    })
}

fn tokenizer() -> Value {
    let mut tokens = byte_tokens();
    tokens.extend(["he", "the"].map(String::from));
    let vocab: Map<String, Value> = tokens.into_iter().zip((0..).map(|id: u32| id.into())).collect();
    let split = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    json!({
        "added_tokens": [{"id": 258, "content": "<s>", "special": true}],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": ["h e", ["t", "he"]]},
    })
}

fn config(class: &str, more: Value) -> Value {
    let mut config = json!({
        "architectures": [class], "hidden_size": DIM, "intermediate_size": DIM, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "vocab_size": VOCAB,
        "rms_norm_eps": 1e-5, "bos_token_id": 258, "eos_token_id": [258],
    });
    config.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    config
}

const NORMS: [&str; 2] = ["input_layernorm", "post_attention_layernorm"];

fn tensors(packed: bool, norms: &[&str]) -> Vec<(String, &'static str, Vec<usize>, Vec<u8>)> {
    let table = |name: String, shape: Vec<usize>| {
        let len = shape.iter().product();
        (name, "BF16", shape, ONE.repeat(len))
    };
    let mut all = vec![table("model.embed_tokens.weight".into(), vec![VOCAB, DIM])];
    all.push(table("model.norm.weight".into(), vec![DIM]));
    all.extend(norms.iter().map(|norm| table(format!("model.layers.0.{norm}.weight"), vec![DIM])));
    for name in ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"]
    {
        let rows = if ["self_attn.k", "self_attn.v"].contains(&name) { DIM / 2 } else { DIM };
        let name = format!("model.layers.0.{name}_proj.weight");
        if packed {
            all.push((format!("{name}_scale"), "BF16", vec![1], ONE.to_vec()));
            all.push((name, "U8", vec![rows / 4, DIM], vec![0b10_01_00_01; rows / 4 * DIM]));
        } else {
            all.push(table(name, vec![rows, DIM]));
        }
    }
    all
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let offline = json!({"linear_class": "autobitlinear", "quantization_mode": "offline"});
    let bitnet = config("BitNetForCausalLM", json!({"hidden_act": "relu2", "quantization_config": offline}));
    let llama3 = json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
        "original_max_position_embeddings": 16});
    let llama = json!({"quantization_config": {"quant_method": "bitnet"}, "rope_scaling": llama3});
    let sub_norms = [&NORMS[..], &["self_attn.attn_sub_norm", "mlp.ffn_sub_norm"]].concat();
    let first_names = [&NORMS[..], &["self_attn.inner_attn_ln", "mlp.ffn_layernorm"]].concat();
    vec![
        ("bitnet-packed", seed(&bitnet, &tensors(true, &sub_norms))),
        ("llama-packed", seed(&config("LlamaForCausalLM", llama), &tensors(true, &NORMS))),
        ("bitnet-master", seed(&config("BitnetForCausalLM", json!({})), &tensors(false, &first_names))),
    ]
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds/safetensors")
}

#[test]
fn the_seeds_are_those_made_here_and_sound() {
    for (name, bytes) in seeds() {
        let stored = std::fs::read(folder().join(name)).unwrap_or_default();
        assert!(stored == bytes, "{name}: write the seeds again with the ignored test of this file");
        let plan = ConvertPlan::checkpoint(&parts(&bytes), &options()).expect(name);
        engine(plan.write(Vec::new()).expect(name));
    }
}

/// What one damaged byte makes of a checkpoint: an error of one line, or a file that loads.
fn damaged(bytes: &[u8]) -> bool {
    let plan = ConvertPlan::checkpoint(&parts(bytes), &options());
    match plan.map_err(ConvertError::from).and_then(|plan| plan.write(Vec::new())) {
        Ok(file) => drop(engine(file)),
        Err(error) => {
            let message = error.to_string();
            assert!(message.len() < 1000 && !message.contains(char::is_control), "{message:?}");
            return true;
        }
    }
    false
}

#[test]
fn a_checkpoint_with_a_damaged_byte_is_refused_or_still_sound() {
    for (name, seed) in seeds() {
        let mut refused = 0;
        // Steps that reach every kind of place in turn.
        let step = if is_emulated() { 13 * 16 } else { 13 };
        for at in (0..seed.len()).step_by(step) {
            let mut bytes = seed.clone();
            bytes[at] = [0xff, b'"', b'9', b'-', 1][at / step % 5];
            refused += usize::from(damaged(&bytes));
        }
        assert!(refused > seed.len() / step / 4, "{name}: {refused}");
    }
}

#[test]
#[ignore = "writes the seeds"]
fn write_the_seeds() {
    for (name, bytes) in seeds() {
        std::fs::write(folder().join(name), bytes).expect("a folder of the repository");
    }
}
