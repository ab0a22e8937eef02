//! Log-probabilities in the form of completions: a list for each quantity instead of an object for each token.

use crate::protocol::{LikelyToken, TokenLogprob};
use serde_json::{Map, Value, json};

/// Log-probabilities of successive tokens.
pub(super) struct CompletionLogprobs {
    pub object: Value,
    /// The offset behind the last token.
    pub end: usize,
}

impl CompletionLogprobs {
    /// `offset`: where the first token begins in the answer, in characters.
    pub fn new(tokens: &[TokenLogprob], offset: usize) -> Self {
        let mut end = offset;
        let offsets = tokens.iter().map(|token| {
            let begin = end;
            end += token.token.token.chars().count();
            begin
        });
        let offsets: Vec<usize> = offsets.collect();
        let object = json!({
            "tokens": tokens.iter().map(|token| &token.token.token).collect::<Vec<_>>(),
            "token_logprobs": tokens.iter().map(|token| logprob(&token.token)).collect::<Vec<_>>(),
            "top_logprobs": tokens.iter().map(top_logprobs).collect::<Vec<_>>(),
            "text_offset": offsets,
        });
        CompletionLogprobs { object, end }
    }
}

/// The likeliest tokens, and the one of the answer where it is none of them. Of tokens with the same text, which are parts of
/// characters, the likeliest counts.
fn top_logprobs(token: &TokenLogprob) -> Value {
    let mut top = Map::new();
    for likely in token.top_logprobs.iter().chain([&token.token]) {
        top.entry(likely.token.clone()).or_insert_with(|| logprob(likely));
    }
    Value::Object(top)
}

/// As it is written in the form of chat completions.
fn logprob(token: &LikelyToken) -> Value {
    json!(token)["logprob"].take()
}
