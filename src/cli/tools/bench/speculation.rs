//! `bench --speculate`: decoding with speculation against decoding without, both in turn, for answers of three kinds.
//!
//! The models that are at hand for a measurement, of random weights or for one task, do not write such answers. Their
//! tokens are therefore given: every pass, every logit and every choice is computed as ever, and then the given token
//! takes the place of the chosen one. What is proposed and accepted thus depends on the texts only.

use super::report::{SpeculationTimes, summary};
use super::texts::{EXAMPLES, Example, WordIds};
use crate::cli::Failure;
use crate::engine::Engine;
use crate::engine::session::{Answer, GenerateOptions, Step};
use std::ops::ControlFlow;

/// Measures each kind of answer without and with speculation in turn, `rounds` times.
pub(super) fn measure(engine: &Engine, rounds: u32) -> Result<Vec<SpeculationTimes>, Failure> {
    let mut ids = WordIds::new(engine.model().shape().vocab);
    EXAMPLES.iter().map(|example| measure_one(engine, &mut ids, example, rounds)).collect()
}

fn measure_one(
    engine: &Engine,
    ids: &mut WordIds,
    example: &Example,
    rounds: u32,
) -> Result<SpeculationTimes, Failure> {
    let [prompt, script] = [example.prompt, example.answer].map(|text| ids.tokens(text));
    let (context, longest) = (prompt.len() + script.len(), engine.model().shape().context);
    if context > longest {
        let message = format!("{context} tokens, and the model's context is {longest}; name another model");
        return Err(Failure::usage(format!("--speculate: {message}")));
    }
    let mut session = engine.session(context);
    let mut answer = |speculate| {
        let options = GenerateOptions {
            max_tokens: Some(script.len()),
            ignore_eos: true,
            script: script.clone(),
            speculate,
            ..GenerateOptions::default()
        };
        let go_on = |_: Step<'_>| ControlFlow::Continue(());
        session.generate_again(&prompt, &options, go_on).expect("the context holds it")
    };
    let speed = |answer: &Answer| (answer.tokens.len() - 1) as f64 / answer.decode.as_secs_f64();
    let (mut without, mut with, mut speedups) = (Vec::new(), Vec::new(), Vec::new());
    let mut counts = (0, 0);
    answer(true); // a warm-up, which reads the prompt
    for round in 0..rounds {
        // Each is the first of the two as often.
        let is_first = round % 2 == 1;
        let [first, second] = [is_first, !is_first].map(&mut answer);
        let (on, off) = if is_first { (first, second) } else { (second, first) };
        counts = (on.looked_up.proposed, on.looked_up.accepted);
        with.push(speed(&on));
        without.push(speed(&off));
        speedups.push(speed(&on) / speed(&off));
    }
    Ok(SpeculationTimes {
        kind: example.name,
        prompt_tokens: prompt.len(),
        tokens: script.len(),
        proposed_tokens: counts.0,
        accepted_tokens: counts.1,
        without: summary(without),
        with: summary(with),
        speedup: summary(speedups),
    })
}
