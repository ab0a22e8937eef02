//! Any chat template of a file with any content of a message: a note of one line, or a prompt in which no part of the
//! content is a special token, within a short time and in little memory.
//!
//! Run it with `-malloc_limit_mb=32 -timeout=5`. The template is what comes before the first NUL.

#![no_main]

use bitnetd::engine::gguf::{FileMap, Gguf};
use bitnetd::engine::tokenizer::{ChatRole, Tokenizer, Turn};
use libfuzzer_sys::fuzz_target;

/// A small vocabulary as it is in its file, without the number of keys before it.
static VOCABULARY: &[u8] = include_bytes!("../../data/tokenizers/llama-bpe.gguf");

const ROLES: [ChatRole; 3] = [ChatRole::System, ChatRole::User, ChatRole::Assistant];

fuzz_target!(|input: &str| {
    let (template, said) = input.split_once('\0').unwrap_or((input, "hi"));
    let file = Gguf::parse(FileMap::from(with_template(template))).expect("a sound file");
    // A template that cannot be used is replaced by Llama 3's, and a note says why.
    let tokenizer = Tokenizer::read(&file).expect("a family with a form of its own");
    for note in tokenizer.notes() {
        assert!(note.len() < 1000 && !note.contains(char::is_control), "{note}");
    }
    let turns = |text| {
        let turn = move |(at, text)| Turn { role: ROLES[(at + 1) % 3], text };
        str::split(text, '\0').enumerate().map(turn).collect::<Vec<_>>()
    };
    // The same turns without anything that could be a mark have as many.
    let harmless: String = said.chars().map(|c| if c == '<' { '(' } else { c }).collect();
    let (Ok(ids), Ok(other)) =
        (tokenizer.prompt_chat(&turns(said)), tokenizer.prompt_chat(&turns(&harmless)))
    else {
        return;
    };
    // A template may inspect the content, so the two may differ in more than that.
    let asks =
        ["in ", "==", "if", "startswith", "endswith", "find", "count", "is", "<", ">", "unique", "changed"];
    if !asks.iter().any(|word| template.contains(word)) {
        assert_eq!(marks(&tokenizer, &ids), marks(&tokenizer, &other));
    }
});

fn marks(tokenizer: &Tokenizer, ids: &[u32]) -> usize {
    let is_mark = |bytes: &[u8]| bytes.starts_with(b"<|") && bytes.ends_with(b"|>");
    ids.iter().filter(|id| is_mark(tokenizer.bytes(**id))).count()
}

/// The vocabulary's file with one key more, at its end: it has no tensors.
fn with_template(template: &str) -> Vec<u8> {
    const KEYS: usize = 16; // magic, version, number of tensors, then the number of keys
    // Without what fills it up to the tensors.
    let end = VOCABULARY.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let mut bytes = VOCABULARY[..end].to_vec();
    let count = bytes[KEYS..KEYS + 8].first_chunk_mut::<8>().expect("eight bytes");
    *count = (u64::from_le_bytes(*count) + 1).to_le_bytes();
    for text in ["tokenizer.chat_template", template] {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
        if text != template {
            bytes.extend(8u32.to_le_bytes()); // a text
        }
    }
    bytes
}
