//! The grammar of an answer that may call functions, in llguidance's form of Lark. Names and arguments that are not in the
//! functions' schemas cannot be derived from it.

use super::{quoted, set_compact};
use crate::engine::tokenizer::CallSyntax;
use crate::external_text::JsonValue;
use std::fmt::Write;

/// The most calls of one answer.
const MAX_CALLS: usize = 8;

/// A function that may be called.
#[derive(Debug, Clone, Copy)]
pub struct Callable<'a> {
    /// Its name.
    pub name: &'a str,
    /// The schema of its arguments; `None` where it takes none.
    pub parameters: Option<&'a JsonValue>,
}

/// What an answer is that calls no function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OtherAnswer {
    /// There is none: a function has to be called.
    None,
    /// Any text that does not begin as a call does.
    Text,
    /// JSON without white space between its tokens that fits a schema, which is here as JSON. See
    /// [`CallSyntax::differs_from_compact_json`].
    Json(String),
}

/// The schema of a function's arguments: an object, and in all of its objects only the properties that it names, unless
/// it says what others may be.
pub fn arguments_schema(parameters: Option<&JsonValue>) -> JsonValue {
    let entries = match parameters {
        Some(JsonValue::Object(entries)) => entries.clone(),
        _ => Vec::new(),
    };
    let mut schema = JsonValue::Object(entries);
    if let JsonValue::Object(entries) = &mut schema {
        for (key, value) in
            [("type", JsonValue::Text("object".into())), ("properties", JsonValue::Object(Vec::new()))]
        {
            let is_there = entries.iter().any(|(name, _)| name == key || name == "$ref");
            entries.extend((!is_there).then(|| (key.to_owned(), value)));
        }
    }
    close_objects(&mut schema);
    schema
}

/// Adds `"additionalProperties": false` wherever a schema lists properties and says nothing of others. Not in branches
/// beside a list of properties, nor in those of `allOf`: each of these sees the properties of the others too.
fn close_objects(schema: &mut JsonValue) {
    let JsonValue::Object(entries) = schema else { return };
    let has = |key: &str| entries.iter().any(|(name, _)| name == key);
    let has_properties = has("properties");
    let is_open = has_properties
        && !["additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf"].into_iter().any(has);
    for (key, value) in &mut *entries {
        match (key.as_str(), value) {
            ("properties" | "patternProperties" | "$defs" | "definitions", JsonValue::Object(inner)) => {
                inner.iter_mut().for_each(|(_, schema)| close_objects(schema));
            }
            ("items" | "additionalProperties", schema) => close_objects(schema),
            ("anyOf" | "oneOf", JsonValue::List(branches)) if !has_properties => {
                branches.iter_mut().for_each(close_objects);
            }
            ("prefixItems", JsonValue::List(schemas)) => schemas.iter_mut().for_each(close_objects),
            _ => {}
        }
    }
    entries.extend(is_open.then(|| ("additionalProperties".to_owned(), JsonValue::Bool(false))));
}

