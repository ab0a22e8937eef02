//! The items of a response's `input` as messages.

use super::super::call_keys::invalid;
use super::super::content::{no_arguments_are_an_object, our_role, text};
use crate::protocol::Refusal;
use crate::protocol::text::Shown;
use serde_json::{Map, Value, json};

/// The messages of a call.
#[derive(Default)]
pub(super) struct Conversation {
    pub messages: Vec<Value>,
    /// The number of the input item that each message came from; `None` for the instructions.
    pub places: Vec<Option<usize>>,
}

impl Conversation {
    /// Reads `instructions` and `input`; what is ignored in them is counted.
    pub fn read(
        instructions: Option<Value>,
        input: Option<Value>,
        ignored: &mut u32,
    ) -> Result<Self, Refusal> {
        let mut conversation = Conversation::default();
        match instructions {
            None => {}
            Some(Value::String(text)) if text.is_empty() => {}
            Some(Value::String(text)) => {
                conversation.push(None, json!({ "role": "system", "content": text }));
            }
            Some(_) => return Err(invalid("instructions: not a string")),
        }
        match input {
            None => return Err(invalid("input: missing; give a string or a list of messages")),
            Some(Value::String(text)) if text.trim().is_empty() => return Err(invalid("input: empty")),
            Some(Value::String(text)) => {
                conversation.push(Some(0), json!({ "role": "user", "content": text }))
            }
            Some(Value::Array(items)) if items.is_empty() => return Err(invalid("input: empty")),
            Some(Value::Array(items)) => {
                for (index, item) in items.into_iter().enumerate() {
                    let Value::Object(item) = item else {
                        let message = format!(
                            "input[{index}]: not an object; send {{\"role\":\"user\",\"content\":\"…\"}}"
                        );
                        return Err(invalid(message));
                    };
                    conversation.add(index, item, ignored)?;
                }
            }
            Some(_) => return Err(invalid("input: neither a string nor a list")),
        }
        Ok(conversation)
    }

    fn push(&mut self, place: Option<usize>, message: Value) {
        self.messages.push(message);
        self.places.push(place);
    }

    fn add(&mut self, index: usize, mut item: Map<String, Value>, ignored: &mut u32) -> Result<(), Refusal> {
        let place = format!("input[{index}]");
        let kind = match item.remove("type") {
            None | Some(Value::Null) => "message".to_owned(),
            Some(Value::String(kind)) => kind,
            Some(_) => return Err(invalid(format!("{place}.type: not a string"))),
        };
        match kind.as_str() {
            "message" => {
                let content = item.remove("content").unwrap_or_default();
                let content = text(content, &format!("{place}.content"), ignored)?;
                let role = item.remove("role");
                let role = role.map(|role| role.as_str().map(|role| json!(our_role(role))).unwrap_or(role));
                self.push(Some(index), json!({ "role": role, "content": content }));
            }
            "function_call" => self.add_call(index, &mut item),
            "function_call_output" => {
                let output = item.remove("output").unwrap_or_default();
                let content = text(output, &format!("{place}.output"), ignored)?;
                let id = item.remove("call_id");
                self.push(Some(index), json!({ "role": "tool", "tool_call_id": id, "content": content }));
            }
            // What another model thought: the model here is not shown it.
            "reasoning" => *ignored += 1,
            "item_reference" => {
                return Err(invalid(format!("{place}: nothing is stored here; send the item itself")));
            }
            other => {
                return Err(invalid(format!(
                    "{place}.type: {} is not supported; send messages, function_call and function_call_output",
                    Shown(other)
                )));
            }
        }
        // What an item of an answer has besides, when it is sent back.
        let unknown = |key: &&String| !matches!(key.as_str(), "id" | "status" | "phase");
        *ignored += if kind == "reasoning" { 0 } else { item.keys().filter(unknown).count() as u32 };
        Ok(())
    }

    /// Calls that follow each other are one message, and so are a text of the assistant and the calls behind it.
    fn add_call(&mut self, index: usize, item: &mut Map<String, Value>) {
        let mut function = json!({ "name": item.remove("name"), "arguments": item.remove("arguments") });
        no_arguments_are_an_object(&mut function);
        let call = json!({ "id": item.remove("call_id"), "type": "function", "function": function });
        if let Some(last) = self.messages.last_mut().filter(|last| last["role"] == "assistant") {
            match last.get_mut("tool_calls").and_then(Value::as_array_mut) {
                Some(calls) => calls.push(call),
                None => last["tool_calls"] = json!([call]),
            }
        } else {
            self.push(Some(index), json!({ "role": "assistant", "tool_calls": [call] }));
        }
    }
}
