//! Vocabularies that do not match their model, or are inconsistent.

use super::{load, refused};
use crate::fixtures::{self, VOCAB, array, byte_tokens, integers, number, text, texts, value};

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";

#[test]
fn tokenizers_that_are_not_read_are_named_with_the_way_out() {
    for name in ["t5", "bert", ""] {
        let wanted =
            format!("tokenizer.ggml.model: \"{name}\" is not read by this version; use a model with a gpt2");
        refused(&wanted, |file| file.set("tokenizer.ggml.model", text(name)));
    }
    for name in ["qwen2", "falcon", "LLAMA-BPE", "gpt2", ""] {
        let wanted = format!("tokenizer.ggml.pre: \"{name}\" is not read by this version; use a model with");
        refused(&wanted, |file| file.set("tokenizer.ggml.pre", text(name)));
    }
}

#[test]
fn missing_metadata_is_named() {
    for key in ["tokenizer.ggml.model", TOKENS, MERGES] {
        refused(&format!("metadata key {key}: missing"), |file| file.remove(key));
    }
}

#[test]
fn arrays_of_another_type_are_refused_before_they_are_read() {
    for key in [TOKENS, MERGES] {
        for wrong in [integers(&[1; VOCAB]), text("a b"), number(1)] {
            refused(&format!("metadata key {key}: is "), |file| file.set(key, wrong));
        }
    }
    // Bytes, floats and long integers, each read as 32-bit integers, would run over the end.
    for wrong in [array(0, 260, &[3; 260]), array(6, 260, &[0; 1040]), array(10, 260, &[0; 2080]), number(3)]
    {
        refused(&format!("metadata key {TYPES}: is "), |file| file.set(TYPES, wrong));
    }
}

#[test]
fn as_many_types_as_tokens_are_asked_for() {
    for len in [0, 1, VOCAB - 1, VOCAB + 1] {
        let wanted = format!("metadata key {TYPES}: {len} types for {VOCAB} tokens");
        refused(&wanted, |file| file.set(TYPES, integers(&vec![1; len])));
    }
}

#[test]
fn ids_outside_the_vocabulary_are_refused() {
    for key in ["bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id"] {
        for id in [260, u32::MAX - 1] {
            let wanted = format!("metadata key tokenizer.ggml.{key}: {id} is outside the vocabulary of 260");
            refused(&wanted, |file| file.set(&format!("tokenizer.ggml.{key}"), number(id)));
        }
    }
}

#[test]
fn an_id_of_minus_one_is_none_and_other_numbers_below_zero_are_refused() {
    let signed = |n: i64| [value(5, &(n as i32).to_le_bytes()), value(11, &n.to_le_bytes())];
    for key in ["bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id"] {
        let key = format!("tokenizer.ggml.{key}");
        for none in signed(-1).into_iter().chain([number(u32::MAX)]) {
            let mut file = fixtures::small();
            file.set(&key, none);
            load(file.bytes()).expect("no token is named");
        }
        for wrong in signed(-2) {
            let wanted = format!("metadata key {key}: is the number -2, not a number from 0 to 4294967295");
            refused(&wanted, |file| file.set(&key, wrong));
        }
    }
}

#[test]
fn merges_that_join_nothing_are_refused_by_their_number() {
    for merge in ["a b", "he", "", " ", "nowhere e", "h nowhere", "the the"] {
        let wanted = format!("metadata key {MERGES}: merge 1 names no two tokens that join to a third");
        refused(&wanted, |file| file.set(MERGES, texts(&["h e".into(), merge.into()])));
    }
}

#[test]
fn a_merge_that_would_make_a_control_token_out_of_text_is_refused() {
    refused(&format!("metadata key {MERGES}: merge 0 makes the control token 256 out of text"), |file| {
        let mut kinds = [1; VOCAB];
        kinds[256] = 3;
        file.set(TYPES, integers(&kinds));
    });
}

#[test]
fn a_byte_without_a_plain_token_is_refused() {
    let wanted = format!("metadata key {TOKENS}: has no plain token for the byte 0x41");
    refused(&wanted, |file| {
        let mut tokens = byte_tokens();
        tokens[0x41] = "other".into();
        tokens.extend((256..VOCAB).map(|id| format!("<{id}>")));
        file.set(TOKENS, texts(&tokens));
        file.set(MERGES, texts(&[]));
    });
    refused(&wanted, |file| {
        let mut kinds = [1; VOCAB];
        kinds[0x41] = 3;
        file.set(TYPES, integers(&kinds));
    });
}

#[test]
fn a_vocabulary_and_an_embedding_of_different_sizes_are_refused() {
    for rows in [259u64, 261, 1] {
        let wanted = format!("metadata key {TOKENS}: 260 tokens, but the embedding has {rows} rows");
        refused(&wanted, |file| {
            let embedding = file.tensor("token_embd.weight");
            embedding.dims[1] = rows;
            embedding.data.resize(rows as usize * 16, 0);
        });
    }
}
