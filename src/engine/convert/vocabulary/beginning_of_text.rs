//! Whether texts begin with the beginning-of-text token: as `add_bos_token` and the post-processor have it, or the
//! default of the tokenizer's class where neither decides.

use super::tokenizer_config::TokenizerConfig;
use super::{TOKENIZER_JSON, Vocabulary};
use crate::engine::convert::ConvertPlan;
use crate::engine::convert::hf_config::{HfConfig, ModelFamily};
use crate::engine::error::LoadError;
use crate::engine::gguf::NewValue;

/// Sets whether texts begin with the token `bos`.
pub(super) fn add(
    config: &HfConfig,
    vocabulary: &Vocabulary,
    companion: &TokenizerConfig,
    bos: Option<u32>,
    has_json: bool,
    plan: &mut ConvertPlan,
) -> Result<(), LoadError> {
    let processed = match vocabulary.begins_with.as_deref() {
        None => None,
        Some([]) => Some(false),
        Some([only]) if bos.map(u64::from) == Some(*only) => Some(true),
        Some(ids) => {
            let bos = bos.map_or("not given".to_owned(), |bos| format!("token {bos}"));
            let message = format!("puts the tokens {ids:?} before a text, where bos_token is {bos}");
            let key = format!("{TOKENIZER_JSON}: post_processor.single");
            return Err(LoadError::new(key, format!("{message}; use another model")));
        }
    };
    let begins = match (companion.add_bos_token, processed) {
        (Some(adds_bos), Some(processed)) if adds_bos != processed => {
            let other = if processed { "puts the bos_token" } else { "puts no token" };
            let message =
                format!("is {adds_bos}, and the post_processor of {TOKENIZER_JSON} {other} before a text");
            return Err(super::key_error("add_bos_token", format!("{message}; correct the wrong one")));
        }
        (Some(true), _) if bos.is_none() => {
            return Err(super::key_error("add_bos_token", "is true, and no file names a bos_token; name it"));
        }
        (Some(adds_bos), _) => adds_bos,
        (None, Some(processed)) => processed,
        (None, None) => {
            let begins = bos.is_some() && begins_by_default(config.family, companion, has_json);
            if has_json && bos.is_some() {
                let effect =
                    if begins { "texts begin with the bos_token" } else { "no token is put before a text" };
                let missing = "no template, and no add_bos_token is given";
                plan.note(format!("{TOKENIZER_JSON}: post_processor: {missing}: {effect}"));
            }
            begins
        }
    };
    plan.draft.set("tokenizer.ggml.add_bos_token", NewValue::Bool(begins));
    Ok(())
}

/// Whether they do where nothing decides it. Classes of transformers for Llama put the token before texts, whatever
/// `tokenizer.json` has, and so does 1bitLLM's; a tokenizer without a class of its own does only what that file says.
/// The published files of BitNet b1.58 2B-4T say that it begins texts.
fn begins_by_default(family: ModelFamily, companion: &TokenizerConfig, has_json: bool) -> bool {
    let class = companion.tokenizer_class.as_deref();
    !has_json
        || family != ModelFamily::Llama
        || matches!(class, Some("LlamaTokenizer" | "LlamaTokenizerFast"))
}
