//! The keys of a request that are about functions: `tools`, `tool_choice`, and the calls and results in messages.

use super::{MAX_ID, Shown, invalid};
use crate::external_text::JsonValue;
use crate::protocol::{Message, Refusal, Request, ResponseFormat, Role, Tool, ToolCall, ToolChoice};

/// Maximum number of functions in a request, and of calls in a message.
pub const MAX_TOOLS: usize = 128;
/// Maximum length of a function's name in bytes.
pub const MAX_TOOL_NAME: usize = 64;

/// One message of a conversation.
pub(super) fn message(value: JsonValue) -> Result<Message, String> {
    let JsonValue::Object(entries) = value else {
        return Err("not an object; send {\"role\":\"user\",\"content\":\"…\"}".into());
    };
    let (mut role, mut content, mut calls, mut call_id) = (None, None, None, None);
    for (key, value) in entries {
        match (key.as_str(), value) {
            ("role", JsonValue::Text(name)) => role = Some(self::role(&name)?),
            ("content", JsonValue::Text(text)) => content = Some(text),
            ("content" | "tool_calls" | "tool_call_id", JsonValue::Null) => {}
            ("tool_calls", JsonValue::List(list)) => calls = Some(tool_calls(list)?),
            ("tool_call_id", JsonValue::Text(id)) if id.len() <= MAX_ID => call_id = Some(id),
            ("tool_call_id", JsonValue::Text(_)) => {
                return Err(format!("tool_call_id: longer than {MAX_ID} bytes"));
            }
            ("role" | "content" | "tool_call_id", _) => return Err(format!("{key}: not a string")),
            ("tool_calls", _) => return Err("tool_calls: not a list".into()),
            _ => {
                return Err(format!(
                    "unknown field `{}`, expected one of `role`, `content`, `tool_calls`, `tool_call_id`",
                    Shown(&key)
                ));
            }
        }
    }
    let role = role.ok_or("missing field `role`")?;
    match (role, &calls, &call_id) {
        (Role::Assistant, _, None) | (Role::Tool, None, _) | (_, None, None) => {}
        (_, Some(_), _) => return Err("tool_calls: only messages of the assistant have them".into()),
        (_, _, Some(_)) => return Err("tool_call_id: only messages of a tool have it".into()),
    }
    let tool_calls = calls.unwrap_or_default();
    let content = match content {
        None if tool_calls.is_empty() => return Err("missing field `content`".into()),
        content => content.unwrap_or_default(),
    };
    Ok(Message { role, content, tool_calls, tool_call_id: call_id })
}

fn role(name: &str) -> Result<Role, String> {
    match name {
        "system" => Ok(Role::System),
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        "tool" => Ok(Role::Tool),
        other => Err(format!(
            "role: unknown variant `{}`, expected one of `system`, `user`, `assistant`, `tool`",
            Shown(other)
        )),
    }
}

fn tool_calls(list: Vec<JsonValue>) -> Result<Vec<ToolCall>, String> {
    if list.len() > MAX_TOOLS {
        return Err(format!("tool_calls: {} calls; at most {MAX_TOOLS}", list.len()));
    }
    let read = |(index, call): (usize, JsonValue)| {
        tool_call(call).map_err(|error| format!("tool_calls[{index}].{error}"))
    };
    list.into_iter().enumerate().map(read).collect()
}

fn tool_call(call: JsonValue) -> Result<ToolCall, String> {
    let function = function_of(&call, &["id", "type", "function"])?;
    let id = match call.get("id") {
        Some(JsonValue::Text(id)) if id.len() <= MAX_ID => id.clone(),
        Some(JsonValue::Text(_)) => return Err(format!("id: longer than {MAX_ID} bytes")),
        Some(JsonValue::Null) | None => String::new(),
        Some(_) => return Err("id: not a string".into()),
    };
    only_keys(function, &["name", "arguments"]).map_err(|error| format!("function.{error}"))?;
    let arguments = match function.get("arguments") {
        Some(JsonValue::Text(text)) => JsonValue::parse(text).ok(),
        Some(JsonValue::Null) | None => Some(JsonValue::Object(Vec::new())),
        other => other.cloned(),
    };
    match arguments {
        Some(arguments @ JsonValue::Object(_)) => Ok(ToolCall { id, name: name_of(function)?, arguments }),
        _ => Err("function.arguments: neither an object nor the text of one".into()),
    }
}

/// The functions of a request.
pub(super) fn tools(list: Vec<JsonValue>) -> Result<Vec<Tool>, Refusal> {
    if list.len() > MAX_TOOLS {
        return Err(invalid(format!("tools: {} functions; at most {MAX_TOOLS}", list.len())));
    }
    let mut tools: Vec<Tool> = Vec::with_capacity(list.len());
    for (index, definition) in list.into_iter().enumerate() {
        let name = tool_name(&definition).map_err(|error| invalid(format!("tools[{index}].{error}")))?;
        if tools.iter().any(|tool| tool.name == name) {
            return Err(invalid(format!("tools[{index}].function.name: {name} is there twice")));
        }
        tools.push(Tool { name, definition });
    }
    Ok(tools)
}

