//! The keys of a checkpoint folder's JSON files, as transformers and tokenizers write them.

use super::KeyValue::{Bool, Empty, Number, Text};
use super::KnownKey;
use super::Treatment::{Irrelevant, Only, Used};

const TRAINING: &str = "only training reads it";
/// Why the recommendations of `generation_config.json` are not carried over.
pub const REQUEST: &str = "each request says how tokens are chosen";
const LIBRARY: &str = "it only tells a library how to load or to return";

/// `config.json`. Keys of [`GENERATION`] that older files have there are treated as those.
#[rustfmt::skip] // a table is read by its columns
pub const CONFIG: &[KnownKey] = &[
    ("architectures", Used), ("hidden_size", Used), ("intermediate_size", Used), ("num_hidden_layers", Used),
    ("num_attention_heads", Used), ("num_key_value_heads", Used), ("head_dim", Used), ("max_position_embeddings", Used),
    ("vocab_size", Used), ("rms_norm_eps", Used), ("rope_theta", Used), ("rope_scaling", Used), ("rope_parameters", Used),
    ("hidden_act", Used), ("tie_word_embeddings", Used), ("quantization_config", Used), ("weight_bits", Used),
    ("input_bits", Used), ("model_type", Used),
    ("torch_dtype",             Irrelevant("each tensor says its own")),
    ("dtype",                   Irrelevant("each tensor says its own")),
    ("auto_map",                Irrelevant("no code of a checkpoint is run")),
    ("pretraining_tp",          Irrelevant("it only cuts a product into parts")),
    ("tokenizer_class",         Irrelevant("the vocabulary's own file says it")),
    ("max_window_layers",       Irrelevant("it means nothing without a sliding window")),
    ("sep_token_id",            Irrelevant("texts are not paired")),
    ("decoder_start_token_id",  Irrelevant("there is no encoder")),
    ("is_decoder",              Irrelevant("there is no encoder")),
    ("transformers.js_config",  Irrelevant(LIBRARY)),
    ("unsloth_version",         Irrelevant(TRAINING)), ("unsloth_fixed", Irrelevant(TRAINING)),
    ("initializer_range",       Irrelevant(TRAINING)), ("attention_dropout", Irrelevant(TRAINING)),
    ("hidden_dropout",          Irrelevant(TRAINING)), ("resid_pdrop", Irrelevant(TRAINING)),
    ("embd_pdrop",              Irrelevant(TRAINING)), ("attn_pdrop", Irrelevant(TRAINING)),
    ("gradient_checkpointing",  Irrelevant(TRAINING)), ("finetuning_task", Irrelevant(TRAINING)),
    ("problem_type",            Irrelevant(TRAINING)), ("task_specific_params", Irrelevant(TRAINING)),
    ("return_dict",             Irrelevant(LIBRARY)), ("torchscript", Irrelevant(LIBRARY)),
    ("use_bfloat16",            Irrelevant(LIBRARY)), ("chunk_size_feed_forward", Irrelevant(LIBRARY)),
    ("id2label",                Irrelevant(LIBRARY)), ("label2id", Irrelevant(LIBRARY)), ("prefix", Irrelevant(LIBRARY)),
    ("tf_legacy_loss",          Irrelevant(LIBRARY)),
    ("attention_bias",          Only(&[Bool(false)], "attention has biases")),
    ("use_bias",                Only(&[Bool(false)], "matrices have biases")),
    ("bias",                    Only(&[Bool(false)], "matrices have biases")),
    ("qkv_bias",                Only(&[Bool(false)], "attention has biases")),
    ("mlp_bias",                Only(&[Bool(false)], "the feed-forward layer has biases")),
    ("partial_rotary_factor",   Only(&[Number(1.0)], "a part of each head is not rotated")),
    ("rope_interleaved",        Only(&[Bool(false)], "neighbours are rotated together")),
    ("sliding_window",          Only(&[], "attention sees only the last tokens")),
    ("use_sliding_window",      Only(&[Bool(false)], "attention sees only the last tokens")),
    ("layer_types",             Only(&[Text("full_attention"), Empty], "layers differ in their attention")),
    ("no_rope_layers",          Only(&[Empty], "some layers have no positions")),
    ("attention_chunk_size",    Only(&[], "attention sees only a chunk")),
    ("attention_multiplier",    Only(&[], "attention has a scale of its own")),
    ("query_pre_attn_scalar",   Only(&[], "attention has a scale of its own")),
    ("attn_logit_softcapping",  Only(&[], "attention is capped")),
    ("final_logit_softcapping", Only(&[], "logits are capped")),
    ("logit_scale",             Only(&[Number(1.0)], "logits have a scale")),
    ("logits_scaling",          Only(&[Number(1.0)], "logits have a scale")),
    ("embedding_multiplier",    Only(&[Number(1.0)], "embeddings have a scale")),
    ("residual_multiplier",     Only(&[Number(1.0)], "residuals have a scale")),
    ("clip_qkv",                Only(&[], "queries, keys and values are clipped")),
    ("use_qk_norm",             Only(&[Bool(false)], "queries and keys are normalised")),
    ("qk_layernorm",            Only(&[Bool(false)], "queries and keys are normalised")),
    ("use_parallel_residual",   Only(&[Bool(false)], "attention and feed-forward run side by side")),
    ("num_local_experts",       Only(&[Number(0.0)], "layers have experts")),
    ("num_experts",             Only(&[Number(0.0)], "layers have experts")),
    ("is_encoder_decoder",      Only(&[Bool(false)], "there is an encoder")),
    ("tie_encoder_decoder",     Only(&[Bool(false)], "there is an encoder")),
    ("add_cross_attention",     Only(&[Bool(false)], "there is an encoder")),
    ("pruned_heads",            Only(&[Empty], "heads are left out")),
];

