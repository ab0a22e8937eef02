//! A parsed template, the limits of a rendering, and the variables that Hugging Face's environment gives to templates.
//!
//! No library for Jinja is used, for two reasons: the text has to be that of Jinja2 to the last character, which takes
//! Python's numbers, strings and scopes; and the origin of each byte has to be known, so that the content of a message
//! never becomes part of a special token.

use super::Names;
use super::fuel::{Fuel, RenderError};
use super::interpreter::{Interpreter, Strftime};
use super::statement;
use super::syntax::Stmt;
use super::text::Text;
use super::value::Value;

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

    /// Renders it over messages of a role and a content.
    pub fn render<'m>(
        &self,
        messages: impl Iterator<Item = (&'static str, &'m str)>,
        names: &Names,
        parts: bool,
        strftime: Strftime<'_>,
    ) -> Result<Text, String> {
        let messages: Vec<_> = messages.collect();
        let bytes: usize = messages.iter().map(|(_, content)| content.len()).sum();
        let turns = messages.len();
        let fuel = Fuel::new(FUEL + FUEL_PER_TURN * turns as u64 + bytes as u64 / BYTES_PER_FUEL);
        let rendered = variables(&messages, names, parts)
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
    messages: &[(&'static str, &str)],
    names: &'n Names,
    parts: bool,
) -> Result<Vec<(&'n str, Value)>, RenderError> {
    // Not the template's work: it is not paid for by it.
    let free = Fuel::new(u64::MAX);
    let dict = |pairs: Vec<(&str, Value)>| {
        Value::dict(pairs.into_iter().map(|(key, value)| (Value::str(key), value)).collect(), &free)
    };
    let mut made = Vec::with_capacity(messages.len());
    for (role, content) in messages {
        let mut content = Value::Str(Text::content(content));
        if parts {
            content = Value::list(vec![dict(vec![("type", Value::str("text")), ("text", content)])?], &free)?;
        }
        made.push(dict(vec![("role", Value::str(role)), ("content", content)])?);
    }
    let mut variables = vec![
        ("messages", Value::list(made, &free)?),
        ("add_generation_prompt", Value::Bool(true)),
        ("tools", Value::None),
        ("documents", Value::None),
    ];
    let tokens = [("bos_token", &names.bos), ("eos_token", &names.eos)];
    variables
        .extend(tokens.into_iter().filter_map(|(name, text)| Some((name, Value::str(text.as_deref()?)))));
    variables.extend(names.others.iter().map(|(name, text)| (*name, Value::str(text))));
    Ok(variables)
}

/// An error message in one line.
fn shown(message: &str, line: usize) -> String {
    /// Enough for what templates say when they refuse a conversation.
    const MAX_CHARS: usize = 160;
    let message: String = message.chars().take(MAX_CHARS).flat_map(char::escape_debug).collect();
    if line == 0 { message } else { format!("{message} (line {line})") }
}
