//! `POST /v1/chat/completions`: the answer, whole or in chunks.

use super::answer::{
    AnswerHead, ChoiceView, END_OF_STREAM, SentText, bytes, choices, extras, logprobs, push_data, usage,
};
use super::errors::error;
use crate::protocol::api::{AnswerEncoder, CallContext};
use crate::protocol::{Done, Event, Request, TokenLogprob, ToolCall};
use serde_json::{Value, json};

const CHUNK: &str = "chat.completion.chunk";

#[derive(Debug)]
pub(super) struct ChatEncoder {
    head: AnswerHead,
    stream: bool,
    choices: u32,
    has_logprobs: bool,
    one_call: bool,
    include_usage: bool,
    sent: SentText,
}

impl ChatEncoder {
    pub fn new(context: &CallContext, request: &Request, one_call: bool, include_usage: bool) -> Self {
        ChatEncoder {
            head: AnswerHead::new(context, "chatcmpl-"),
            stream: request.stream,
            choices: request.choices,
            has_logprobs: request.logprobs.is_some(),
            one_call,
            include_usage,
            sent: SentText::default(),
        }
    }

    /// A chunk with one choice.
    fn chunk(&self, index: u32, delta: Value, tokens: &[TokenLogprob], finish_reason: Option<&str>) -> Value {
        let tokens = Some(tokens).filter(|tokens| self.has_logprobs && !tokens.is_empty());
        self.with_usage(json!([{
            "index": index,
            "delta": delta,
            "logprobs": logprobs(tokens),
            "finish_reason": finish_reason,
        }]))
    }

    /// Where the last chunk has the token counts, all others have them too, as null.
    fn with_usage(&self, choices: Value) -> Value {
        let mut chunk = self.head.object(CHUNK, choices);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn push_end(&self, to: &mut Vec<u8>, done: &Done) {
        let choices = choices(done, self.one_call);
        for (at, choice) in choices.iter().enumerate() {
            let (text, tokens) = self.sent.rest(choice);
            if !text.is_empty() || !tokens.is_empty() {
                push_data(to, &self.chunk(choice.index, json!({ "content": text }), tokens, None));
            }
            if !choice.tool_calls.is_empty() {
                let calls: Vec<Value> = (0..).zip(choice.tool_calls).map(delta_call).collect();
                push_data(to, &self.chunk(choice.index, json!({ "tool_calls": calls }), &[], None));
            }
            let mut last = self.chunk(choice.index, json!({}), &[], Some(choice.finish_reason()));
            if at + 1 == choices.len() {
                last["bitnetd"] = extras(done);
            }
            push_data(to, &last);
        }
        if self.include_usage {
            let mut chunk = self.head.object(CHUNK, json!([]));
            chunk["usage"] = usage(done);
            push_data(to, &chunk);
        }
    }
}

impl AnswerEncoder for ChatEncoder {
    fn stream_type(&self) -> Option<&'static str> {
        self.stream.then_some("text/event-stream")
    }

    fn begin(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        for index in 0..self.choices {
            let delta = json!({ "role": "assistant", "content": "", "refusal": null });
            push_data(&mut out, &self.chunk(index, delta, &[], None));
        }
        out
    }

    fn event(&mut self, event: &Event) -> Vec<u8> {
        let mut out = Vec::new();
        match event {
            Event::Token { text, index, logprobs, .. } => {
                let index = index.unwrap_or(0);
                self.sent.add(index, text, logprobs);
                push_data(&mut out, &self.chunk(index, json!({ "content": text }), logprobs, None));
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
        let choices: Vec<Value> = choices(done, self.one_call).iter().map(choice).collect();
        let mut answer = self.head.object("chat.completion", Value::Array(choices));
        answer["usage"] = usage(done);
        answer["bitnetd"] = extras(done);
        bytes(&answer)
    }
}

fn choice(choice: &ChoiceView<'_>) -> Value {
    let has_text = !choice.text.is_empty() || choice.tool_calls.is_empty();
    let mut message = json!({
        "role": "assistant",
        "content": has_text.then_some(choice.text),
        "refusal": null,
    });
    if !choice.tool_calls.is_empty() {
        message["tool_calls"] = choice.tool_calls.iter().map(call).collect();
    }
    json!({
        "index": choice.index,
        "message": message,
        "logprobs": logprobs(choice.logprobs),
        "finish_reason": choice.finish_reason(),
    })
}

/// A call of a function; its arguments are JSON in a string.
fn call(call: &ToolCall) -> Value {
    json!({
        "id": call.id,
        "type": "function",
        "function": { "name": call.name, "arguments": call.arguments.to_string() },
    })
}

fn delta_call((index, tool_call): (usize, &ToolCall)) -> Value {
    let mut delta = json!({ "index": index });
    if let (Value::Object(delta), Value::Object(call)) = (&mut delta, call(tool_call)) {
        delta.extend(call);
    }
    delta
}
