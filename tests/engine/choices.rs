//! Several answers to one prompt, and the log-probabilities of their tokens.

use crate::few;
use bitnetd::engine::logprobs::PositionLogprobs;
use bitnetd::engine::model::HeadFormat;
use bitnetd::engine::sampler::SamplingParams;
use bitnetd::engine::session::{Answer, GenerateOptions, Session, Step};
use bitnetd::engine::tokenizer::{ChatRole, Turn};
use bitnetd::engine::{Engine, EngineOptions, ModelFile, Source};
use std::ops::ControlFlow;

fn engine(head: HeadFormat) -> Engine {
    let file = ModelFile::open(&Source::BuiltIn, None).and_then(|file| file.with_head(Some(head)));
    let options = EngineOptions { threads: 2, ..EngineOptions::default() };
    file.and_then(|file| file.load(&options)).expect("sound")
}

fn chat(engine: &Engine, text: &str) -> Vec<u32> {
    engine.tokenizer().prompt_chat(&[Turn { role: ChatRole::User, text }]).expect("one turn")
}

fn go_on(_: Step<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn warm(seed: u64) -> GenerateOptions {
    let sampling = SamplingParams { temperature: 1.5, seed, ..SamplingParams::default() };
    GenerateOptions { sampling, max_tokens: Some(24), ignore_eos: true, ..GenerateOptions::default() }
}

fn greedy(sampling: SamplingParams) -> GenerateOptions {
    GenerateOptions { sampling, max_tokens: Some(40), ignore_eos: true, ..GenerateOptions::default() }
}

#[test]
fn another_answer_to_a_prompt_is_that_of_a_new_session_and_reads_one_token() {
    let engine = engine(HeadFormat::Shortlist);
    let prompt = chat(&engine, "turn on the kitchen lights");
    let anew = |seed| engine.session(128).generate(&prompt, &warm(seed), go_on).expect("sound").tokens;
    let mut session = engine.session(128);
    assert_eq!(session.generate(&prompt, &warm(1), go_on).expect("sound").tokens, anew(1));
    for seed in [2, 3, 1].into_iter().take(few(1)) {
        let mut read = 0;
        let count = |step: Step<'_>| {
            read += usize::from(matches!(step, Step::Prefill(_)));
            ControlFlow::Continue(())
        };
        let answer = session.generate_again(&prompt, &warm(seed), count).expect("sound");
        assert_eq!((answer.tokens, read), (anew(seed), 0), "{seed}");
    }
    assert_ne!(anew(1), anew(2));
}

#[test]
fn another_prompt_is_read_as_a_whole_whatever_was_asked_before() {
    let engine = engine(HeadFormat::File);
    let (one, other) = (chat(&engine, "turn on the kitchen lights"), chat(&engine, "open the door"));
    let wanted = engine.session(128).generate(&other, &warm(1), go_on).expect("sound").tokens;
    let again =
        |session: &mut Session<'_>| session.generate_again(&other, &warm(1), go_on).expect("sound").tokens;
    let mut session = engine.session(128);
    assert_eq!(again(&mut session), wanted, "nothing before");
    session.generate(&one, &warm(1), go_on).expect("sound");
    assert_eq!(again(&mut session), wanted, "another before");
    session.generate(&other, &warm(1), |_| ControlFlow::Break(())).expect("sound");
    assert_eq!(again(&mut session), wanted, "cancelled before");
    session.logits(&other, |_, _| {}).expect("sound");
    assert_eq!(again(&mut session), wanted, "logits before");
}

#[test]
fn log_probabilities_are_those_of_the_logits_before_penalties_and_temperature() {
    let engine = engine(HeadFormat::Shortlist);
    let prompt = chat(&engine, "set the thermostat in the living room to 21 degrees");
    let sampling = SamplingParams {
        temperature: 1.5,
        repetition_penalty: 1.3,
        presence_penalty: 0.5,
        logit_bias: vec![(400, 3.0), (5, -100.0)],
        seed: 7,
        ..SamplingParams::default()
    };
    let options = GenerateOptions { logprobs: Some(5), ..greedy(sampling) };
    let mut streamed = Vec::new();
    let mut session = engine.session(128);
    let collect = |step: Step<'_>| {
        if let Step::Logprobs(logprobs) = step {
            streamed.push(logprobs.clone());
        }
        ControlFlow::Continue(())
    };
    let Answer { tokens, logprobs, .. } = session.generate(&prompt, &options, collect).expect("sound");
    let logprobs = logprobs.expect("asked for");
    assert_eq!((logprobs.len(), &streamed), (tokens.len(), &logprobs));
    let whole = [&prompt[..], &tokens].concat();
    let mut wanted = Vec::new();
    let note = |position: usize, logits: &[f32]| {
        if let Some(token) = whole.get(position + 1).filter(|_| position + 1 >= prompt.len()) {
            wanted.push(PositionLogprobs::new(logits, *token, 5));
        }
    };
    session.logits(&whole, note).expect("sound");
    assert_eq!(logprobs, wanted);
    assert!(logprobs.iter().any(|position| position.top[0].id != position.chosen.id), "drawn at random");
}

#[test]
fn penalties_and_biases_choose_alike_through_a_shortlist() {
    let (whole, shortlist) = (engine(HeadFormat::File), engine(HeadFormat::Shortlist));
    let prompt = chat(&whole, "turn on the kitchen lights and the light in the hall");
    let usual = whole.session(128).generate(&prompt, &greedy(SamplingParams::default()), go_on);
    let usual = usual.expect("sound").tokens;
    let changes = [
        SamplingParams { presence_penalty: 2.0, ..SamplingParams::default() },
        SamplingParams { frequency_penalty: 2.0, ..SamplingParams::default() },
        SamplingParams { frequency_penalty: -2.0, ..SamplingParams::default() },
        SamplingParams { presence_penalty: 1.0, repetition_penalty: 1.2, ..SamplingParams::default() },
        SamplingParams { logit_bias: vec![(usual[0], -100.0)], ..SamplingParams::default() },
        SamplingParams { logit_bias: vec![(usual[3], 100.0)], ..SamplingParams::default() },
    ];
    for sampling in changes.into_iter().take(few(2)) {
        let of = |engine: &Engine| {
            let answer = engine.session(128).generate(&prompt, &greedy(sampling.clone()), go_on);
            answer.expect("sound").tokens
        };
        let tokens = of(&whole);
        assert_eq!(of(&shortlist), tokens, "{sampling:?}");
        assert_ne!(tokens, usual, "{sampling:?}");
    }
}

#[test]
fn a_bias_of_a_token_that_is_not_there_is_an_error() {
    let engine = engine(HeadFormat::File);
    let vocab = engine.model().shape().vocab as u32;
    let with_bias = |id| greedy(SamplingParams { logit_bias: vec![(id, -1.0)], ..SamplingParams::default() });
    let mut session = engine.session(64);
    assert!(session.generate(&[5], &with_bias(vocab - 1), go_on).is_ok());
    let error = session.generate(&[5], &with_bias(vocab), go_on).expect_err("no such token");
    assert_eq!(error.to_string(), format!("logit_bias: token {vocab} is outside the vocabulary of {vocab}"));
}
