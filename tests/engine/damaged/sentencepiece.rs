//! Inconsistent SentencePiece vocabularies, and chat templates of a file.

use super::{load, refused};
use crate::fixtures::{File, VOCAB, array, byte_tokens, flag, float, integers, number, text, texts};
use bitnetd::engine::gguf::{FileMap, Gguf};
use bitnetd::engine::tokenizer::Tokenizer;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";

fn floats(numbers: &[f32]) -> Vec<u8> {
    let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    array(6, numbers.len() as u64, &bytes)
}

/// `<s>`, `</s>`, the bytes, and two words.
fn tokens() -> Vec<String> {
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    ["<s>", "</s>"]
        .map(String::from)
        .into_iter()
        .chain(bytes)
        .chain(["e", "\u{2581}e"].map(String::from))
        .collect()
}

fn kinds() -> Vec<i32> {
    let mut kinds = vec![6; VOCAB];
    kinds[..2].fill(3);
    kinds[258..].fill(1);
    kinds
}

/// Makes the small model's vocabulary SentencePiece's.
fn pieces(file: &mut File) {
    file.set("tokenizer.ggml.model", text("llama"));
    file.set(TOKENS, texts(&tokens()));
    file.set(TYPES, integers(&kinds()));
    file.set(SCORES, floats(&[0.0; VOCAB]));
    file.set("tokenizer.ggml.bos_token_id", number(0));
    file.set("tokenizer.ggml.eos_token_id", number(1));
    file.remove("tokenizer.ggml.merges");
}

#[track_caller]
fn refused_pieces(wanted: &str, damage: impl FnOnce(&mut File)) {
    refused(wanted, |file| {
        pieces(file);
        damage(file);
    });
}

#[test]
fn the_vocabulary_that_is_damaged_here_was_sound_before() {
    let mut file = crate::fixtures::small();
    pieces(&mut file);
    load(file.bytes()).expect("sound");
}

#[test]
fn missing_metadata_is_named() {
    for key in [TOKENS, TYPES, SCORES] {
        refused_pieces(&format!("metadata key {key}: missing"), |file| file.remove(key));
    }
}

#[test]
fn scores_of_another_type_are_refused_before_they_are_read() {
    // Bytes read as floats would run over the end of the array.
    let bytes = array(0, VOCAB as u64, &[0; VOCAB]);
    let doubles = array(12, VOCAB as u64, &[0; 8 * VOCAB]);
    let halves = array(2, VOCAB as u64, &[0; 2 * VOCAB]);
    for wrong in [bytes, doubles, halves, integers(&[0; VOCAB]), float(0.0), text("0"), texts(&tokens())] {
        refused_pieces(&format!("metadata key {SCORES}: is "), |file| file.set(SCORES, wrong));
    }
}

#[test]
fn as_many_scores_as_tokens_are_asked_for() {
    for len in [0, 1, VOCAB - 1, VOCAB + 1] {
        let wanted = format!("metadata key {SCORES}: {len} scores for {VOCAB} tokens");
        refused_pieces(&wanted, |file| file.set(SCORES, floats(&vec![0.0; len])));
    }
}

#[test]
fn a_score_that_is_no_number_is_refused() {
    for nan in [f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001)] {
        refused_pieces(&format!("metadata key {SCORES}: that of token 7 is NaN"), |file| {
            let mut scores = [0.0; VOCAB];
            scores[7] = nan;
            file.set(SCORES, floats(&scores));
        });
    }
    for sound in [f32::INFINITY, f32::NEG_INFINITY, -0.0, f32::MIN_POSITIVE] {
        let mut file = crate::fixtures::small();
        pieces(&mut file);
        file.set(SCORES, floats(&[sound; VOCAB]));
        load(file.bytes()).expect("a score like another");
    }
}

#[test]
fn bytes_that_are_none_are_refused_by_their_token() {
    for wrong in ["<0xZZ>", "<0x4>", "<0x041>", "<0x+1>", "0x41", "", "<0x41", "e", "<0xé>"] {
        refused_pieces(&format!("metadata key {TOKENS}: token 5 is "), |file| {
            let mut tokens = tokens();
            tokens[5] = wrong.into();
            file.set(TOKENS, texts(&tokens));
        });
    }
}

