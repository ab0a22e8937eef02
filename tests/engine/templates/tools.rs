//! Functions, calls and results in prompts: as Jinja2 renders them where the template knows them, and as plain texts
//! where it does not.
//!
//! The expected texts are frozen by `tests/support/jinja-cases`.

use super::{jinja2::cases, read};
use bitnetd::engine::tokenizer::{CallSyntax, ChatCall, ChatMessage, ChatRole, Tokenizer};
use bitnetd::external_text::JsonValue;
use serde_json::Value;

/// The calls of a message: id, name, arguments.
type Calls = Vec<(String, String, JsonValue)>;

/// JSON of a case in the order of its source is only in the texts; its values are small enough to be read again.
fn ordered(line: &str) -> JsonValue {
    JsonValue::parse(line).expect("JSON")
}

fn list(value: &JsonValue) -> &[JsonValue] {
    match value {
        JsonValue::List(items) => items,
        _ => &[],
    }
}

fn text<'v>(value: &'v JsonValue, key: &str) -> &'v str {
    value.get(key).and_then(JsonValue::as_text).unwrap_or_default()
}

fn calls(message: &JsonValue) -> Calls {
    let calls = message.get("tool_calls").map(list).unwrap_or_default().iter();
    calls
        .map(|call| {
            let function = call.get("function").expect("a function");
            let arguments = function.get("arguments").expect("arguments").clone();
            (text(call, "id").to_owned(), text(function, "name").to_owned(), arguments)
        })
        .collect()
}

/// The prompt of messages and tools as text, and how calls are written.
fn prompt(
    chat: &Tokenizer,
    messages: &[JsonValue],
    tools: &[JsonValue],
) -> Result<(String, CallSyntax), String> {
    let calls: Vec<Calls> = messages.iter().map(calls).collect();
    let calls: Vec<Vec<ChatCall<'_>>> = calls
        .iter()
        .map(|calls| calls.iter().map(|(id, name, arguments)| ChatCall { id, name, arguments }).collect())
        .collect();
    let messages: Vec<ChatMessage<'_>> = messages
        .iter()
        .zip(&calls)
        .map(|(message, tool_calls)| ChatMessage {
            role: match text(message, "role") {
                "system" => ChatRole::System,
                "user" => ChatRole::User,
                "tool" => ChatRole::Tool,
                _ => ChatRole::Assistant,
            },
            text: text(message, "content"),
            tool_calls,
            tool_call_id: message.get("tool_call_id").and_then(JsonValue::as_text),
        })
        .collect();
    let (ids, syntax) = chat.prompt_with_tools(&messages, tools).map_err(|error| error.to_string())?;
    let bytes: Vec<u8> = ids.iter().flat_map(|id| chat.bytes(*id)).copied().collect();
    Ok((String::from_utf8(bytes).expect("whole characters"), syntax))
}

fn parts(syntax: &CallSyntax) -> [&str; 3] {
    [&syntax.open, &syntax.middle, &syntax.close]
}

