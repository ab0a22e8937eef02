//! Whatever text comes: its ids give it back, and no user's text becomes a special token.

#![no_main]

use bitnetd::engine::tokenizer::{Role, Turn};
use bitnetd::engine::{Engine, ModelFile, Options, Source};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

/// The built-in model's three special tokens are its last ones.
const FIRST_SPECIAL: u32 = 2045;

static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
    let file = ModelFile::open(&Source::BuiltIn, None).expect("sound");
    file.load(&Options { threads: 1, pin: false, kernel: None }).expect("sound")
});

fuzz_target!(|text: &str| {
    let tokenizer = ENGINE.tokenizer();
    let plain = tokenizer.encode(text);
    assert_eq!(specials(&plain), 0);
    assert_eq!(bytes(&plain), text.as_bytes());
    let marked = tokenizer.encode_with_specials(text);
    assert_eq!(bytes(&marked), text.as_bytes());
    assert!(text.contains("<|") || marked == plain);
    // Its beginning and the end of the turn.
    let chat = tokenizer.prompt_chat(&[Turn { role: Role::User, text }]);
    assert_eq!(specials(&chat), 2);
});

fn specials(ids: &[u32]) -> usize {
    ids.iter().filter(|id| **id >= FIRST_SPECIAL).count()
}

/// A special token's bytes are its name.
fn bytes(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|id| ENGINE.tokenizer().bytes(*id)).copied().collect()
}
