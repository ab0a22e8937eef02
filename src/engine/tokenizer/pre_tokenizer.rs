//! Pre-tokenizers: how a text is split into words before its bytes are merged.

use regex::Regex;
use std::sync::LazyLock;

/// A pre-tokenizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PreTokenizer {
    /// Llama 3's, which every BitNet-b1.58, Falcon3 and Falcon-E use too.
    Llama3,
    /// llama.cpp's `default`, made for Falcon's first models.
    Default,
    /// GPT-2's, which Hugging Face's `ByteLevel` contains.
    Gpt2,
}

/// Llama 3's pattern without its lookahead, which [`for_each_match`] implements. Source: `tokenizer.json` of
/// Meta-Llama-3-8B.
static LLAMA3: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
    )
});

/// The four patterns of `default`, each of which splits what the one before left. Source: `llama-vocab.cpp` of
/// llama.cpp. The second is GPT-2's.
static PUNCTUATION: LazyLock<Regex> = LazyLock::new(|| pattern(r"[\p{P}$+<=>^~|]+"));
static GPT2: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+"));
static NUMBERS: LazyLock<Regex> = LazyLock::new(|| pattern(r"\p{N}+"));
static THREE_DIGITS: LazyLock<Regex> = LazyLock::new(|| pattern("[0-9]{3}"));

fn pattern(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the patterns of this file are valid")
}

impl PreTokenizer {
    /// The pre-tokenizer with that name in a file.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "llama-bpe" | "llama3" | "llama-v3" => Some(PreTokenizer::Llama3),
            // Both spellings of the last are in use: bitnet.cpp's converter writes an underscore.
            "falcon3" | "falcon-e" | "falcon_e" => Some(PreTokenizer::Llama3),
            "default" => Some(PreTokenizer::Default),
            "gpt-2" => Some(PreTokenizer::Gpt2),
            _ => None,
        }
    }

    /// Whether a word that is a token becomes that token, whatever the merges would make of it.
    pub fn takes_whole_words(self) -> bool {
        self == PreTokenizer::Llama3
    }

    /// Calls `word` with each word of `text`.
    pub fn words(self, text: &str, mut word: impl FnMut(&str)) {
        match self {
            PreTokenizer::Llama3 => for_each_match(&LLAMA3, text, &mut word),
            PreTokenizer::Gpt2 => for_each_match(&GPT2, text, &mut word),
            PreTokenizer::Default => for_each_match_and_gap(&PUNCTUATION, text, &mut |piece| {
                for_each_match(&GPT2, piece, &mut |piece| {
                    for_each_match_and_gap(&NUMBERS, piece, &mut |piece| {
                        for_each_match_and_gap(&THREE_DIGITS, piece, &mut word)
                    });
                });
            }),
        }
    }
}

/// Calls `word` with the matches of a pattern that matches everywhere. The lookahead of such patterns, `\s+(?!\S)`,
/// is implemented here: a run of white space before a word leaves its last character to that word.
fn for_each_match(pattern: &Regex, text: &str, word: &mut impl FnMut(&str)) {
    // A run with its line breaks at the end matches Llama 3's `\s*[\r\n]+`, which has no lookahead.
    let keeps_line_breaks = std::ptr::eq(pattern, &*LLAMA3);
    let mut at = 0;
    while let Some(found) = pattern.find_at(text, at) {
        let mut end = found.end();
        let last = found.as_str().chars().next_back().expect("no pattern of this file matches an empty text");
        let line_break = matches!(last, '\r' | '\n') && keeps_line_breaks;
        if last.is_whitespace() && !line_break && end < text.len() && found.len() > last.len_utf8() {
            end -= last.len_utf8();
        }
        word(&text[at..end]);
        at = end;
    }
}

/// Calls `piece` with the matches of a pattern, and with what lies between them.
fn for_each_match_and_gap(pattern: &Regex, text: &str, piece: &mut impl FnMut(&str)) {
    let mut at = 0;
    for found in pattern.find_iter(text) {
        for part in [&text[at..found.start()], found.as_str()] {
            if !part.is_empty() {
                piece(part);
            }
        }
        at = found.end();
    }
    if at < text.len() {
        piece(&text[at..]);
    }
}
