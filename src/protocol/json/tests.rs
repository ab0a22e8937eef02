//! What is read from requests and written as events.

use super::*;
use crate::protocol::{LikelyToken, TokenLogprob};

fn refusal(text: &str) -> Refusal {
    request(text.as_bytes()).expect_err("not a sound request")
}

#[test]
fn a_prompt_alone_is_a_request() {
    let read = request(br#"{"prompt":"hello"}"#).expect("sound");
    assert_eq!(read.input, Input::Prompt("hello".into()));
    assert_eq!((read.stream, read.priority, read.cache), (false, Priority::Normal, true));
}

#[test]
fn every_documented_key_is_read() {
    let text = br#"{"id":"a","messages":[{"role":"system","content":"s"},{"role":"user","content":"u"}],
        "max_tokens":5,"temperature":0.5,"top_p":0.9,"top_k":40,"min_p":0.1,"repetition_penalty":1.1,"seed":7,
        "presence_penalty":-2,"frequency_penalty":1.5,"logit_bias":{"100":-100,"20":2.5},"logprobs":true,"top_logprobs":3,"n":2,
        "stop":["x"],"stream":true,"timeout_ms":1000,"response_format":{"type":"text"},"priority":"high","cache":false,
        "speculate":false,"prediction":"lights on"}"#;
    let read = request(text).expect("sound");
    assert_eq!(read.id.as_deref(), Some("a"));
    assert_eq!(read.sampling.seed, Some(7));
    assert_eq!((read.sampling.presence_penalty, read.sampling.frequency_penalty), (Some(-2.0), Some(1.5)));
    assert_eq!(read.sampling.logit_bias, [(20, 2.5), (100, -100.0)]);
    assert_eq!((read.logprobs, read.choices), (Some(3), 2));
    assert_eq!(read.timeout, Some(Duration::from_secs(1)));
    assert_eq!((read.stream, read.priority, read.cache), (true, Priority::High, false));
    assert_eq!((read.speculate, read.prediction.as_deref()), (Some(false), Some("lights on")));
}

