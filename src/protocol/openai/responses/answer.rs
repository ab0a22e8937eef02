//! The answer of `POST /v1/responses`: one object, or the events that build it up.

use super::super::answer::{
    AnswerHead, ChoiceView, SentText, bytes, cached_tokens, choices, extras, total_tokens, unix_seconds,
};
use super::super::call_keys::OpenAiKeys;
use super::CallersWords;
use crate::protocol::api::{AnswerEncoder, CallContext};
use crate::protocol::{Code, Done, Event, FinishReason, Refusal, Request, TokenLogprob, ToolCall};
use serde_json::{Map, Value, json};
use std::time::{Duration, SystemTime};

/// Keys of the call that are part of the answer.
const ECHOED: [&str; 8] =
    ["instructions", "max_output_tokens", "metadata", "temperature", "text", "tool_choice", "tools", "top_p"];

/// What the answer repeats of the call.
#[derive(Debug)]
pub(super) struct Echo {
    keys: Map<String, Value>,
    /// Whether there may be several calls of functions.
    pub parallel_tool_calls: bool,
}

impl Echo {
    pub fn new(keys: &OpenAiKeys) -> Self {
        let given = |key: &str| keys.get(key).cloned().map(|value| (key.to_owned(), value));
        let mut keys: Map<String, Value> = ECHOED.into_iter().filter_map(given).collect();
        if let Some(Value::Array(tools)) = keys.get_mut("tools") {
            tools.iter_mut().for_each(complete_tool);
        }
        Echo { keys, parallel_tool_calls: true }
    }

    fn get(&self, key: &str, left_out: Value) -> Value {
        self.keys.get(key).cloned().unwrap_or(left_out)
    }
}

/// Functions of an answer have these keys. Arguments always fit their schema.
fn complete_tool(tool: &mut Value) {
    let Value::Object(tool) = tool else { return };
    for (key, left_out) in [("parameters", Value::Null), ("strict", Value::Bool(true))] {
        let value = tool.entry(key).or_insert(Value::Null);
        if value.is_null() {
            *value = left_out;
        }
    }
}

#[derive(Debug)]
pub(super) struct ResponseEncoder {
    head: AnswerHead,
    now: SystemTime,
    echo: Echo,
    words: CallersWords,
    message_id: String,
    stream: bool,
    has_logprobs: bool,
    top_logprobs: u32,
    sequence_number: u64,
    sent: SentText,
    /// Whether the message was begun.
    has_message: bool,
}

impl ResponseEncoder {
    pub fn new(context: &CallContext, request: &Request, echo: Echo, words: CallersWords) -> Self {
        ResponseEncoder {
            head: AnswerHead::new(context, "resp_"),
            now: context.now,
            echo,
            words,
            message_id: format!("msg_{}", context.id),
            stream: request.stream,
            has_logprobs: request.logprobs.is_some(),
            top_logprobs: request.logprobs.unwrap_or(0),
            sequence_number: 0,
            sent: SentText::default(),
            has_message: false,
        }
    }

    /// The response with what is the same throughout.
    fn response(&self, status: &str) -> Value {
        json!({
            "id": self.head.id,
            "object": "response",
            "created_at": self.head.created,
            "status": status,
            "background": false,
            "error": null,
            "incomplete_details": null,
            "instructions": self.echo.get("instructions", Value::Null),
            "max_output_tokens": self.echo.get("max_output_tokens", Value::Null),
            "max_tool_calls": null,
            "model": self.head.model,
            "output": [],
            "parallel_tool_calls": self.echo.parallel_tool_calls,
            "previous_response_id": null,
            "reasoning": { "effort": null, "summary": null },
            "store": false,
            "temperature": self.echo.get("temperature", Value::Null),
            "text": self.echo.get("text", json!({ "format": { "type": "text" } })),
            "tool_choice": self.echo.get("tool_choice", json!("auto")),
            "tools": self.echo.get("tools", json!([])),
            "top_logprobs": self.top_logprobs,
            "top_p": self.echo.get("top_p", Value::Null),
            "truncation": "disabled",
            "usage": null,
            "user": null,
            "metadata": self.echo.get("metadata", json!({})),
        })
    }

