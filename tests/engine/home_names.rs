//! Intents with names of a home, measured on sentences.
//!
//! `models/README.md` has the command and the figures.

use crate::allocations;
use bitnetd::engine::grammar::CONSTRAINT_BYTES;
use bitnetd::engine::session::{GenerateOptions, Step};
use bitnetd::engine::tokenizer::{ChatRole, Turn};
use bitnetd::engine::{Engine, EngineOptions, ModelFile, Source};
use bitnetd::home::{Decision, HOME_BYTES, Home, IntentPrompt, IntentScope, NameTopics, SharedHome, file};
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

/// The lights and areas of a small home, as Home Assistant lists them in its instructions.
const LISTED: &str = r#"{"devices":[{"name":"Kitchen Light","domain":"light","area":"Kitchen"},
    {"name":"Bedroom Lamp","domain":"light","area":"Bedroom"}]}"#;

/// What is sent in this scope.
fn decided(engine: &Engine, scope: &IntentScope<'_>, prompt: &str) -> Decision {
    let intent = IntentPrompt::scoped(prompt, scope).expect("that nothing fits is always possible");
    let mut session = engine.session(512);
    let tokens =
        engine.tokenizer().prompt_chat(&[Turn { role: ChatRole::User, text: prompt }]).expect("one turn");
    let grammars = engine.grammars().expect("made");
    let constraint = grammars.compile_own(intent.lark()).unwrap_or_else(|error| panic!("{prompt}: {error}"));
    let options = GenerateOptions { constraint: Some(constraint), ..GenerateOptions::default() };
    let held = session.generate(&tokens, &options, |_| ControlFlow::Continue(())).expect("short");
    let mut end = 0;
    let scores = session.log_probabilities(&held.tokens);
    let ends = held.tokens.iter().map(|token| {
        end += engine.tokenizer().bytes(*token).len();
        end
    });
    let scored: Vec<(usize, f64)> = ends.zip(scores).collect();
    intent.decide(&held.text, &scored)
}

/// With the names that Home Assistant lists, which have no floors, at most one in twenty such sentences calls a function.
#[test]
fn sentences_that_are_no_command_call_nothing() {
    let engine = engine();
    let listed = home(&serde_json::from_str(LISTED).expect("JSON"));
    let scope = IntentScope { home: Some(&listed), is_any_floor: true, only: None };
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/intents/nothing.txt");
    let sentences = std::fs::read_to_string(path).expect("the sentences");
    let (mut count, mut called) = (0, 0);
    // Under emulation each takes long.
    for sentence in sentences.lines().step_by(if cfg!(target_arch = "aarch64") { 7 } else { 1 }) {
        count += 1;
        let decision = decided(&engine, &scope, sentence);
        if decision.fits {
            called += 1;
            println!("{count}: {sentence}: {} ({:.2})", decision.text, decision.log_probability);
        }
    }
    assert!(called * 20 <= count, "{called} of {count}");
    // A floor is still understood where the sentence speaks of one.
    let upstairs = decided(&engine, &scope, "turn on the lights upstairs");
    assert!(upstairs.text.contains("upstairs"), "{upstairs:?}");
}

/// A home of so many devices from the broker, each with an area, and as many from the owner's file.
fn large_home(count: usize, name: impl Fn(usize) -> String, area: impl Fn(usize) -> String) -> SharedHome {
    let topics = NameTopics { discovery_prefix: "homeassistant".into() };
    let devices: Vec<_> = (0..count)
        .map(|n| serde_json::json!({"name": name(n), "domain": "light", "area": area(n)}))
        .collect();
    let file = file::parse(&serde_json::json!({ "devices": devices }).to_string(), true).expect("sound");
    let home = SharedHome::new(file, topics);
    for n in 0..count {
        let topic = format!("homeassistant/switch/{n}/config");
        let payload = serde_json::json!({
            "name": name(count + n), "unique_id": n.to_string(), "device": {"suggested_area": area(count + n)},
        });
        home.on_message(&topic, payload.to_string().as_bytes(), 0).expect("sound");
    }
    home.publish();
    home
}

