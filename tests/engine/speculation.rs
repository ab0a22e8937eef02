//! Speculation changes no answer: what is looked up and verified in one pass is what would have been chosen anyway.

use crate::is_emulated;
use crate::shared_decoding::{Job, engine, go_on, together};
use bitnetd::engine::gguf::FileMap;
use bitnetd::engine::grammar::GrammarSource;
use bitnetd::engine::kernels::Kernels;
use bitnetd::engine::model::HeadFormat;
use bitnetd::engine::sampler::SamplingParams;
use bitnetd::engine::session::{Answer, GenerateOptions, SpeculationCounts, Step, StopReason};
use bitnetd::engine::synthetic::SyntheticShape;
use bitnetd::engine::tokenizer::{ChatRole, Turn};
use bitnetd::engine::{Engine, EngineOptions, ModelFile};
use std::ops::ControlFlow;

const CONTEXT: usize = 400;

/// Sentences that the model answers with JSON, which repeats itself.
const SENTENCES: [&str; 4] = [
    "turn on the kitchen lights",
    "set the thermostat in the living room to 21 degrees",
    "dim the bedroom lights to 30 percent",
    "turn off the fan in the living room and set a timer",
];

fn prompt(engine: &Engine, number: usize) -> Vec<u32> {
    let text = SENTENCES[number % SENTENCES.len()];
    engine.tokenizer().prompt_chat(&[Turn { role: ChatRole::User, text }]).expect("a turn")
}

fn sampled(temperature: f32, seed: u64) -> SamplingParams {
    SamplingParams { temperature, seed, ..SamplingParams::default() }
}

