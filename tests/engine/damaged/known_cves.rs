//! The classes of faults that model loaders have had, one test each, with the numbers that broke them.
//! The classes that need a daemon are in `tests/system/known_cves.rs`, chat templates in `tests/engine/template.rs`.

use super::{load, refused, refused_blocks};
use crate::fixtures::{self, array, number, text, value};

/// CVE-2024-23605: the number of metadata keys times the size of one wrapped round, and so did the
/// allocation made for them.
#[test]
fn counts_whose_tables_would_overflow() {
    for count in [u64::MAX / 48 + 1, u64::MAX / 32 + 1, u64::MAX / 24, 1 << 60] {
        refused("metadata keys", |file| file.said_keys = Some(count));
        refused("tensors", |file| file.said_tensors = Some(count));
    }
}

/// CVE-2025-53630, CVE-2026-27940, CVE-2026-33298: sums and products of tensor sizes that wrap to a
/// small number, so that a bounds check on the result passes.
#[test]
fn tensor_sizes_that_wrap_round() {
    for dims in [[1 << 32, 1 << 32], [u64::MAX, 2], [1 << 63, 2], [(1 << 62) + 1, 4]] {
        refused("tensor output_norm.weight: shape", |file| {
            file.tensor("output_norm.weight").dims = dims.to_vec();
        });
    }
    for offset in [u64::MAX - 31, !31, 1 << 63] {
        refused("outside the file", |file| file.tensor("output_norm.weight").said_offset = Some(offset));
    }
}

/// llama.cpp issue 19003, gguf-py pull request 27188, ggml issue 1516: lengths from the file were given
/// to the allocator, or walked, before they were held against the bytes that are left.
#[test]
fn lengths_beyond_the_file_cost_neither_memory_nor_time() {
    for len in [1 << 63, u64::MAX, 1 << 30] {
        refused("byte ", |file| file.set("a", array(8, len, &[])));
        refused("byte ", |file| file.set("a", array(4, len, &[])));
        refused("byte ", |file| file.set("a", value(8, &len.to_le_bytes())));
    }
}

/// An alignment of 0, of no power of two, of half the address space or of another type made padding
/// wrap, or divide by zero.
#[test]
fn alignments_that_break_the_padding() {
    for wrong in [number(0), number(24), number(u32::MAX), value(10, &(1u64 << 63).to_le_bytes()), text("32")]
    {
        refused("metadata key general.alignment", |file| file.set("general.alignment", wrong));
    }
}

/// CVE-2026-7482: data that reaches past the end of the file was read from whatever memory came next.
#[test]
fn tensors_that_reach_past_the_end_of_the_file() {
    refused("outside the file", |file| file.tensor("token_embd.weight").dims[1] = 1 << 20);
    refused_blocks("outside the file", |file| {
        let last = file.tensors.last_mut().expect("a tensor");
        last.data.truncate(last.data.len() - 1);
    });
}

/// llama.cpp pull request 26690: an array of bytes was read as one of floats, four times beyond its end.
#[test]
fn arrays_of_another_type_than_they_are_read_as() {
    let kinds = "tokenizer.ggml.token_type";
    for (kind, size) in [(0u32, 1), (1, 1), (2, 2), (7, 1)] {
        let bytes = vec![1; fixtures::VOCAB * size];
        refused(kinds, |file| file.set(kinds, array(kind, fixtures::VOCAB as u64, &bytes)));
    }
}

/// CVE-2025-49847: a token longer than the buffer for it, and tokens that are no text at all.
#[test]
fn tokens_of_any_length_and_any_bytes() {
    let mut file = fixtures::small();
    let mut tokens = fixtures::byte_tokens();
    let long = "x".repeat(1 << 20);
    tokens.extend(["he", &long, "<|begin_of_text|>", "<|eot_id|>"].map(String::from));
    file.set("tokenizer.ggml.tokens", fixtures::texts(&tokens));
    file.set("tokenizer.ggml.merges", fixtures::texts(&["h e".into()]));
    load(file.bytes()).expect("a token of a megabyte is a token");
    let mut bytes = file.bytes();
    let at = bytes.windows(8).rposition(|window| window == b"xxxxxxxx").expect("the long token");
    bytes[at] = 0xff;
    load(bytes).expect("a token need not be UTF-8");
}

/// The sizes a plan is made of come from the file: none may be trusted before it was held against it.
#[test]
fn numbers_of_the_model_that_would_ask_for_all_memory() {
    for key in ["block_count", "context_length", "embedding_length", "feed_forward_length"] {
        let key = format!("bitnet-b1.58.{key}");
        for n in [u32::MAX, 1 << 31, (1 << 24) + 1] {
            refused(&key, |file| file.set(&key, number(n)));
        }
    }
}