fn tool_name(definition: &JsonValue) -> Result<String, String> {
    let function = function_of(definition, &["type", "function"])?;
    only_keys(function, &["name", "description", "parameters", "strict"])
        .map_err(|error| format!("function.{error}"))?;
    for (key, is_sound) in [
        (
            "description",
            matches!(function.get("description"), None | Some(JsonValue::Text(_) | JsonValue::Null)),
        ),
        (
            "parameters",
            matches!(function.get("parameters"), None | Some(JsonValue::Object(_) | JsonValue::Null)),
        ),
        ("strict", matches!(function.get("strict"), None | Some(JsonValue::Bool(_) | JsonValue::Null))),
    ] {
        if !is_sound {
            return Err(format!("function.{key}: of another kind than it has to be"));
        }
    }
    name_of(function)
}

/// The function of a tool or a call, which has only these keys.
fn function_of<'v>(value: &'v JsonValue, keys: &[&str]) -> Result<&'v JsonValue, String> {
    only_keys(value, keys)?;
    match value.get("type") {
        Some(JsonValue::Text(kind)) if kind == "function" => {}
        None if keys.contains(&"id") => {}
        _ => return Err("type: \"function\" is the only one".into()),
    }
    match value.get("function") {
        Some(function @ JsonValue::Object(_)) => Ok(function),
        _ => Err("function: missing, or no object".into()),
    }
}

fn only_keys(value: &JsonValue, keys: &[&str]) -> Result<(), String> {
    let JsonValue::Object(entries) = value else {
        return Err("type: missing, since this is no object".into());
    };
    match entries.iter().find(|(key, _)| !keys.contains(&key.as_str())) {
        Some((key, _)) => Err(format!("{}: unknown; expected {}", Shown(key), keys.join(", "))),
        None => Ok(()),
    }
}

fn name_of(function: &JsonValue) -> Result<String, String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    match function.get("name").and_then(JsonValue::as_text) {
        Some(name) if (1..=MAX_TOOL_NAME).contains(&name.len()) && name.chars().all(is_allowed) => {
            Ok(name.to_owned())
        }
        Some(_) => {
            Err(format!("function.name: 1 to {MAX_TOOL_NAME} of a-z, A-Z, 0-9, _, - and . are allowed"))
        }
        None => Err("function.name: missing".into()),
    }
}

/// Which of these functions the answer has to call.
pub(super) fn tool_choice(choice: Option<JsonValue>, tools: &[Tool]) -> Result<ToolChoice, Refusal> {
    let choice = match choice {
        None | Some(JsonValue::Null) => return Ok(ToolChoice::Auto),
        Some(JsonValue::Text(word)) => match word.as_str() {
            "auto" => return Ok(ToolChoice::Auto),
            "none" => return Ok(ToolChoice::None),
            "required" => ToolChoice::Required,
            other => {
                return Err(invalid(format!(
                    "tool_choice: \"{}\" is none of auto, none, required; name a function as {{\"type\":\"function\",\"function\":{{\"name\":\"…\"}}}}",
                    Shown(other)
                )));
            }
        },
        Some(value) => {
            let named = function_of(&value, &["type", "function"])
                .and_then(|function| only_keys(function, &["name"]).and_then(|()| name_of(function)));
            ToolChoice::Named(named.map_err(|error| invalid(format!("tool_choice.{error}")))?)
        }
    };
    if tools.is_empty() {
        return Err(invalid("tool_choice: needs tools"));
    }
    if let ToolChoice::Named(name) = &choice
        && !tools.iter().any(|tool| tool.name == *name)
    {
        return Err(invalid(format!("tool_choice.function.name: {name} is none of the tools")));
    }
    Ok(choice)
}

/// An answer is either calls or what the format says, and only JSON can be distinguished from calls.
pub(super) fn check_format(request: &Request) -> Result<(), Refusal> {
    let is_distinct = matches!(
        request.response_format,
        ResponseFormat::Text | ResponseFormat::JsonObject | ResponseFormat::JsonSchema(_)
    );
    if is_distinct || !request.offers_tools() {
        return Ok(());
    }
    Err(invalid(
        "response_format: regex, grammar and home_intent cannot be used with tools; leave one of them out",
    ))
}

#[cfg(test)]
mod tests {
    use crate::protocol::json::request;
    use crate::protocol::{Input, Role, ToolChoice};