/// `quantization_config` of `config.json`.
#[rustfmt::skip]
pub const QUANTIZATION: &[KnownKey] = &[
    ("quant_method", Used), ("linear_class", Used), ("quantization_mode", Used), ("modules_to_not_convert", Used),
    ("use_rms_norm", Only(&[Bool(false)], "there are norms before each matrix")),
    ("rms_norm_eps", Irrelevant("there are no such norms without use_rms_norm")),
];

/// `rope_scaling` and `rope_parameters` of `config.json`.
#[rustfmt::skip]
pub const ROPE: &[KnownKey] = &[
    ("rope_type", Used), ("type", Used), ("rope_theta", Used), ("factor", Used), ("low_freq_factor", Used),
    ("high_freq_factor", Used), ("original_max_position_embeddings", Used),
    ("partial_rotary_factor", Only(&[Number(1.0)], "a part of each head is not rotated")),
    ("attention_factor",      Only(&[Number(1.0)], "attention has a scale of its own")),
];

/// `generation_config.json`.
#[rustfmt::skip]
pub const GENERATION: &[KnownKey] = &[
    ("eos_token_id", Used), ("bos_token_id", Used),
    ("pad_token_id",         Irrelevant("prompts are not padded")),
    ("transformers_version", Irrelevant(LIBRARY)), ("use_cache", Irrelevant(LIBRARY)),
    ("cache_implementation", Irrelevant(LIBRARY)), ("cache_config", Irrelevant(LIBRARY)),
    ("return_legacy_cache",  Irrelevant(LIBRARY)), ("output_attentions", Irrelevant(LIBRARY)),
    ("output_hidden_states", Irrelevant(LIBRARY)), ("output_scores", Irrelevant(LIBRARY)),
    ("output_logits",        Irrelevant(LIBRARY)), ("return_dict_in_generate", Irrelevant(LIBRARY)),
    ("disable_compile",      Irrelevant(LIBRARY)), ("compile_config", Irrelevant(LIBRARY)),
    ("low_memory",           Irrelevant(LIBRARY)), ("remove_invalid_values", Irrelevant(LIBRARY)),
    ("trust_remote_code",    Irrelevant(LIBRARY)), ("prefill_chunk_size", Irrelevant(LIBRARY)),
    ("do_sample",   Irrelevant(REQUEST)), ("temperature", Irrelevant(REQUEST)), ("top_p", Irrelevant(REQUEST)),
    ("top_k",       Irrelevant(REQUEST)), ("min_p", Irrelevant(REQUEST)), ("top_h", Irrelevant(REQUEST)),
    ("typical_p",   Irrelevant(REQUEST)), ("epsilon_cutoff", Irrelevant(REQUEST)), ("eta_cutoff", Irrelevant(REQUEST)),
    ("max_length",  Irrelevant(REQUEST)), ("max_new_tokens", Irrelevant(REQUEST)), ("max_time", Irrelevant(REQUEST)),
    ("repetition_penalty",   Irrelevant(REQUEST)), ("num_return_sequences", Irrelevant(REQUEST)),
    ("early_stopping",       Irrelevant("there are no beams")), ("length_penalty", Irrelevant("there are no beams")),
    ("min_length",           Only(&[Number(0.0)], "answers have a least length")),
    ("min_new_tokens",       Only(&[Number(0.0)], "answers have a least length")),
    ("num_beams",            Only(&[Number(1.0)], "answers are searched with beams")),
    ("num_beam_groups",      Only(&[Number(1.0)], "answers are searched with beams")),
    ("diversity_penalty",    Only(&[Number(0.0)], "answers are searched with beams")),
    ("penalty_alpha",        Only(&[Number(0.0)], "tokens are chosen by contrast")),
    ("dola_layers",          Only(&[], "tokens are chosen by contrast")),
    ("guidance_scale",       Only(&[Number(1.0)], "tokens are chosen with guidance")),
    ("no_repeat_ngram_size",         Only(&[Number(0.0)], "some tokens are never chosen")),
    ("encoder_no_repeat_ngram_size", Only(&[Number(0.0)], "some tokens are never chosen")),
    ("encoder_repetition_penalty",   Only(&[Number(1.0)], "tokens of the prompt are chosen less often")),
    ("bad_words_ids",         Only(&[Empty], "some tokens are never chosen")),
    ("suppress_tokens",       Only(&[Empty], "some tokens are never chosen")),
    ("begin_suppress_tokens", Only(&[Empty], "some tokens are never chosen first")),
    ("force_words_ids",       Only(&[Empty], "some tokens must be chosen")),
    ("forced_bos_token_id",   Only(&[], "the first token is given")),
    ("forced_eos_token_id",   Only(&[], "the last token is given")),
    ("forced_decoder_ids",    Only(&[Empty], "the first tokens are given")),
    ("constraints",           Only(&[Empty], "answers are constrained")),
    ("sequence_bias",         Only(&[Empty], "some tokens are chosen more often")),
    ("exponential_decay_length_penalty", Only(&[], "the end becomes more likely with length")),
    ("stop_strings",          Only(&[Empty], "texts end an answer")),
    ("renormalize_logits",    Only(&[Bool(false)], "probabilities are computed anew")),
    ("token_healing",         Only(&[Bool(false)], "the end of a prompt is read anew")),
    ("watermarking_config",   Only(&[], "answers are marked")),
];

