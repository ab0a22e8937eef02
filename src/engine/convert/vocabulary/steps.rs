//! The processing steps of `tokenizer.json` before and after its model: those that this engine does too, in exactly
//! these forms. All others are refused by name, because GGUF has no metadata key for them.

use super::TOKENIZER_JSON;
use crate::engine::error::{LoadError, escaped};
use serde_json::{Value, json};

/// How Llama 3's pre-tokenizer splits text into words. Source: `tokenizer.json` of Meta-Llama-3-8B.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The character that SentencePiece writes for a space.
const SPACE: &str = "\u{2581}";

/// An error about a key of `tokenizer.json`.
fn key_error(key: &str, message: impl Into<String>) -> LoadError {
    LoadError::new(format!("{TOKENIZER_JSON}: {key}"), message)
}

/// The steps of a value, with sequences flattened; none where the value is missing.
fn steps_of<'a>(value: Option<&'a Value>, list: &str, key: &str) -> Result<Vec<&'a Value>, LoadError> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(Vec::new()) };
    if value["type"] != "Sequence" {
        return Ok(vec![value]);
    }
    let all = value[list]
        .as_array()
        .ok_or_else(|| key_error(key, "a Sequence without its list; the file is damaged"))?;
    let mut steps = Vec::new();
    for part in all {
        // A sequence in a sequence does the same as its steps; deeper nesting occurs in no file.
        match part["type"] == "Sequence" {
            true => steps.extend(part[list].as_array().into_iter().flatten()),
            false => steps.push(part),
        }
    }
    Ok(steps)
}

/// The type of a step, for messages.
fn name(step: &Value) -> String {
    escaped(step["type"].as_str().unwrap_or("a step without a type"))
}

fn names(steps: &[&Value]) -> String {
    steps.iter().map(|step| name(step)).collect::<Vec<_>>().join(", ")
}

/// Whether a step has exactly these settings; those in `free` may have any value.
fn has_settings(step: &Value, expected: &Value, free: &[&str]) -> bool {
    let (Some(step), Some(expected)) = (step.as_object(), expected.as_object()) else { return false };
    let same = expected.iter().all(|(key, value)| step.get(key) == Some(value));
    same && step.keys().all(|key| expected.contains_key(key) || free.contains(&key.as_str()))
}

/// Checks the normalizer and the pre-tokenizer; returns whether a space is put before a text.
pub(super) fn check(
    normalizer: Option<&Value>,
    pre_tokenizer: Option<&Value>,
    sentence_piece: bool,
) -> Result<bool, LoadError> {
    let normalizers = steps_of(normalizer, "normalizers", "normalizer")?;
    let pre_tokenizers = steps_of(pre_tokenizer, "pretokenizers", "pre_tokenizer")?;
    match sentence_piece {
        true => check_pieces(&normalizers, &pre_tokenizers),
        false => check_bytes(&normalizers, &pre_tokenizers).map(|()| false),
    }
}

fn check_pieces(normalizers: &[&Value], pre_tokenizers: &[&Value]) -> Result<bool, LoadError> {
    let prepend = json!({"type": "Prepend", "prepend": SPACE});
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let metaspace =
        json!({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": false});
    let is_replaced = |step: &Value| has_settings(step, &replace, &[]);
    match (normalizers, pre_tokenizers) {
        ([first, second], []) if has_settings(first, &prepend, &[]) && is_replaced(second) => Ok(true),
        ([only], []) if is_replaced(only) => Ok(false),
        ([], [only]) if has_settings(only, &metaspace, &["str_rep"]) => Ok(false),
        ([], []) => Err(key_error("normalizer", "missing: spaces have no mark, which is not supported")),
        (_, []) | ([_, ..], _) => {
            let message = format!(
                "[{}] in this form rewrites text in a way that GGUF cannot express",
                names(normalizers)
            );
            Err(key_error("normalizer", format!("{message}; use a model that marks spaces as Llama 2 does")))
        }
        ([], _) => {
            let message = format!(
                "[{}] in this form splits text in a way that GGUF cannot express",
                names(pre_tokenizers)
            );
            Err(key_error(
                "pre_tokenizer",
                format!("{message}; use a model that marks spaces as Llama 2 does"),
            ))
        }
    }
}

/// Checks for the one pre-tokenizer that GGUF has a name for, recognised by its pattern, because models' names are
/// reused.
fn check_bytes(normalizers: &[&Value], pre_tokenizers: &[&Value]) -> Result<(), LoadError> {
    if !normalizers.is_empty() {
        let message = format!(
            "[{}] rewrites text before it is split, and GGUF has no metadata key for that",
            names(normalizers)
        );
        return Err(key_error("normalizer", format!("{message}; use another model")));
    }
    let split =
        json!({"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": false});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false});
    match pre_tokenizers {
        [first, second]
            if has_settings(first, &split, &[]) && has_settings(second, &bytes, &["trim_offsets"]) =>
        {
            Ok(())
        }
        steps => {
            let patterns: Vec<&str> =
                steps.iter().filter_map(|step| step["pattern"]["Regex"].as_str()).collect();
            // Where the pattern is Llama 3's, an option differs.
            let difference = match patterns == [LLAMA3] {
                true => "with these options".into(),
                false => format!("with the patterns [{}]", escaped(&patterns.join(", "))),
            };
            let message = format!("[{}] {difference} has no name in GGUF that we know", names(steps));
            Err(key_error("pre_tokenizer", format!("{message}; use a model that cuts text as Llama 3 does")))
        }
    }
}

