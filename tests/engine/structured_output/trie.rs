//! The memory of the trie of a vocabulary, and of a grammar at work, against what the memory plan says.

use super::{compile, engine, schema};
use crate::allocations;
use bitnetd::engine::gguf::{FileMap, Gguf};
use bitnetd::engine::grammar::{CONSTRAINT_BYTES, GrammarCompiler, GrammarSource, NextTokens};
use bitnetd::engine::tokenizer::Tokenizer;
use std::sync::Arc;
use std::time::Instant;

/// A byte-level vocabulary of `count` tokens: all bytes, then words, most with a space before them, that share their
/// beginnings about as much as those of Llama 3 do.
fn vocabulary(count: usize) -> (Vec<String>, usize) {
    let printable = |c: &char| matches!(c, '!'..='~' | '\u{a1}'..='\u{ac}' | '\u{ae}'..='\u{ff}');
    let mut tokens: Vec<String> =
        ('\0'..='\u{ff}').filter(printable).chain('\u{100}'..'\u{144}').map(String::from).collect();
    const SYLLABLES: [&str; 24] = [
        "a", "ing", "er", "in", "re", "con", "ti", "de", "es", "ter", "al", "ed", "pro", "en", "st", "le",
        "ma", "ri", "ne", "ra", "co", "la", "un", "ly",
    ];
    for at in 0.. {
        if tokens.len() >= count {
            break;
        }
        let mut word = if at % 2 == 0 { "\u{120}".to_owned() } else { String::new() };
        let mut rest = at / 2;
        loop {
            word.push_str(SYLLABLES[rest % SYLLABLES.len()]);
            rest /= SYLLABLES.len();
            if rest == 0 {
                break;
            }
            rest -= 1;
        }
        word.push_str(["", "s", "'"][at % 3]);
        tokens.push(word);
    }
    let bytes = tokens.iter().map(String::len).sum();
    (tokens, bytes)
}

fn tokenizer(tokens: &[String]) -> Arc<Tokenizer> {
    let mut file = crate::fixtures::small();
    file.set("tokenizer.ggml.tokens", crate::fixtures::texts(tokens));
    file.set("tokenizer.ggml.merges", crate::fixtures::texts(&[]));
    file.remove("tokenizer.ggml.token_type");
    let file = Gguf::parse(FileMap::from(file.bytes())).expect("sound");
    Arc::new(Tokenizer::read(&file).expect("sound"))
}

#[test]
fn tries_of_large_vocabularies_stay_within_the_plan() {
    for count in [2_000, 128_256, 151_936] {
        let (tokens, bytes) = vocabulary(count);
        let tokenizer = tokenizer(&tokens);
        drop(tokens);
        let started = Instant::now();
        let (compiler, kept, most) = allocations::held(|| GrammarCompiler::new(&tokenizer).expect("made"));
        let (took, planned) = (started.elapsed(), GrammarCompiler::trie_bytes(count, bytes));
        println!(
            "{count} tokens of {bytes} bytes: {kept} kept, {most} while made, {planned} planned, {took:?}"
        );
        assert!(most <= planned && planned <= 2 * most + (1 << 20), "{kept}, {most} of {planned}");
        compiler.compile(&GrammarSource::JsonObject).expect("a constraint");
    }
}

#[test]
fn a_grammar_at_work_stays_within_the_plan() {
    let engine = engine();
    engine.grammars().expect("made");
    let sources = super::hostile::hostile().into_iter().chain([
        ("an object", GrammarSource::JsonObject),
        ("values", schema(&format!(r#"{{"enum":[{}]}}"#, values(1_900)))),
        ("words", GrammarSource::Regex("([a-z]{1,12} ){1,300}".into())),
    ]);
    let mut largest = (0, "");
    for (name, source) in sources {
        let (_, _, most) = allocations::held(|| {
            let Ok(compiled) = compile(&engine, &source) else { return };
            // A request keeps what was compiled, for further answers.
            let mut constraint = compiled.clone();
            for step in 0..400 {
                let tokenizer = engine.tokenizer();
                let id = match constraint.next_tokens() {
                    Ok(NextTokens::Choice { mask, .. }) => {
                        let is_allowed = |id: u32| mask[id as usize / 32] >> (id % 32) & 1 == 1;
                        let ids = (0..tokenizer.vocab_size() as u32)
                            .filter(|id| is_allowed(*id) && !tokenizer.is_end(*id))
                            .collect::<Vec<_>>();
                        ids.get(step * 7 % ids.len().max(1)).copied()
                    }
                    Ok(NextTokens::Forced(_)) => continue,
                    Ok(NextTokens::End) | Err(_) => None,
                };
                let Some(id) = id else { break };
                constraint.consume(id).expect("it was allowed");
            }
        });
        println!("{name}: {most}");
        if most > largest.0 {
            largest = (most, name);
        }
    }
    assert!(largest.0 <= CONSTRAINT_BYTES, "{largest:?}");
}

fn values(count: usize) -> String {
    (0..count).map(|n| format!("\"value number {n}\"")).collect::<Vec<_>>().join(",")
}
