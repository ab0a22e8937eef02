//! The texts of a request that the model reads: prompt or messages, the calls in them, and the functions that it may call.

use crate::external_text::JsonValue;
use crate::protocol::{Input, Request};

/// Applies `visit` to each text, until one gives an error.
pub(super) fn visit_texts<E>(
    request: &mut Request,
    mut visit: impl FnMut(&mut String) -> Result<(), E>,
) -> Result<(), E> {
    match &mut request.input {
        Input::Prompt(text) => visit(text)?,
        Input::Messages(messages) => {
            for message in messages {
                visit(&mut message.content)?;
                for call in &mut message.tool_calls {
                    visit_json(&mut call.arguments, &mut visit)?;
                }
            }
        }
    }
    request.tools.iter_mut().try_for_each(|tool| visit_json(&mut tool.definition, &mut visit))
}

fn visit_json<E>(
    value: &mut JsonValue,
    visit: &mut impl FnMut(&mut String) -> Result<(), E>,
) -> Result<(), E> {
    match value {
        JsonValue::Null | JsonValue::Bool(_) | JsonValue::Int(_) | JsonValue::Float(_) => Ok(()),
        JsonValue::Text(text) => visit(text),
        JsonValue::List(items) => items.iter_mut().try_for_each(|item| visit_json(item, visit)),
        JsonValue::Object(entries) => entries.iter_mut().try_for_each(|(key, value)| {
            visit(key)?;
            visit_json(value, visit)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::json;
    use std::convert::Infallible;

    #[test]
    fn every_text_that_the_model_reads_is_visited() {
        let text = br#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"},
            {"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{\"k\":[\"v\"]}"}}]},
            {"role":"tool","tool_call_id":"1","content":"t"}],
            "tools":[{"type":"function","function":{"name":"f","description":"d"}}]}"#;
        let mut request = json::request(text).expect("sound");
        let mut seen = Vec::new();
        let visited = visit_texts::<Infallible>(&mut request, |text| {
            seen.push(text.clone());
            Ok(())
        });
        visited.expect("no error");
        for expected in ["s", "u", "k", "v", "t", "d"] {
            assert!(seen.iter().any(|text| text == expected), "{expected}: {seen:?}");
        }
    }
}
