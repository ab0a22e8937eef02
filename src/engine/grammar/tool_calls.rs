//! The grammar of an answer that may call functions, in llguidance's form of Lark. Names and arguments that are not in the
//! functions' schemas cannot be derived from it.

use super::quoted;
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
    /// JSON that fits a schema, which is here as JSON.
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

/// Adds `"additionalProperties": false` wherever a schema lists properties and says nothing of others.
fn close_objects(schema: &mut JsonValue) {
    /// Keywords whose values are data and no schemas.
    const DATA: &[&str] = &["enum", "const", "default", "examples"];
    match schema {
        JsonValue::Object(entries) => {
            let has = |key: &str| entries.iter().any(|(name, _)| name == key);
            let has_properties = entries
                .iter()
                .any(|(name, value)| name == "properties" && matches!(value, JsonValue::Object(_)));
            let is_open = has_properties
                && !["additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf"]
                    .into_iter()
                    .any(has);
            let inner = entries.iter_mut().filter(|(name, _)| !DATA.contains(&name.as_str()));
            inner.for_each(|(_, value)| close_objects(value));
            entries.extend(is_open.then(|| ("additionalProperties".to_owned(), JsonValue::Bool(false))));
        }
        JsonValue::List(items) => items.iter_mut().for_each(close_objects),
        _ => {}
    }
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
            lark.push_str(&format!("other: OTHER\nOTHER: /(?s:.*)/ & ~/(?s:{mark}.*)/\n"));
        }
        OtherAnswer::Json(schema) => lark.push_str(&format!("other: %json {schema}\n")),
    }
    let most = if once || !syntax.allows_several() { 1 } else { MAX_CALLS };
    let more = (1..most).fold(String::new(), |more, _| format!(" (/\\n/ call{more})?"));
    let alternatives: Vec<String> = (0..functions.len()).map(|index| format!("call_{index}")).collect();
    lark.push_str(&format!("calls: call{more}\ncall: {}\n", alternatives.join(" | ")));
    for (index, Callable { name, parameters }) in functions.iter().enumerate() {
        let before = literals(&format!("{}{name}{}", syntax.open, syntax.middle));
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

/// A text for a regular expression, in which it means itself.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            c if c.is_ascii_punctuation() => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
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
OTHER: /(?s:.*)/ & ~/(?s:\<tool\_call\>.*)/
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