#[test]
fn two_tokens_for_one_byte_are_refused() {
    for same in ["<0x00>", "<0xfe>"] {
        refused_pieces("are both the byte 0x", |file| {
            let mut tokens = tokens();
            tokens[100] = same.into();
            file.set(TOKENS, texts(&tokens));
        });
    }
}

#[test]
fn bytes_without_a_token_need_an_unknown_token() {
    let mut kinds = kinds();
    kinds[5] = 1;
    let wanted = format!("metadata key {TOKENS}: 1 bytes have no token, and there is none for the unknown");
    refused_pieces(&wanted, |file| file.set(TYPES, integers(&kinds)));
    let mut file = crate::fixtures::small();
    pieces(&mut file);
    file.set(TYPES, integers(&kinds));
    file.set(UNKNOWN, number(0));
    load(file.bytes()).expect("the unknown token stands for it");
}

#[test]
fn an_unknown_token_outside_the_vocabulary_is_refused() {
    for id in [VOCAB as u32, u32::MAX - 1] {
        let wanted = format!("metadata key {UNKNOWN}: {id} is outside the vocabulary of {VOCAB}");
        refused_pieces(&wanted, |file| file.set(UNKNOWN, number(id)));
    }
}

#[test]
fn settings_that_are_no_bools_are_refused() {
    refused_pieces("metadata key tokenizer.ggml.add_space_prefix: is the number 1, not a bool", |file| {
        file.set("tokenizer.ggml.add_space_prefix", number(1));
    });
    refused("metadata key tokenizer.ggml.add_bos_token: is the text \"yes\", not a bool", |file| {
        file.set("tokenizer.ggml.add_bos_token", text("yes"));
    });
}

#[test]
fn a_template_that_is_no_text_is_refused_and_one_that_cannot_be_used_is_not() {
    refused("metadata key tokenizer.chat_template: is the bool true, not a text", |file| {
        file.set("tokenizer.chat_template", flag(true));
    });
    // The same for an architecture without a built-in template: plain text is used instead.
    let mut file = crate::fixtures::small();
    pieces(&mut file);
    file.set("general.architecture", text("bitnet"));
    for key in ["context_length", "embedding_length", "block_count", "feed_forward_length"] {
        file.set(&format!("bitnet.{key}"), number(if key == "block_count" { 1 } else { 8 }));
    }
    for key in ["attention.head_count", "attention.head_count_kv"] {
        file.set(&format!("bitnet.{key}"), number(if key.ends_with("kv") { 1 } else { 2 }));
    }
    file.set("bitnet.attention.layer_norm_rms_epsilon", float(1e-5));
    file.set("tokenizer.chat_template", text("{% bad"));
    load(file.bytes()).expect("a model that can be used");
}

#[test]
fn sentencepiece_texts_begin_with_the_mark_where_the_file_does_not_say() {
    let begin = |add: Option<bool>| {
        let mut file = crate::fixtures::small();
        pieces(&mut file);
        if let Some(add) = add {
            file.set("tokenizer.ggml.add_bos_token", flag(add));
        }
        let file = Gguf::parse(FileMap::from(file.bytes())).expect("sound");
        Tokenizer::read(&file).expect("sound").bos_of_text()
    };
    assert_eq!([begin(None), begin(Some(true)), begin(Some(false))], [Some(0), Some(0), None]);
}

#[test]
fn more_special_tokens_than_any_vocabulary_has_are_refused() {
    special("257 bytes, where 256 are allowed", VOCAB, 257);
    special("bytes of ", 1300, 256);
}

/// Refuses `count` tokens of which all but the bytes are special and of one length.
#[track_caller]
fn special(wanted: &str, count: usize, len: usize) {
    for (kind, what) in [(3, "control"), (4, "user-defined")] {
        let wanted = match len > 256 {
            true => format!("{what} token 256 has {wanted}"),
            false => format!("{wanted}{what} tokens, where 262144 are allowed"),
        };
        refused(&wanted, |file| {
            let mut tokens = byte_tokens();
            tokens.extend((256..count).map(|id| format!("{id:x<len$}")));
            let mut kinds = vec![1; count];
            kinds[256..].fill(kind);
            for key in ["bos_token_id", "eos_token_id"] {
                file.set(&format!("tokenizer.ggml.{key}"), number(0)); // what they name would be control tokens
            }
            file.set(TOKENS, texts(&tokens));
            file.set(TYPES, integers(&kinds));
            file.set("tokenizer.ggml.merges", texts(&[]));
        });
    }
}