/// The grammar of an answer that calls these functions in this form, or is something else. `once`: there is one call at
/// most.
pub fn tool_grammar(
    syntax: &CallSyntax,
    functions: &[Callable<'_>],
    other: &OtherAnswer,
    once: bool,
) -> String {
    let mut lark = String::from(match other {
        OtherAnswer::None => "start: calls\n",
        OtherAnswer::Text | OtherAnswer::Json(_) => "start: calls | other\n",
    });
    match other {
        OtherAnswer::None => {}
        OtherAnswer::Text => {
            let mark = escaped(syntax.mark());
            lark.push_str(&format!("other: OTHER\nOTHER: /(?s:.+)/ & ~/(?s:{mark}.*)/\n"));
        }
        OtherAnswer::Json(schema) => lark.push_str(&format!("other: %json {}\n", compact(schema))),
    }
    let most = if once || !syntax.allows_several() { 1 } else { MAX_CALLS };
    let more = (1..most).fold(String::new(), |more, _| format!(" (/\\n/ call{more})?"));
    let alternatives: Vec<String> = (0..functions.len()).map(|index| format!("call_{index}")).collect();
    lark.push_str(&format!("calls: call{more}\ncall: {}\n", alternatives.join(" | ")));
    for (index, Callable { name, parameters }) in functions.iter().enumerate() {
        let before = format!("{}{name}{}", syntax.open, syntax.middle);
        let before = match other {
            OtherAnswer::Json(_) => json_literals(&before),
            OtherAnswer::None | OtherAnswer::Text => literals(&before),
        };
        let schema = arguments_schema(*parameters);
        let close = literals(&syntax.close);
        // A string takes any text.
        let _ = write!(
            lark,
            "call_{index}: {before} arguments_{index} {close}\narguments_{index}: %json {schema}\n"
        );
    }
    lark
}

/// A text as literals in a row; the language has line breaks only in regular expressions.
fn literals(text: &str) -> String {
    let lines = text.split('\n').map(|line| if line.is_empty() { String::new() } else { quoted(line) });
    lines.collect::<Vec<_>>().join(" /\\n/ ")
}

/// The same where JSON is an alternative: as far as the text is the beginning of one, each token of it is a literal of its own.
/// The lexer prefers the longest literal, so that JSON that begins alike could not go on otherwise.
fn json_literals(text: &str) -> String {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(length) = json_token(rest) {
        pieces.push(quoted(&rest[..length]));
        rest = &rest[length..];
    }
    if !rest.is_empty() {
        pieces.push(literals(rest));
    }
    pieces.join(" ")
}

/// The length of the punctuation mark or the string of JSON that a text begins with.
fn json_token(text: &str) -> Option<usize> {
    match text.as_bytes().first()? {
        b'{' | b'}' | b'[' | b']' | b',' | b':' => Some(1),
        b'"' => Some(1 + text[1..].find('"')? + 1).filter(|length| !text[..*length].contains('\\')),
        _ => None,
    }
}

/// A schema of JSON without white space between its tokens.
fn compact(schema: &str) -> String {
    match serde_json::from_str(schema) {
        Ok(mut schema) => {
            set_compact(&mut schema);
            schema.to_string()
        }
        // What is no schema is refused when it is compiled.
        Err(_) => schema.to_owned(),
    }
}

/// A text for a regular expression between slashes, in which it means itself.
fn escaped(text: &str) -> String {
    regex::escape(text).replace('/', "\\/").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_closed_unless_they_say_otherwise() {
        for (parameters, wanted) in [
            ("{}", r#"{"type":"object","properties":{},"additionalProperties":false}"#),
            (
                r#"{"type":"object","properties":{"a":{"type":"object","properties":{"b":{}}}}}"#,
                r#"{"type":"object","properties":{"a":{"type":"object","properties":{"b":{}},"additionalProperties":false}},"additionalProperties":false}"#,
            ),
            (
                r#"{"type":"object","properties":{},"additionalProperties":{"enum":[{"properties":{}}]}}"#,
                r#"{"type":"object","properties":{},"additionalProperties":{"enum":[{"properties":{}}]}}"#,
            ),
            (
                r#"{"type":"object","properties":{"properties":{},"default":{"properties":{}}},"allOf":[{"properties":{}}]}"#,
                r#"{"type":"object","properties":{"properties":{},"default":{"properties":{},"additionalProperties":false}},"allOf":[{"properties":{}}]}"#,
            ),
        ] {
            let parameters = JsonValue::parse(parameters).expect("JSON");
            assert_eq!(arguments_schema(Some(&parameters)).to_string(), wanted);
        }
        assert_eq!(arguments_schema(None), arguments_schema(Some(&JsonValue::Object(Vec::new()))));
    }

    #[test]
    fn the_grammar_holds_each_function_and_what_else_is_allowed() {
        let syntax = CallSyntax {
            open: "<tool_call>\n{\"name\": \"".into(),
            middle: "\", \"arguments\": ".into(),
            close: "}\n</tool_call>".into(),
        };
        let functions = [Callable { name: "f", parameters: None }];
        let lark = tool_grammar(&syntax, &functions, &OtherAnswer::Text, true);
        assert_eq!(
            lark,
            r#"start: calls | other
other: OTHER
OTHER: /(?s:.+)/ & ~/(?s:<tool_call>.*)/
calls: call
call: call_0
call_0: "<tool_call>" /\n/ "{\"name\": \"f\", \"arguments\": " arguments_0 "}" /\n/ "</tool_call>"
arguments_0: %json {"type":"object","properties":{},"additionalProperties":false}
"#
        );
        let several = tool_grammar(&syntax, &functions, &OtherAnswer::None, false);
        assert!(several.starts_with("start: calls\ncalls: call (/\\n/ call (/\\n/ call"), "{several}");
    }
}