/// All ways to choose tokens.
fn samplings() -> Vec<SamplingParams> {
    let greedy = SamplingParams::default;
    vec![
        sampled(1.0, 2),
        greedy(),
        sampled(0.5, 1),
        SamplingParams { top_k: 3, top_p: 0.9, ..sampled(0.9, 3) },
        SamplingParams { repetition_penalty: 1.05, ..greedy() },
        SamplingParams { repetition_penalty: 0.9, ..sampled(0.8, 4) },
        SamplingParams { presence_penalty: 0.1, frequency_penalty: 0.01, ..greedy() },
        SamplingParams { frequency_penalty: 0.02, ..sampled(0.6, 5) },
        SamplingParams { logit_bias: vec![(7, -2.0), (20, -100.0)], ..greedy() },
        SamplingParams { logit_bias: vec![(9, 3.0)], ..sampled(0.9, 6) },
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
    assert_eq!((without.looked_up, without.predicted), Default::default(), "{place}");
    let (all, predicted) = (with.looked_up, with.predicted);
    assert!(all.accepted <= all.proposed && predicted.accepted <= predicted.proposed, "{place}");
    assert!(predicted.proposed <= all.proposed && predicted.accepted <= all.accepted, "{place}");
}

/// Compares an answer with speculation and without; returns how many tokens were proposed and accepted.
fn compare(engine: &Engine, prompt: &[u32], options: &GenerateOptions, place: &str) -> (usize, usize) {
    let (without, text) = answer(engine, prompt, options);
    let (with, text_with) = answer(engine, prompt, &GenerateOptions { speculate: true, ..options.clone() });
    assert_same(&with, &without, place);
    assert_eq!(text_with, text, "{place}");
    (with.looked_up.proposed, with.looked_up.accepted)
}

#[test]
fn answers_are_the_same_with_every_kernel_and_every_way_to_choose() {
    for kernels in Kernels::all() {
        let engine = engine(kernels.name(), 2);
        let (mut proposed, mut accepted) = (0, 0);
        let is_slow = kernels.name() == "scalar" || is_emulated();
        let is_fastest = kernels.name() == Kernels::detect().name();
        let count = if is_fastest && !is_slow { usize::MAX } else { 2 };
        for (number, sampling) in samplings().into_iter().enumerate().take(count) {
            let base = options(sampling, if is_slow { 60 } else { 100 });
            for logprobs in [None, Some(2)] {
                let place = format!("{}, sampling {number}, {logprobs:?}", kernels.name());
                let options = GenerateOptions { logprobs, ..base.clone() };
                let counts = compare(&engine, &prompt(&engine, number), &options, &place);
                (proposed, accepted) = (proposed + counts.0, accepted + counts.1);
            }
        }
        // With the others few answers are compared, in which every proposal may have been right.
        let is_used = accepted > 0 && (accepted < proposed || !is_fastest || is_emulated());
        assert!(is_used, "{}: {accepted} of {proposed}", kernels.name());
    }
}

/// An answer that repeats part of its prompt, token by token, then goes on with what the prompt does not have.
fn scripted(engine: &Engine, end: &[u32]) -> (Vec<u32>, Vec<u32>) {
    let vocab = engine.model().shape().vocab as u32;
    let text: Vec<u32> = (0..40).map(|at| 260 + at * 37 % (vocab - 260)).collect();
    let script = text[..30].iter().chain(end).chain(&text[5..35]).copied().collect();
    (text.iter().chain(end).chain(&text).copied().collect(), script)
}

#[test]
fn an_answer_ends_inside_what_was_accepted_where_it_would_have_ended() {
    let engine = engine(Kernels::detect().name(), 2);
    let (prompt, script) = scripted(&engine, &[]);
    let base = GenerateOptions { script, ..options(SamplingParams::default(), 60) };
    let (proposed, accepted) = compare(&engine, &prompt, &base, "whole");
    assert!(accepted > 30 && accepted < proposed, "{accepted} of {proposed}");
    for max_tokens in (0..45).step_by(if is_emulated() { 11 } else { 1 }) {
        let options = GenerateOptions { max_tokens: Some(max_tokens), ..base.clone() };
        compare(&engine, &prompt, &options, &format!("{max_tokens} tokens"));
    }
    // Stop strings of one to three characters from all places of the text.
    let text: Vec<char> = answer(&engine, &prompt, &base).0.text.chars().collect();
    let step = if is_emulated() { 40 } else { 3 };
    for at in (0..text.len() - 3).step_by(step) {
        let stop: String = text[at..at + 1 + at % 3].iter().collect();
        let options = GenerateOptions { stop: vec![stop.clone()], ..base.clone() };
        let with = GenerateOptions { speculate: true, ..options.clone() };
        assert_eq!(answer(&engine, &prompt, &with).0.end, StopReason::Stop, "{stop:?}");
        compare(&engine, &prompt, &options, &format!("stop {stop:?}"));
    }
}

#[test]
fn an_end_token_that_was_proposed_ends_the_answer() {
    let engine = engine(Kernels::detect().name(), 2);
    let vocab = engine.model().shape().vocab as u32;
    let end = (0..vocab).find(|id| engine.tokenizer().is_end(*id)).expect("an end token");
    let (text, _) = scripted(&engine, &[]);
    let (prompt, script) =
        ([&text[..30], &[end], &text[..30]].concat(), [&text[10..30], &[end], &text].concat());
    let base = GenerateOptions { script, ignore_eos: false, ..options(SamplingParams::default(), 60) };
    let (_, accepted) = compare(&engine, &prompt, &base, "an end token");
    let with = answer(&engine, &prompt, &GenerateOptions { speculate: true, ..base }).0;
    assert_eq!((with.tokens.len(), with.end), (20, StopReason::Stop));
    assert!(accepted > 10, "{accepted}");
}

#[test]
fn an_answer_may_fill_the_context_to_its_last_token() {
    let engine = engine(Kernels::detect().name(), 2);
    let (prompt, _) = scripted(&engine, &[]);
    for context in [prompt.len() + 1, prompt.len() + 2, prompt.len() + 9, 128, 129] {
        let script = prompt.repeat(2);
        let base =
            GenerateOptions { script, max_tokens: None, ignore_eos: true, ..GenerateOptions::default() };
        let run = |speculate| {
            let options = GenerateOptions { speculate, ..base.clone() };
            engine.session(context).generate(&prompt, &options, go_on).expect("sound")
        };
        let (with, without) = (run(true), run(false));
        assert_same(&with, &without, &format!("{context}"));
        assert_eq!(with.tokens.len(), context - prompt.len());
    }
}

/// Grammars with long forced parts, and with repetitions.
fn grammars() -> [GrammarSource; 3] {
    let list = r#"{"type":"array","minItems":6,"maxItems":9,"items":{"type":"object","properties":
        {"name":{"enum":["kitchen","garden"]},"on":{"type":"boolean"}},"required":["name","on"],
        "additionalProperties":false}}"#;
    [
        GrammarSource::JsonSchema(list.into()),
        GrammarSource::Regex("(the light is (on|off), ){5,9}".into()),
        GrammarSource::JsonObject,
    ]
}