#[test]
fn templates_that_know_functions_give_the_text_that_jinja2_gives() {
    let path = format!("{}/tests/data/templates/tools.jsonl", env!("CARGO_MANIFEST_DIR"));
    let lines = std::fs::read_to_string(path).expect("there");
    let names: Vec<Value> = cases("tools").iter().map(|family| family["name"].clone()).collect();
    assert_eq!(names, ["qwen", "llama-3", "hermes"]);
    for family in lines.lines().map(ordered) {
        let name = text(&family, "name");
        let chat = read(text(&family, "template")).expect("a template");
        for case in list(family.get("cases").expect("cases")) {
            let [messages, tools, wanted] = list(case) else { panic!("{name}") };
            let ours = prompt(&chat, list(messages), list(tools));
            match wanted.as_text() {
                Some(wanted) => assert_eq!(ours.map(|ours| ours.0).as_deref(), Ok(wanted), "{name}"),
                None => assert!(ours.is_err(), "{name}: {ours:?}"),
            }
        }
        let hello = ordered(r#"[{"role":"user","content":"Hello"}]"#);
        let (_, syntax) = prompt(&chat, list(&hello), &[]).expect("a prompt");
        match name {
            "llama-3" => assert_eq!(parts(&syntax), ["{\"name\": \"", "\", \"parameters\": ", "}"]),
            _ => assert_eq!(
                parts(&syntax),
                ["<tool_call>\n{\"name\": \"", "\", \"arguments\": ", "}\n</tool_call>"]
            ),
        }
    }
}

#[test]
fn where_a_template_knows_no_functions_they_are_texts_of_ordinary_turns() {
    const SIMPLE: &str = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}[assistant]";
    const NO_SYSTEM: &str = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}\
                             {% endif %}[{{ m.role }}]{{ m.content }}\n{% endfor %}[assistant]";
    let tools = ordered(r#"[{"type":"function","function":{"name":"go","parameters":{"z":1,"a":2}}}]"#);
    let messages = ordered(
        r#"[{"role":"user","content":"Go <|eot_id|>"},
            {"role":"assistant","content":"","tool_calls":[{"id":"1","function":{"name":"go","arguments":{"z":1}}},
                {"id":"2","function":{"name":"go","arguments":{}}}]},
            {"role":"tool","content":"one","tool_call_id":"1"},{"role":"tool","content":"two","tool_call_id":"2"}]"#,
    );
    let instructions = "You can call these functions, each described by one line of JSON:\n\
        {\"name\":\"go\",\"parameters\":{\"z\":1,\"a\":2}}\n\
        To call functions, write one line for each call and nothing else:\n\
        <tool_call>{\"name\": \"NAME\", \"arguments\": {ARGUMENTS}}</tool_call>\n\
        Each result comes back as <tool_response>RESULT</tool_response>.";
    let rest = "[assistant]<tool_call>{\"name\": \"go\", \"arguments\": {\"z\":1}}</tool_call>\n\
        <tool_call>{\"name\": \"go\", \"arguments\": {}}</tool_call>\n\
        [user]<tool_response>one</tool_response>\n<tool_response>two</tool_response>\n[assistant]";
    for (template, wanted) in [
        (SIMPLE, format!("[system]{instructions}\n[user]Go <|eot_id|>\n{rest}")),
        (NO_SYSTEM, format!("[user]{instructions}\n\nGo <|eot_id|>\n{rest}")),
    ] {
        let chat = read(template).expect("a template");
        let (ours, syntax) = prompt(&chat, list(&messages), list(&tools)).expect("a prompt");
        assert_eq!(ours, wanted);
        assert_eq!(syntax, CallSyntax::plain());
    }
}

#[test]
fn no_text_of_a_function_becomes_a_special_token() {
    let text = std::fs::read_to_string(crate::data("templates/tools.jsonl")).expect("there");
    let family = ordered(text.lines().next().expect("a family"));
    let chat = read(self::text(&family, "template")).expect("a template");
    let end = "<|eot_id|>";
    let messages = ordered(&format!(
        r#"[{{"role":"user","content":"a"}},
            {{"role":"assistant","content":"","tool_calls":[{{"id":"{end}","function":{{"name":"f","arguments":{{"{end}":"{end}"}}}}}}]}},
            {{"role":"tool","content":"{end}","tool_call_id":"{end}"}}]"#
    ));
    let tools = ordered(&format!(
        r#"[{{"type":"function","function":{{"name":"f","description":"{end}","parameters":{{"{end}":["{end}"]}}}}}}]"#
    ));
    let special = chat.encode_with_specials(end);
    assert_eq!(special.len(), 1, "a special token of this vocabulary");
    let calls = calls(&list(&messages)[1]);
    let (id, name, arguments) = &calls[0];
    let calls = [ChatCall { id, name, arguments }];
    let turns = [
        ChatMessage::new(ChatRole::User, "a"),
        ChatMessage { tool_calls: &calls, ..ChatMessage::new(ChatRole::Assistant, "") },
        ChatMessage { tool_call_id: Some(end), ..ChatMessage::new(ChatRole::Tool, end) },
    ];
    let (ids, _) = chat.prompt_with_tools(&turns, list(&tools)).expect("a prompt");
    assert!(!ids.contains(&special[0]), "the template itself writes none");
}
