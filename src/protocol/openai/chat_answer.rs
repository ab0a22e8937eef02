//! `POST /v1/chat/completions`: the choices of the answer.

use super::answer::{ChoiceView, logprobs};
use super::choice_encoder::ChoiceForm;
use crate::protocol::{Request, TokenLogprob, ToolCall};
use serde_json::{Value, json};

/// Choices that are messages.
#[derive(Debug)]
pub(super) struct ChatForm {
    choices: u32,
    has_logprobs: bool,
}

impl ChatForm {
    pub fn new(request: &Request) -> Self {
        ChatForm { choices: request.choices, has_logprobs: request.logprobs.is_some() }
    }

    /// The choice of a chunk.
    fn delta(&self, index: u32, delta: Value, tokens: &[TokenLogprob], finish_reason: Option<&str>) -> Value {
        let tokens = Some(tokens).filter(|tokens| self.has_logprobs && !tokens.is_empty());
        json!({
            "index": index,
            "delta": delta,
            "logprobs": logprobs(tokens),
            "finish_reason": finish_reason,
        })
    }
}

impl ChoiceForm for ChatForm {
    const ID_PREFIX: &'static str = "chatcmpl-";
    const OBJECT: &'static str = "chat.completion";
    const CHUNK: &'static str = "chat.completion.chunk";

    fn begin(&self) -> Vec<Value> {
        let delta = json!({ "role": "assistant", "content": "", "refusal": null });
        (0..self.choices).map(|index| self.delta(index, delta.clone(), &[], None)).collect()
    }

    fn piece(&mut self, index: u32, text: &str, tokens: &[TokenLogprob]) -> Value {
        self.delta(index, json!({ "content": text }), tokens, None)
    }

    fn calls(&self, choice: &ChoiceView<'_>) -> Option<Value> {
        if choice.tool_calls.is_empty() {
            return None;
        }
        let calls: Vec<Value> = (0..).zip(choice.tool_calls).map(delta_call).collect();
        Some(self.delta(choice.index, json!({ "tool_calls": calls }), &[], None))
    }

    fn last(&self, choice: &ChoiceView<'_>) -> Value {
        self.delta(choice.index, json!({}), &[], Some(choice.finish_reason()))
    }

    fn whole(&self, choice: &ChoiceView<'_>) -> Value {
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