#[test]
fn an_answer_under_a_grammar_is_the_same() {
    let engine = engine(Kernels::detect().name(), 2);
    let compiler = engine.grammars().expect("sound");
    let mut all_accepted = 0;
    for (number, source) in grammars().iter().enumerate() {
        let constraint = compiler.compile(source).expect("sound");
        for sampling in [SamplingParams::default(), sampled(0.9, 5)] {
            for (logprobs, tokens) in [(None, 120), (Some(1), 120), (None, 13), (Some(1), 14)] {
                let options = GenerateOptions {
                    constraint: Some(constraint.clone()),
                    logprobs,
                    ..options(sampling.clone(), tokens)
                };
                let place = format!("grammar {number}, {sampling:?}, {logprobs:?}, {tokens}");
                all_accepted += compare(&engine, &prompt(&engine, number), &options, &place).1;
            }
        }
    }
    assert!(all_accepted > 0);
}

#[test]
fn forced_tokens_with_log_probabilities_share_a_pass() {
    let engine = engine(Kernels::detect().name(), 2);
    let compiler = engine.grammars().expect("sound");
    let constraint = compiler.compile(&GrammarSource::Regex("a fixed sentence of some length".into()));
    let options = GenerateOptions {
        constraint: Some(constraint.expect("sound")),
        logprobs: Some(1),
        ..GenerateOptions::default()
    };
    let mut session = engine.session(CONTEXT);
    session.begin(0, &prompt(&engine, 0), &options).expect("sound");
    let mut steps = 0;
    let answer = loop {
        session.step(|_, _| ControlFlow::Continue(()));
        steps += 1;
        if let Some(answer) = session.take_answer(0) {
            break answer.expect("sound");
        }
    };
    let logprobs = answer.logprobs.expect("asked for");
    assert_eq!((answer.text.as_str(), logprobs.len()), ("a fixed sentence of some length", answer.forced));
    assert!(steps <= 3 + answer.forced / 8, "{steps} steps for {} tokens", answer.forced);
    // They are those that the model gives to the sentence.
    let alone = session.log_probabilities(&answer.tokens);
    for (position, alone) in logprobs.iter().zip(alone) {
        assert_eq!(position.chosen.logprob, alone as f32);
    }
}

#[test]
fn answers_at_the_same_time_are_the_same_with_and_without() {
    let engine = engine(Kernels::detect().name(), 2);
    let constraint = engine.grammars().expect("sound").compile(&grammars()[0]).expect("sound");
    let (text, script) = scripted(&engine, &[]);
    let jobs: Vec<Job> = samplings()
        .into_iter()
        .enumerate()
        .flat_map(|(number, sampling)| {
            let base = options(sampling, 50);
            let with_script = GenerateOptions { script: script.clone(), ..base.clone() };
            let held = GenerateOptions { constraint: Some(constraint.clone()), ..base.clone() };
            let job = |prompt, options| Job { after: number * 5, prompt, options };
            let own = prompt(&engine, number);
            [job(own.clone(), base), job(text.clone(), with_script), job(own, held)]
        })
        .take(if is_emulated() { 6 } else { usize::MAX })
        .collect();
    let speculating: Vec<Job> = jobs
        .iter()
        .map(|job| Job { options: GenerateOptions { speculate: true, ..job.options.clone() }, ..job.clone() })
        .collect();
    let alone: Vec<Answer> = jobs.iter().map(|job| answer(&engine, &job.prompt, &job.options).0).collect();
    for slots in [1, 2, 4, 16] {
        let joint = together(&mut engine.shared_session(CONTEXT, slots), &speculating);
        let accepted: usize = joint.iter().map(|answer| answer.looked_up.accepted).sum();
        for (at, (joint, alone)) in joint.iter().zip(&alone).enumerate() {
            assert_same(joint, alone, &format!("{slots} slots, job {at}"));
        }
        assert!(accepted > 0 || slots == 16, "{slots}");
    }
}

/// What may be predicted for an answer with these tokens: itself, with a token left out, another in its place or one more,
/// its end alone, something else, its beginning with an end token, and far more than it has.
fn predictions(engine: &Engine, own: &[u32]) -> Vec<Vec<u32>> {
    let end = engine.tokenizer().end_tokens()[0];
    let (before, after) = own.split_at(own.len() / 3);
    let other = after[0] ^ 1;
    vec![
        own.to_vec(),
        [before, &after[1..]].concat(),
        [before, &[other], &after[1..]].concat(),
        [before, &[other], after].concat(),
        after.to_vec(),
        own.iter().map(|id| id ^ 1).collect(),
        [before, &[end]].concat(),
        own.repeat(20),
    ]
}

