//! `POST /v1/completions`: the older form, with a prompt and no roles.
//!
//! The prompt is one turn of the user in the model's chat template, as everywhere else in this program: models that follow
//! instructions are what it is for.

use super::answer::ChoiceView;
use super::call_keys::{CheckedCall, OpenAiKeys, invalid, whole};
use super::chat::without_nulls;
use super::choice_encoder::{ChoiceEncoder, ChoiceForm};
use super::completion_logprobs::CompletionLogprobs;
use crate::protocol::api::{Call, CallContext, TranslatedRequest};
use crate::protocol::{Refusal, TokenLogprob};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const KIND: &str = "text_completion";

/// Keys that would change the answer, and what to do instead.
const REFUSED: &[(&str, &str)] = &[
    ("echo", "put the prompt before the answer yourself"),
    ("suffix", "the model does not fill in between texts"),
    ("tools", "call /v1/chat/completions"),
];

/// Reads a call of `POST /v1/completions`.
///
/// # Errors
/// A call that is not of the documented form, or that asks for what is not supported.
pub fn completions(body: &[u8], context: &CallContext) -> Result<Call, Refusal> {
    let mut keys = OpenAiKeys::read(body, context)?;
    keys.refuse(REFUSED)?;
    let prompt = prompt(keys.take("prompt"))?;
    keys.set("prompt", "prompt", prompt);
    keys.name_prompt("prompt");
    best_of(&mut keys)?;
    keys.pass("n", "n", whole);
    keys.pass("max_tokens", "max_tokens", whole);
    keys.pass("response_format", "response_format", without_nulls);
    if let Some(top) = keys.take("logprobs").filter(|top| *top != false) {
        keys.set("logprobs", "top_logprobs", whole(top));
        keys.set("logprobs", "logprobs", Value::Bool(true));
    }
    let include_usage = keys.include_usage()?;
    let CheckedCall { request, ignored_keys, names } = keys.request(context)?;
    let form = CompletionForm { has_logprobs: request.logprobs.is_some(), offsets: BTreeMap::new() };
    let encoder = ChoiceEncoder::new(context, &request, names, include_usage, form);
    Ok(Call::Ask(Box::new(TranslatedRequest { request, encoder: Box::new(encoder), ignored_keys })))
}

/// One text, which may be the only one of a list.
fn prompt(prompt: Option<Value>) -> Result<Value, Refusal> {
    let Some(prompt) = prompt else { return Err(invalid("prompt: missing; give a string")) };
    let Value::Array(mut prompts) = prompt else { return Ok(prompt) };
    if prompts.iter().any(|prompt| !prompt.is_string()) {
        return Err(invalid("prompt: token ids are not read; give a string"));
    }
    match prompts.len() {
        1 => Ok(prompts.remove(0)),
        count => Err(invalid(format!("prompt: {count} texts; give one in a call"))),
    }
}

/// The best of as many answers as are wanted is each of them.
fn best_of(keys: &mut OpenAiKeys) -> Result<(), Refusal> {
    let Some(best_of) = keys.take("best_of").map(whole) else { return Ok(()) };
    let n = keys.get("n").cloned().map_or(Value::from(1), whole);
    if best_of != n {
        return Err(invalid("best_of: not supported; leave it out, and n is the number of answers"));
    }
    keys.ignored += 1;
    Ok(())
}

/// Choices that are texts.
#[derive(Debug)]
struct CompletionForm {
    has_logprobs: bool,
    /// Characters of each answer that were streamed: the offset of the next token.
    offsets: BTreeMap<u32, usize>,
}

fn choice(index: u32, text: &str, logprobs: Value, finish_reason: Option<&str>) -> Value {
    json!({ "text": text, "index": index, "logprobs": logprobs, "finish_reason": finish_reason })
}

impl ChoiceForm for CompletionForm {
    const ID_PREFIX: &'static str = "cmpl-";
    const OBJECT: &'static str = KIND;
    const CHUNK: &'static str = KIND;

    fn piece(&mut self, index: u32, text: &str, tokens: &[TokenLogprob]) -> Value {
        let offset = self.offsets.entry(index).or_default();
        let logprobs = CompletionLogprobs::new(tokens, *offset);
        *offset = logprobs.end;
        choice(index, text, if self.has_logprobs { logprobs.object } else { Value::Null }, None)
    }

    /// There are none: functions cannot be offered here.
    fn calls(&self, _: &ChoiceView<'_>) -> Option<Value> {
        None
    }

    fn last(&self, view: &ChoiceView<'_>) -> Value {
        choice(view.index, "", Value::Null, Some(view.finish_reason()))
    }

    fn whole(&self, view: &ChoiceView<'_>) -> Value {
        let logprobs = view.logprobs.map(|tokens| CompletionLogprobs::new(tokens, 0).object);
        choice(view.index, view.text, logprobs.unwrap_or_default(), Some(view.finish_reason()))
    }
}
