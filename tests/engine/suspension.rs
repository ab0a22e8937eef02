//! Answers that are suspended and go on later: each is the one it would have been without the interruption.

use crate::is_emulated;
use bitnetd::engine::grammar::GrammarSource;
use bitnetd::engine::kernels::Kernels;
use bitnetd::engine::model::KV_BLOCK;
use bitnetd::engine::sampler::SamplingParams;
use bitnetd::engine::session::{Answer, GenerateOptions, Session, Step, StopReason};
use bitnetd::engine::{Engine, EngineOptions, ModelFile, Source};
use std::ops::ControlFlow;

pub const CONTEXT: usize = 320;

fn engine() -> Engine {
    let options = EngineOptions {
        threads: 2,
        kernel: Some(Kernels::detect().name().to_owned()),
        ..EngineOptions::default()
    };
    ModelFile::open(&Source::BuiltIn, None).and_then(|file| file.load(&options)).expect("sound")
}

pub fn prompt(engine: &Engine, length: u32) -> Vec<u32> {
    (0..length).map(|i| (i * 7 + i * i % 5) % engine.model().shape().vocab as u32).collect()
}

pub fn go_on(_: Step<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

pub fn greedy(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens: Some(max_tokens), ignore_eos: true, ..GenerateOptions::default() }
}

/// Every kind of answer whose state could be lost, with a name.
pub fn kinds(engine: &Engine) -> Vec<(&'static str, GenerateOptions)> {
    let schema = r#"{"type":"object","properties":{"a":{"enum":["one","two"]},"b":{"type":"integer"}},
        "required":["a","b"],"additionalProperties":false}"#;
    let source = GrammarSource::JsonSchema(schema.into());
    let constraint = engine.grammars().and_then(|grammars| grammars.compile(&source)).expect("sound");
    let plain = greedy(30);
    let sampled = |sampling| GenerateOptions { sampling, ..plain.clone() };
    let warm = SamplingParams { temperature: 1.3, seed: 5, ..SamplingParams::default() };
    let text = engine.session(CONTEXT).generate(&prompt(engine, 130), &plain, go_on).expect("sound").text;
    let begin = (10..).find(|at| text.is_char_boundary(*at)).expect("a character");
    let end = (begin + 4..).find(|at| text.is_char_boundary(*at)).expect("a character");
    vec![
        ("greedy", plain.clone()),
        ("seeded", sampled(warm.clone())),
        (
            "penalties",
            sampled(SamplingParams {
                repetition_penalty: 1.4,
                frequency_penalty: 0.6,
                presence_penalty: 0.3,
                ..warm.clone()
            }),
        ),
        ("grammar", GenerateOptions { constraint: Some(constraint.clone()), ..plain.clone() }),
        (
            "seeded grammar with log-probabilities",
            GenerateOptions {
                logprobs: Some(3),
                constraint: Some(constraint),
                ..sampled(SamplingParams { temperature: 2.0, ..warm })
            },
        ),
        ("log-probabilities", GenerateOptions { logprobs: Some(2), ..plain.clone() }),
        ("a stop string", GenerateOptions { stop: vec![text[begin..end].to_owned()], ..plain.clone() }),
        (
            "a stop string that never comes whole",
            GenerateOptions { stop: vec![format!("{}#", &text[..end])], ..plain.clone() },
        ),
        ("a scope of its own", GenerateOptions { prefix_scope: 77, ..plain }),
    ]
}

