//! Intents with names of a home, measured on sentences.
//!
//! `models/README.md` has the command and the figures.

use bitnetd::engine::session::{GenerateOptions, Step};
use bitnetd::engine::tokenizer::{ChatRole, Turn};
use bitnetd::engine::{Engine, EngineOptions, ModelFile, Source};
use bitnetd::home::{Decision, Home, IntentPrompt, file};
use serde::Deserialize;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Deserialize)]
struct Sentence {
    prompt: String,
    /// The right answer, as JSON; `null` where nothing fits.
    answer: Option<serde_json::Value>,
}

/// A home with sentences to it.
#[derive(Deserialize)]
struct Sentences {
    home: serde_json::Value,
    sentences: Vec<Sentence>,
}

fn engine() -> Engine {
    let file = ModelFile::open(&Source::BuiltIn, None).expect("sound");
    file.load(&EngineOptions { threads: 1, ..EngineOptions::default() }).expect("sound")
}

fn home(json: &serde_json::Value) -> Arc<Home> {
    Arc::new(Home::new(file::parse(&json.to_string(), true).expect("sound"), 1))
}

/// What the model answers without a grammar, and what is sent in this home, with what it was made of.
fn answers(engine: &Engine, home: &Arc<Home>, prompt: &str) -> (String, String, Decision, Vec<(usize, f64)>) {
    let mut session = engine.session(512);
    let tokens =
        engine.tokenizer().prompt_chat(&[Turn { role: ChatRole::User, text: prompt }]).expect("one turn");
    let all = |_: Step<'_>| ControlFlow::Continue(());
    let free = session.generate(&tokens, &GenerateOptions::default(), all).expect("short");
    let intent = IntentPrompt::new(home, prompt);
    let constraint = engine.grammars().and_then(|grammars| grammars.compile_own(intent.lark()));
    let constraint = constraint.unwrap_or_else(|error| panic!("{prompt}: {error}: {}", intent.lark()));
    let options = GenerateOptions { constraint: Some(constraint), ..GenerateOptions::default() };
    let held = session.generate(&tokens, &options, all).expect("short");
    let mut end = 0;
    let scores = session.log_probabilities(&held.tokens);
    let ends = held.tokens.iter().map(|token| {
        end += engine.tokenizer().bytes(*token).len();
        end
    });
    let scored: Vec<(usize, f64)> = ends.zip(scores).collect();
    (free.text, held.text.clone(), intent.decide(&held.text, &scored), scored)
}

/// Prints a line of JSON for each sentence of the files in `BITNETD_SENTENCES`, to be evaluated by `tests/bench/intents`.
#[test]
#[ignore = "measures; see models/README.md"]
fn sentences_are_answered_in_the_names_of_a_home() {
    let paths = std::env::var("BITNETD_SENTENCES").expect("paths of files with sentences");
    let engine = engine();
    for path in paths.split(':') {
        let text = std::fs::read_to_string(path).expect("a file");
        let Sentences { home: names, sentences } = serde_json::from_str(&text).expect("sentences");
        let home = home(&names);
        for Sentence { prompt, answer } in sentences {
            let (free, held, decision, scored) = answers(&engine, &home, &prompt);
            let line = serde_json::json!({
                "file": path, "prompt": prompt, "right": answer, "free": free, "held": held, "sent": decision.text,
                "score": decision.log_probability, "tokens": scored,
            });
            println!("{line}");
        }
    }
}

/// The median time of an answer, in turn, in a home of 40 devices and one of 2,000.
#[test]
#[ignore = "measures; see models/README.md"]
fn a_large_home_takes_as_long_as_a_small_one() {
    let of = |count: usize| {
        let devices: Vec<_> = (0..count)
            .map(|n| serde_json::json!({"name": format!("Lamp {n} of the hall"), "domain": "light"}))
            .collect();
        home(&serde_json::json!({ "devices": devices, "areas": ["Kitchen"] }))
    };
    let homes = [of(40), of(2000)];
    let engine = engine();
    let mut session = engine.session(512);
    let prompt = "turn on the kitchen lights and lamp 7 of the hall";
    let tokens =
        engine.tokenizer().prompt_chat(&[Turn { role: ChatRole::User, text: prompt }]).expect("one turn");
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..101 {
        for (home, times) in homes.iter().zip(&mut times) {
            let begin = Instant::now();
            let intent = IntentPrompt::new(home, prompt);
            let grammars = engine.grammars().expect("sound");
            let constraint = grammars.compile_own(intent.lark()).expect("sound");
            let options = GenerateOptions { constraint: Some(constraint), ..GenerateOptions::default() };
            let held = session.generate(&tokens, &options, |_| ControlFlow::Continue(())).expect("short");
            session.log_probabilities(&held.tokens);
            times.push(begin.elapsed());
        }
    }
    let [small, large] = times.map(|mut times| {
        times.sort();
        times[times.len() / 2]
    });
    println!("40 devices: {small:?}, 2,000: {large:?}");
    assert!(large < small + small / 5 + Duration::from_micros(100));
}
