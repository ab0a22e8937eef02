//! `bench --parallel`: several requests together against one alone, and a prompt that joins running answers, in turn.

use super::report::{JoinTimes, ParallelTimes, summary};
use crate::engine::Engine;
use crate::engine::session::{GenerateOptions, Session, Step};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Tokens of the prompts of answers whose decoding is measured.
const SHORT_PROMPT: usize = 16;
/// Answers that run while a prompt joins them, where no fewer requests are measured.
const MOST_RUNNING: usize = 3;

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct ParallelBench {
    /// Requests at the same time.
    pub parallel: usize,
    /// Tokens of each answer.
    pub tokens: usize,
    /// Tokens of the prompt that joins.
    pub prompt_tokens: usize,
    /// How often each is measured.
    pub rounds: u32,
}

/// Measures one request alone and several together in turn, then a prompt alone and beside the answers.
pub(super) fn measure(engine: &Engine, settings: ParallelBench) -> ParallelTimes {
    let ParallelBench { parallel, tokens, prompt_tokens, rounds } = settings;
    let context = (SHORT_PROMPT + tokens + 1).max(prompt_tokens + 2).next_multiple_of(64) * 2;
    let context = context.min(engine.model().shape().context);
    let running = parallel.saturating_sub(1).clamp(1, MOST_RUNNING);
    let mut session = engine.shared_session(context, parallel.max(running + 1));
    let (mut alone, mut together, mut speedups) = (Vec::new(), Vec::new(), Vec::new());
    decode(&mut session, engine, parallel, tokens); // a warm-up
    for _ in 0..rounds {
        let [one, many] = [1, parallel].map(|count| decode(&mut session, engine, count, tokens));
        alone.push(one);
        together.push(many);
        speedups.push(many / one);
    }
    let joins: Vec<Join> =
        (0..rounds).map(|round| join(&mut session, engine, running, prompt_tokens, round as usize)).collect();
    let median = |of: fn(&Join) -> f64| summary(joins.iter().map(of).collect());
    ParallelTimes {
        requests: parallel,
        tokens,
        alone: summary(alone),
        together: summary(together),
        speedup: summary(speedups),
        join: JoinTimes {
            prompt_tokens,
            running,
            usual_gap_ms: median(|join| join.usual_gap * 1e3),
            longest_gap_ms: median(|join| join.longest_gap * 1e3),
            gap_ratio: median(|join| join.longest_gap / join.usual_gap),
            prompt_speed_ratio: median(|join| join.alone / join.beside_answers),
        },
    }
}

/// Tokens of a prompt that no other begins with.
fn prompt(engine: &Engine, len: usize, number: usize) -> Vec<u32> {
    let vocab = engine.model().shape().vocab;
    (0..len).map(|at| ((at + 1) * 7919 + number * 104_729) as u32 % vocab as u32).collect()
}

fn options(tokens: usize, scope: usize) -> GenerateOptions {
    let prefix_scope = scope as u128;
    GenerateOptions { max_tokens: Some(tokens), ignore_eos: true, prefix_scope, ..GenerateOptions::default() }
}

/// Tokens per second of `count` requests together, from when all of them have their first token.
fn decode(session: &mut Session<'_>, engine: &Engine, count: usize, tokens: usize) -> f64 {
    for slot in 0..count {
        let prompt = prompt(engine, SHORT_PROMPT, slot);
        session.begin(slot, &prompt, &options(tokens + count, slot)).expect("the context holds it");
    }
    let mut have = vec![0; count];
    let mut step = |session: &mut Session<'_>| {
        session.step(|slot, step| {
            have[slot] += usize::from(matches!(step, Step::Token(_)));
            ControlFlow::Continue(())
        });
        have.iter().all(|tokens| *tokens > 0)
    };
    while !step(session) {}
    let steps = tokens - 1;
    let began = Instant::now();
    for _ in 0..steps {
        step(session);
    }
    let took = began.elapsed();
    (0..count).for_each(|slot| session.release(slot));
    (steps * count) as f64 / took.as_secs_f64()
}

/// One prompt that joins running answers.
struct Join {
    /// Seconds between two tokens of an answer: the median before, and the longest while the prompt is read.
    usual_gap: f64,
    longest_gap: f64,
    /// Seconds for the prompt, alone and beside the answers.
    alone: f64,
    beside_answers: f64,
}

fn join(
    session: &mut Session<'_>,
    engine: &Engine,
    running: usize,
    prompt_tokens: usize,
    round: usize,
) -> Join {
    let long = prompt(engine, prompt_tokens, round);
    let alone = read(session, running, &long, 2 * round + 1).iter().sum::<Duration>().as_secs_f64();
    for slot in 0..running {
        let free = session.context() - SHORT_PROMPT;
        let prompt = prompt(engine, SHORT_PROMPT, slot);
        session.begin(slot, &prompt, &options(free, slot)).expect("the context holds it");
    }
    let one = |session: &mut Session<'_>| {
        let began = Instant::now();
        session.step(|_, _| ControlFlow::Continue(()));
        began.elapsed()
    };
    for _ in 0..4 {
        one(session);
    }
    let usual: Vec<f64> = (0..9).map(|_| one(session).as_secs_f64()).collect();
    // Every step gives each running answer a token.
    let steps = read(session, running, &long, 2 * round + 2);
    (0..running).for_each(|slot| session.release(slot));
    Join {
        usual_gap: summary(usual).median,
        longest_gap: steps.iter().max().copied().unwrap_or_default().as_secs_f64(),
        alone,
        beside_answers: steps.iter().sum::<Duration>().as_secs_f64(),
    }
}

/// Reads a prompt in a slot; the times of its steps.
fn read(session: &mut Session<'_>, slot: usize, prompt: &[u32], scope: usize) -> Vec<Duration> {
    session.begin(slot, prompt, &options(1, scope + 1_000_000)).expect("the context holds it");
    let mut steps = Vec::new();
    while session.take_answer(slot).is_none() {
        let began = Instant::now();
        session.step(|_, _| ControlFlow::Continue(()));
        steps.push(began.elapsed());
    }
    session.release(slot);
    steps
}
