//! Ten thousand texts and more through every kind of vocabulary, against Hugging Face's tokenizers.

use crate::data;
use bitnetd::engine::gguf::{FileMap, Gguf};
use bitnetd::engine::tokenizer::Tokenizer;
use std::path::Path;

/// FNV-1a over the ids, each as four bytes, the lowest first: what the answers are kept as.
fn digest(ids: &[u32]) -> u64 {
    let bytes = ids.iter().flat_map(|id| id.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |value, byte| (value ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn texts(folder: &Path) -> Vec<String> {
    let json = std::fs::read_to_string(folder.join("texts.json")).expect("the folder's texts");
    serde_json::from_str(&json).expect("a list of texts")
}

fn tokenizer(folder: &Path, name: &str) -> Tokenizer {
    let bytes = std::fs::read(folder.join(format!("{name}.gguf"))).expect("a vocabulary");
    Tokenizer::read(&Gguf::parse(FileMap::from(bytes)).expect("sound")).expect("sound")
}

/// Compares every text, as plain text and with special tokens in it; gives how many there were.
#[track_caller]
fn compare(folder: &Path, name: &str) -> usize {
    let (texts, tokenizer) = (texts(folder), tokenizer(folder, name));
    let answers = std::fs::read(folder.join(format!("{name}.ids"))).expect("answers");
    let answers = answers.as_chunks::<8>().0;
    assert_eq!(answers.len(), 2 * texts.len(), "two answers a text");
    let mut wrong = Vec::new();
    for (text, answers) in texts.iter().zip(answers.as_chunks::<2>().0) {
        let ours = [tokenizer.encode(text), tokenizer.encode_with_specials(text)];
        for (ids, answer) in ours.iter().zip(answers) {
            if digest(ids) != u64::from_le_bytes(*answer) {
                wrong.push((text, ids.clone()));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{name}: {} of {}: {:?}",
        wrong.len(),
        answers.len(),
        &wrong[..wrong.len().min(20)]
    );
    texts.len()
}

#[test]
fn every_text_gives_the_reference_ids_with_llama_3s_words() {
    assert!(compare(&data("tokenizers"), "llama-bpe") >= 10_000);
}

#[test]
fn every_text_gives_the_reference_ids_with_the_default_words() {
    assert!(compare(&data("tokenizers"), "default") >= 10_000);
}

#[test]
fn every_text_gives_the_reference_ids_with_gpt_2s_words() {
    assert!(compare(&data("tokenizers"), "gpt-2") >= 10_000);
}

#[test]
fn every_text_gives_the_reference_ids_with_sentencepiece() {
    assert!(compare(&data("tokenizers"), "pieces") >= 10_000);
}

#[test]
#[ignore = "needs the files that tests/support/compare-tokenizers makes"]
fn large_vocabularies_give_the_reference_ids() {
    let folder = std::env::var("BITNETD_TOKENIZERS").expect("the folder of the files");
    for name in ["llama-bpe", "llama-2", "mistral"] {
        let begun = std::time::Instant::now();
        let texts = compare(Path::new(&folder), name);
        println!("{name}: {texts} texts, all equal, in {:.1?}", begun.elapsed());
    }
}