#[test]
fn a_predicted_answer_changes_nothing_whether_it_is_right_or_wrong() {
    let kernels = [Kernels::detect().name(), "scalar"];
    for (at, kernel) in kernels.into_iter().enumerate().take(if is_emulated() { 1 } else { 2 }) {
        let engine = engine(kernel, 2);
        let count = if at == 1 || is_emulated() { 1 } else { usize::MAX };
        for (number, sampling) in samplings().into_iter().enumerate().take(count) {
            for logprobs in [None, Some(2)] {
                let base = GenerateOptions { logprobs, ..options(sampling.clone(), 60) };
                let prompt = prompt(&engine, number);
                let (without, text) = answer(&engine, &prompt, &base);
                for (which, prediction) in predictions(&engine, &without.tokens).into_iter().enumerate() {
                    let options = GenerateOptions { speculate: true, prediction, ..base.clone() };
                    let (with, text_with) = answer(&engine, &prompt, &options);
                    let place = format!("{kernel}, sampling {number}, {logprobs:?}, prediction {which}");
                    assert_same(&with, &without, &place);
                    assert_eq!(text_with, text, "{place}");
                    let SpeculationCounts { proposed, accepted } = with.predicted;
                    // The answer itself is right to its end; with the reference kernels shorter proposals pay.
                    let is_right = accepted == proposed && accepted >= if at == 0 { 50 } else { 20 };
                    assert!(which != 0 || is_right, "{accepted} of {proposed}: {place}");
                    assert!(which != 2 || accepted > 0, "{place}");
                }
            }
        }
    }
}

#[test]
fn an_answer_that_was_predicted_takes_few_passes() {
    let engine = engine(Kernels::detect().name(), 2);
    let base = options(SamplingParams::default(), 64);
    let prompt = prompt(&engine, 0);
    let prediction = answer(&engine, &prompt, &base).0.tokens;
    let mut session = engine.session(CONTEXT);
    let options = GenerateOptions { speculate: true, prediction: prediction.clone(), ..base };
    session.begin(0, &prompt, &options).expect("sound");
    let mut steps = 0;
    let answer = loop {
        session.step(|_, _| ControlFlow::Continue(()));
        steps += 1;
        if let Some(answer) = session.take_answer(0) {
            break answer.expect("sound");
        }
    };
    assert_eq!(answer.tokens, prediction);
    assert!(steps <= 12, "{steps} steps for {} tokens", prediction.len());
}

#[test]
fn predicted_answers_under_a_grammar_and_beside_others_are_the_same() {
    let engine = engine(Kernels::detect().name(), 2);
    let compiler = engine.grammars().expect("sound");
    let constraints = grammars().map(|source| compiler.compile(&source).expect("sound"));
    let mut jobs = Vec::new();
    for (number, sampling) in
        samplings().into_iter().enumerate().take(if is_emulated() { 2 } else { usize::MAX })
    {
        let constraint = constraints.get(number % 4).cloned();
        let options = GenerateOptions { constraint, ..options(sampling, 50) };
        jobs.push(Job { after: number * 3, prompt: prompt(&engine, number), options });
    }
    let alone: Vec<Answer> = jobs.iter().map(|job| answer(&engine, &job.prompt, &job.options).0).collect();
    for which in if is_emulated() { 2..3 } else { 0..8 } {
        let predicting: Vec<Job> = jobs
            .iter()
            .zip(&alone)
            .map(|(job, alone)| {
                let prediction = predictions(&engine, &alone.tokens).swap_remove(which);
                let options = GenerateOptions { speculate: true, prediction, ..job.options.clone() };
                Job { options, ..job.clone() }
            })
            .collect();
        for slots in [1, 3] {
            let joint = together(&mut engine.shared_session(CONTEXT, slots), &predicting);
            for (at, (joint, alone)) in joint.iter().zip(&alone).enumerate() {
                assert_same(joint, alone, &format!("{slots} slots, job {at}, prediction {which}"));
            }
            let accepted: usize = joint.iter().map(|answer| answer.predicted.accepted).sum();
            assert!(which != 0 || accepted > 20, "{accepted} with {slots} slots");
        }
    }
}

