//! Decoding under a grammar.

use super::{compile, engine, schema};
use crate::few;
use bitnetd::engine::Engine;
use bitnetd::engine::grammar::{GrammarSource, quoted};
use bitnetd::engine::sampler::SamplingParams;
use bitnetd::engine::session::{Answer, GenerateOptions, Step, StopReason};
use bitnetd::engine::tokenizer::{ChatRole, Turn};
use std::ops::ControlFlow;

fn answer(engine: &Engine, prompt: &str, source: Option<&GrammarSource>, options: GenerateOptions) -> Answer {
    let prompt =
        engine.tokenizer().prompt_chat(&[Turn { role: ChatRole::User, text: prompt }]).expect("a turn");
    let constraint = source.map(|source| compile(engine, source).expect("a sound source"));
    let options = GenerateOptions { constraint, ..options };
    let mut streamed = String::new();
    let answer = engine.session(512).generate(&prompt, &options, |step| {
        if let Step::Token(text) = step {
            streamed.push_str(text);
        }
        ControlFlow::Continue(())
    });
    let answer = answer.expect("a sound request");
    assert_eq!(answer.text, streamed);
    answer
}

fn greedy(engine: &Engine, prompt: &str, source: Option<&GrammarSource>) -> Answer {
    answer(engine, prompt, source, GenerateOptions { max_tokens: Some(100), ..GenerateOptions::default() })
}

const COMMANDS: [&str; 4] =
    ["turn on the kitchen lights", "what is the capital of France", "set the timer to five minutes", "hello"];

#[test]
fn a_grammar_that_allows_everything_changes_nothing() {
    let engine = engine();
    let everything = [
        GrammarSource::Regex("(?s:.*)".into()),
        GrammarSource::Lark("start: /(?s:.*)/".into()),
        GrammarSource::JsonObject,
        schema("true"),
        schema("{}"),
    ];
    for prompt in COMMANDS.into_iter().take(few(1)) {
        let free = greedy(&engine, prompt, None);
        for source in &everything {
            let held = greedy(&engine, prompt, Some(source));
            assert_eq!((&held.text, held.end), (&free.text, free.end), "{source:?}");
        }
    }
}

#[test]
fn an_answer_always_fits_however_it_is_sampled() {
    let engine = engine();
    let shape = schema(
        r#"{"type":"object","properties":{"b":{"type":"integer","minimum":3,"maximum":250},"a":{"enum":["x","yy",null]},
        "list":{"type":"array","items":{"type":"boolean"},"minItems":1,"maxItems":4}},"required":["b","a","list"],
        "additionalProperties":false}"#,
    );
    for seed in (0..30).take(few(6)) {
        let sampling = SamplingParams { temperature: 3.0, seed, ..SamplingParams::default() };
        let options = GenerateOptions { sampling, max_tokens: Some(100), ..GenerateOptions::default() };
        let held = answer(&engine, "hello", Some(&shape), options);
        assert_eq!(held.end, StopReason::Stop, "{}", held.text);
        let value: serde_json::Value = serde_json::from_str(&held.text).expect(&held.text);
        assert!((3..=250).contains(&value["b"].as_i64().expect("an integer")), "{value}");
        assert!(["\"x\"", "\"yy\"", "null"].contains(&value["a"].to_string().as_str()), "{value}");
        let list = value["list"].as_array().expect("a list");
        assert!((1..=4).contains(&list.len()) && list.iter().all(|item| item.is_boolean()), "{value}");
        assert!(held.text.starts_with("{\"b\":"), "keys come in the order of the schema: {}", held.text);
        assert!(held.forced > 5, "{}", held.forced);
    }
}

#[test]
fn what_is_cut_at_the_limit_says_so_and_what_is_complete_there_does_not() {
    let engine = engine();
    let word = GrammarSource::Regex("(ab){20}".into());
    let whole = greedy(&engine, "hello", Some(&word));
    assert_eq!((whole.text.as_str(), whole.end), ("ab".repeat(20).as_str(), StopReason::Stop));
    assert_eq!(whole.forced, whole.tokens.len());
    let most = |n| GenerateOptions { max_tokens: Some(n), ..GenerateOptions::default() };
    let exact = answer(&engine, "hello", Some(&word), most(whole.tokens.len()));
    assert_eq!((&exact.text, exact.end), (&whole.text, StopReason::Stop));
    let cut = answer(&engine, "hello", Some(&word), most(whole.tokens.len() - 1));
    assert_eq!((cut.end, cut.tokens.len()), (StopReason::Length, whole.tokens.len() - 1));
    assert!(whole.text.starts_with(&cut.text));
}

#[test]
fn a_stop_string_ends_an_answer_before_its_grammar_does() {
    let engine = engine();
    let options = GenerateOptions { stop: vec!["c".into()], ..GenerateOptions::default() };
    let stopped = answer(&engine, "hello", Some(&GrammarSource::Regex("abcd".into())), options);
    assert_eq!((stopped.text.as_str(), stopped.end), ("ab", StopReason::Stop));
}

#[test]
fn no_control_token_can_be_produced_as_text() {
    let engine = engine();
    let tokenizer = engine.tokenizer();
    for seed in (0..10).take(few(2)) {
        let sampling = SamplingParams { temperature: 10.0, seed, ..SamplingParams::default() };
        let options = GenerateOptions { sampling, max_tokens: Some(60), ..GenerateOptions::default() };
        let wild = answer(&engine, "hello", Some(&GrammarSource::Regex("(?s:.*)".into())), options);
        assert!(wild.tokens.iter().all(|id| !tokenizer.is_control(*id)));
    }
}

#[test]
fn a_list_of_names_of_our_own_may_be_long() {
    let engine = engine();
    let names: Vec<String> = (0..2_000).map(|n| quoted(&format!("Lampe \"{n}\" im Büro"))).collect();
    let lark = format!("start: \"name=\" NAME\nNAME: {}", names.join(" | "));
    let constraint = engine.grammars().expect("made").compile_own(&lark).expect("fits");
    let prompt = engine.tokenizer().encode("hello");
    let options = GenerateOptions { constraint: Some(constraint), ..GenerateOptions::default() };
    let named = engine.session(512).generate(&prompt, &options, |_| ControlFlow::Continue(()));
    let named = named.expect("sound");
    let number = named.text.strip_prefix("name=Lampe \"").and_then(|rest| rest.strip_suffix("\" im Büro"));
    assert!(number.is_some_and(|n| n.parse::<u32>().is_ok_and(|n| n < 2_000)), "{}", named.text);
}