/// Checks that tokens are decoded as this engine does it.
pub(super) fn check_decoder(
    decoder: Option<&Value>,
    sentence_piece: bool,
    adds_space: bool,
) -> Result<(), LoadError> {
    let steps = steps_of(decoder, "decoders", "decoder")?;
    if steps.is_empty() {
        let message = "missing: tokens are then joined in another way, \
                       and GGUF has no metadata key for that; use another model";
        return Err(key_error("decoder", message));
    }
    let is_sound = match sentence_piece {
        true => decodes_pieces(&steps, adds_space),
        // Its settings concern only encoding.
        false => matches!(steps[..], [only] if only["type"] == "ByteLevel"),
    };
    match is_sound {
        true => Ok(()),
        false => {
            let message = format!("[{}] in this form gives other text than this engine", names(&steps));
            Err(key_error("decoder", format!("{message}; use another model")))
        }
    }
}

/// Whether these are the steps that Llama 2's decoder has: marks become spaces, byte tokens become bytes, and exactly
/// the space that was put before the text is removed.
fn decodes_pieces(steps: &[&Value], adds_space: bool) -> bool {
    let mut expected = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if adds_space {
        expected.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    steps.len() == expected.len()
        && steps.iter().zip(&expected).all(|(step, expected)| has_settings(step, expected, &[]))
}

/// The ids that the post-processor puts before a text; `None` where it says nothing about it.
pub(super) fn begins_with(processor: Option<&Value>) -> Result<Option<Vec<u64>>, LoadError> {
    let key = "post_processor";
    let mut ids = None;
    for step in steps_of(processor, "processors", key)? {
        match step["type"].as_str() {
            // Its settings concern only offsets in the text.
            Some("ByteLevel") => {}
            Some("TemplateProcessing") if ids.is_none() => ids = Some(before_text(step)?),
            _ => {
                let message =
                    format!("{} adds tokens in a way that is not supported; use another model", name(step));
                return Err(key_error(key, message));
            }
        }
    }
    Ok(ids)
}

/// The ids that a template puts before a text, provided that it puts none behind it.
fn before_text(template: &Value) -> Result<Vec<u64>, LoadError> {
    let fail = |message: &str| Err(key_error("post_processor.single", message.to_owned()));
    let single = template["single"].as_array().map(Vec::as_slice).unwrap_or_default();
    let Some((sequence, special)) = single.split_last() else { return fail("missing; the file is damaged") };
    if sequence["Sequence"]["id"] != "A" {
        return fail("puts tokens behind a text, which is not supported; use another model");
    }
    let mut before = Vec::new();
    for token in special {
        let ids = token["SpecialToken"]["id"]
            .as_str()
            .and_then(|id| template["special_tokens"][id]["ids"].as_array());
        match ids {
            Some(ids) => before.extend(ids.iter().filter_map(Value::as_u64)),
            None => return fail("names a token that it does not have; the file is damaged"),
        }
    }
    Ok(before)
}