    /// The response of an answer that has ended.
    fn ended(&self, done: &Done) -> Value {
        let choices = choices(done);
        let mut response = self.response(status(done.finish_reason));
        if done.finish_reason == FinishReason::Stop {
            let took = Duration::try_from_secs_f64(done.timings.total_ms / 1000.0).unwrap_or_default();
            response["completed_at"] = json!(self.now.checked_add(took).map(unix_seconds));
        } else {
            // The only reason that fits: the exact one is in `bitnetd`.
            response["incomplete_details"] = json!({ "reason": "max_output_tokens" });
        }
        response["output"] = choices.iter().take(1).flat_map(|choice| self.output(choice)).collect();
        response["usage"] = json!({
            "input_tokens": done.usage.prompt_tokens,
            "input_tokens_details": { "cached_tokens": cached_tokens(done), "cache_write_tokens": 0 },
            "output_tokens": done.usage.completion_tokens,
            "output_tokens_details": { "reasoning_tokens": 0 },
            "total_tokens": total_tokens(done),
        });
        response["bitnetd"] = extras(done);
        response
    }

    fn output(&self, choice: &ChoiceView<'_>) -> Vec<Value> {
        let mut items = Vec::new();
        if !choice.text.is_empty() || choice.tool_calls.is_empty() {
            items.push(self.message(choice));
        }
        items.extend(choice.tool_calls.iter().map(|call| {
            let arguments = call.arguments.to_string();
            function_call(call, &arguments, status(choice.finish_reason))
        }));
        items
    }

    fn message(&self, choice: &ChoiceView<'_>) -> Value {
        let part = text_part(choice.text, choice.logprobs.unwrap_or_default());
        self.message_item(status(choice.finish_reason), json!([part]))
    }

    fn message_item(&self, status: &str, content: Value) -> Value {
        json!({ "id": self.message_id, "type": "message", "status": status, "role": "assistant", "content": content })
    }

    /// Appends the event of this type with these keys.
    fn push(&mut self, to: &mut Vec<u8>, kind: &str, keys: Value) {
        let mut event = json!({ "type": kind, "sequence_number": self.sequence_number });
        self.sequence_number += 1;
        if let (Value::Object(event), Value::Object(keys)) = (&mut event, keys) {
            event.extend(keys);
        }
        to.extend_from_slice(format!("event: {kind}\ndata: {event}\n\n").as_bytes());
    }

    fn push_text(&mut self, to: &mut Vec<u8>, text: &str, tokens: &[TokenLogprob]) {
        self.begin_message(to);
        let tokens = if self.has_logprobs { tokens } else { &[] };
        let keys = json!({
            "item_id": self.message_id, "output_index": 0, "content_index": 0, "delta": text, "logprobs": tokens,
        });
        self.push(to, "response.output_text.delta", keys);
    }

    fn begin_message(&mut self, to: &mut Vec<u8>) {
        if self.has_message {
            return;
        }
        self.has_message = true;
        let item = self.message_item("in_progress", json!([]));
        self.push(to, "response.output_item.added", json!({ "output_index": 0, "item": item }));
        let keys = json!({
            "item_id": self.message_id, "output_index": 0, "content_index": 0, "part": text_part("", &[]),
        });
        self.push(to, "response.content_part.added", keys);
    }

    fn end_message(&mut self, to: &mut Vec<u8>, choice: &ChoiceView<'_>) {
        self.begin_message(to);
        let tokens = choice.logprobs.unwrap_or_default();
        let at = json!({ "item_id": self.message_id, "output_index": 0, "content_index": 0 });
        let mut keys = at.clone();
        keys["text"] = json!(choice.text);
        keys["logprobs"] = json!(tokens);
        self.push(to, "response.output_text.done", keys);
        let mut keys = at;
        keys["part"] = text_part(choice.text, tokens);
        self.push(to, "response.content_part.done", keys);
        let item = self.message(choice);
        self.push(to, "response.output_item.done", json!({ "output_index": 0, "item": item }));
    }

