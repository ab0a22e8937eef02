//! What the answers of all calls have in common: their heads, token counts, and how the parts of a stream are written.

use crate::protocol::api::CallContext;
use crate::protocol::{Done, FinishReason, TokenLogprob, ToolCall};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

/// What each object of one answer begins with.
#[derive(Debug)]
pub(super) struct AnswerHead {
    pub id: String,
    pub created: u64,
    pub model: String,
    pub fingerprint: String,
}

impl AnswerHead {
    /// The head of an answer whose id begins with `prefix`.
    pub fn new(context: &CallContext, prefix: &str) -> Self {
        let digest: String = context.model.digest.chars().take(12).collect();
        AnswerHead {
            id: format!("{prefix}{}", context.id),
            created: unix_seconds(context.now),
            model: context.model.name.clone(),
            // The same seed gives the same answer as long as neither program nor model is another.
            fingerprint: format!("bitnetd-{}-{digest}", env!("CARGO_PKG_VERSION")),
        }
    }

    /// An object of this kind with these choices.
    pub fn object(&self, kind: &str, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        })
    }
}

/// Seconds since 1970; 0 for a clock that is set before.
pub(super) fn unix_seconds(time: std::time::SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// One of the answers to a call.
pub(super) struct ChoiceView<'a> {
    pub index: u32,
    pub text: &'a str,
    pub finish_reason: FinishReason,
    pub tool_calls: &'a [ToolCall],
    pub logprobs: Option<&'a [TokenLogprob]>,
}

impl ChoiceView<'_> {
    /// Why it ended, in OpenAI's words. It has none for a time limit or a cancellation: as with `length`, the answer is not
    /// complete, and that is what clients have to know. The object `bitnetd` has the exact reason.
    pub fn finish_reason(&self) -> &'static str {
        match self.finish_reason {
            FinishReason::Stop if !self.tool_calls.is_empty() => "tool_calls",
            FinishReason::Stop => "stop",
            FinishReason::Length | FinishReason::Timeout | FinishReason::Cancelled => "length",
        }
    }
}

/// The answers.
pub(super) fn choices(done: &Done) -> Vec<ChoiceView<'_>> {
    if done.details.choices.is_empty() {
        return vec![ChoiceView {
            index: 0,
            text: &done.text,
            finish_reason: done.finish_reason,
            tool_calls: &done.details.tool_calls,
            logprobs: done.details.logprobs.as_deref(),
        }];
    }
    let choices = done.details.choices.iter();
    choices
        .map(|choice| ChoiceView {
            index: choice.index,
            text: &choice.text,
            finish_reason: choice.finish_reason,
            tool_calls: &choice.tool_calls,
            logprobs: choice.logprobs.as_deref(),
        })
        .collect()
}

/// How much of each answer has been streamed.
#[derive(Debug, Default)]
pub(super) struct SentText(BTreeMap<u32, (usize, usize)>);

impl SentText {
    /// Counts a piece of an answer.
    pub fn add(&mut self, index: u32, text: &str, logprobs: &[TokenLogprob]) {
        let (bytes, tokens) = self.0.entry(index).or_default();
        *bytes += text.len();
        *tokens += logprobs.len();
    }

    /// What has not been streamed of an answer: all of it where it comes out of the cache.
    pub fn rest<'a>(&self, choice: &ChoiceView<'a>) -> (&'a str, &'a [TokenLogprob]) {
        let (bytes, tokens) = self.0.get(&choice.index).copied().unwrap_or_default();
        let text = choice.text.get(bytes..).unwrap_or_default();
        let logprobs = choice.logprobs.and_then(|logprobs| logprobs.get(tokens..)).unwrap_or_default();
        (text, logprobs)
    }
}

/// The token counts of chat completions and completions.
pub(super) fn usage(done: &Done) -> Value {
    let prediction = done.details.prediction.unwrap_or_default();
    json!({
        "prompt_tokens": done.usage.prompt_tokens,
        "completion_tokens": done.usage.completion_tokens,
        "total_tokens": total_tokens(done),
        "prompt_tokens_details": { "cached_tokens": cached_tokens(done), "audio_tokens": 0 },
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": prediction.accepted_tokens,
            "rejected_prediction_tokens": prediction.rejected_tokens,
        },
    })
}

pub(super) fn total_tokens(done: &Done) -> u64 {
    u64::from(done.usage.prompt_tokens) + u64::from(done.usage.completion_tokens)
}

/// Tokens of the prompt that did not have to be read, as far as that is known: all of them where the answer itself was
/// cached.
pub(super) fn cached_tokens(done: &Done) -> u32 {
    if done.cached { done.usage.prompt_tokens } else { done.usage.cached_tokens }
}

/// What OpenAI's objects have no key for.
pub(super) fn extras(done: &Done) -> Value {
    json!({
        "finish_reason": done.finish_reason,
        "energy": done.energy,
        "timings": done.timings,
        "cached": done.cached,
    })
}

/// The log-probabilities of a message or a piece of one; null where they were not asked for.
pub(super) fn logprobs(tokens: Option<&[TokenLogprob]>) -> Value {
    tokens.map_or(Value::Null, |tokens| json!({ "content": tokens, "refusal": null }))
}

/// Appends a server-sent event without a name.
pub(super) fn push_data(to: &mut Vec<u8>, data: &Value) {
    to.extend_from_slice(b"data: ");
    to.extend_from_slice(&bytes(data));
    to.extend_from_slice(b"\n\n");
}

/// JSON on one line.
pub(super) fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}