const DECODING: &str = "ids to text is the vocabulary's alone";
const BATCHING: &str = "prompts are neither padded nor cut off";

/// `tokenizer_config.json`.
#[rustfmt::skip]
pub const TOKENIZER_CONFIG: &[KnownKey] = &[
    ("bos_token", Used), ("eos_token", Used), ("unk_token", Used), ("pad_token", Used), ("add_bos_token", Used),
    ("chat_template", Used), ("added_tokens_decoder", Used), ("additional_special_tokens", Used),
    ("extra_special_tokens", Used), ("add_prefix_space", Used), ("legacy", Used),
    ("tokenizer_class", Used),
    ("processor_class",  Irrelevant("the vocabulary's own file says it")),
    ("backend",          Irrelevant("the vocabulary's own file says it")),
    ("tokenizer_file",   Irrelevant(LIBRARY)), ("vocab_file", Irrelevant(LIBRARY)), ("merges_file", Irrelevant(LIBRARY)),
    ("special_tokens_map_file", Irrelevant(LIBRARY)), ("name_or_path", Irrelevant(LIBRARY)),
    ("from_slow",        Irrelevant(LIBRARY)), ("use_fast", Irrelevant(LIBRARY)), ("is_local", Irrelevant(LIBRARY)),
    ("model_input_names", Irrelevant(LIBRARY)), ("trust_remote_code", Irrelevant(LIBRARY)),
    ("return_token_type_ids", Irrelevant(LIBRARY)), ("device_map", Irrelevant(LIBRARY)),
    ("local_files_only", Irrelevant(LIBRARY)),
    ("auto_map",         Irrelevant("no code of a checkpoint is run")),
    ("clean_up_tokenization_spaces",  Irrelevant(DECODING)), ("spaces_between_special_tokens", Irrelevant(DECODING)),
    ("errors",           Irrelevant(DECODING)), ("use_default_system_prompt", Irrelevant("the template says it")),
    ("model_max_length", Irrelevant(BATCHING)), ("max_length", Irrelevant(BATCHING)), ("stride", Irrelevant(BATCHING)),
    ("padding_side",     Irrelevant(BATCHING)), ("padding", Irrelevant(BATCHING)), ("pad_to_multiple_of", Irrelevant(BATCHING)),
    ("pad_token_type_id", Irrelevant(BATCHING)), ("truncation", Irrelevant(BATCHING)), ("truncation_side", Irrelevant(BATCHING)),
    ("truncation_strategy", Irrelevant(BATCHING)),
    ("mask_token",       Irrelevant("no token is masked")), ("sep_token", Irrelevant("texts are not paired")),
    ("cls_token",        Irrelevant("texts are not classed")),
    ("add_eos_token",        Only(&[Bool(false)], "texts end with the end token")),
    ("do_lower_case",        Only(&[Bool(false)], "text is rewritten in small letters")),
    ("split_special_tokens", Only(&[Bool(false)], "special tokens are cut")),
    ("sp_model_kwargs",      Only(&[Empty], "text is cut at random")),
];

