//! A parsed template, the limits of a rendering, and the variables that Hugging Face's environment gives to templates.
//!
//! No library for Jinja is used, for two reasons: the text has to be that of Jinja2 to the last character, which takes
//! Python's numbers, strings and scopes; and the origin of each byte has to be known, so that the content of a message
//! never becomes part of a special token.

use super::fuel::{Fuel, RenderError, RenderResult};
use super::interpreter::{Interpreter, Strftime};
use super::statement;
use super::syntax::Stmt;
use super::text::Text;
use super::value::Value;
use super::{ChatMessage, Names};
use crate::external_text::JsonValue;

/// Work and memory that a rendering may take. The longest templates in use take some thousands.
const FUEL: u64 = 50_000;
/// And for each turn, which a template goes through once or twice.
const FUEL_PER_TURN: u64 = 1_000;
/// And for each byte of a content: each may be looked at some 16 times.
const BYTES_PER_FUEL: u64 = 4;
/// Bytes that a template may write besides the contents, for each turn and for itself.
const MAX_WRITTEN: usize = 64 << 10;

/// A parsed template.
#[derive(Debug)]
pub(super) struct ParsedTemplate(Vec<Stmt>);

impl ParsedTemplate {
    pub fn new(source: &str) -> Result<Self, String> {
        statement::parse(source).map(ParsedTemplate).map_err(|(message, line)| shown(&message, line))
    }

    /// Renders it over the messages of a conversation, in which functions may be called.
    pub fn render(
        &self,
        messages: &[ChatMessage<'_>],
        tools: &[JsonValue],
        names: &Names,
        parts: bool,
        strftime: Strftime<'_>,
    ) -> Result<Text, String> {
        let calls = messages.iter().flat_map(|message| message.tool_calls).map(|call| call.arguments);
        let of_tools: usize = tools.iter().chain(calls).map(JsonValue::bytes).sum();
        let bytes = messages.iter().map(|message| message.text.len()).sum::<usize>() + of_tools;
        let turns = messages.len();
        let fuel = Fuel::new(FUEL + FUEL_PER_TURN * turns as u64 + bytes as u64 / BYTES_PER_FUEL);
        let rendered = variables(messages, tools, names, parts)
            .and_then(|variables| Interpreter::new(fuel, strftime, variables).render(&self.0));
        let text = rendered.map_err(|RenderError { message, line }| shown(&message, line))?;
        // One that repeats a content once is odd, one that repeats it more often is an attack.
        if text.len() > MAX_WRITTEN * (turns + 1) + 2 * bytes {
            return Err(format!("it writes {} bytes, too many for contents of {bytes}", text.len()));
        }
        Ok(text)
    }
}

fn variables<'n>(
    messages: &[ChatMessage<'_>],
    tools: &[JsonValue],
    names: &'n Names,
    parts: bool,
) -> Result<Vec<(&'n str, Value)>, RenderError> {
    // Not the template's work: it is not paid for by it.
    let free = Fuel::new(u64::MAX);
    let mut made = Vec::with_capacity(messages.len());
    for message in messages {
        made.push(message_value(message, parts, &free)?);
    }
    let tools = match tools {
        [] => Value::None,
        tools => Value::list(
            tools.iter().map(|tool| json_value(tool, &free)).collect::<RenderResult<_>>()?,
            &free,
        )?,
    };
    let mut variables = vec![
        ("messages", Value::list(made, &free)?),
        ("add_generation_prompt", Value::Bool(true)),
        ("tools", tools),
        ("documents", Value::None),
    ];
    let tokens = [("bos_token", &names.bos), ("eos_token", &names.eos)];
    variables
        .extend(tokens.into_iter().filter_map(|(name, text)| Some((name, Value::str(text.as_deref()?)))));
    variables.extend(names.others.iter().map(|(name, text)| (*name, Value::str(text))));
    Ok(variables)
}

fn dict(pairs: Vec<(&str, Value)>, fuel: &Fuel) -> RenderResult<Value> {
    Value::dict(pairs.into_iter().map(|(key, value)| (Value::str(key), value)).collect(), fuel)
}

fn message_value(message: &ChatMessage<'_>, parts: bool, fuel: &Fuel) -> RenderResult<Value> {
    let content_of = |text: &str| Value::Str(Text::content(text));
    let mut content = content_of(message.text);
    if parts {
        content =
            Value::list(vec![dict(vec![("type", Value::str("text")), ("text", content)], fuel)?], fuel)?;
    }
    let mut pairs = vec![("role", Value::str(message.role.name())), ("content", content)];
    if !message.tool_calls.is_empty() {
        let mut calls = Vec::with_capacity(message.tool_calls.len());
        for call in message.tool_calls {
            let arguments = json_value(call.arguments, fuel)?;
            let function = dict(vec![("name", content_of(call.name)), ("arguments", arguments)], fuel)?;
            let pairs =
                vec![("id", content_of(call.id)), ("type", Value::str("function")), ("function", function)];
            calls.push(dict(pairs, fuel)?);
        }
        pairs.push(("tool_calls", Value::list(calls, fuel)?));
    }
    pairs.extend(message.tool_call_id.map(|id| ("tool_call_id", content_of(id))));
    dict(pairs, fuel)
}

/// A JSON value of the request, whose texts are contents as those of messages are.
fn json_value(value: &JsonValue, fuel: &Fuel) -> RenderResult<Value> {
    Ok(match value {
        JsonValue::Null => Value::None,
        JsonValue::Bool(value) => Value::Bool(*value),
        JsonValue::Int(value) => Value::Int(*value),
        JsonValue::Float(value) => Value::Float(*value),
        JsonValue::Text(text) => Value::Str(Text::content(text)),
        JsonValue::List(items) => {
            Value::list(items.iter().map(|item| json_value(item, fuel)).collect::<RenderResult<_>>()?, fuel)?
        }
        JsonValue::Object(entries) => {
            let pair = |(key, value): &(String, JsonValue)| {
                Ok((Value::Str(Text::content(key)), json_value(value, fuel)?))
            };
            Value::dict(entries.iter().map(pair).collect::<RenderResult<_>>()?, fuel)?
        }
    })
}

/// An error message in one line.
fn shown(message: &str, line: usize) -> String {
    /// Enough for what templates say when they refuse a conversation.
    const MAX_CHARS: usize = 160;
    let message: String = message.chars().take(MAX_CHARS).flat_map(char::escape_debug).collect();
    if line == 0 { message } else { format!("{message} (line {line})") }
}
