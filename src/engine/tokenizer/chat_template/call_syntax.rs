//! How a model writes a call of a function: learned from its chat template, or a plain form.
//!
//! Deliberately knows no template: it compares two texts that one has made.

use crate::external_text::JsonValue;

/// The name of the function in the call that a template is tried with.
pub(super) const PROBE_NAME: &str = "probe_function";
/// The key of the only argument of that call.
pub(super) const PROBE_KEY: &str = "probe_argument";
/// The value of that argument, and what the function gives back.
pub(super) const PROBE_VALUE: &str = "Quebec";

/// What a model writes around the name of a function and its arguments, which are a JSON object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallSyntax {
    /// Before the name.
    pub open: String,
    /// Between the name and the arguments.
    pub middle: String,
    /// Behind the arguments.
    pub close: String,
}

/// A call that a model wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct WrittenCall {
    /// The name of the function.
    pub name: String,
    /// Its arguments, an object.
    pub arguments: JsonValue,
}

impl CallSyntax {
    /// The form for models whose template has none of its own.
    pub fn plain() -> Self {
        let [open, middle, close] = ["<tool_call>{\"name\": \"", "\", \"arguments\": ", "}</tool_call>"];
        CallSyntax { open: open.into(), middle: middle.into(), close: close.into() }
    }

    /// Learns it from a conversation in which the assistant calls [`PROBE_NAME`] with an object of [`PROBE_KEY`], and
    /// from the same one in which it says something else instead.
    pub(super) fn learn(with_text: &str, with_call: &str) -> Option<Self> {
        let start = common_prefix(with_text, with_call);
        let name = start + with_call.get(start..)?.find(PROBE_NAME)?;
        let name_end = name + PROBE_NAME.len();
        let is_arguments = |at: &usize| {
            let value = JsonValue::parse_first(&with_call[*at..]);
            value.is_some_and(|(value, _)| value.get(PROBE_KEY).is_some())
        };
        let arguments =
            with_call[name_end..].match_indices('{').map(|(at, _)| name_end + at).find(is_arguments)?;
        let (_, length) = JsonValue::parse_first(&with_call[arguments..])?;
        let rest = &with_call[arguments + length..];
        let close = &rest[..rest.len() - common_suffix(with_text, rest)];
        let open = &with_call[start..name];
        // Without anything before the name, every text would be the beginning of a call.
        (!open.is_empty()).then(|| CallSyntax {
            open: open.to_owned(),
            middle: with_call[name_end..arguments].to_owned(),
            close: close.to_owned(),
        })
    }

    /// What every call begins with, whichever form of JSON follows: the mark before the first brace, or the brace.
    pub fn mark(&self) -> &str {
        let mark = self.open.split('{').next().unwrap_or_default().trim_end();
        if mark.is_empty() { self.open.trim_end_matches(|c| c != '{') } else { mark }
    }

    /// Whether an answer may have several calls: only those that each begin with a mark can be separated.
    pub fn allows_several(&self) -> bool {
        !self.mark().starts_with('{')
    }

    /// Whether JSON without white space between its tokens is never a call: a call begins with another character, or has white
    /// space where such JSON has none.
    pub fn differs_from_compact_json(&self) -> bool {
        let before = format!("{}f{}", self.open, self.middle);
        let mut in_string = false;
        before.starts_with(|c| c != '{' && c != '[')
            || before.chars().any(|c| {
                in_string ^= c == '"';
                !in_string && c.is_whitespace()
            })
    }

    /// The calls that an answer consists of, each on a line of its own or right behind the one before; `None` where
    /// it is anything else.
    pub fn parse(&self, answer: &str) -> Option<Vec<WrittenCall>> {
        let mut calls = Vec::new();
        // Not at the beginning, where white space makes it a text.
        let mut rest = answer.trim_end();
        while !rest.is_empty() {
            let (name, after) = rest.strip_prefix(self.open.as_str())?.split_once(self.middle.as_str())?;
            let (arguments, length) = JsonValue::parse_first(after)?;
            if !matches!(arguments, JsonValue::Object(_)) {
                return None;
            }
            calls.push(WrittenCall { name: name.to_owned(), arguments });
            // White space inside the object may follow, and the answer's own end was trimmed.
            let close = self.close.trim();
            rest = after[length..].trim_start().strip_prefix(close)?.trim_start();
        }
        (!calls.is_empty()).then_some(calls)
    }
}

