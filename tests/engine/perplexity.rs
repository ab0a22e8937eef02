//! Perplexity against the reference's logits, and the windows it goes through.

use crate::{data, few};
use bitnetd::engine::perplexity::Perplexity;
use bitnetd::engine::{Engine, EngineOptions, ModelFile, Source};

fn tiny() -> Engine {
    let file = ModelFile::open(&Source::File(data("reference/b158-tiny.i2_s.gguf")), None).expect("sound");
    file.load(&EngineOptions { threads: 1, ..EngineOptions::default() }).expect("sound")
}

/// `-ln p(token)` in f64.
fn nats(logits: &[f32], token: u32) -> f64 {
    let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
    sum.ln() - f64::from(logits[token as usize])
}

#[test]
fn perplexity_is_that_of_the_reference_logits() {
    let text = std::fs::read_to_string(data("reference/b158-tiny.json")).expect("data");
    let reference: serde_json::Value = serde_json::from_str(&text).expect("data");
    let case = &reference["cases"][1];
    let tokens: Vec<u32> = serde_json::from_value(case["tokens"].clone()).expect("data");
    let file = format!("reference/{}", case["logits_file"].as_str().expect("data"));
    let bytes = std::fs::read(data(&file)).expect("data");
    let logits: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let vocab = logits.len() / tokens.len();
    let rows = logits.chunks(vocab).zip(&tokens[1..]);
    let want = (rows.map(|(row, token)| nats(row, *token)).sum::<f64>() / (tokens.len() - 1) as f64).exp();

    let engine = tiny();
    let mut session = engine.exact_session(64);
    let message = Perplexity::of(&mut session, None, &tokens, |_| {}).expect("fits");
    assert_eq!(message.tokens, tokens.len() - 1, "nothing predicts the first");
    assert!((message.value() / want - 1.0).abs() < 1e-4, "{} instead of {want}", message.value());
}

#[test]
fn every_token_counts_once_whatever_the_window() {
    let engine = tiny();
    let tokens: Vec<u32> = (0..50).map(|i| i * 37 % 2048).collect();
    for context in [4, 51, 5, 8, 17, 49, 50, 64].into_iter().take(few(2)) {
        for bos in [None, Some(1)] {
            let mut session = engine.exact_session(context);
            let mut rising = Vec::new();
            let each = |so_far: &Perplexity| rising.push(so_far.tokens);
            let message = Perplexity::of(&mut session, bos, &tokens, each).expect("fits");
            let first = usize::from(bos.is_none());
            assert_eq!(message.tokens, tokens.len() - first, "context {context}, bos {bos:?}");
            assert!(rising.is_sorted() && rising.last() == Some(&message.tokens));
        }
    }
}

#[test]
fn each_token_has_at_least_half_a_window_before_it() {
    let engine = tiny();
    let tokens: Vec<u32> = (0..12).map(|i| i * 101 % 2048).collect();
    let message = Perplexity::of(&mut engine.exact_session(8), None, &tokens, |_| {}).expect("fits");
    // By hand: tokens 1 to 7 from the first window, 8 to 11 from one that begins at 4.
    let mut sum = 0.0;
    for (start, end, from) in [(0, 8, 1), (4, 12, 8)] {
        let window = &tokens[start..end];
        let count = |position: usize, logits: &[f32]| {
            let next = start + position + 1;
            if (from..end).contains(&next) {
                sum += nats(logits, tokens[next]);
            }
        };
        engine.exact_session(8).logits(window, count).expect("fits");
    }
    assert!((message.value() / (sum / 11.0).exp() - 1.0).abs() < 1e-6);
    assert!(message.error() > 0.0 && message.error().is_finite());
}
