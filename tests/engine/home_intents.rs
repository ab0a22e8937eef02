//! The built-in model gives exactly the reference implementation's answer in every case.

use crate::{allocations, is_emulated};
use bitnetd::engine::model::{HeadFormat, KvCacheFormat, ShortlistStats};
use bitnetd::engine::sampler::SamplingParams;
use bitnetd::engine::session::{GenerateOptions as Generate, Step, StopReason};
use bitnetd::engine::tokenizer::{ChatRole, Turn};
use bitnetd::engine::{Engine, EngineOptions, ModelFile, Source};
use serde::Deserialize;
use std::ops::ControlFlow;

#[derive(Deserialize)]
struct Case {
    prompt: String,
    answer: String,
    prompt_tokens: usize,
    finish_reason: String,
}

fn engine(threads: usize) -> Engine {
    let file = ModelFile::open(&Source::BuiltIn, None).expect("sound");
    file.load(&EngineOptions { threads, ..EngineOptions::default() }).expect("sound")
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("../../models/home-intents.cases.json")).expect("a list of cases")
}

fn chat(engine: &Engine, text: &str) -> Vec<u32> {
    engine
        .tokenizer()
        .prompt_chat(&[Turn { role: ChatRole::User, text }])
        .expect("a template that takes one turn")
}

#[test]
fn every_case_is_answered_as_the_reference_answers_it() {
    check_cases(&engine(2), if is_emulated() { 24 } else { 1 });
}

#[test]
fn every_case_gets_the_same_answer_through_a_shortlist_with_an_int8_cache() {
    let with_shortlist = ModelFile::open(&Source::BuiltIn, None)
        .and_then(|file| file.with_head(Some(HeadFormat::Shortlist)))
        .and_then(|file| file.with_cache(KvCacheFormat::Int8))
        .and_then(|file| file.load(&EngineOptions { threads: 2, ..EngineOptions::default() }));
    let engine = with_shortlist.expect("sound");
    let (rows, vocab) =
        (check_cases(&engine, if is_emulated() { 8 } else { 1 }).rows, engine.model().shape().vocab as u64);
    assert!(rows > 0 && rows < vocab * 100, "{rows}");
}

/// Checks one case in `step`.
fn check_cases(engine: &Engine, step: usize) -> ShortlistStats {
    let mut session = engine.session(512);
    let cases = cases();
    assert!(cases.len() > 100);
    for case in cases.iter().step_by(step) {
        let prompt = chat(engine, &case.prompt);
        assert_eq!(prompt.len(), case.prompt_tokens, "{}", case.prompt);
        let go_on = |_: Step<'_>| ControlFlow::Continue(());
        let answer = session.generate(&prompt, &Generate::default(), go_on).expect("sound");
        assert_eq!(answer.text, case.answer, "{}", case.prompt);
        assert_eq!((answer.end == StopReason::Stop, case.finish_reason.as_str()), (true, "stop"));
    }
    session.shortlist_stats().unwrap_or_default()
}

#[test]
fn streamed_text_is_the_whole_text_and_cancelling_ends_it() {
    let engine = engine(1);
    let mut session = engine.session(128);
    let case = &cases()[0];
    let prompt = chat(&engine, &case.prompt);
    let mut streamed = String::new();
    let collect = |step: Step<'_>| {
        if let Step::Token(text) = step {
            streamed.push_str(text);
        }
        ControlFlow::Continue(())
    };
    session.generate(&prompt, &Generate::default(), collect).expect("sound");
    assert_eq!(streamed, case.answer);
    let mut left = 3;
    let halt = |step: Step<'_>| {
        left -= i32::from(matches!(step, Step::Token(_)));
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let answer = session.generate(&prompt, &Generate::default(), halt).expect("sound");
    assert_eq!((answer.end, answer.tokens.len()), (StopReason::Cancelled, 3));
}

#[test]
fn a_prompt_longer_than_the_context_is_refused_and_one_as_long_as_it_gets_a_token() {
    let engine = engine(1);
    let mut session = engine.session(64);
    let go_on = |_: Step<'_>| ControlFlow::Continue(());
    assert!(session.generate(&[5; 64], &Generate::default(), go_on).is_err());
    assert!(session.generate(&[], &Generate::default(), go_on).is_err());
    assert!(session.generate(&[2048], &Generate::default(), go_on).is_err());
    let all = Generate { ignore_eos: true, ..Generate::default() };
    let answer = session.generate(&[5; 63], &all, go_on).expect("room for one");
    assert_eq!((answer.end, answer.tokens.len()), (StopReason::Length, 1));
}

#[test]
fn a_stop_text_ends_the_answer_before_it() {
    let engine = engine(1);
    let mut session = engine.session(128);
    let prompt = chat(&engine, "turn on the kitchen lights");
    let options = Generate { stop: vec![",\"slots".into()], ..Generate::default() };
    let answer = session.generate(&prompt, &options, |_| ControlFlow::Continue(())).expect("sound");
    assert_eq!((answer.text.as_str(), answer.end), (r#"{"intent":"HassTurnOn""#, StopReason::Stop));
}

#[test]
fn text_held_back_for_a_stop_text_that_never_comes_is_streamed_at_the_end() {
    let engine = engine(1);
    let mut session = engine.session(128);
    let case = &cases()[0];
    let prompt = chat(&engine, &case.prompt);
    // Every answer ends in "}}", which might go on to be this.
    let options = Generate { stop: vec!["}}END".into()], ..Generate::default() };
    let mut streamed = String::new();
    let collect = |step: Step<'_>| {
        if let Step::Token(text) = step {
            streamed.push_str(text);
        }
        ControlFlow::Continue(())
    };
    let answer = session.generate(&prompt, &options, collect).expect("sound");
    assert!(case.answer.ends_with("}}"));
    assert_eq!((streamed.as_str(), answer.text.as_str()), (case.answer.as_str(), case.answer.as_str()));
}

#[test]
fn the_decode_loop_allocates_nothing() {
    let engine = engine(1);
    let mut session = engine.session(128);
    let prompt = chat(&engine, "turn on the kitchen lights");
    let warm = SamplingParams { temperature: 0.5, top_p: 0.9, ..SamplingParams::default() };
    let penalised = SamplingParams {
        presence_penalty: 0.1,
        frequency_penalty: 0.1,
        logit_bias: vec![(5, -1.0)],
        ..warm.clone()
    };
    for sampling in [SamplingParams::default(), warm, penalised] {
        let options = Generate { sampling, stop: vec!["}}END".into()], ..Generate::default() };
        let mut steps = Vec::with_capacity(128);
        let note = |step: Step<'_>| {
            // What was allocated since the step before; the first token comes after the prompt.
            let largest = allocations::largest_so_far();
            if matches!(step, Step::Token(_)) {
                steps.push(largest);
            }
            allocations::forget();
            ControlFlow::Continue(())
        };
        session.generate(&prompt, &options, note).expect("sound");
        assert!(steps.len() > 10);
        assert!(steps.iter().all(|largest| *largest == 0), "{steps:?}");
    }
}