/// Bytes at the beginning that two texts share, whole characters only.
fn common_prefix(a: &str, b: &str) -> usize {
    a.char_indices().zip(b.chars()).find(|((_, a), b)| a != b).map_or(a.len().min(b.len()), |((at, _), _)| at)
}

/// Bytes at the end that two texts share, whole characters only.
fn common_suffix(a: &str, b: &str) -> usize {
    a.chars().rev().zip(b.chars().rev()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learned(before: &str, call: &str, after: &str) -> Option<CallSyntax> {
        let call = call.replace("NAME", PROBE_NAME).replace("ARGS", "{\"probe_argument\": \"Quebec\"}");
        CallSyntax::learn(&format!("{before}Hello.{after}"), &format!("{before}{call}{after}"))
    }

    fn parts(syntax: &CallSyntax) -> [&str; 3] {
        [&syntax.open, &syntax.middle, &syntax.close]
    }

    #[test]
    fn the_forms_of_model_families_are_learned() {
        let hermes = learned(
            "<|im_start|>assistant\n",
            "<tool_call>\n{\"name\": \"NAME\", \"arguments\": ARGS}\n</tool_call>",
            "<|im_end|>\n",
        );
        let hermes = hermes.expect("a form");
        assert_eq!(parts(&hermes), ["<tool_call>\n{\"name\": \"", "\", \"arguments\": ", "}\n</tool_call>"]);
        assert_eq!((hermes.mark(), hermes.allows_several()), ("<tool_call>", true));
        let llama = learned("assistant\n\n", "{\"name\": \"NAME\", \"parameters\": ARGS}", "<|eot_id|>");
        let llama = llama.expect("a form");
        assert_eq!(parts(&llama), ["{\"name\": \"", "\", \"parameters\": ", "}"]);
        assert_eq!((llama.mark(), llama.allows_several()), ("{", false));
        let tight = learned("a:", "{\"name\":\"NAME\",\"parameters\":ARGS}", "</s>").expect("a form");
        let listed =
            learned("a:", "[TOOL_CALLS][{\"name\":\"NAME\",\"arguments\":ARGS}]", "</s>").expect("a form");
        let differ = [&hermes, &llama, &listed, &tight].map(CallSyntax::differs_from_compact_json);
        assert_eq!(differ, [true, true, false, false], "a list is taken for JSON, to be on the safe side");
        let tagged = learned("a:", "<function=NAME>ARGS</function>", "</s>").expect("a form");
        assert_eq!(parts(&tagged), ["<function=", ">", "</function>"]);
        assert_eq!(learned("a:", "", "</s>"), None);
        assert_eq!(learned("a:", "NAME ARGS", "</s>"), None);
        assert_eq!(learned("a:", "<call>NAME<arg>Quebec</arg></call>", "</s>"), None);
    }

    #[test]
    fn only_whole_calls_are_read_as_calls() {
        let syntax = CallSyntax::plain();
        let call = |name: &str| {
            format!(
                "<tool_call>{{\"name\": \"{name}\", \"arguments\": {{\"b\": 1, \"a\": {{}}}}}}</tool_call>"
            )
        };
        let names = |answer: &str| {
            syntax.parse(answer).map(|calls| calls.into_iter().map(|call| call.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&call("f")), Some(vec!["f".into()]));
        assert_eq!(
            names(&format!("{}\n{}{}\n", call("f"), call("g"), call("h"))).map(|names| names.len()),
            Some(3)
        );
        let arguments = syntax.parse(&call("f")).map(|calls| calls[0].arguments.to_string());
        assert_eq!(arguments.as_deref(), Some(r#"{"b":1,"a":{}}"#));
        let whole = call("f");
        for cut in (1..whole.len()).chain([0]) {
            assert_eq!(names(&whole[..cut]), None, "{cut}");
        }
        assert_eq!(names(&format!("I call {whole}")), None);
        assert_eq!(names(&format!(" {whole}")), None);
        assert_eq!(names(&format!("{whole} and that was it")), None);
        assert_eq!(names(&whole.replace("{\"b\": 1, \"a\": {}}", "[1]")), None);
    }
}
