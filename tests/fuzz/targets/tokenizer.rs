//! Whatever text comes: its ids give it back, and no user's text becomes a special token; in the built-in
//! model's vocabulary and in one of each kind. The first byte chooses which.

#![no_main]

use bitnetd::engine::gguf::{FileMap, Gguf};
use bitnetd::engine::tokenizer::{ChatRole, Tokenizer, Turn};
use bitnetd::engine::{Engine, ModelFile, EngineOptions, Source};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
    let file = ModelFile::open(&Source::BuiltIn, None).expect("sound");
    file.load(&EngineOptions { threads: 1, ..EngineOptions::default() }).expect("sound")
});

static OTHERS: LazyLock<[Tokenizer; 3]> = LazyLock::new(|| {
    [
        include_bytes!("../../data/tokenizers/llama-bpe.gguf").as_slice(),
        include_bytes!("../../data/tokenizers/default.gguf"),
        include_bytes!("../../data/tokenizers/pieces.gguf"),
    ]
    .map(|bytes| Tokenizer::read(&Gguf::parse(FileMap::from(bytes.to_vec())).expect("sound")).expect("sound"))
});

/// The marks of the four vocabularies.
const MARKS: &[&str] = &[
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<s>",
    "</s>",
    "<unk>",
];

fuzz_target!(|input: (u8, &str)| {
    let (which, text) = input;
    let tokenizer = match which % 4 {
        0 => ENGINE.tokenizer(),
        other => &OTHERS[usize::from(other) - 1],
    };
    let plain = tokenizer.encode(text);
    let wanted = match which % 4 {
        // A space stands before, and U+2581 is one.
        3 if text.is_empty() => String::new(),
        3 => format!(" {text}").replace('\u{2581}', " "),
        _ => text.to_owned(),
    };
    assert_eq!(bytes(tokenizer, &plain), wanted.as_bytes());
    assert_eq!(marks(tokenizer, &plain), 0);
    let marked = tokenizer.encode_with_specials(text);
    assert!(MARKS.iter().any(|mark| text.contains(mark)) || marked == plain);
    let asked = |text| tokenizer.prompt_chat(&[Turn { role: ChatRole::User, text }]).expect("any text");
    assert_eq!(marks(tokenizer, &asked(text)), marks(tokenizer, &asked("x")));
});

/// Tokens that are a mark: a plain word never reads like one, since no merges lead there.
fn marks(tokenizer: &Tokenizer, ids: &[u32]) -> usize {
    ids.iter().filter(|id| MARKS.iter().any(|mark| tokenizer.bytes(**id) == mark.as_bytes())).count()
}

/// A special token's bytes are its name.
fn bytes(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|id| tokenizer.bytes(*id)).copied().collect()
}