/// Answers in the first slot with an interruption wherever `is_interrupted` says so for the number of the step; the
/// answer, its pieces of text, and how many interruptions there were.
pub fn interrupted(
    session: &mut Session<'_>,
    prompt: &[u32],
    options: &GenerateOptions,
    is_interrupted: impl Fn(usize) -> bool,
    mut meanwhile: impl FnMut(&mut Session<'_>),
) -> (Answer, Vec<String>, usize) {
    session.begin(0, prompt, options).expect("sound");
    let (mut pieces, mut count) = (Vec::new(), 0);
    for step in 0.. {
        session.step(|slot, step| {
            if let Step::Token(text) = step
                && slot == 0
            {
                pieces.push(text.to_owned());
            }
            ControlFlow::Continue(())
        });
        if let Some(answer) = session.take_answer(0) {
            return (answer.expect("sound"), pieces, count);
        }
        if is_interrupted(step) {
            let suspended = session.suspend(0).expect("under way");
            meanwhile(session);
            session.resume(0, suspended);
            count += 1;
        }
    }
    unreachable!("it ends");
}

/// Fills the whole KV cache with other texts.
pub fn evict(session: &mut Session<'_>) {
    for slot in 0..session.slots() {
        let other = vec![slot as u32 + 3; CONTEXT - 1];
        session.begin(slot, &other, &greedy(1)).expect("sound");
    }
    let mut left = session.slots();
    while left > 0 {
        session.step(|_, step| go_on(step));
        left -= (0..session.slots()).filter(|slot| session.take_answer(*slot).is_some()).count();
    }
    (0..session.slots()).for_each(|slot| session.release(slot));
}

pub fn assert_same(found: &(Answer, Vec<String>, usize), alone: &(Answer, Vec<String>, usize), place: &str) {
    let (answer, pieces, _) = found;
    assert_eq!(answer.tokens, alone.0.tokens, "{place}");
    assert_eq!((&answer.text, answer.end), (&alone.0.text, alone.0.end), "{place}");
    assert_eq!((answer.forced, &answer.logprobs), (alone.0.forced, &alone.0.logprobs), "{place}");
    assert_eq!(pieces, &alone.1, "{place}");
}

#[test]
fn an_answer_that_is_suspended_after_every_token_is_the_one_without() {
    let engine = engine();
    for (name, options) in kinds(&engine).into_iter().step_by(if is_emulated() { 4 } else { 1 }) {
        for length in if is_emulated() { vec![130] } else { vec![1, 130] } {
            let prompt = prompt(&engine, length);
            let alone =
                interrupted(&mut engine.session(CONTEXT), &prompt, &options, |_| false, |_| unreachable!());
            assert!(!alone.0.tokens.is_empty());
            let place = format!("{name}, a prompt of {length}");
            let mut session = engine.shared_session(CONTEXT, 2);
            let intact = interrupted(&mut session, &prompt, &options, |_| true, |_| {});
            assert!(intact.2 + 3 >= alone.0.tokens.len() - alone.0.forced, "{place}: {} times", intact.2);
            assert_same(&intact, &alone, &format!("{place}, blocks found again"));
            assert_eq!(intact.0.cached, 0, "{place}: nothing of the prompt was another's");
            let is_seventh = |step: usize| step % 7 == length as usize % 7;
            let evicted =
                interrupted(&mut engine.shared_session(CONTEXT, 2), &prompt, &options, is_seventh, evict);
            assert_same(&evicted, &alone, &format!("{place}, blocks given to others"));
            let unshared =
                interrupted(&mut engine.session(CONTEXT), &prompt, &options, |step| step % 3 == 0, |_| {});
            assert_same(&unshared, &alone, &format!("{place}, a session that finds nothing"));
        }
    }
}

#[test]
fn a_suspended_answer_reads_a_block_again_at_most_where_nothing_was_evicted() {
    let engine = engine();
    let prompt = prompt(&engine, 250);
    let options = greedy(60);
    let alone = engine.session(CONTEXT).generate(&prompt, &options, go_on).expect("sound");
    // Beside another answer a pass reads 4 to 12 tokens of a prompt, so that passes count tokens.
    let passes_until_token = |interruption: usize, others: fn(&mut Session<'_>)| {
        let mut session = engine.shared_session(CONTEXT, 3);
        session.begin(0, &prompt, &options).expect("sound");
        let count = |session: &mut Session<'_>, wanted: usize| {
            let (mut tokens, mut passes) = (0, 0);
            while tokens < wanted {
                passes += 1;
                session.step(|slot, step| {
                    tokens += usize::from(slot == 0 && matches!(step, Step::Token(_)));
                    ControlFlow::Continue(())
                });
            }
            passes
        };
        count(&mut session, interruption);
        let suspended = session.suspend(0).expect("under way");
        others(&mut session);
        session.begin(1, &[9], &greedy(150)).expect("sound");
        session.step(|_, step| go_on(step));
        session.resume(0, suspended);
        let passes = count(&mut session, 1);
        loop {
            session.step(|_, step| go_on(step));
            if let Some(answer) = session.take_answer(0) {
                assert_eq!(answer.expect("sound").tokens, alone.tokens);
                return passes;
            }
        }
    };
    for interruption in if is_emulated() { vec![1, 58] } else { vec![1, 20, 56, 57, 58, 59] } {
        let passes = passes_until_token(interruption, |_| {});
        assert!(passes <= KV_BLOCK / 4 + 1, "{interruption} tokens: {passes} passes");
        // All but one of the tokens: the check above would fail if nothing were found.
        let passes = passes_until_token(interruption, evict);
        assert!(passes >= (250 + interruption - 1) / 12, "{interruption} tokens: {passes} passes");
    }
}

