//! Prompts out of turns, in the form a family of models was trained on.
//!
//! Roles and their marks are tokens of ours; what is said in a turn is encoded as plain text, so
//! that nothing in it can end the turn.

use crate::engine::error::LoadError;
use crate::engine::gguf::Gguf;
use std::collections::HashMap;

/// Who speaks in a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Standing instructions.
    System,
    /// The asker.
    User,
    /// The model.
    Assistant,
}

/// One turn of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn<'a> {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub text: &'a str,
}

/// The forms we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// `User: …<|eot_id|>Assistant: `. Source: `LLM_CHAT_TEMPLATE_BITNET` of ik_llama.cpp; the
    /// template inside the official file is wrong.
    BitNet { eot: Option<u32> },
    /// `<|start_header_id|>user<|end_header_id|>\n\n…<|eot_id|>`. Source: Meta's model card.
    Llama3 { start: u32, end: u32, eot: u32 },
}

impl Family {
    pub fn detect(file: &Gguf, ids: &HashMap<&[u8], u32>) -> Result<Self, LoadError> {
        let id = |text: &str| ids.get(text.as_bytes()).copied();
        let eot = id("<|eot_id|>");
        let arch = file.text("general.architecture")?.unwrap_or_default();
        let headers = (id("<|start_header_id|>"), id("<|end_header_id|>"), eot);
        Ok(match headers {
            // BitNet's vocabulary has the header tokens too, but was not trained with them.
            (Some(start), Some(end), Some(eot)) if arch == "llama" => Family::Llama3 { start, end, eot },
            _ => Family::BitNet { eot },
        })
    }

    pub fn write(&self, turns: &[Turn<'_>], ids: &mut Vec<u32>, encode: impl Fn(&str, &mut Vec<u32>)) {
        for turn in turns {
            let text = turn.text.trim();
            match self {
                Family::BitNet { eot } => {
                    encode(&format!("{}: {text}", capitalised(turn.role)), ids);
                    // A vocabulary without the mark ends its turns with a line.
                    match eot {
                        Some(eot) => ids.push(*eot),
                        None => encode("\n", ids),
                    }
                }
                Family::Llama3 { start, end, eot } => {
                    header(turn.role, *start, *end, ids, &encode);
                    encode(text, ids);
                    ids.push(*eot);
                }
            }
        }
        match self {
            Family::BitNet { .. } => encode("Assistant: ", ids),
            Family::Llama3 { start, end, .. } => header(Role::Assistant, *start, *end, ids, &encode),
        }
    }
}

fn header(role: Role, start: u32, end: u32, ids: &mut Vec<u32>, encode: &impl Fn(&str, &mut Vec<u32>)) {
    ids.push(start);
    encode(&capitalised(role).to_ascii_lowercase(), ids);
    ids.push(end);
    encode("\n\n", ids);
}

fn capitalised(role: Role) -> &'static str {
    match role {
        Role::System => "System",
        Role::User => "User",
        Role::Assistant => "Assistant",
    }
}
