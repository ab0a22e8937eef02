//! `POST /v1/completions`: the older form, with a prompt and no roles.
//!
//! The prompt is one turn of the user in the model's chat template, as everywhere else in this program: models that follow
//! instructions are what it is for.

use super::answer::{
    AnswerHead, ChoiceView, END_OF_STREAM, SentText, bytes, choices, extras, push_data, usage,
};
use super::call_keys::{OpenAiKeys, invalid, whole};
use super::chat::without_nulls;
use super::completion_logprobs::CompletionLogprobs;
use super::errors::error;
use crate::protocol::api::{AnswerEncoder, Call, CallContext, TranslatedRequest};
use crate::protocol::{Done, Event, Refusal, Request, TokenLogprob};
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
    best_of(&mut keys)?;
    keys.pass("n", "n", whole);
    keys.pass("max_tokens", "max_tokens", whole);
    keys.pass("response_format", "response_format", without_nulls);
    if let Some(top) = keys.take("logprobs").filter(|top| *top != false) {
        keys.set("logprobs", "top_logprobs", whole(top));
        keys.set("logprobs", "logprobs", Value::Bool(true));
    }
    let include_usage = keys.include_usage()?;
    let (request, ignored_keys) = keys.request(context)?;
    let encoder = CompletionEncoder::new(context, &request, include_usage);
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

#[derive(Debug)]
struct CompletionEncoder {
    head: AnswerHead,
    stream: bool,
    has_logprobs: bool,
    include_usage: bool,
    sent: SentText,
    /// Characters of each answer that were streamed: the offset of the next token.
    offsets: BTreeMap<u32, usize>,
}

impl CompletionEncoder {
    fn new(context: &CallContext, request: &Request, include_usage: bool) -> Self {
        CompletionEncoder {
            head: AnswerHead::new(context, "cmpl-"),
            stream: request.stream,
            has_logprobs: request.logprobs.is_some(),
            include_usage,
            sent: SentText::default(),
            offsets: BTreeMap::new(),
        }
    }

    fn push_piece(&mut self, to: &mut Vec<u8>, index: u32, text: &str, tokens: &[TokenLogprob]) {
        let offset = self.offsets.entry(index).or_default();
        let logprobs = CompletionLogprobs::new(tokens, *offset);
        *offset = logprobs.end;
        let logprobs = if self.has_logprobs { logprobs.object } else { Value::Null };
        push_data(to, &self.chunk(index, text, logprobs, None));
    }

    fn chunk(&self, index: u32, text: &str, logprobs: Value, finish_reason: Option<&str>) -> Value {
        let choice =
            json!({ "text": text, "index": index, "logprobs": logprobs, "finish_reason": finish_reason });
        let mut chunk = self.head.object(KIND, json!([choice]));
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn push_end(&mut self, to: &mut Vec<u8>, done: &Done) {
        let choices = choices(done, false);
        for (at, choice) in choices.iter().enumerate() {
            let (text, tokens) = self.sent.rest(choice);
            if !text.is_empty() || !tokens.is_empty() {
                self.push_piece(to, choice.index, text, tokens);
            }
            let mut last = self.chunk(choice.index, "", Value::Null, Some(choice.finish_reason()));
            if at + 1 == choices.len() {
                last["bitnetd"] = extras(done);
            }
            push_data(to, &last);
        }
        if self.include_usage {
            let mut chunk = self.head.object(KIND, json!([]));
            chunk["usage"] = usage(done);
            push_data(to, &chunk);
        }
    }
}

impl AnswerEncoder for CompletionEncoder {
    fn stream_type(&self) -> Option<&'static str> {
        self.stream.then_some("text/event-stream")
    }

    fn event(&mut self, event: &Event) -> Vec<u8> {
        let mut out = Vec::new();
        match event {
            Event::Token { text, index, logprobs, .. } => {
                let index = index.unwrap_or(0);
                self.sent.add(index, text, logprobs);
                self.push_piece(&mut out, index, text, logprobs);
            }
            Event::Done(done) => {
                self.push_end(&mut out, done);
                out.extend_from_slice(END_OF_STREAM);
            }
            Event::Error { refusal, .. } => {
                push_data(&mut out, &error(refusal));
                out.extend_from_slice(END_OF_STREAM);
            }
        }
        out
    }

    fn whole(&mut self, done: &Done) -> Vec<u8> {
        let choices: Vec<Value> = choices(done, false).iter().map(choice).collect();
        let mut answer = self.head.object(KIND, Value::Array(choices));
        answer["usage"] = usage(done);
        answer["bitnetd"] = extras(done);
        bytes(&answer)
    }
}

fn choice(choice: &ChoiceView<'_>) -> Value {
    let logprobs = choice.logprobs.map(|tokens| CompletionLogprobs::new(tokens, 0).object);
    json!({
        "text": choice.text,
        "index": choice.index,
        "logprobs": logprobs,
        "finish_reason": choice.finish_reason(),
    })
}
