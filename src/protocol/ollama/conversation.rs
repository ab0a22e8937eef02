//! Messages and tools of a chat in our form.
//!
//! Ollama's calls of functions need no id, and a result names its function. Chat templates want ids in both, so that each
//! call gets one, and a result gets the id of the first call that it can be the result of.

use super::invalid;
use crate::protocol::Refusal;
use serde_json::{Map, Value};

/// What a conversation is translated to.
#[derive(Debug)]
pub(super) struct TranslatedList {
    /// The messages, or the tools.
    pub items: Vec<Value>,
    /// How many keys in them are ignored.
    pub ignored: u32,
}

/// The messages of a chat. What has a wrong form is left as it is, for the checks that every request goes through.
pub(super) fn messages(list: Vec<Value>) -> Result<TranslatedList, Refusal> {
    let mut conversation = Conversation::default();
    let mut items = Vec::with_capacity(list.len());
    for (index, value) in list.into_iter().enumerate() {
        items.push(match value {
            Value::Object(keys) => Value::Object(conversation.message(index, keys)?),
            other => other,
        });
    }
    Ok(TranslatedList { items, ignored: conversation.ignored })
}

/// The functions of a chat.
pub(super) fn tools(list: Vec<Value>) -> TranslatedList {
    let mut ignored = 0;
    let items = list.into_iter().map(|tool| translated_tool(tool, &mut ignored)).collect();
    TranslatedList { items, ignored }
}

#[derive(Debug, Default)]
struct Conversation {
    calls: u32,
    /// The calls without a result so far, as id and function.
    open: Vec<(String, String)>,
    ignored: u32,
}

impl Conversation {
    fn message(&mut self, index: usize, mut from: Map<String, Value>) -> Result<Map<String, Value>, Refusal> {
        let mut to = Map::new();
        let mut take = |key: &str| from.remove(key).filter(|value| !value.is_null());
        let role = take("role").map(lower_case);
        let content = take("content").unwrap_or_else(|| "".into());
        check_images(index, take("images"))?;
        // What a model thought in an earlier turn is no part of the conversation.
        take("thinking");
        let calls = take("tool_calls").filter(|calls| calls.as_array().is_none_or(|list| !list.is_empty()));
        let call_id = take("tool_call_id");
        let name = take("tool_name");
        let name = take("name").or(name);
        self.ignored += from.len() as u32;
        if role.as_ref().is_some_and(|role| role == "tool") {
            let id = call_id.or_else(|| self.first_open(name.as_ref().and_then(Value::as_str)));
            if let Some(id) = id {
                self.open.retain(|(open, _)| id != open.as_str());
                to.insert("tool_call_id".into(), id);
            }
        }
        if let Some(role) = role {
            to.insert("role".into(), role);
        }
        to.insert("content".into(), content);
        if let Some(calls) = calls {
            to.insert("tool_calls".into(), self.tool_calls(calls));
        }
        Ok(to)
    }

    fn tool_calls(&mut self, calls: Value) -> Value {
        match calls {
            Value::Array(list) => list.into_iter().map(|call| self.tool_call(call)).collect(),
            other => other,
        }
    }

    fn tool_call(&mut self, call: Value) -> Value {
        let Value::Object(mut call) = call else { return call };
        let mut to = Map::new();
        let id = match call.remove("id") {
            Some(Value::String(id)) if !id.is_empty() => id,
            // Nine letters and digits: the strictest templates take nothing else.
            _ => format!("call{:05}", self.calls),
        };
        self.calls += 1;
        let function = match call.remove("function") {
            Some(Value::Object(mut function)) => {
                // The number of a call among those of its message, which is its place.
                function.remove("index");
                let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
                self.open.push((id.clone(), name.to_owned()));
                only(function, &["name", "arguments"], &mut self.ignored)
            }
            other => other.unwrap_or(Value::Null),
        };
        call.remove("type");
        self.ignored += call.len() as u32;
        to.insert("id".into(), id.into());
        to.insert("type".into(), "function".into());
        to.insert("function".into(), function);
        Value::Object(to)
    }

    /// The id of the first call without a result, of this function where there is one.
    fn first_open(&self, name: Option<&str>) -> Option<Value> {
        let of_name = self.open.iter().find(|(_, function)| Some(function.as_str()) == name);
        of_name.or(self.open.first()).map(|(id, _)| id.as_str().into())
    }
}

/// The key of every message, and of `generate`.
pub(super) fn check_no_images(key: &str, images: Option<Value>) -> Result<(), Refusal> {
    match images {
        None => Ok(()),
        Some(Value::Array(list)) if list.is_empty() => Ok(()),
        Some(_) => Err(invalid(format!("{key}: the model cannot read images; leave them out"))),
    }
}

fn check_images(index: usize, images: Option<Value>) -> Result<(), Refusal> {
    check_no_images(&format!("messages[{index}].images"), images)
}

fn lower_case(role: Value) -> Value {
    match role {
        Value::String(role) => role.to_ascii_lowercase().into(),
        other => other,
    }
}

fn translated_tool(tool: Value, ignored: &mut u32) -> Value {
    let Value::Object(mut tool) = tool else { return tool };
    if tool.get("type").is_none_or(Value::is_null) {
        tool.insert("type".into(), "function".into());
    }
    if let Some(Value::Object(function)) = tool.remove("function") {
        let function = only(function, &["name", "description", "parameters", "strict"], ignored);
        tool.insert("function".into(), function);
    }
    only(tool, &["type", "function"], ignored)
}

/// The object with only these keys, in the order that they had.
fn only(mut object: Map<String, Value>, keys: &[&str], ignored: &mut u32) -> Value {
    let before = object.len();
    object.retain(|key, _| keys.contains(&key.as_str()));
    *ignored += (before - object.len()) as u32;
    Value::Object(object)
}