/// `special_tokens_map.json`.
#[rustfmt::skip]
pub const SPECIAL_TOKENS_MAP: &[KnownKey] = &[
    ("bos_token", Used), ("eos_token", Used), ("unk_token", Used), ("pad_token", Used),
    ("additional_special_tokens", Used), ("extra_special_tokens", Used),
    ("mask_token", Irrelevant("no token is masked")), ("sep_token", Irrelevant("texts are not paired")),
    ("cls_token",  Irrelevant("texts are not classed")),
];

/// A token of `tokenizer_config.json` or `special_tokens_map.json` that is an object.
#[rustfmt::skip]
pub const SPECIAL_TOKEN: &[KnownKey] = &[
    ("content", Used), ("special", Used), ("__type", Irrelevant(LIBRARY)),
    ("normalized",  Irrelevant("tokenizer.json says it for each of its tokens")),
    ("lstrip",      Only(&[Bool(false)], "the token takes the white space before it")),
    ("rstrip",      Only(&[Bool(false)], "the token takes the white space behind it")),
    ("single_word", Only(&[Bool(false)], "the token is found only between words")),
];

/// `tokenizer.json`.
#[rustfmt::skip]
pub const TOKENIZER: &[KnownKey] = &[
    ("added_tokens", Used), ("normalizer", Used), ("pre_tokenizer", Used), ("post_processor", Used), ("decoder", Used),
    ("model", Used),
    ("version",    Irrelevant("there is only one")),
    ("truncation", Irrelevant(BATCHING)), ("padding", Irrelevant(BATCHING)),
];

/// `model` of `tokenizer.json`.
#[rustfmt::skip]
pub const BPE_MODEL: &[KnownKey] = &[
    ("type", Used), ("vocab", Used), ("merges", Used), ("unk_token", Used), ("fuse_unk", Used), ("byte_fallback", Used),
    ("ignore_merges", Used),
    ("dropout",                   Only(&[Number(0.0)], "text is cut at random")),
    ("continuing_subword_prefix", Only(&[Text("")], "parts of words have a prefix")),
    ("end_of_word_suffix",        Only(&[Text("")], "words have a suffix")),
];

/// One of `added_tokens` of `tokenizer.json`.
#[rustfmt::skip]
pub const ADDED_TOKEN: &[KnownKey] = &[
    ("id", Used), ("content", Used), ("special", Used), ("normalized", Used),
    ("lstrip",      Only(&[Bool(false)], "the token takes the white space before it")),
    ("rstrip",      Only(&[Bool(false)], "the token takes the white space behind it")),
    ("single_word", Only(&[Bool(false)], "the token is found only between words")),
];
