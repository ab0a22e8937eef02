//! Chat templates: from a file of their own, or from `tokenizer_config.json`, one or several by name.

use super::CONFIG;
use crate::engine::convert::checkpoint_files::CheckpointFolder;
use crate::engine::error::{LoadError, escaped};
use crate::external_text::utf8;
use serde::Deserialize;
use std::collections::BTreeSet;

const JINJA: &str = "chat_template.jinja";
const JSON: &str = "chat_template.json";
/// A folder of templates by name.
const MORE: &str = "additional_chat_templates";

/// One template, or several by name.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum ChatTemplates {
    One(String),
    Many(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
pub(super) struct NamedTemplate {
    name: String,
    template: String,
}

/// `chat_template.json`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TemplateFile {
    chat_template: ChatTemplates,
}

/// The template of the first file that has one, in the order in which transformers looks; `in_config` is that of
/// `tokenizer_config.json`. The notes name what is left out.
pub(super) fn choose(
    folder: &CheckpointFolder,
    in_config: Option<ChatTemplates>,
    notes: &mut Vec<String>,
) -> Result<Option<String>, LoadError> {
    let mut candidates = Vec::new();
    if let Some(bytes) = folder.read(JINJA)? {
        let text = utf8(&bytes).map_err(|message| LoadError::new(JINJA, message))?;
        candidates.push((JINJA, text.to_owned()));
    }
    let file: Option<TemplateFile> = folder.json(JSON)?;
    for (file, templates) in [(JSON, file.map(|file| file.chat_template)), (CONFIG, in_config)] {
        let Some(templates) = templates else { continue };
        if let Some(text) = default(file, templates, notes)? {
            candidates.push((file, text));
        }
    }
    if folder.names().iter().any(|name| name.starts_with(MORE)) {
        notes.push(format!("{MORE} left out: only the default template is used"));
    }
    let mut candidates = candidates.into_iter();
    let Some((file, text)) = candidates.next() else { return Ok(None) };
    for (other, _) in candidates.filter(|(_, other)| *other != text) {
        notes.push(format!("{other}: chat_template left out: {file} comes first"));
    }
    // The limit that this engine has when it reads the file.
    const MAX_BYTES: usize = 1 << 20;
    match text.len() <= MAX_BYTES {
        true => Ok(Some(text)),
        false => {
            let message = format!("a chat template of {} bytes, where {MAX_BYTES} are allowed", text.len());
            Err(LoadError::new(file, message))
        }
    }
}

/// The default template of a file.
fn default(
    file: &str,
    templates: ChatTemplates,
    notes: &mut Vec<String>,
) -> Result<Option<String>, LoadError> {
    let all = match templates {
        ChatTemplates::One(text) => return Ok(Some(text)),
        ChatTemplates::Many(all) => all,
    };
    let mut names = BTreeSet::new();
    if let Some(twice) = all.iter().find(|one| !names.insert(&one.name)) {
        let message = format!("\"{}\" is given twice; remove one of the two", escaped(&twice.name));
        return Err(LoadError::new(format!("{file}: chat_template"), message));
    }
    // More than a file in use has.
    const SHOWN: usize = 8;
    let others = all.iter().filter(|one| one.name != "default").take(SHOWN);
    let others: Vec<String> = others.map(|one| format!("\"{}\"", escaped(&one.name))).collect();
    let default = all.into_iter().find(|one| one.name == "default").map(|one| one.template);
    if !others.is_empty() {
        let why = if default.is_some() { "only \"default\" is used" } else { "none of them is \"default\"" };
        notes.push(format!("{file}: chat_template: {} left out: {why}", others.join(", ")));
    }
    Ok(default)
}