#[test]
fn every_response_format_is_read() {
    let format = |text: &str| {
        let read = request(format!(r#"{{"prompt":"a","response_format":{text}}}"#).as_bytes());
        let read = read.expect("sound");
        assert_eq!(read.text_bytes(), 1 + read.response_format.text_bytes());
        read.response_format
    };
    assert_eq!(format("null"), ResponseFormat::Text);
    assert_eq!(format(r#"{"type":"json_object"}"#), ResponseFormat::JsonObject);
    // Keys keep their order: it is that of the answer.
    let schema = r#"{"properties":{"b":{"const":1.0},"a":true}}"#;
    let named = format!(
        r#"{{"json_schema":{{"name":"n","strict":true,"description":"d","schema":{schema}}},"type":"json_schema"}}"#
    );
    assert_eq!(format(&named), ResponseFormat::JsonSchema(schema.into()));
    assert_eq!(format(r#"{"type":"regex","regex":"a|b"}"#), ResponseFormat::Regex("a|b".into()));
    let lark = ResponseFormat::Grammar("start: \"a\"".into());
    assert_eq!(format(r#"{"type":"grammar","grammar":"start: \"a\""}"#), lark);
}

#[test]
fn an_unknown_key_is_refused_by_name() {
    let refusal = refusal(r#"{"prompt":"a","temprature":1}"#);
    assert_eq!(refusal.code, Code::InvalidRequest);
    assert!(refusal.message.contains("temprature"), "{}", refusal.message);
}

#[test]
fn values_out_of_range_name_their_key() {
    for (text, key) in [
        (r#"{"prompt":"a","temperature":-1}"#, "temperature"),
        (r#"{"prompt":"a","temperature":1e39}"#, "temperature"),
        (r#"{"prompt":"a","top_p":2}"#, "top_p"),
        (r#"{"prompt":"a","max_tokens":0}"#, "max_tokens"),
        (r#"{"prompt":"a","timeout_ms":0}"#, "timeout_ms"),
        (r#"{"prompt":"a","stop":[""]}"#, "stop"),
        (r#"{"prompt":" "}"#, "prompt"),
        (r#"{"messages":[]}"#, "messages"),
        (r#"{"prompt":"a","messages":[]}"#, "messages"),
        (r#"{"prompt":"a","id":""}"#, "id"),
        (r#"{"prompt":"a","response_format":{"type":"yaml"}}"#, "response_format.type: \"yaml\""),
        (r#"{"prompt":"a","response_format":{"schema":{}}}"#, "response_format.type: missing"),
        (r#"{"prompt":"a","response_format":["text"]}"#, "response_format: "),
        (
            r#"{"prompt":"a","response_format":{"type":"json_object","regex":"a"}}"#,
            "response_format.regex: no key",
        ),
        (
            r#"{"prompt":"a","response_format":{"type":"json_schema"}}"#,
            "response_format.json_schema: missing",
        ),
        (
            r#"{"prompt":"a","response_format":{"type":"json_schema","json_schema":{"name":"x"}}}"#,
            "response_format.json_schema.schema: missing",
        ),
        (
            r#"{"prompt":"a","response_format":{"type":"json_schema","json_schema":{"schema":{},"strict":1}}}"#,
            "response_format.json_schema.strict: ",
        ),
        (
            r#"{"prompt":"a","response_format":{"type":"json_schema","json_schema":{"schema":{},"x":1}}}"#,
            "response_format.json_schema.x: no key of a schema",
        ),
        (r#"{"prompt":"a","response_format":{"type":"regex","regex":""}}"#, "response_format.regex: empty"),
        (r#"{"prompt":"a","response_format":{"type":"grammar"}}"#, "response_format.grammar: missing"),
        (r#"{"prompt":"a","presence_penalty":2.1}"#, "presence_penalty: 2.1 is outside -2 to 2"),
        (r#"{"prompt":"a","frequency_penalty":-3}"#, "frequency_penalty: -3 is outside -2 to 2"),
        (r#"{"prompt":"a","logit_bias":{"5":101}}"#, "logit_bias.5: 101 is outside -100 to 100"),
        (r#"{"prompt":"a","logit_bias":{"light":1}}"#, "logit_bias: \"light\" is no token id"),
        (r#"{"prompt":"a","logit_bias":{"05":1}}"#, "logit_bias: \"05\" is no token id"),
        (r#"{"prompt":"a","logit_bias":{"-1":1}}"#, "logit_bias: \"-1\" is no token id"),
        (r#"{"prompt":"a","logit_bias":{"5":1,"5":2}}"#, "logit_bias.5"),
        (r#"{"prompt":"a","logit_bias":[1]}"#, "logit_bias"),
        (r#"{"prompt":"a","n":0}"#, "n: 0 is outside 1 to 8"),
        (r#"{"prompt":"a","n":9}"#, "n: 9 is outside 1 to 8"),
        (r#"{"prompt":"a","logprobs":true,"top_logprobs":21}"#, "top_logprobs: 21 is outside 0 to 20"),
        (r#"{"prompt":"a","top_logprobs":2}"#, "top_logprobs: needs"),
        (r#"{"prompt":"a","logprobs":true,"top_logprobs":19,"max_tokens":401}"#, "at most 400"),
    ] {
        let message = refusal(text).message;
        assert!(message.contains(key), "{text}: {message}");
    }
}

#[test]
fn what_is_too_large_is_refused_before_it_is_parsed() {
    let text = format!(r#"{{"prompt":"{}"}}"#, "a".repeat(MAX_REQUEST));
    assert_eq!(refusal(&text).code, Code::TooLarge);
}

#[test]
fn deep_nesting_is_an_error_not_a_stack_overflow() {
    let deep = format!(r#"{{"prompt":{}"#, "[".repeat(MAX_REQUEST / 2));
    assert_eq!(refusal(&deep).code, Code::InvalidRequest);
}

#[test]
fn a_value_of_the_wrong_kind_names_its_key_and_an_array_is_no_object() {
    for (text, word) in [
        (r#"{"id":true,"prompt":"a"}"#, "id: neither a string nor a number"),
        (r#"{"prompt":"a","id":["a"]}"#, "id: "),
        (r#"{"prompt":"a","top_k":-1}"#, "top_k: "),
        (r#"{"messages":[["user","a"]]}"#, "messages[0]: "),
        (r#"["a","turn on the lamp"]"#, "JSON object"),
        ("garbage", "JSON object"),
        (r#"{"prompt":"a"} x"#, "after the object"),
    ] {
        let message = refusal(text).message;
        assert!(message.contains(word), "{text}: {message}");
    }
}

#[test]
fn a_payload_that_is_no_object_is_the_prompt() {
    let read = request_or_text(b"turn on the light").expect("sound");
    assert_eq!(read.input, Input::Prompt("turn on the light".into()));
    assert!(request_or_text(b"\xff\xfe").is_err());
    assert!(request_or_text(b" {\"prompt\":1}").is_err());
}

#[test]
fn json_that_is_no_object_is_an_error_and_a_sentence_is_a_prompt() {
    for wrong in ["[1,2]", "\"x\"", "12", " -1.5e3\n", "true", "null", "[]", "[{\"a\":", "[ \"a\"", "[[[["] {
        let message = request_or_text(wrong.as_bytes()).expect_err(wrong).message;
        assert!(message.contains("no object"), "{wrong}: {message}");
    }
    for broken in ["{", "{\"prompt\":\"a\"", "{turn on}", "\u{feff} {\"prompt\":1}"] {
        assert!(request_or_text(broken.as_bytes()).is_err(), "{broken}");
    }
    for sentence in
        ["[kitchen] turn on", "\"x\" is a letter", "12 lights on", "true or false?", "[1, 2 and", "-", "Null"]
    {
        let read = request_or_text(sentence.as_bytes()).expect(sentence);
        assert_eq!(read.input, Input::Prompt(sentence.into()));
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_message() {
    let text = "\u{feff}{\"id\":\"a\",\"prompt\":\"b\"}".as_bytes();
    let read = request_or_text(text).expect("sound");
    assert_eq!((read.id.as_deref(), &read.input), (Some("a"), &Input::Prompt("b".into())));
    assert_eq!(incoming(text), Ok(Incoming::Request(Box::new(read))));
    assert_eq!(id_of("\u{feff}{\"id\":\"a\"}".as_bytes()).as_deref(), Some("a"));
    assert_eq!(incoming("\u{feff}{\"cancel\":\"a\"}".as_bytes()), Ok(Incoming::Cancel("a".into())));
    for text in [&br#"{"id":"b","cancel":"a"}"#[..], br#"{"cancel":"a","id":"b"}"#] {
        assert_eq!(incoming(text), Ok(Incoming::Cancel("a".into())));
    }
    assert_eq!(cancel_topic("\u{feff}{\"running\":true}".as_bytes()), Ok(Cancelled::Running));
    assert_eq!(thread_limit("\u{feff}2".as_bytes()), Ok(2));
    let twice = "\u{feff}\u{feff}{\"prompt\":\"b\"}".as_bytes();
    let refusals = [incoming(twice).expect_err("refused"), request_or_text(twice).expect_err("refused")];
    assert!(refusals.iter().all(|refusal| refusal.message.contains("second byte-order mark")));
    let read = request_or_text("\u{feff}turn it on".as_bytes()).expect("sound");
    assert_eq!(read.input, Input::Prompt("turn it on".into()));
    assert!(request_or_text(b"\xff\xfeh\0i\0").expect_err("UTF-16").message.contains("UTF-16"));
}

#[test]
fn a_key_given_twice_is_refused_by_name_at_every_level() {
    for (text, path) in [
        (r#"{"prompt":"a","prompt":"a"}"#, "prompt: "),
        (r#"{"messages":[{"role":"user","role":"system","content":"a"}]}"#, "messages[0].role: "),
        (r#"{"messages":[{"role":"user","content":"a","\u0063ontent":"b"}]}"#, "messages[0].content: "),
        (r#"{"prompt":"a","response_format":{"type":"text","type":"text"}}"#, "response_format.type: "),
        (
            r#"{"prompt":"a","response_format":{"type":"json_schema","json_schema":{"a":{"b":1,"b":2}}}}"#,
            "response_format.json_schema.a.b: ",
        ),
    ] {
        let message = refusal(text).message;
        assert!(message.starts_with(path) && message.contains("twice"), "{text}: {message}");
    }
    assert!(incoming(br#"{"cancel":"a","cancel":"b"}"#).is_err());
    assert!(cancel_topic(br#"{"id":"a","id":"b"}"#).is_err());
}

#[test]
fn a_cancellation_is_distinguished_from_a_request() {
    assert_eq!(incoming(br#"{"cancel":"a"}"#), Ok(Incoming::Cancel("a".into())));
    assert!(matches!(incoming(br#"{"prompt":"cancel"}"#), Ok(Incoming::Request(_))));
}

#[test]
fn the_report_is_asked_for_with_true_and_nothing_else() {
    assert_eq!(incoming(b" { \"telemetry\" : true }"), Ok(Incoming::Telemetry(None)));
    for wrong in [&br#"{"telemetry":false}"#[..], br#"{"telemetry":true,"x":"a"}"#, br#"{"telemetry":1}"#] {
        assert_eq!(incoming(wrong).expect_err("no question").code, Code::InvalidRequest);
    }
}

#[test]
fn metrics_are_asked_for_with_true_and_nothing_else() {
    assert_eq!(incoming(br#"{"metrics":true}"#), Ok(Incoming::Metrics(None)));
    for wrong in [&br#"{"metrics":false}"#[..], br#"{"metrics":true,"telemetry":true}"#] {
        assert_eq!(incoming(wrong).expect_err("no question").code, Code::InvalidRequest);
    }
    assert_eq!(metrics("a{b=\"c\"} 1\n", None), br#"{"event":"metrics","text":"a{b=\"c\"} 1\n"}"#);
}

#[test]
fn a_cancellation_names_a_request_or_the_running_one() {
    assert_eq!(cancel_topic(br#"{"id":"a"}"#), Ok(Cancelled::Id("a".into())));
    assert_eq!(cancel_topic(br#"{"running":true}"#), Ok(Cancelled::Running));
    for wrong in ["{}", r#"{"running":false}"#, r#"{"id":"a","running":true}"#, r#"{"all":true}"#, "1"] {
        assert_eq!(cancel_topic(wrong.as_bytes()).expect_err(wrong).code, Code::InvalidRequest);
    }
}

#[test]
fn a_thread_limit_is_a_whole_number() {
    for (text, number) in [("2", 2), (" 3\n", 3), ("4.0", 4), ("0", 0)] {
        assert_eq!(thread_limit(text.as_bytes()), Ok(number), "{text}");
    }
    for wrong in ["", "two", "2.5", "-1", "+1", "1e3", "0x2", ".", ".0", "12345678901234567890", "\u{661}"] {
        assert!(thread_limit(wrong.as_bytes()).is_err(), "{wrong}");
    }
    assert!(thread_limit(b"\xff").is_err());
}

#[test]
fn an_id_may_be_a_number_and_is_given_back_as_it_came() {
    for number in ["1", "1.5", "1732.0", "-1e3", "12345678901234567890123"] {
        let id = request(format!(r#"{{"id":{number},"prompt":"a"}}"#).as_bytes()).expect(number).id;
        let refusal = Refusal::new(Code::Timeout, "m");
        let error = event(&Event::error(id.clone(), refusal));
        let text = format!(r#"{{"event":"error","id":{number},"code":"timeout","message":"m"}}"#);
        assert_eq!(String::from_utf8_lossy(&error), text);
        let token = Event::Token {
            id: id.clone().expect(number),
            text: "x".into(),
            index: None,
            logprobs: vec![],
            metadata: None,
        };
        let text = format!(r#"{{"event":"token","id":{number},"text":"x"}}"#);
        assert_eq!(String::from_utf8_lossy(&event(&token)), text);
        assert_eq!(
            incoming(format!(r#"{{"cancel":{number}}}"#).as_bytes()),
            Ok(Incoming::Cancel(id.clone().expect(number)))
        );
        assert_eq!(
            cancel_topic(format!(r#"{{"id":{number}}}"#).as_bytes()),
            Ok(Cancelled::Id(id.expect(number)))
        );
    }
    let long = format!(r#"{{"prompt":"a","id":1{}}}"#, "0".repeat(MAX_ID));
    assert!(refusal(&long).message.starts_with("id: longer than"));
}

#[test]
fn an_unsound_request_still_gives_its_id() {
    assert_eq!(id_of(br#"{"id":"a","promt":"x"}"#).as_deref(), Some("a"));
    assert_eq!(id_of(br#"{"id":5.0}"#).as_deref(), Some("5.0"));
    assert_eq!(id_of(br#"{"id":true}"#), None);
    assert_eq!(id_of(b"nonsense"), None);
}

#[test]
fn an_event_is_one_line_with_the_documented_keys() {
    let refusal = Refusal { retry_after_ms: Some(5), ..Refusal::new(Code::QueueFull, "a\nb") };
    let line = event(&Event::error(None, refusal));
    let text = r#"{"event":"error","id":null,"code":"queue_full","message":"a\nb","retry_after_ms":5}"#;
    assert_eq!(String::from_utf8(line).expect("JSON is UTF-8"), text);
}

#[test]
fn a_request_names_at_most_300_biases() {
    let biases = |count: u32| {
        let entries: Vec<String> = (0..count).map(|id| format!("\"{id}\":1")).collect();
        request(format!("{{\"prompt\":\"a\",\"logit_bias\":{{{}}}}}", entries.join(",")).as_bytes())
    };
    assert_eq!(biases(300).expect("as many as are allowed").sampling.logit_bias.len(), 300);
    assert!(biases(301).expect_err("one more").message.contains("301 tokens; at most 300"));
}

#[test]
fn log_probabilities_limit_the_tokens_of_the_answers() {
    let limit =
        |keys: &str| request(format!(r#"{{"prompt":"a",{keys}}}"#).as_bytes()).expect("sound").max_tokens;
    assert_eq!(limit(r#""logprobs":false"#), None);
    assert_eq!(limit(r#""logprobs":true"#), Some(MAX_LOGPROBS));
    assert_eq!(limit(r#""logprobs":true,"top_logprobs":19,"n":8"#), Some(50));
    assert_eq!(limit(r#""logprobs":true,"top_logprobs":19,"n":8,"max_tokens":50"#), Some(50));
}

#[test]
fn log_probabilities_have_the_form_of_openai_and_no_infinity() {
    let likely = |token: &str, logprob| LikelyToken { token: token.into(), logprob, bytes: token.into() };
    let logprobs = vec![TokenLogprob {
        token: likely("é", -0.5),
        top_logprobs: vec![likely("é", -0.5), likely("x", f32::NEG_INFINITY)],
    }];
    let token = Event::Token { id: "a".into(), text: "é".into(), index: Some(1), logprobs, metadata: None };
    let text = r#"{"event":"token","id":"a","text":"é","index":1,"logprobs":[{"token":"é","logprob":-0.5,"bytes":[195,169],"top_logprobs":[{"token":"é","logprob":-0.5,"bytes":[195,169]},{"token":"x","logprob":-9999.0,"bytes":[120]}]}]}"#;
    assert_eq!(String::from_utf8(event(&token)).expect("JSON is UTF-8"), text);
}

#[test]
fn a_body_has_a_limited_number_of_values() {
    let list = |count: usize| format!("{{\"a\":[{}]}}", vec!["1"; count].join(","));
    assert!(body(list(16_000).as_bytes(), 1 << 20).is_ok());
    let refusal = body(list(16_400).as_bytes(), 1 << 20).expect_err("too many");
    assert_eq!(refusal.code, Code::TooLarge);
    let text = format!("{{\"a\":\"{}\\\"{}\"}}", ",".repeat(20_000), "[".repeat(20_000));
    assert!(body(text.as_bytes(), 1 << 20).is_ok(), "text is one value, whatever is in it");
}

#[test]
fn a_question_may_have_an_id_before_or_after_its_key() {
    let id = || Some("a".into());
    assert_eq!(incoming(br#"{"health":true,"id":"a"}"#), Ok(Incoming::Health(id())));
    assert_eq!(incoming(br#"{"id":"a","health":true}"#), Ok(Incoming::Health(id())));
    assert_eq!(incoming(br#"{"id":"a","alerts":true}"#), Ok(Incoming::Alerts(id())));
    assert_eq!(incoming(br#"{"id":"a","telemetry":true}"#), Ok(Incoming::Telemetry(id())));
    assert_eq!(incoming(br#"{"metrics":true,"id":"a"}"#), Ok(Incoming::Metrics(id())));
    assert_eq!(incoming(br#"{"reload":true}"#), Ok(Incoming::Reload(None)));
    assert_eq!(incoming(br#"{"id":"a","reload":true}"#), Ok(Incoming::Reload(id())));
    for (line, message) in [
        (r#"{"health":true,"alerts":true}"#, "health and alerts: ask for one of them at a time"),
        (r#"{"id":"","health":true}"#, "id: empty"),
        (r#"{"reload":false}"#, "reload: false asks for nothing"),
        (r#"{"id":"a","alerts":false}"#, "alerts: false asks for nothing"),
        (r#"{"id":"a","healthy":true}"#, "unknown field `healthy`"),
    ] {
        let refusal = incoming(line.as_bytes()).expect_err(line);
        assert!(refusal.message.contains(message), "{line}: {}", refusal.message);
    }
    let request = incoming(br#"{"id":"a","prompt":"go"}"#).expect("a request");
    assert!(matches!(request, Incoming::Request(request) if request.id == id()));
    let event: serde_json::Value = serde_json::from_slice(&metrics("x", id().as_ref())).expect("JSON");
    assert_eq!(event, serde_json::json!({"event": "metrics", "id": "a", "text": "x"}));
}