    fn push_call(&mut self, to: &mut Vec<u8>, output_index: usize, call: &ToolCall, status: &str) {
        let arguments = call.arguments.to_string();
        let at = json!({ "item_id": item_id(call), "output_index": output_index });
        let item = function_call(call, "", "in_progress");
        self.push(to, "response.output_item.added", json!({ "output_index": output_index, "item": item }));
        let mut keys = at.clone();
        keys["delta"] = json!(arguments);
        self.push(to, "response.function_call_arguments.delta", keys);
        let mut keys = at;
        keys["name"] = json!(call.name);
        keys["arguments"] = json!(arguments);
        self.push(to, "response.function_call_arguments.done", keys);
        let item = function_call(call, &arguments, status);
        self.push(to, "response.output_item.done", json!({ "output_index": output_index, "item": item }));
    }

    fn push_end(&mut self, to: &mut Vec<u8>, done: &Done) {
        let choices = choices(done);
        for choice in choices.iter().take(1) {
            let (text, tokens) = self.sent.rest(choice);
            if !text.is_empty() {
                self.push_text(to, text, tokens);
            }
            if self.has_message || choice.tool_calls.is_empty() {
                self.end_message(to, choice);
            }
            for (index, call) in (usize::from(self.has_message)..).zip(choice.tool_calls) {
                self.push_call(to, index, call, status(choice.finish_reason));
            }
        }
        let response = self.ended(done);
        let kind = format!("response.{}", status(done.finish_reason));
        self.push(to, &kind, json!({ "response": response }));
    }
}

impl AnswerEncoder for ResponseEncoder {
    fn stream_type(&self) -> Option<&'static str> {
        self.stream.then_some("text/event-stream")
    }

    fn in_callers_words(&self, refusal: Refusal) -> Refusal {
        self.words.of(refusal)
    }

    fn begin(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        for kind in ["response.created", "response.in_progress"] {
            let response = self.response("in_progress");
            self.push(&mut out, kind, json!({ "response": response }));
        }
        out
    }

    fn event(&mut self, event: &Event) -> Vec<u8> {
        let mut out = Vec::new();
        match event {
            Event::Token { text, logprobs, .. } => {
                self.sent.add(0, text, logprobs);
                self.push_text(&mut out, text, logprobs);
            }
            Event::Done(done) => self.push_end(&mut out, done),
            Event::Error { refusal, .. } => {
                let refusal = self.in_callers_words(refusal.clone());
                let mut response = self.response("failed");
                response["error"] = json!({ "code": error_code(&refusal), "message": refusal.message });
                self.push(&mut out, "response.failed", json!({ "response": response }));
            }
        }
        out
    }

    fn whole(&mut self, done: &Done) -> Vec<u8> {
        bytes(&self.ended(done))
    }
}

/// An answer that was cut off is not complete, whatever cut it off.
fn status(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "completed",
        FinishReason::Length | FinishReason::Timeout | FinishReason::Cancelled => "incomplete",
    }
}

fn text_part(text: &str, logprobs: &[TokenLogprob]) -> Value {
    json!({ "type": "output_text", "annotations": [], "logprobs": logprobs, "text": text })
}

fn function_call(call: &ToolCall, arguments: &str, status: &str) -> Value {
    json!({
        "id": item_id(call),
        "type": "function_call",
        "status": status,
        "arguments": arguments,
        "call_id": call.id,
        "name": call.name,
    })
}

fn item_id(call: &ToolCall) -> String {
    format!("fc_{}", call.id)
}

/// One of the codes that a failed response may have.
fn error_code(refusal: &Refusal) -> &'static str {
    match refusal.code {
        Code::InvalidRequest | Code::TooLarge | Code::ContextExceeded | Code::ContentFiltered => {
            "invalid_prompt"
        }
        Code::RateLimited | Code::QueueFull => "rate_limit_exceeded",
        Code::Timeout
        | Code::Cancelled
        | Code::ResponseFiltered
        | Code::BudgetExceeded
        | Code::ShuttingDown
        | Code::Internal => "server_error",
    }
}
