//! The seeds of the fuzz target `gguf`, made here so that they follow the format of [`fixtures`](crate::fixtures).

use crate::fixtures::{self, File, float, number, text};
use std::path::PathBuf;

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let whole = fixtures::small().bytes();
    vec![
        ("cut.gguf", whole[..whole.len() / 2].to_vec()),
        ("llama.gguf", llama().bytes()),
        ("overlap.gguf", damaged(|file| file.tensor("output_norm.weight").said_offset = Some(0))),
        ("two-keys.gguf", damaged(|file| file.metadata.push((b"general.architecture".to_vec(), text("x"))))),
        ("unknown-type.gguf", damaged(|file| file.tensor("token_embd.weight").kind = 13)),
        ("small.gguf", whole),
        ("tq1.gguf", blocks(34, [&[77; 52][..], &SCALE].concat().repeat(8)).bytes()),
        ("q4-ternary.gguf", blocks(2, [&SCALE[..], &[0x80, 0xf8].repeat(8)].concat().repeat(64)).bytes()),
        ("q8-dense.gguf", blocks(8, [&SCALE[..], &dense(32)[..]].concat().repeat(64)).bytes()),
        ("q4k-dense.gguf", blocks(12, [&SCALE[..], &SCALE, &dense(140)[..]].concat().repeat(8)).bytes()),
        ("q6k-dense.gguf", blocks(14, [&dense(208)[..], &SCALE].concat().repeat(8)).bytes()),
        ("tq2.gguf", blocks(35, [&[CODES; 64][..], &SCALE].concat().repeat(8)).bytes()),
        ("i2s.gguf", blocks(36, [&[CODES; 512][..], &0.5f32.to_le_bytes(), &[0; 28]].concat()).bytes()),
    ]
}

/// Codes of numbers that are not ternary.
fn dense(len: u8) -> Vec<u8> {
    (0..len).map(|at| at.wrapping_mul(29)).collect()
}

fn damaged(damage: impl FnOnce(&mut File)) -> Vec<u8> {
    let mut file = fixtures::small();
    damage(&mut file);
    file.bytes()
}

/// One half, in half precision.
const SCALE: [u8; 2] = [0x00, 0x38];
/// Four ternary codes.
const CODES: u8 = 0b00_01_10_01;

/// The small model with rows of 256 in its last matrix, which `data` gives in blocks.
fn blocks(kind: u32, data: Vec<u8>) -> File {
    const FFN: u64 = 256;
    let mut file = fixtures::small();
    file.set("bitnet-b1.58.feed_forward_length", number(FFN as u32));
    for name in ["blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"] {
        let tensor = file.tensor(name);
        tensor.dims[1] = FFN;
        tensor.data = tensor.data.repeat(FFN as usize / 8);
    }
    let norm = file.tensor("blk.0.ffn_sub_norm.weight");
    norm.dims[0] = FFN;
    norm.data = norm.data.repeat(FFN as usize / 8);
    let down = file.tensor("blk.0.ffn_down.weight");
    (down.kind, down.dims[0], down.data) = (kind, FFN, data);
    file
}

/// Every part of a model that is optional: a head and scales of its own, rotation factors.
fn llama() -> File {
    let mut file = fixtures::small();
    file.set("general.architecture", text("llama"));
    for (key, _) in &mut file.metadata {
        let name = String::from_utf8_lossy(key).replace("bitnet-b1.58.", "llama.");
        *key = name.into_bytes();
    }
    file.tensors.retain(|tensor| !String::from_utf8_lossy(&tensor.name).contains("sub_norm"));
    file.set("general.alignment", number(64));
    file.alignment = 64;
    file.set("llama.rope.freq_base", float(500.0));
    let ones = |len: usize| 1f32.to_le_bytes().repeat(len);
    file.add("rope_freqs.weight", 0, &[2], ones(2));
    file.add("blk.0.attn_q.scale", 0, &[1], ones(1));
    let embedding = file.tensor("token_embd.weight").clone();
    file.add("output.weight", embedding.kind, &embedding.dims, embedding.data);
    file
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds/gguf")
}

#[test]
fn the_seeds_are_those_made_here() {
    for (name, bytes) in seeds() {
        let stored = std::fs::read(folder().join(name)).unwrap_or_default();
        assert!(stored == bytes, "{name}: write the seeds again with the ignored test of this file");
    }
}

#[test]
#[ignore = "writes the seeds"]
fn write_the_seeds() {
    for (name, bytes) in seeds() {
        std::fs::write(folder().join(name), bytes).expect("a folder of the repository");
    }
}

#[test]
fn the_seeds_that_are_not_called_damaged_are_sound() {
    let damaged = ["cut.gguf", "overlap.gguf", "two-keys.gguf", "unknown-type.gguf"];
    for (name, bytes) in seeds() {
        let loaded = crate::damaged::load(bytes);
        assert_eq!(loaded.is_err(), damaged.contains(&name), "{name}: {loaded:?}");
    }
}
