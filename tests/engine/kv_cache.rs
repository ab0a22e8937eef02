//! The forms of the KV cache: what they take, and what they change.

use crate::fixtures::{self, Weights, number};
use bitnetd::engine::gguf::Map;
use bitnetd::engine::model::CacheForm;
use bitnetd::engine::{Engine, ModelFile, Options, Source};

fn open(form: CacheForm) -> ModelFile {
    ModelFile::open(&Source::BuiltIn, None).and_then(|file| file.with_cache(form)).expect("sound")
}

fn load(form: CacheForm) -> Engine {
    open(form).load(&Options { threads: 2, ..Options::default() }).expect("sound")
}

/// Logits of every position of a text, all of which the cache has rounded before.
fn logits(form: CacheForm) -> Vec<f32> {
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
    assert_eq!(bytes(CacheForm::F32), 2 * bytes(CacheForm::F16));
    assert_eq!(bytes(CacheForm::Int8) * 32, bytes(CacheForm::F16) * 17);
    let exact = logits(CacheForm::F32);
    let (half, int8) =
        (distance(&logits(CacheForm::F16), &exact), distance(&logits(CacheForm::Int8), &exact));
    assert!(half > 0.0 && half < 0.05, "{half}");
    assert!(int8 > 0.0 && int8 < 0.10, "{int8}");
}

#[test]
fn int8_refuses_heads_that_are_no_whole_blocks_and_names_the_way_out() {
    let mut file = fixtures::model(128, Weights::I2S);
    // Two heads of 64 numbers become as many of 48: their rows have another size, which comes first.
    let sound = ModelFile::parse(Map::from(file.bytes()), "m.gguf", None).expect("sound");
    assert!(sound.with_cache(CacheForm::Int8).is_ok());
    file.set("bitnet-b1.58.attention.head_count", number(8));
    file.set("bitnet-b1.58.attention.head_count_kv", number(4));
    file.set("bitnet-b1.58.rope.dimension_count", number(16));
    let narrow = ModelFile::parse(Map::from(file.bytes()), "m.gguf", None);
    let refused =
        narrow.and_then(|file| file.with_cache(CacheForm::Int8)).expect_err("heads of 16").to_string();
    assert!(refused.contains("m.gguf") && refused.contains("use f16"), "{refused}");
}
