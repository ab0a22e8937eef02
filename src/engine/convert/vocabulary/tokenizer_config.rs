//! `tokenizer_config.json`: what it adds to a vocabulary, and whether the two agree.

use super::chat_templates::ChatTemplates;
use super::{CONTROL, NORMAL, UNUSED, USER_DEFINED, Vocabulary, key_error};
use crate::engine::error::{LoadError, escaped};
use serde::Deserialize;
use std::collections::BTreeMap;

/// The keys that are read, besides those of [`special_tokens`](super::special_tokens).
#[derive(Deserialize, Default)]
pub(super) struct TokenizerConfig {
    pub add_bos_token: Option<bool>,
    pub tokenizer_class: Option<String>,
    add_prefix_space: Option<bool>,
    legacy: Option<bool>,
    #[serde(default)]
    added_tokens_decoder: BTreeMap<String, DecoderToken>,
    pub chat_template: Option<ChatTemplates>,
}

/// A token that was added later.
#[derive(Deserialize)]
struct DecoderToken {
    content: String,
    special: Option<bool>,
}

impl TokenizerConfig {
    /// Adds the tokens that only this file has to a vocabulary, and checks that the two agree.
    pub fn apply(&self, vocabulary: &mut Vocabulary, has_json: bool) -> Result<(), LoadError> {
        for (id, added) in &self.added_tokens_decoder {
            apply_added(id, added, vocabulary, has_json)?;
        }
        let is_pieces = vocabulary.scores.is_some();
        if let Some(adds) = self.add_prefix_space.filter(|adds| *adds != (is_pieces && vocabulary.adds_space))
        {
            let message = format!("is {adds}, and the vocabulary says otherwise; remove the wrong one");
            return Err(key_error("add_prefix_space", message));
        }
        // Where there is a `tokenizer.json`, that file decides.
        if self.legacy == Some(false) && vocabulary.adds_space && !has_json {
            let message =
                "is false: no space is put before a text behind a special token, which is not supported";
            return Err(key_error("legacy", format!("{message}; use another model")));
        }
        Ok(())
    }
}

fn apply_added(
    id: &str,
    added: &DecoderToken,
    vocabulary: &mut Vocabulary,
    has_json: bool,
) -> Result<(), LoadError> {
    let key = format!("added_tokens_decoder.{}", escaped(id));
    let fail = |message: String| Err(key_error(&key, message));
    let text = &added.content;
    let at = id.parse::<usize>().ok().filter(|at| *at < vocabulary.tokens.len());
    let Some(at) = at else {
        let len = vocabulary.tokens.len();
        return fail(format!("\"{}\" is outside the vocabulary of {len}", escaped(text)));
    };
    match (vocabulary.kinds[at], added.special) {
        (UNUSED, special) if !has_json => {
            vocabulary.tokens[at].clone_from(text);
            vocabulary.kinds[at] = if special == Some(true) { CONTROL } else { USER_DEFINED };
        }
        _ if vocabulary.tokens[at] != *text => {
            let token = escaped(&vocabulary.tokens[at]);
            return fail(format!("\"{}\", where the vocabulary has \"{token}\"", escaped(text)));
        }
        (CONTROL, Some(false)) => {
            let message =
                "is false, and the vocabulary has the token as a special one; correct the wrong one";
            return Err(key_error(&format!("{key}.special"), message));
        }
        (NORMAL | USER_DEFINED, Some(true)) => vocabulary.kinds[at] = CONTROL,
        _ => {}
    }
    Ok(())
}