#[test]
fn a_rejected_token_is_in_no_prompt_that_is_found_later() {
    let engine = engine(Kernels::detect().name(), 2);
    let mut session = engine.shared_session(CONTEXT, 2);
    let mut rejected = 0;
    for (number, sampling) in samplings().into_iter().enumerate().take(if is_emulated() { 2 } else { 10 }) {
        let first = GenerateOptions { speculate: true, ..options(sampling, 130) };
        let mut conversation = prompt(&engine, number);
        conversation.insert(0, 300 + number as u32);
        let answer = session.generate(&conversation, &first, go_on).expect("sound");
        rejected += answer.looked_up.proposed - answer.looked_up.accepted;
        conversation.extend(&answer.tokens);
        let next = GenerateOptions { logprobs: Some(3), ..options(SamplingParams::default(), 8) };
        // The conversation goes on at every place behind the first two blocks.
        for len in [128, 129, conversation.len() - 1, conversation.len()] {
            let longer: Vec<u32> = conversation[..len].iter().copied().chain([7, 8]).collect();
            let found = session.generate(&longer, &next, go_on).expect("sound");
            let alone = engine.session(CONTEXT).generate(&longer, &next, go_on).expect("sound");
            assert!(found.cached >= 128 && alone.cached == 0, "{number}, {len}: {}", found.cached);
            assert_eq!((&found.tokens, &found.logprobs), (&alone.tokens, &alone.logprobs), "{number}, {len}");
        }
        // The answer once more, from the same slot.
        session.generate(&conversation, &next, go_on).expect("sound");
        let again = session.generate_again(&conversation, &next, go_on).expect("sound");
        let alone = engine.session(CONTEXT).generate(&conversation, &next, go_on).expect("sound");
        assert_eq!((again.tokens, again.logprobs), (alone.tokens, alone.logprobs), "{number}");
    }
    assert!(rejected > 0);
}

#[test]
fn a_head_that_is_read_through_a_shortlist_gives_the_same_answers() {
    let shape = SyntheticShape::named("b158-2b4t").expect("known").truncated(1, 2_500);
    let bytes = shape.build().expect("small").to_vec();
    let options_of_engine = EngineOptions { threads: 2, ..EngineOptions::default() };
    let file = ModelFile::parse(FileMap::from(bytes), "m.gguf", None).expect("sound");
    let file = file.with_head(Some(HeadFormat::Shortlist)).expect("sound");
    let engine = file.load(&options_of_engine).expect("sound");
    let text: Vec<u32> = (0..60).map(|at| 300 + at % 20 * 11).collect();
    let (mut proposed, mut accepted) = (0, 0);
    // What needs the whole head at times, and what does not.
    for number in [0, 1, 3, 6].into_iter().take(if is_emulated() { 1 } else { 4 }) {
        let base = options(samplings()[number].clone(), 40);
        let counts = compare(&engine, &text, &base, &format!("sampling {number}"));
        // The answer is looked up in a prompt that has it already, as long as it stays the same.
        let own = answer(&engine, &text, &base).0.tokens;
        let script = own[..25].to_vec();
        let longer = [&own[..], &text[..]].concat();
        let scripted = GenerateOptions { script, ..base };
        let more = compare(&engine, &longer, &scripted, &format!("script {number}"));
        (proposed, accepted) = (proposed + counts.0 + more.0, accepted + counts.1 + more.1);
    }
    assert!(accepted > 0 && accepted < proposed, "{accepted} of {proposed}");
}

#[test]
fn where_nothing_repeats_nothing_is_proposed_and_full_passes_propose_less() {
    let engine = engine(Kernels::detect().name(), 2);
    let script: Vec<u32> = (0..100).map(|at| 100 + at).collect();
    let base = GenerateOptions { script, speculate: true, ..options(SamplingParams::default(), 100) };
    let answer = answer(&engine, &[1, 2, 3], &base).0;
    assert_eq!(answer.looked_up, SpeculationCounts::default());
    // Sixteen answers fill a pass.
    let (prompt, script) = scripted(&engine, &[]);
    let echo = GenerateOptions { script, speculate: true, ..options(SamplingParams::default(), 40) };
    let job = Job { after: 0, prompt, options: echo };
    let proposed = [1, 4, 16].map(|count| {
        let jobs = vec![job.clone(); count];
        let answers = together(&mut engine.shared_session(CONTEXT, count), &jobs);
        answers[0].looked_up.proposed
    });
    assert!(proposed[0] >= proposed[1] && proposed[1] > 0 && proposed[2] == 0, "{proposed:?}");
}
