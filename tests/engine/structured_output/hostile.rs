//! Hostile schemas, expressions and grammars: each is refused, or runs, within a short time and little memory.

use super::{compile, engine, schema};
use crate::allocations;
use bitnetd::engine::grammar::{GrammarSource, NextTokens};
use std::time::{Duration, Instant};

/// Three hundred tokens of a debug build beside other tests, or under emulation; what is to be found takes far longer or
/// does not end.
const SOON: Duration = Duration::from_secs(if cfg!(target_arch = "aarch64") { 120 } else { 20 });

/// The most allocations that compiling a source may take, and their bytes. Unlike a time, they are the same on all machines and
/// under any load: the hardest of these sources takes 48,125 allocations of 6.1 MB, which are 66 ms of a release build where
/// that was measured, so that this many are 100 ms.
const MOST_ALLOCATIONS: usize = 73_000;
const MOST_BYTES: usize = 9_300_000;

fn nested(depth: usize) -> String {
    format!("{}{}", "{\"items\":".repeat(depth), "true".to_owned() + &"}".repeat(depth))
}

pub fn hostile() -> Vec<(&'static str, GrammarSource)> {
    let numbers: Vec<String> = (0..10_000).map(|n| n.to_string()).collect();
    let chain: String = (0..5_000).map(|n| format!("r{n}: r{}\n", n + 1)).collect();
    let branches = |n: usize| {
        let options: Vec<String> =
            (0..n).map(|at| format!(r#"{{"type":"string","minLength":{at}}}"#)).collect();
        format!(r#"{{"anyOf":[{}]}}"#, options.join(","))
    };
    let product = vec![branches(20); 9].join(",");
    let lists = vec![format!(r#"{{"enum":[{}]}}"#, numbers[..900].join(",")); 2].join(",");
    let regex = |text: &str| GrammarSource::Regex(text.into());
    let lark = |text: &str| GrammarSource::Lark(text.into());
    vec![
        ("depth", schema(&nested(60))),
        ("more depth than JSON readers take", schema(&nested(5_000))),
        ("10,000 values", schema(&format!(r#"{{"enum":[{}]}}"#, numbers.join(",")))),
        ("itself", schema(r##"{"$ref":"#"}"##)),
        (
            "a loop",
            schema(
                r##"{"$defs":{"a":{"$ref":"#/$defs/b"},"b":{"anyOf":[{"$ref":"#/$defs/a"}]}},"$ref":"#/$defs/a"}"##,
            ),
        ),
        ("nowhere", schema(r##"{"$ref":"#/$defs/a"}"##)),
        ("endless", schema(r##"{"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]}"##)),
        ("a product", schema(&format!(r#"{{"allOf":[{product}]}}"#))),
        ("a product of values", schema(&format!(r#"{{"allOf":[{lists}]}}"#))),
        ("never", schema("false")),
        ("order", schema(r#"{"type":"array","minItems":3,"maxItems":2}"#)),
        ("many items", schema(r#"{"type":"array","minItems":100000}"#)),
        ("long", schema(&format!(r#"{{"const":"{}"}}"#, "a".repeat(70_000)))),
        (
            "a pattern of powers",
            schema(r#"{"type":"string","pattern":"((((a{1,99}){1,99}){1,99}){1,99}){1,99}"}"#),
        ),
        ("powers", regex("((((a{1,99}){1,99}){1,99}){1,99}){1,99}")),
        ("states", regex("(.*a.{400}b)|(.*b.{300}a)|(.*c.{200}d)")),
        ("groups", regex(&"(".repeat(2_000))),
        ("alternatives", regex(&"(a|b|c|d)?".repeat(300))),
        ("unclosed", regex("[a-")),
        ("a chain", lark(&format!("start: r0\n{chain}r5000: \"a\"\n"))),
        ("a loop of rules", lark("start: a\na: b\nb: a\n")),
        ("left", lark("start: start start | \"a\"\n")),
        ("endless rules", lark("start: \"a\" start\n")),
        ("special tokens", lark("start: <|eot_id|>\n")),
        ("special tokens by number", lark("start: <[5]>\n")),
        ("groups of rules", lark(&format!("start: {}", "(".repeat(5_000)))),
        ("a schema inside", lark("start: %json {\"not\":{}}\n")),
        ("no start", lark("a: \"b\"\n")),
        ("a directive", lark("%llguidance {\"allow_invalid_utf8\":true}\nstart: /./\n")),
    ]
}

#[test]
fn each_is_refused_or_compiled_within_counted_work() {
    let engine = engine();
    engine.grammars().expect("made");
    for (name, source) in hostile() {
        let (_, count, bytes) = allocations::counted(|| compile(&engine, &source));
        println!("{name}: {count} allocations of {bytes} bytes");
        assert!(count <= MOST_ALLOCATIONS && bytes <= MOST_BYTES, "{name}: {count} of {bytes} bytes");
    }
}

#[test]
fn each_is_refused_or_runs_within_a_short_time() {
    let engine = engine();
    engine.grammars().expect("made");
    for (name, source) in hostile() {
        let started = Instant::now();
        let (compiled, largest) = allocations::largest(|| compile(&engine, &source));
        let mut outcome = match &compiled {
            Ok(_) => "compiled".to_owned(),
            Err(error) => error.to_string(),
        };
        let compiling = started.elapsed();
        if let Ok(mut constraint) = compiled {
            for _ in 0..300 {
                match constraint.next_tokens() {
                    Ok(NextTokens::Choice { mask, .. }) => {
                        let tokenizer = engine.tokenizer();
                        let is_allowed = |id: u32| mask[id as usize / 32] >> (id % 32) & 1 == 1;
                        let ids = (0..tokenizer.vocab_size() as u32)
                            .filter(|id| is_allowed(*id) && !tokenizer.is_end(*id));
                        let Some(id) = ids.max() else { break };
                        constraint.consume(id).expect("it was allowed");
                    }
                    Ok(NextTokens::Forced(_)) => {}
                    Ok(NextTokens::End) => break,
                    Err(error) => {
                        outcome = format!("under way: {error}");
                        break;
                    }
                }
            }
        }
        println!(
            "{name}: {compiling:?}, then {:?}, {largest} bytes: {outcome}",
            started.elapsed() - compiling
        );
        assert!(started.elapsed() < SOON, "{name}: {:?}", started.elapsed());
        assert!(outcome.len() < 400 && !outcome.contains(char::is_control), "{name}: {outcome}");
    }
}