#[test]
fn a_prompt_that_is_suspended_while_it_is_read_goes_on_where_it_was() {
    let engine = engine();
    let (prompt, options) = (prompt(&engine, 300), greedy(9));
    let alone = engine.session(CONTEXT).generate(&prompt, &options, go_on).expect("sound");
    for evicts in [false, true] {
        let mut session = engine.shared_session(CONTEXT, 2);
        // Another answer makes the prompt come in parts.
        session.begin(1, &[9], &greedy(200)).expect("sound");
        session.step(|_, step| go_on(step));
        session.begin(0, &prompt, &options).expect("sound");
        let (mut read, mut suspended_after) = (Vec::new(), 0);
        let answer = loop {
            session.step(|slot, step| {
                if let (0, Step::Prefill(tokens)) = (slot, step) {
                    read.push(tokens);
                }
                ControlFlow::Continue(())
            });
            if let Some(answer) = session.take_answer(0) {
                break answer.expect("sound");
            }
            if suspended_after == 0 && read.last().is_some_and(|tokens| *tokens >= 150) {
                suspended_after = read.len();
                let suspended = session.suspend(0).expect("under way");
                if evicts {
                    evict(&mut session);
                }
                session.resume(0, suspended);
            }
        };
        assert_eq!((&answer.tokens, answer.cached), (&alone.tokens, 0));
        let (before, next) = (read[suspended_after - 1], read[suspended_after]);
        let found = before / KV_BLOCK * KV_BLOCK;
        let goes_on = (found + 1..=found + KV_BLOCK).contains(&next);
        assert!(if evicts { next <= 128 } else { goes_on }, "{next} after {before}");
    }
}

#[test]
fn another_answer_to_the_prompt_of_one_that_was_suspended_is_right_and_harms_no_other() {
    let engine = engine();
    let mut session = engine.shared_session(CONTEXT, 2);
    // The answer begins within a block that is full when it is suspended.
    let prompt = prompt(&engine, KV_BLOCK as u32 + 20);
    let first = GenerateOptions { logprobs: Some(2), ..greedy(60) };
    let warm = SamplingParams { temperature: 3.0, seed: 8, ..SamplingParams::default() };
    let second = GenerateOptions { sampling: warm, ..first.clone() };
    let alone = |options: &GenerateOptions| {
        let answer = engine.session(CONTEXT).generate(&prompt, options, go_on).expect("sound");
        (answer.tokens, answer.logprobs)
    };
    for at in [46, 57] {
        let (found, ..) = interrupted(&mut session, &prompt, &first, |step| step == at, |_| {});
        assert_eq!((found.tokens.clone(), found.logprobs), alone(&first));
        let scored = session.log_probabilities_of(0, &found.tokens);
        let mut fresh = engine.session(CONTEXT);
        fresh.generate(&prompt, &first, go_on).expect("sound");
        assert_eq!(scored, fresh.log_probabilities_of(0, &found.tokens), "after {at}");
        interrupted(&mut session, &prompt, &first, |step| step == at, |_| {});
        session.begin_again(0, &second).expect("sound");
        let again = loop {
            session.step(|_, step| go_on(step));
            if let Some(answer) = session.take_answer(0) {
                break answer.expect("sound");
            }
        };
        assert_eq!((again.tokens, again.logprobs), alone(&second), "after {at}");
        // A conversation that goes on behind the first answer finds what belongs to that one.
        let next: Vec<u32> = prompt.iter().chain(&found.tokens).copied().chain([5, 6]).collect();
        let few = GenerateOptions { max_tokens: Some(12), ..first.clone() };
        let behind = session.generate(&next, &few, go_on).expect("sound");
        let wanted = engine.session(CONTEXT).generate(&next, &few, go_on).expect("sound");
        assert_eq!((behind.tokens, behind.logprobs), (wanted.tokens, wanted.logprobs), "after {at}");
        assert_eq!(behind.cached, 128, "after {at}");
    }
}

#[test]
fn a_suspended_answer_that_is_cancelled_has_what_there_was() {
    let engine = engine();
    let mut session = engine.shared_session(CONTEXT, 1);
    assert!(session.suspend(0).is_none(), "nothing is under way");
    let (prompt, options) = (prompt(&engine, 70), greedy(30));
    let alone = engine.session(CONTEXT).generate(&prompt, &options, go_on).expect("sound");
    session.begin(0, &prompt, &options).expect("sound");
    let mut tokens = 0;
    while tokens < 10 {
        session.step(|_, step| {
            tokens += usize::from(matches!(step, Step::Token(_)));
            ControlFlow::Continue(())
        });
    }
    let suspended = session.suspend(0).expect("under way");
    // Its slot is free for another.
    let other = session.generate(&prompt, &options, go_on).expect("sound");
    assert_eq!((&other.tokens, other.cached), (&alone.tokens, 64));
    let cancelled = suspended.cancel();
    assert_eq!((cancelled.end, &cancelled.tokens[..]), (StopReason::Cancelled, &alone.tokens[..10]));
    assert!(alone.text.starts_with(&cancelled.text) && !cancelled.text.is_empty());
}
