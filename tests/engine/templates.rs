//! Chat templates: what a file's own template makes of a conversation, and what it cannot do to us.

mod forms;
mod hostile;
mod jinja2;
mod limits;
mod tools;

use crate::fixtures;
use bitnetd::engine::error::LoadError;
use bitnetd::engine::gguf::{FileMap, Gguf};
use bitnetd::engine::tokenizer::{ChatRole, Tokenizer, Turn};

/// What a note says of a template that is not used.
const NOT_USED: &str = "the file's chat template ";

/// A small vocabulary of an architecture for which the engine has no built-in chat template, so that the file's template
/// is used or the note says why not.
fn read(template: &str) -> Result<Tokenizer, String> {
    let mut file = fixtures::small();
    file.set("general.architecture", fixtures::text("llama"));
    file.set("tokenizer.chat_template", fixtures::text(template));
    let chat = tokenizer(&file).expect("no template makes a model useless");
    match chat.notes().iter().find(|note| note.starts_with(NOT_USED)) {
        Some(note) => Err(note.clone()),
        None => Ok(chat),
    }
}

fn tokenizer(file: &fixtures::File) -> Result<Tokenizer, LoadError> {
    Tokenizer::read(&Gguf::parse(FileMap::from(file.bytes())).expect("sound"))
}

fn turn(role: ChatRole, text: &str) -> Turn<'_> {
    Turn { role, text }
}

/// A prompt as text; special tokens by their names.
fn prompt(tokenizer: &Tokenizer, turns: &[Turn<'_>]) -> String {
    let ids = tokenizer.prompt_chat(turns).expect("a conversation that the template takes");
    let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.bytes(*id)).copied().collect();
    String::from_utf8(bytes).expect("whole characters")
}
