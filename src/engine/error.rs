//! The errors of the engine: one type for each stage, each naming the place.

use std::fmt;

/// A model that cannot be used. Its text is one line: the place, what is wrong, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadError {
    /// The file, then what in it: a byte offset, a metadata key, a tensor.
    pub place: String,
    /// What is wrong there, and what to do where something can be done.
    pub message: String,
}

impl LoadError {
    /// An error at `place`.
    pub fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        LoadError { place: place.into(), message: message.into() }
    }

    /// An error at a metadata key.
    pub fn key(key: &str, message: impl Into<String>) -> Self {
        Self::new(format!("metadata key {}", escaped(key)), message)
    }

    /// An error at a tensor.
    pub fn tensor(name: &str, message: impl Into<String>) -> Self {
        Self::new(format!("tensor {}", escaped(name)), message)
    }

    /// The same error, with the file that holds the place before it.
    pub fn within(self, outer: impl fmt::Display) -> Self {
        LoadError { place: format!("{outer}: {}", self.place), message: self.message }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl std::error::Error for LoadError {}

/// Text from a file, for use in an error: escaped and shortened, so that the error stays one line, and no control
/// sequence reaches a terminal.
pub fn escaped(words: &str) -> String {
    // Longer than any name in use.
    const MAX_CHARS: usize = 64;
    let mut shown: String = words.chars().take(MAX_CHARS).flat_map(char::escape_debug).collect();
    if words.chars().nth(MAX_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

/// A prompt that the model cannot take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptError {
    /// The prompt has no tokens.
    Empty,
    /// More tokens than fit into the context, including the first generated one.
    ContextExceeded {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens the context holds.
        context: usize,
    },
    /// A token id outside the vocabulary.
    UnknownToken {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// A token id outside the vocabulary that is to get a bias.
    UnknownBiasToken {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// The chat template rejects the conversation; the text is the template's, or the engine's.
    Template(String),
    /// The grammar of the answer cannot go on.
    Grammar(String),
}

impl fmt::Display for PromptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PromptError::Empty => write!(f, "prompt: no tokens; send some text"),
            PromptError::ContextExceeded { tokens, context } => write!(
                f,
                "prompt: {tokens} tokens, and the context holds {context} with the answer; shorten it"
            ),
            PromptError::UnknownToken { id, vocab } => {
                write!(f, "token {id}: outside the vocabulary of {vocab}")
            }
            PromptError::UnknownBiasToken { id, vocab } => {
                write!(f, "logit_bias: token {id} is outside the vocabulary of {vocab}")
            }
            PromptError::Grammar(why) => write!(f, "response_format: {why}"),
            PromptError::Template(why) => write!(f, "messages: the model's chat template says: {why}"),
        }
    }
}

impl std::error::Error for PromptError {}