/// What the memory plan reserves is enough for the largest home that is allowed, whatever its names are, also while it is
/// made anew and an answer uses the one before; a usual one of 2,000 names takes far less.
#[test]
fn the_memory_of_a_home_is_within_its_plan() {
    let usual = |n: usize| format!("Lamp {n} of the hall");
    let measured = |what: &str, make: &dyn Fn() -> SharedHome| {
        let (home, kept, most) = allocations::held(make);
        let before = home.current();
        home.on_message("homeassistant/switch/0/config", b"", 0).expect("sound");
        let ((), more, at_most) = allocations::held(|| home.publish());
        // The longest messages that are received, all of the shortest names.
        let parsed = [
            (
                "devices",
                r#"{"ieee_address":"0","friendly_name":"a","definition":{"exposes":[{"type":"fan"}]}},"#,
            ),
            ("groups", r#"{"friendly_name":"a","members":[]},"#),
        ]
        .map(|(list, entry)| {
            let payload =
                format!("[{}", entry.repeat((1 << 20) / entry.len())).trim_end_matches(',').to_owned() + "]";
            let topic = format!("zigbee2mqtt/bridge/{list}");
            let (_, _, most) = allocations::held(|| home.on_message(&topic, payload.as_bytes(), 0));
            println!("{what}: {most} bytes while a message of {list} is read");
            most
        });
        let whole = most.max(kept + at_most.max(more) + parsed[0].max(parsed[1]));
        println!("{what}: {} names: {kept} bytes, while it is made anew {whole}", before.names().size().0);
        whole
    };
    let small = measured("2,000 names", &|| large_home(1000, usual, |n| format!("Room {}", n % 20)));
    assert!(small < 3 << 20, "{small}");
    // As many names and bytes as are allowed, from both sources.
    let long = measured("long names", &|| {
        large_home(4096, |n| format!("{n:04} {}", "x".repeat(25)), |n| format!("{n:04}{}", "y".repeat(28)))
    });
    let of_words = measured("names of many words", &|| {
        large_home(4096, |n| format!("{n:04}{}", " z".repeat(13)), |n| format!("{n:04}{}", " w".repeat(14)))
    });
    // The allocator takes some 10 bytes besides for each of 135,000 blocks.
    assert!(long.max(of_words) * 6 / 5 <= HOME_BYTES, "{long}, {of_words}");
}

/// A grammar of names takes no more than the plan has for one, also where the sentence speaks of as many names of a large
/// home as the context holds.
#[test]
fn the_grammar_of_a_sentence_in_a_large_home_is_within_its_plan() {
    let engine = engine();
    engine.grammars().expect("sound");
    let mut session = engine.session(512);
    let home =
        large_home(2048, |n| format!("Lamp {n} of the hall"), |n| format!("Room {}", n % 200)).current();
    let all: String = (0..60).map(|n| format!(" lamp {n} of the hall room {n}")).collect();
    for sentence in
        ["turn on lamp 7 of the hall", "turn on the lamp", &format!("turn on{all}"), "lamp of the hall"]
    {
        let tokens = engine
            .tokenizer()
            .prompt_chat(&[Turn { role: ChatRole::User, text: sentence }])
            .expect("one turn");
        let tokens = &tokens[..tokens.len().min(400)];
        let (_, _, most) = allocations::held(|| {
            let intent = IntentPrompt::new(&home, sentence);
            let grammars = engine.grammars().expect("sound");
            let constraint = grammars.compile_own(intent.lark()).expect("sound");
            let options = GenerateOptions { constraint: Some(constraint), ..GenerateOptions::default() };
            session.generate(tokens, &options, |_| ControlFlow::Continue(())).expect("short")
        });
        println!("{}: {most} bytes", sentence.get(..30).unwrap_or(sentence));
        assert!(most <= CONSTRAINT_BYTES, "{most}: {sentence}");
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
