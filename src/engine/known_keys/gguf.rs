//! The keys of GGUF metadata, as llama.cpp's and bitnet.cpp's converters write them.

use super::KeyValue::{Bool, Empty, Number, Text};
use super::Treatment::{Irrelevant, Only, Used};
use super::{KeyValue, KnownKey, check};
use crate::engine::error::LoadError;
use crate::engine::gguf::{Gguf, MetadataValue};

const YARN: &str = "wavelengths are stretched as YaRN does";
const SPECIAL: &str = "no text turns into it and no answer ends with it";

/// The keys of an architecture, without its name before them.
#[rustfmt::skip] // a table is read by its columns
pub(super) const ARCHITECTURE: &[KnownKey] = &[
    ("context_length", Used), ("embedding_length", Used), ("block_count", Used), ("feed_forward_length", Used),
    ("attention.head_count", Used), ("attention.head_count_kv", Used), ("attention.key_length", Used),
    ("attention.value_length", Used), ("attention.layer_norm_rms_epsilon", Used), ("rope.dimension_count", Used),
    ("rope.freq_base", Used), ("rope.scaling.type", Used), ("rope.scaling.factor", Used), ("hidden_activation", Used),
    ("vocab_size",                           Irrelevant("the embedding has as many rows")),
    ("attention.layer_norm_epsilon",         Irrelevant("all norms are by the root of the mean square")),
    ("rope.scaling.original_context_length", Irrelevant("linear scaling has no use for it")),
    ("rope.scaling.finetuned",               Irrelevant("it tells how the model was made")),
    ("tensor_data_layout",                   Irrelevant("the architecture says it")),
    ("rope.scale_linear",                    Only(&[Number(0.0), Number(1.0)], "positions are stretched")),
    ("rope.scaling.attn_factor",             Only(&[Number(0.0), Number(1.0)], YARN)),
    ("rope.scaling.yarn_log_multiplier",     Only(&[Number(0.0)], YARN)),
    ("attention.causal",                     Only(&[Bool(true)], "attention sees what comes later")),
    ("attention.sliding_window",             Only(&[Number(0.0)], "attention sees only the last tokens")),
    ("attention.scale",                      Only(&[Number(0.0)], "attention has a scale of its own")),
    ("attention.max_alibi_bias",             Only(&[Number(0.0)], "attention is biased by distance")),
    ("attention.clamp_kqv",                  Only(&[Number(0.0)], "queries, keys and values are clipped")),
    ("attn_logit_softcapping",               Only(&[Number(0.0)], "attention is capped")),
    ("final_logit_softcapping",              Only(&[Number(0.0)], "logits are capped")),
    ("logit_scale",                          Only(&[Number(0.0), Number(1.0)], "logits have a scale")),
    ("residual_scale",                       Only(&[Number(0.0), Number(1.0)], "residuals have a scale")),
    ("embedding_scale",                      Only(&[Number(0.0), Number(1.0)], "embeddings have a scale")),
    ("use_parallel_residual",                Only(&[Bool(false)], "attention and feed-forward run side by side")),
    ("expert_count",                         Only(&[Number(0.0)], "layers have experts")),
    ("expert_used_count",                    Only(&[Number(0.0)], "layers have experts")),
    ("leading_dense_block_count",            Only(&[Number(0.0)], "layers have experts")),
    ("nextn_predict_layers",                 Only(&[Number(0.0)], "layers predict several tokens")),
    ("pooling_type",                         Only(&[Number(0.0)], "it gives vectors, not text")),
];

