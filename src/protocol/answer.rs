//! The parts of an answer that only some requests ask for: log-probabilities, several answers to one prompt, and calls of
//! functions.

use super::{FinishReason, Metadata, ToolCall};
use serde::{Serialize, Serializer};

/// The log-probability of a token whose probability is too small to have one, as OpenAI gives it: JSON has no infinity.
const NO_LOGPROB: f32 = -9999.0;

/// What an answer has beyond its text; each part is absent where it was not asked for.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct AnswerDetails {
    /// The log-probability of each token of the answer; where there are several answers, each has its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// The functions that the model calls instead of saying something.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// All answers, where several were asked for: as many as that, the first one too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<Choice>,
    /// What the predicted answer was good for, where there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prediction: Option<PredictionUsage>,
    /// The request's metadata.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Metadata>,
}

/// Tokens of a predicted answer that were verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct PredictionUsage {
    /// Those that the answer has.
    pub accepted_tokens: u32,
    /// Those in whose place the answer has another.
    pub rejected_tokens: u32,
}

/// One of several answers to a prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Choice {
    /// Its number, from 0 on.
    pub index: u32,
    /// The whole answer.
    pub text: String,
    /// Why it ended there.
    pub finish_reason: FinishReason,
    /// The functions that it calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The log-probability of each token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<TokenLogprob>>,
}

/// A token of an answer with its log-probability, and the tokens that were most likely in its place.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenLogprob {
    /// The token of the answer.
    #[serde(flatten)]
    pub token: LikelyToken,
    /// The most likely tokens, the likeliest first.
    pub top_logprobs: Vec<LikelyToken>,
}

/// A token with its log-probability.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LikelyToken {
    /// Its text; what is no whole character of it is U+FFFD.
    pub token: String,
    /// The natural logarithm of its probability.
    #[serde(serialize_with = "finite")]
    pub logprob: f32,
    /// The bytes of its text.
    pub bytes: Vec<u8>,
}

fn finite<S: Serializer>(logprob: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f32(if logprob.is_finite() { *logprob } else { NO_LOGPROB })
}
