//! `tokenizer.json`: a byte-pair encoding, byte-level or SentencePiece's. The processing of text before and after
//! it is checked by `steps`.

use super::{BYTE, CONTROL, NORMAL, TOKENIZER_JSON, UNKNOWN, USER_DEFINED, Vocabulary, steps, token_list};
use crate::engine::convert::checkpoint_files::CheckpointFolder;
use crate::engine::error::{LoadError, escaped};
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;

#[derive(Deserialize)]
struct RawTokenizer {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
    model: BpeModel,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
    #[serde(default)]
    normalized: bool,
}

impl AddedToken {
    /// Whether it is nevertheless a token of the byte-level vocabulary, such as the line break of Falcon3, which is
    /// written `\u{10a}`: its text means bytes, as in decoding.
    fn is_bytes(&self, model: &BpeModel) -> bool {
        // The characters that stand for bytes that do not print.
        let stands_for_byte = |c| ('\u{100}'..='\u{143}').contains(&c);
        !self.special
            && self.content.contains(stands_for_byte)
            && model.vocab.get(&self.content) == Some(&self.id)
    }
}

#[derive(Deserialize)]
struct BpeModel {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: HashMap<String, u32>,
    #[serde(default)]
    merges: Vec<Merge>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    ignore_merges: bool,
    unk_token: Option<String>,
}

/// Two tokens that are merged; older files have them in one text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Text(String),
    Pair(String, String),
}

impl Merge {
    /// The two tokens, where there are two.
    fn pair(&self) -> Option<(&str, &str)> {
        match self {
            Merge::Text(text) => text.split_once(' '),
            Merge::Pair(left, right) => Some((left, right)),
        }
    }
}

/// The vocabulary of a folder, in a model of `rows` tokens; `None` where it has no such file.
pub(super) fn read(folder: &CheckpointFolder, rows: usize) -> Result<Option<Vocabulary>, LoadError> {
    let raw: Option<RawTokenizer> = folder.json(TOKENIZER_JSON)?;
    raw.map(|raw| vocabulary(&raw, rows)).transpose()
}

fn vocabulary(raw: &RawTokenizer, rows: usize) -> Result<Vocabulary, LoadError> {
    if let Some(kind) = raw.model.kind.as_deref().filter(|kind| *kind != "BPE") {
        let message = format!("\"{}\" is not read by this version; BPE is", escaped(kind));
        return Err(key_error("model.type", message));
    }
    let sentence_piece = raw.model.byte_fallback;
    check_added(raw)?;
    let adds_space = steps::check(raw.normalizer.as_ref(), raw.pre_tokenizer.as_ref(), sentence_piece)?;
    steps::check_decoder(raw.decoder.as_ref(), sentence_piece, adds_space)?;
    if sentence_piece && raw.model.ignore_merges {
        return Err(key_error("model.ignore_merges", "is true beside byte_fallback; use another model"));
    }
    let unknown = |text: &String| sentence_piece && raw.model.unk_token.as_ref() == Some(text);
    let plain = raw.model.vocab.iter().map(|(text, id)| {
        let byte = sentence_piece && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        let kind = if byte { BYTE } else { NORMAL };
        (*id, text, if unknown(text) { UNKNOWN } else { kind })
    });
    let added = raw.added_tokens.iter().filter(|added| sentence_piece || !added.is_bytes(&raw.model));
    let added = added.map(|added| {
        let kind = if added.special { CONTROL } else { USER_DEFINED };
        (added.id, &added.content, if unknown(&added.content) { UNKNOWN } else { kind })
    });
    let (tokens, kinds) = token_list(TOKENIZER_JSON, rows, plain.chain(added))?;
    if sentence_piece && !raw.model.fuse_unk && kinds.iter().filter(|kind| **kind == BYTE).count() < 256 {
        let message = "is false, and some bytes have no token: characters with those would be read otherwise";
        return Err(key_error("model.fuse_unk", message));
    }
    let scores = sentence_piece.then(|| scores(&raw.model, &tokens)).transpose()?;
    Ok(Vocabulary {
        model: if sentence_piece { "llama" } else { "gpt2" },
        pre: if sentence_piece { "default" } else { "llama-bpe" },
        adds_space,
        ignores_whole_words: !sentence_piece && !raw.model.ignore_merges,
        merges: merges(&raw.model)?,
        begins_with: steps::begins_with(raw.post_processor.as_ref())?,
        tokens,
        kinds,
        scores,
    })
}

/// The order of merges as scores of the tokens they make, the first the highest: `tokenizer.json` was made from
/// scores by the same rule. The scores of tokens that no merge makes are never used.
fn scores(model: &BpeModel, tokens: &[String]) -> Result<Vec<f32>, LoadError> {
    let mut ranks: HashMap<String, usize> = HashMap::with_capacity(model.merges.len());
    for (rank, merge) in model.merges.iter().enumerate() {
        let (left, right) = pair(merge)?;
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    let last = model.merges.len();
    Ok(tokens.iter().map(|token| -(*ranks.get(token).unwrap_or(&last) as f32)).collect())
}

fn pair(merge: &Merge) -> Result<(&str, &str), LoadError> {
    merge.pair().ok_or_else(|| key_error("model.merges", "holds what is no pair; the file is damaged"))
}

fn merges(model: &BpeModel) -> Result<Vec<String>, LoadError> {
    let text = |merge| pair(merge).map(|(left, right)| format!("{left} {right}"));
    model.merges.iter().map(text).collect()
}

fn key_error(key: &str, message: impl Into<String>) -> LoadError {
    LoadError::new(format!("{TOKENIZER_JSON}: {key}"), message)
}

/// Refuses added tokens that would be found differently than this engine finds them.
fn check_added(raw: &RawTokenizer) -> Result<(), LoadError> {
    for (index, added) in raw.added_tokens.iter().enumerate() {
        let fail =
            |key: &str, message: String| Err(key_error(&format!("added_tokens[{index}].{key}"), message));
        if let Some(id) = raw.model.vocab.get(&added.content).filter(|id| **id != added.id) {
            let message =
                format!("{}, and \"{}\" is {id} in the vocabulary", added.id, escaped(&added.content));
            return fail("id", message);
        }
        if added.normalized && raw.normalizer.is_some() {
            let message = format!(
                "\"{}\" is looked for in rewritten text, which is not supported",
                escaped(&added.content)
            );
            return fail("normalized", message);
        }
    }
    Ok(())
}
