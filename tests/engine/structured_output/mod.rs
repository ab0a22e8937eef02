//! Answers under a grammar: they always fit, what a grammar does not restrict stays as it was, and hostile sources are
//! refused quickly.

mod calls;
mod decoding;
mod exceptions;
mod hostile;
mod keywords;
mod trie;

use bitnetd::engine::grammar::{Constraint, GrammarError, GrammarSource, NextTokens};
use bitnetd::engine::{Engine, EngineOptions, ModelFile, Source};

fn engine() -> Engine {
    let file = ModelFile::open(&Source::BuiltIn, None).expect("sound");
    file.load(&EngineOptions { threads: 2, ..EngineOptions::default() }).expect("sound")
}

fn schema(text: &str) -> GrammarSource {
    GrammarSource::JsonSchema(text.into())
}

fn compile(engine: &Engine, source: &GrammarSource) -> Result<Constraint, GrammarError> {
    engine.grammars().expect("made").compile(source)
}

/// Whether a text fits: it is given token by token, and must be allowed to end behind the last.
fn accepts(engine: &Engine, constraint: &Constraint, text: &str) -> bool {
    let (mut constraint, tokenizer) = (constraint.clone(), engine.tokenizer());
    let mut rest = text.as_bytes();
    loop {
        match constraint.next_tokens() {
            Err(error) => panic!("{text}: {error}"),
            Ok(NextTokens::End) => return rest.is_empty(),
            Ok(NextTokens::Forced(ids)) => {
                for id in ids {
                    let Some(after) = rest.strip_prefix(tokenizer.bytes(id)) else { return false };
                    rest = after;
                }
            }
            Ok(NextTokens::Choice { mask, .. }) => {
                let is_allowed = |id: u32| mask[id as usize / 32] >> (id % 32) & 1 == 1;
                if rest.is_empty() {
                    return tokenizer.end_tokens().iter().any(|id| is_allowed(*id));
                }
                // The longest allowed token that the text begins with.
                let fits =
                    |id: &u32| !tokenizer.bytes(*id).is_empty() && rest.starts_with(tokenizer.bytes(*id));
                let ids = (0..tokenizer.vocab_size() as u32)
                    .filter(|id| is_allowed(*id) && !tokenizer.is_control(*id));
                let Some(id) = ids.filter(fits).max_by_key(|id| tokenizer.bytes(*id).len()) else {
                    return false;
                };
                rest = &rest[tokenizer.bytes(id).len()..];
                constraint.consume(id).expect("it was allowed");
            }
        }
    }
}
