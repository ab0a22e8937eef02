//! Grammars of answers that may call functions: the calls fit their schemas, as many as are allowed, and an answer in JSON is
//! never taken for one.

use super::{accepts, compile, engine};
use bitnetd::engine::grammar::{Callable, GrammarSource, OtherAnswer, tool_grammar};
use bitnetd::engine::tokenizer::CallSyntax;
use bitnetd::external_text::JsonValue;

fn syntax(open: &str, middle: &str, close: &str) -> CallSyntax {
    CallSyntax { open: open.into(), middle: middle.into(), close: close.into() }
}

/// The forms of Hermes and of Llama 3.
fn forms() -> [CallSyntax; 2] {
    [
        syntax("<tool_call>\n{\"name\": \"", "\", \"arguments\": ", "}\n</tool_call>"),
        syntax("{\"name\": \"", "\", \"parameters\": ", "}"),
    ]
}

fn grammar(syntax: &CallSyntax, other: &OtherAnswer, once: bool) -> GrammarSource {
    let on =
        JsonValue::parse(r#"{"type":"object","properties":{"on":{"type":"boolean"}},"required":["on"]}"#);
    let on = on.expect("JSON");
    let functions =
        [Callable { name: "light", parameters: Some(&on) }, Callable { name: "stop", parameters: None }];
    GrammarSource::Lark(tool_grammar(syntax, &functions, other, once))
}

fn call(syntax: &CallSyntax, name: &str, arguments: &str) -> String {
    format!("{}{name}{}{arguments}{}", syntax.open, syntax.middle, syntax.close)
}

#[test]
fn one_call_at_most_where_no_others_are_allowed() {
    let (engine, [hermes, llama]) = (engine(), forms());
    let light = call(&hermes, "light", "{\"on\":true}");
    for other in [OtherAnswer::None, OtherAnswer::Text] {
        let [once, several] =
            [true, false].map(|once| compile(&engine, &grammar(&hermes, &other, once)).expect("sound"));
        let two = format!("{light}\n{}", call(&hermes, "stop", "{}"));
        assert!(accepts(&engine, &once, &light) && accepts(&engine, &several, &light));
        assert!(!accepts(&engine, &once, &two) && accepts(&engine, &several, &two), "{other:?}");
        assert!(!accepts(&engine, &once, &call(&hermes, "light", "{}")), "an argument is missing");
        assert!(!accepts(&engine, &once, &call(&hermes, "fan", "{}")), "there is no such function");
    }
    let one = call(&llama, "stop", "{}");
    let several = compile(&engine, &grammar(&llama, &OtherAnswer::None, false)).expect("sound");
    assert!(accepts(&engine, &several, &one));
    assert!(!accepts(&engine, &several, &format!("{one}\n{one}")), "they could not be separated");
}

#[test]
fn an_answer_in_json_is_never_a_call_and_may_be_anything_else() {
    let engine = engine();
    let object = OtherAnswer::Json(r#"{"type":"object"}"#.into());
    for syntax in forms() {
        assert!(syntax.differs_from_compact_json());
        let constraint = compile(&engine, &grammar(&syntax, &object, false)).expect("sound");
        let light = call(&syntax, "light", "{\"on\":false}");
        assert!(accepts(&engine, &constraint, &light), "{light}");
        assert_eq!(syntax.parse(&light).map(|calls| calls.len()), Some(1));
        for json in [
            "{}",
            r#"{"a":1}"#,
            r#"{"name":"light","parameters":{"on":true}}"#,
            r#"{"name":"light","arguments":{"on":true}}"#,
            r#"{"name":1}"#,
            r#"{"names":[{"name":"light"}]}"#,
        ] {
            assert!(accepts(&engine, &constraint, json), "{json}");
            assert_eq!(syntax.parse(json), None, "{json}");
        }
        for json in [r#"{"name": "fan", "parameters": {}}"#, r#"{ "a":1}"#, r#"{"a": 1}"#, "[1]", "text"] {
            assert!(!accepts(&engine, &constraint, json), "{json}");
        }
    }
}
