//! The keys of a request that change single tokens' logits, show their probabilities or ask for several answers.

use super::{Shown, invalid};
use crate::protocol::Refusal;
use std::collections::BTreeMap;

/// Maximum number of answers to one prompt.
pub const MAX_CHOICES: u32 = 8;
/// Maximum number of tokens that get a bias.
pub const MAX_LOGIT_BIAS: usize = 300;
/// Maximum number of most likely tokens whose log-probabilities are given at each position.
pub const MAX_TOP_LOGPROBS: u32 = 20;
/// Maximum number of log-probabilities in one answer, of all its choices together: about half a megabyte of JSON.
pub const MAX_LOGPROBS: u32 = 8000;

/// The number of answers.
pub(super) fn choices(n: Option<u32>) -> Result<u32, Refusal> {
    match n.unwrap_or(1) {
        n @ 1..=MAX_CHOICES => Ok(n),
        n => Err(invalid(format!("n: {n} is outside 1 to {MAX_CHOICES}"))),
    }
}

/// How many of the most likely tokens come with each token's log-probability; `None` where none are wanted.
pub(super) fn logprobs(logprobs: Option<bool>, top: Option<u32>) -> Result<Option<u32>, Refusal> {
    match (logprobs.unwrap_or(false), top) {
        (_, Some(top)) if top > MAX_TOP_LOGPROBS => {
            Err(invalid(format!("top_logprobs: {top} is outside 0 to {MAX_TOP_LOGPROBS}")))
        }
        (false, Some(1..)) => Err(invalid("top_logprobs: needs \"logprobs\": true")),
        (false, _) => Ok(None),
        (true, top) => Ok(Some(top.unwrap_or(0))),
    }
}

/// The limit on tokens under which no answer has more than [`MAX_LOGPROBS`] log-probabilities.
pub(super) fn limit_logprobs(
    max_tokens: Option<u32>,
    logprobs: Option<u32>,
    choices: u32,
) -> Result<Option<u32>, Refusal> {
    let Some(top) = logprobs else { return Ok(max_tokens) };
    let limit = MAX_LOGPROBS / ((top + 1) * choices);
    match max_tokens {
        Some(wanted) if wanted > limit => Err(invalid(format!(
            "max_tokens: {wanted} with these top_logprobs and n is more than {MAX_LOGPROBS} log-probabilities; at most \
             {limit}"
        ))),
        wanted => Ok(Some(wanted.unwrap_or(limit))),
    }
}

/// The biases in the order of their tokens.
pub(super) fn logit_bias(biases: BTreeMap<String, f32>) -> Result<Vec<(u32, f32)>, Refusal> {
    if biases.len() > MAX_LOGIT_BIAS {
        return Err(invalid(format!("logit_bias: {} tokens; at most {MAX_LOGIT_BIAS}", biases.len())));
    }
    let read = |(key, bias): (String, f32)| {
        if !(-100.0..=100.0).contains(&bias) {
            return Err(invalid(format!("logit_bias.{}: {bias} is outside -100 to 100", Shown(&key))));
        }
        // Only the usual form of a number, so that no token is named twice.
        match key.parse::<u32>().ok().filter(|id| id.to_string() == key) {
            Some(id) => Ok((id, bias)),
            None => Err(invalid(format!(
                "logit_bias: \"{}\" is no token id; bitnetd tokenize shows the ids of a text",
                Shown(&key)
            ))),
        }
    };
    let mut biases = biases.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
    biases.sort_unstable_by_key(|(id, _)| *id);
    Ok(biases)
}
