//! The formats of the KV cache: their memory, and their effect on answers.

use crate::fixtures::{self, Weights, number};
use bitnetd::engine::gguf::FileMap;
use bitnetd::engine::model::KvCacheFormat;
use bitnetd::engine::{Engine, EngineOptions, ModelFile, Source};

fn open(form: KvCacheFormat) -> ModelFile {
    ModelFile::open(&Source::BuiltIn, None).and_then(|file| file.with_cache(form)).expect("sound")
}

fn load(form: KvCacheFormat) -> Engine {
    open(form).load(&EngineOptions { threads: 2, ..EngineOptions::default() }).expect("sound")
}

/// Logits of every position of a text, all of which the cache has rounded before.
fn logits(form: KvCacheFormat) -> Vec<f32> {
    let engine = load(form);
    let tokens = engine.tokenizer().encode("turn on the kitchen lights and close the blinds in the bedroom");
    let mut all = Vec::new();
    engine.session(64).logits(&tokens, |_, logits| all.extend_from_slice(logits)).expect("fits");
    all
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    let square = |x: f32| x * x;
    let off: f32 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    (off / b.iter().map(|b| square(*b)).sum::<f32>()).sqrt()
}

#[test]
fn int8_takes_half_the_memory_and_is_nearly_as_exact() {
    let bytes = |form| open(form).footprint().cache_per_token;
    assert_eq!(bytes(KvCacheFormat::F32), 2 * bytes(KvCacheFormat::F16));
    assert_eq!(bytes(KvCacheFormat::Int8) * 32, bytes(KvCacheFormat::F16) * 17);
    let exact = logits(KvCacheFormat::F32);
    let (half, int8) =
        (distance(&logits(KvCacheFormat::F16), &exact), distance(&logits(KvCacheFormat::Int8), &exact));
    assert!(half > 0.0 && half < 0.05, "{half}");
    assert!(int8 > 0.0 && int8 < 0.10, "{int8}");
}

#[test]
fn int8_refuses_heads_that_are_no_whole_blocks_and_names_the_way_out() {
    let mut file = fixtures::model(128, Weights::I2S);
    // Two heads of 64 numbers become as many of 48: their rows have another size, which comes first.
    let sound = ModelFile::parse(FileMap::from(file.bytes()), "m.gguf", None).expect("sound");
    assert!(sound.with_cache(KvCacheFormat::Int8).is_ok());
    file.set("bitnet-b1.58.attention.head_count", number(8));
    file.set("bitnet-b1.58.attention.head_count_kv", number(4));
    file.set("bitnet-b1.58.rope.dimension_count", number(16));
    let narrow = ModelFile::parse(FileMap::from(file.bytes()), "m.gguf", None);
    let refused =
        narrow.and_then(|file| file.with_cache(KvCacheFormat::Int8)).expect_err("heads of 16").to_string();
    assert!(refused.contains("m.gguf") && refused.contains("use f16"), "{refused}");
}
