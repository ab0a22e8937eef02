//! Any schema, regular expression or grammar as a client's `response_format`: an error of one line, or a constraint that
//! goes on for some tokens, each time within a short time and in little memory.
//!
//! Run it with `-malloc_limit_mb=32 -timeout=5`. The first byte says what the rest is.

#![no_main]

use bitnetd::engine::gguf::{FileMap, Gguf};
use bitnetd::engine::grammar::{GrammarCompiler, GrammarError, GrammarSource, NextTokens};
use bitnetd::engine::tokenizer::Tokenizer;
use libfuzzer_sys::fuzz_target;
use std::sync::{Arc, LazyLock};

static VOCABULARY: &[u8] = include_bytes!("../../data/tokenizers/llama-bpe.gguf");

static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    let file = Gguf::parse(FileMap::from(VOCABULARY.to_vec())).expect("a sound file");
    Arc::new(Tokenizer::read(&file).expect("a sound vocabulary"))
});

static COMPILER: LazyLock<GrammarCompiler> =
    LazyLock::new(|| GrammarCompiler::new(&TOKENIZER).expect("a sound vocabulary"));

const STEPS: usize = 40;

fuzz_target!(|input: &str| {
    let mut chars = input.chars();
    let (kind, rest) = (chars.next(), chars.as_str().to_owned());
    let source = match kind {
        Some('s') => GrammarSource::JsonSchema(rest),
        Some('r') => GrammarSource::Regex(rest),
        Some('g') => GrammarSource::Lark(rest),
        _ => return,
    };
    if let Err(error) = run(&source) {
        let line = error.to_string();
        assert!(line.len() < 4000 && !line.contains(char::is_control), "{line}");
    }
});

fn run(source: &GrammarSource) -> Result<(), GrammarError> {
    let mut constraint = COMPILER.compile(source)?;
    let mut produced = Vec::new();
    for step in 0..STEPS {
        let id = match constraint.next_tokens()? {
            NextTokens::End => break,
            NextTokens::Forced(ids) => {
                assert!(ids.iter().all(|id| !TOKENIZER.is_control(*id)));
                ids.iter().for_each(|id| produced.extend_from_slice(TOKENIZER.bytes(*id)));
                continue;
            }
            NextTokens::Choice { mask, count } => {
                let is_allowed = |id: &u32| mask[*id as usize / 32] >> (id % 32) & 1 == 1;
                let allowed: Vec<u32> = (0..TOKENIZER.vocab_size() as u32).filter(is_allowed).collect();
                assert_eq!(allowed.len(), count);
                allowed[step * 31 % count]
            }
        };
        if TOKENIZER.is_end(id) {
            break;
        }
        assert!(!TOKENIZER.is_control(id));
        constraint.consume(id)?;
        produced.extend_from_slice(TOKENIZER.bytes(id));
    }
    // Characters may be cut at the end only.
    if let Err(error) = std::str::from_utf8(&produced) {
        assert!(error.error_len().is_none(), "{produced:?}");
    }
    Ok(())
}
