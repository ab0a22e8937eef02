//! `bench --constrained`: a JSON answer under a schema against free decoding of as many tokens, both in turn.

use super::report::{ConstrainedTimes, summary};
use crate::cli::Failure;
use crate::engine::Engine;
use crate::engine::grammar::{Constraint, GrammarSource};
use crate::engine::session::{Answer, GenerateOptions, Step};
use std::ops::ControlFlow;

/// Tokens of both answers.
pub(super) const TOKENS: usize = 100;

/// A list of readings, with more of them than fit: keys that are forced, and words and numbers that are chosen.
const SCHEMA: &str = r#"{"type":"array","minItems":40,"items":{"type":"object","properties":{
    "name":{"type":"string","minLength":4,"maxLength":24},
    "area":{"enum":["kitchen","bathroom","garage","living room","garden"]},
    "on":{"type":"boolean"},"level":{"type":"integer","minimum":0,"maximum":100}},
    "required":["name","area","on","level"],"additionalProperties":false}}"#;

/// Measures both in turn, `rounds` times.
pub(super) fn measure(engine: &Engine, prompt: &[u32], rounds: u32) -> Result<ConstrainedTimes, Failure> {
    let failed = |error| Failure::usage(format!("--constrained: {error}"));
    let started = std::time::Instant::now();
    let grammars = engine.grammars().map_err(failed)?;
    let trie_ms = started.elapsed().as_secs_f64() * 1e3;
    let started = std::time::Instant::now();
    let constraint: Constraint =
        grammars.compile(&GrammarSource::JsonSchema(SCHEMA.into())).map_err(failed)?;
    let compile_ms = started.elapsed().as_secs_f64() * 1e3;
    let mut session = engine.session(prompt.len() + TOKENS);
    let free = GenerateOptions { max_tokens: Some(TOKENS), ignore_eos: true, ..GenerateOptions::default() };
    let held = GenerateOptions { constraint: Some(constraint), ..free.clone() };
    let mut answer = |options: &GenerateOptions| {
        let go_on = |_: Step<'_>| ControlFlow::Continue(());
        session
            .generate(prompt, options, go_on)
            .map_err(|error| Failure::usage(format!("--constrained: {error}")))
    };
    // A warm-up of both.
    answer(&free)?;
    let mut forced_tokens = answer(&held)?.forced;
    let (mut free_ms, mut constrained_ms) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        free_ms.push(milliseconds(&answer(&free)?));
        let constrained = answer(&held)?;
        constrained_ms.push(milliseconds(&constrained));
        forced_tokens = constrained.forced;
    }
    let (free_ms, constrained_ms) = (summary(free_ms), summary(constrained_ms));
    let time_ratio = constrained_ms.median / free_ms.median;
    Ok(ConstrainedTimes {
        tokens: TOKENS,
        forced_tokens,
        free_ms,
        constrained_ms,
        time_ratio,
        trie_ms,
        compile_ms,
    })
}

/// The time from the end of the prompt to the last token: the first one of a constrained answer may be forced.
fn milliseconds(answer: &Answer) -> f64 {
    (answer.first_token.unwrap_or_default() + answer.decode).as_secs_f64() * 1e3
}