    const TOOL: &str = r#"{"type":"function","function":{"name":"set_light","description":"d","parameters":{"type":"object","properties":{"z":{"type":"string"},"a":{"type":"integer"}}},"strict":true}}"#;

    fn with(keys: &str) -> String {
        format!(r#"{{"prompt":"a",{keys}}}"#)
    }

    #[test]
    fn tools_keep_the_order_of_their_keys() {
        let read = request(with(&format!(r#""tools":[{TOOL}],"tool_choice":"required""#)).as_bytes());
        let read = read.expect("sound");
        assert_eq!((read.tools[0].name.as_str(), &read.tool_choice), ("set_light", &ToolChoice::Required));
        assert_eq!(read.tools[0].definition.to_string(), TOOL);
        let named = r#"{"type":"function","function":{"name":"set_light"}}"#;
        let read = request(with(&format!(r#""tools":[{TOOL}],"tool_choice":{named}"#)).as_bytes());
        assert_eq!(read.expect("sound").tool_choice, ToolChoice::Named("set_light".into()));
    }

    #[test]
    fn calls_and_results_are_read_and_arguments_may_be_text_or_object() {
        let text = r#"{"messages":[{"role":"user","content":"a"},
            {"role":"assistant","content":null,"tool_calls":[
                {"id":"1","type":"function","function":{"name":"f","arguments":"{\"z\":1,\"a\":2}"}},
                {"id":"2","function":{"name":"g","arguments":{"z":1,"a":2}}}]},
            {"role":"tool","tool_call_id":"1","content":"done"}]}"#;
        let Input::Messages(messages) = request(text.as_bytes()).expect("sound").input else { panic!() };
        let calls = &messages[1].tool_calls;
        assert_eq!(calls.iter().map(|call| call.name.as_str()).collect::<Vec<_>>(), ["f", "g"]);
        assert!(calls.iter().all(|call| call.arguments.to_string() == r#"{"z":1,"a":2}"#));
        assert_eq!((messages[2].role, messages[2].tool_call_id.as_deref()), (Role::Tool, Some("1")));
    }

    #[test]
    fn what_is_wrong_is_refused_by_its_place() {
        for (text, place) in [
            (with(r#""tools":{}"#), "tools: "),
            (with(r#""tools":[1]"#), "tools[0].type: "),
            (with(r#""tools":[{"type":"code"}]"#), "tools[0].type: "),
            (with(r#""tools":[{"type":"function","function":{"name":"a b"}}]"#), "tools[0].function.name: "),
            (with(r#""tools":[{"type":"function","function":{"name":"a","args":1}}]"#), "tools[0].function.args: "),
            (
                with(r#""tools":[{"type":"function","function":{"name":"a","parameters":[]}}]"#),
                "tools[0].function.parameters: ",
            ),
            (with(&format!(r#""tools":[{TOOL},{TOOL}]"#)), "tools[1].function.name: set_light is there twice"),
            (with(r#""tool_choice":"required""#), "tool_choice: needs tools"),
            (
                with(&format!(r#""tools":[{TOOL}],"response_format":{{"type":"home_intent"}}"#)),
                "response_format: regex, grammar and home_intent cannot be used with tools",
            ),
            (with(&format!(r#""tools":[{TOOL}],"tool_choice":"any""#)), "tool_choice: \"any\""),
            (
                with(&format!(
                    r#""tools":[{TOOL}],"tool_choice":{{"type":"function","function":{{"name":"x"}}}}"#
                )),
                "tool_choice.function.name: x is none of the tools",
            ),
            (r#"{"messages":[{"role":"user","content":null}]}"#.into(), "messages[0]: missing field `content`"),
            (
                r#"{"messages":[{"role":"user","content":"a","tool_calls":[]}]}"#.into(),
                "messages[0]: tool_calls: only messages of the assistant",
            ),
            (
                r#"{"messages":[{"role":"user","content":"a","tool_call_id":"1"}]}"#.into(),
                "messages[0]: tool_call_id: only messages of a tool",
            ),
            (
                r#"{"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"["}}]}]}"#
                    .into(),
                "messages[0]: tool_calls[0].function.arguments: ",
            ),
        ] {
            let message = request(text.as_bytes()).expect_err(&text).message;
            assert!(message.contains(place), "{text}: {message}");
        }
    }

    #[test]
    fn there_are_at_most_128_tools() {
        let tools = |count: usize| {
            let one = |at: usize| format!(r#"{{"type":"function","function":{{"name":"f{at}"}}}}"#);
            let list: Vec<String> = (0..count).map(one).collect();
            request(with(&format!(r#""tools":[{}]"#, list.join(","))).as_bytes())
        };
        assert_eq!(tools(128).expect("as many as are allowed").tools.len(), 128);
        assert!(tools(129).expect_err("one more").message.starts_with("tools: 129 functions; at most 128"));
    }
}