/// The keys of the vocabulary, without `tokenizer.` before them.
#[rustfmt::skip]
pub(super) const TOKENIZER: &[KnownKey] = &[
    ("ggml.model", Used), ("ggml.pre", Used), ("ggml.tokens", Used), ("ggml.scores", Used), ("ggml.token_type", Used),
    ("ggml.merges", Used), ("ggml.bos_token_id", Used), ("ggml.eos_token_id", Used), ("ggml.eot_token_id", Used),
    ("ggml.eom_token_id", Used), ("ggml.eos_token_ids", Used), ("ggml.eot_token_ids", Used), ("ggml.eom_token_ids", Used),
    ("ggml.eog_token_ids", Used), ("ggml.unknown_token_id", Used), ("ggml.add_bos_token", Used),
    ("ggml.add_space_prefix", Used), ("chat_template", Used),
    ("ggml.padding_token_id",   Irrelevant("prompts are not padded")),
    ("ggml.seperator_token_id", Irrelevant(SPECIAL)), ("ggml.separator_token_id", Irrelevant(SPECIAL)),
    ("ggml.cls_token_id",       Irrelevant(SPECIAL)), ("ggml.mask_token_id", Irrelevant(SPECIAL)),
    ("ggml.prefix_token_id",    Irrelevant(SPECIAL)), ("ggml.suffix_token_id", Irrelevant(SPECIAL)),
    ("ggml.middle_token_id",    Irrelevant(SPECIAL)), ("ggml.fim_pre_token_id", Irrelevant(SPECIAL)),
    ("ggml.fim_suf_token_id",   Irrelevant(SPECIAL)), ("ggml.fim_mid_token_id", Irrelevant(SPECIAL)),
    ("ggml.fim_pad_token_id",   Irrelevant(SPECIAL)), ("ggml.fim_rep_token_id", Irrelevant(SPECIAL)),
    ("ggml.fim_sep_token_id",   Irrelevant(SPECIAL)),
    ("ggml.token_type_count",   Irrelevant("texts are not paired")),
    ("huggingface.json",        Irrelevant("the other keys say the same")),
    ("chat_templates",          Irrelevant("`tokenizer.chat_template` is the one that is used")),
    ("ggml.add_eos_token",      Only(&[Bool(false)], "texts end with the end token")),
    ("ggml.add_sep_token",      Only(&[Bool(false)], "texts end with a separator")),
    ("ggml.remove_extra_whitespaces", Only(&[Bool(false)], "white space is removed from text")),
    ("ggml.precompiled_charsmap",     Only(&[Empty], "text is rewritten before it is cut")),
    ("ggml.escape_whitespaces",       Only(&[Bool(true)], "spaces are not marked")),
    ("ggml.treat_whitespace_as_suffix", Only(&[Bool(false)], "spaces are marked behind a word")),
    ("ggml.normalizer",               Only(&[Text("")], "text is rewritten before it is cut")),
    ("ggml.normalizer.lowercase",     Only(&[Bool(false)], "text is rewritten before it is cut")),
];

/// Checks the keys of an architecture, and that the file is a model.
///
/// # Errors
/// At the first key that could change what the model computes and is unknown, or whose value is not supported.
pub fn check_architecture(file: &Gguf, arch: &str) -> Result<(), LoadError> {
    const KIND: &[KnownKey] = &[("general.type", Only(&[Text("model")], "it is no model by itself"))];
    for (key, value) in file.metadata() {
        let checked = match key.strip_prefix(arch).and_then(|rest| rest.strip_prefix('.')) {
            Some(rest) => check(&[ARCHITECTURE], rest, fact(value)),
            None if key == KIND[0].0 => check(&[KIND], key, fact(value)),
            None => Ok(()),
        };
        checked.map_err(|message| LoadError::key(key, message))?;
    }
    Ok(())
}

/// Checks the keys of a file's vocabulary.
///
/// # Errors
/// As [`check_architecture`].
pub fn check_tokenizer(file: &Gguf) -> Result<(), LoadError> {
    for (key, value) in file.metadata() {
        // Further templates have a name behind the key of the one that is used.
        if let Some(rest) = key.strip_prefix("tokenizer.").filter(|rest| !rest.starts_with("chat_template."))
        {
            check(&[TOKENIZER], rest, fact(value)).map_err(|message| LoadError::key(key, message))?;
        }
    }
    Ok(())
}

fn fact(value: &MetadataValue) -> KeyValue<'_> {
    match value {
        MetadataValue::Unsigned(number) => Number(*number as f64),
        MetadataValue::Signed(number) => Number(*number as f64),
        MetadataValue::Float(number) => Number(*number),
        MetadataValue::Bool(flag) => Bool(*flag),
        MetadataValue::Text(text) => Text(text),
        MetadataValue::Array(array) if array.len == 0 => Empty,
        MetadataValue::Array(_) => KeyValue::Other,
    }
}
