//! Speculation changes no answer: what is looked up and verified in one pass is what would have been chosen anyway.

use crate::is_emulated;
use crate::shared_decoding::{Job, engine, go_on, together};
use bitnetd::engine::gguf::FileMap;
use bitnetd::engine::grammar::GrammarSource;
use bitnetd::engine::kernels::Kernels;
use bitnetd::engine::model::HeadFormat;
use bitnetd::engine::sampler::SamplingParams;
use bitnetd::engine::session::{Answer, GenerateOptions, Step, StopReason};
use bitnetd::engine::synthetic::SyntheticShape;
use bitnetd::engine::{Engine, EngineOptions, ModelFile};
use std::ops::ControlFlow;

const CONTEXT: usize = 400;

/// A prompt that repeats itself, so that answers do too.
fn prompt(number: u32, len: u32) -> Vec<u32> {
    (0..len).map(|at| 5 + (at % 17 * 7 + number * 31) % 500).collect()
}

fn sampled(temperature: f32, seed: u64) -> SamplingParams {
    SamplingParams { temperature, seed, ..SamplingParams::default() }
}

/// All ways to choose tokens.
fn samplings() -> Vec<SamplingParams> {
    let greedy = SamplingParams::default;
    vec![
        greedy(),
        sampled(0.05, 1),
        sampled(0.7, 2),
        SamplingParams { top_k: 3, top_p: 0.9, ..sampled(0.3, 3) },
        SamplingParams { repetition_penalty: 1.05, ..greedy() },
        SamplingParams { repetition_penalty: 0.9, ..sampled(0.2, 4) },
        SamplingParams { presence_penalty: 0.1, frequency_penalty: 0.01, ..greedy() },
        SamplingParams { frequency_penalty: 0.02, ..sampled(0.1, 5) },
        SamplingParams { logit_bias: vec![(7, -2.0), (20, -100.0)], ..greedy() },
        SamplingParams { logit_bias: vec![(9, 3.0)], ..sampled(0.2, 6) },
    ]
}

fn options(sampling: SamplingParams, tokens: usize) -> GenerateOptions {
    GenerateOptions { sampling, max_tokens: Some(tokens), ignore_eos: true, ..GenerateOptions::default() }
}

/// Everything of an answer that must not change, with the text as it came token by token.
fn answer(engine: &Engine, prompt: &[u32], options: &GenerateOptions) -> (Answer, Vec<String>) {
    let mut pieces = Vec::new();
    let answer = engine.session(CONTEXT).generate(prompt, options, |step| {
        if let Step::Token(text) = step {
            pieces.push(text.to_owned());
        }
        ControlFlow::Continue(())
    });
    (answer.expect("sound"), pieces)
}

fn assert_same(with: &Answer, without: &Answer, place: &str) {
    assert_eq!(with.tokens, without.tokens, "{place}");
    assert_eq!((&with.text, with.end, with.forced), (&without.text, without.end, without.forced), "{place}");
    assert_eq!(with.logprobs, without.logprobs, "{place}");
    assert_eq!((without.proposed, without.accepted), (0, 0), "{place}");
    assert!(with.accepted <= with.proposed, "{place}");
}

/// Compares an answer with speculation and without; returns how many tokens were proposed and accepted.
fn compare(engine: &Engine, prompt: &[u32], options: &GenerateOptions, place: &str) -> (usize, usize) {
    let (without, text) = answer(engine, prompt, options);
    let (with, text_with) = answer(engine, prompt, &GenerateOptions { speculate: true, ..options.clone() });
    assert_same(&with, &without, place);
    assert_eq!(text_with, text, "{place}");
    (with.proposed, with.accepted)
}

#[test]
fn answers_are_the_same_with_every_kernel_and_every_way_to_choose() {
    for kernels in Kernels::all() {
        let engine = engine(kernels.name(), 2);
        let (mut proposed, mut accepted) = (0, 0);
        let is_slow = kernels.name() == "scalar" || is_emulated();
        let count = if is_slow { 3 } else { usize::MAX };
        for (number, sampling) in samplings().into_iter().enumerate().take(count) {
            let base = options(sampling, 90);
            for logprobs in [None, Some(2)] {
                let place = format!("{}, sampling {number}, {logprobs:?}", kernels.name());
                let options = GenerateOptions { logprobs, ..base.clone() };
                let counts = compare(&engine, &prompt(number as u32, 60), &options, &place);
                println!("{place} {counts:?}");
                (proposed, accepted) = (proposed + counts.0, accepted + counts.1);
            }
        }
        assert!(accepted > 0 && accepted < proposed, "{}: {accepted} of {proposed}", kernels.name());
    }
}
