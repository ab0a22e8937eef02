//! Messages, their parts, and functions, in the form of chat completions. What is not of the documented kind is passed on
//! as it is, so that our own checks refuse it.

use super::call_keys::invalid;
use crate::protocol::Refusal;
use crate::protocol::text::Shown;
use serde_json::{Map, Value, json};

/// The keys of a function that the model is shown.
const FUNCTION_KEYS: [&str; 4] = ["name", "description", "parameters", "strict"];

/// The messages of a conversation in our own form; what is ignored in them is counted.
pub(super) fn messages(value: Value, ignored: &mut u32) -> Result<Value, Refusal> {
    let Value::Array(messages) = value else { return Ok(value) };
    let messages = messages.into_iter().enumerate().map(|(index, value)| match value {
        Value::Object(keys) => message(keys, &format!("messages[{index}]"), ignored).map(Value::Object),
        other => Ok(other),
    });
    messages.collect::<Result<_, _>>().map(Value::Array)
}

fn message(keys: Map<String, Value>, place: &str, ignored: &mut u32) -> Result<Map<String, Value>, Refusal> {
    let mut message = Map::new();
    let mut refusal = None;
    for (key, value) in keys {
        match (key.as_str(), value) {
            (_, Value::Null) => {}
            ("role", Value::String(role)) => {
                message.insert(key, Value::from(our_role(&role)));
            }
            ("content", value) => {
                message.insert(key, text(value, &format!("{place}.content"), ignored)?);
            }
            ("tool_calls", Value::Array(calls)) if calls.is_empty() => {}
            ("tool_calls", value) => {
                message.insert(key, tool_calls(value, ignored));
            }
            // What the older form of tool_calls was.
            ("function_call", call) => {
                message.insert("tool_calls".into(), tool_calls(json!([{ "function": call }]), ignored));
            }
            ("refusal", value) => refusal = Some(value),
            ("audio", _) => return Err(invalid(format!("{place}.audio: not supported; send the text"))),
            ("role" | "tool_call_id", value) => {
                message.insert(key, value);
            }
            _ => *ignored += 1,
        }
    }
    if let (false, Some(refusal)) = (message.contains_key("content"), refusal) {
        message.insert("content".into(), refusal);
    }
    Ok(message)
}

/// The role of a message here.
pub(super) fn our_role(role: &str) -> &str {
    match role {
        "developer" => "system",
        // The result of a call in the older form of functions.
        "function" => "tool",
        other => other,
    }
}

/// Content as one text: parts of type text are joined by line ends.
pub(super) fn text(content: Value, place: &str, ignored: &mut u32) -> Result<Value, Refusal> {
    let Value::Array(parts) = content else { return Ok(content) };
    let parts = parts.into_iter().enumerate().map(|(index, part)| {
        let place = || format!("{place}[{index}]");
        let Value::Object(mut part) = part else {
            return Err(invalid(format!(
                "{}: not an object; send {{\"type\":\"text\",\"text\":\"…\"}}",
                place()
            )));
        };
        let kind = part.remove("type");
        let key = match kind.as_ref().and_then(Value::as_str) {
            Some("text" | "input_text" | "output_text") => "text",
            Some("refusal") => "refusal",
            Some(kind) => {
                let message = format!("{}: type {} is not supported; send text", place(), Shown(kind));
                return Err(invalid(message));
            }
            None => return Err(invalid(format!("{}.type: missing; give \"text\"", place()))),
        };
        let text = part.remove(key);
        *ignored += part.len() as u32;
        match text {
            Some(Value::String(text)) => Ok(text),
            _ => Err(invalid(format!("{}.{key}: missing, or not a string", place()))),
        }
    });
    let texts: Vec<String> = parts.collect::<Result<_, _>>()?;
    Ok(Value::String(texts.join("\n")))
}

fn tool_calls(value: Value, ignored: &mut u32) -> Value {
    let Value::Array(calls) = value else { return value };
    let calls = calls.into_iter().map(|call| {
        let Value::Object(mut call) = only(call, &["id", "type", "function"], ignored) else {
            return Value::Null;
        };
        if let Some(function) = call.get_mut("function") {
            *function = only(function.take(), &["name", "arguments"], ignored);
            no_arguments_are_an_object(function);
        }
        Value::Object(call)
    });
    calls.collect()
}

/// A call without arguments has an empty text in some clients.
pub(super) fn no_arguments_are_an_object(function: &mut Value) {
    if let Some(arguments) = function.get_mut("arguments")
        && arguments.as_str().is_some_and(|text| text.trim().is_empty())
    {
        *arguments = json!({});
    }
}

/// The functions of a request, whose definitions the model is shown in the order of their keys.
pub(super) fn tools(value: Value, ignored: &mut u32) -> Value {
    let Value::Array(tools) = value else { return value };
    let tools = tools.into_iter().map(|tool| match only(tool, &["type", "function"], ignored) {
        Value::Object(mut tool) => {
            if let Some(function) = tool.get_mut("function") {
                *function = only(function.take(), &FUNCTION_KEYS, ignored);
            }
            Value::Object(tool)
        }
        other => other,
    });
    tools.collect()
}

/// The object with only these keys, in its order; those that are `null` count as left out, and the others are counted.
pub(super) fn only(value: Value, keys: &[&str], ignored: &mut u32) -> Value {
    let Value::Object(object) = value else { return value };
    let mut known = Map::new();
    for (key, value) in object {
        match (keys.contains(&key.as_str()), value) {
            (_, Value::Null) => {}
            (true, value) => {
                known.insert(key, value);
            }
            (false, _) => *ignored += 1,
        }
    }
    Value::Object(known)
}
