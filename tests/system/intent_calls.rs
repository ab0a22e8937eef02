//! Functions with the names of intents, which the built-in model calls: over Ollama's API as Home Assistant sends them, over
//! OpenAI's, and in requests of our own.

use crate::daemon::{Client, Daemon, is_emulated};
use crate::{Folder, PATIENCE, data};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

const NOT_UNDERSTOOD: &str = "Sorry, I did not understand that.";
const NO_COMMAND: &str = "what is the capital of france";
const NOT_POSSIBLE: &str = "I cannot do that.";

/// The call of Home Assistant's Ollama integration that offers tools, as it was recorded.
fn recorded() -> Value {
    with_tools("home-assistant/ollama.jsonl")
}

fn with_tools(file: &str) -> Value {
    let text = std::fs::read_to_string(data(file)).expect("recorded");
    let calls = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let bodies = calls.filter_map(|call| serde_json::from_str::<Value>(call["body"].as_str()?).ok());
    let mut with_tools =
        bodies.filter(|body| body["tools"].as_array().is_some_and(|tools| !tools.is_empty()));
    with_tools.next().expect("a call with tools")
}

/// The body of the answer to a call over HTTP.
pub async fn post(daemon: &Daemon, path: &str, body: &Value) -> String {
    let body = body.to_string();
    let call = format!(
        "POST {path} HTTP/1.0\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let exchange = async {
        let mut stream = UnixStream::connect(&daemon.socket).await.expect("it listens");
        stream.write_all(call.as_bytes()).await.expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers");
        answer
    };
    let answer = timeout(PATIENCE, exchange).await.expect("in time");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a header and a body");
    assert!(head.starts_with("HTTP/1.") && head.contains(" 200 "), "{answer}");
    body.to_owned()
}

/// The text and the calls of a streamed answer of Ollama's API.
async fn chat(daemon: &Daemon, body: &Value) -> (String, Vec<Value>) {
    let answer = post(daemon, "/api/chat", body).await;
    let (mut text, mut calls) = (String::new(), Vec::new());
    for line in answer.lines() {
        let part: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {answer}"));
        text += part["message"]["content"].as_str().unwrap_or_default();
        calls.extend(part["message"]["tool_calls"].as_array().into_iter().flatten().cloned());
    }
    (text, calls)
}

/// A request of our own with the functions of Home Assistant.
async fn ask(client: &mut Client, prompt: &str, keys: Value) -> Value {
    let mut request = json!({"prompt": prompt, "tools": recorded()["tools"]});
    request.as_object_mut().expect("keys").extend(keys.as_object().expect("keys").clone());
    client.ask(request).await
}

/// The function that was called, and its arguments.
fn call(done: &Value) -> (&str, &Value) {
    let calls = done["tool_calls"].as_array().unwrap_or_else(|| panic!("no call: {done}"));
    assert_eq!(
        (calls.len(), &done["text"], &done["finish_reason"]),
        (1, &json!(""), &json!("stop")),
        "{done}"
    );
    (calls[0]["function"]["name"].as_str().expect("a name"), &calls[0]["function"]["arguments"])
}

#[tokio::test]
async fn home_assistant_s_sentence_is_answered_by_a_call_and_the_result_by_a_sentence() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut body = recorded();
    let (text, calls) = chat(&daemon, &body).await;
    assert_eq!((text.as_str(), calls.len()), ("", 1), "{calls:?}");
    // As Home Assistant's own instructions write the area.
    let expected = json!({"domain": ["light"], "area": "Kitchen"});
    assert_eq!(
        (&calls[0]["function"]["name"], &calls[0]["function"]["arguments"]),
        (&json!("HassTurnOn"), &expected)
    );
    // What Home Assistant then sent, and what it sends if all went well and if not.
    let result = with_tools("home-assistant/ollama-result.jsonl");
    assert_eq!(chat(&daemon, &result).await, ("Done.".to_owned(), vec![]));
    let messages = body["messages"].as_array_mut().expect("a list");
    messages.push(json!({"role": "assistant", "content": "", "tool_calls": calls}));
    messages.push(Value::Null);
    for (result, sentence) in [
        (json!({"speech": {}, "response_type": "action_done", "data": {"failed": []}}), "Done."),
        (
            json!({"error": "MatchFailedError", "error_text": "<MatchFailedError result=(1)>"}),
            "That did not work: there is no such device or area.",
        ),
    ] {
        let messages = body["messages"].as_array_mut().expect("a list");
        let result = json!({"role": "tool", "content": result.to_string()});
        *messages.last_mut().expect("the result") = result;
        assert_eq!(chat(&daemon, &body).await, (sentence.to_owned(), vec![]));
    }
    // The next sentence of the same conversation.
    let messages = body["messages"].as_array_mut().expect("a list");
    messages.push(json!({"role": "assistant", "content": "Done."}));
    messages.push(json!({"role": "user", "content": "turn off the kitchen lights"}));
    let (_, calls) = chat(&daemon, &body).await;
    assert_eq!(calls[0]["function"]["name"], "HassTurnOff", "{calls:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn openai_s_api_gets_the_same_call() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let messages = json!([{"role": "system", "content": "x ".repeat(2000)}, {"role": "user", "content": "turn on the kitchen lights"}]);
    let body = json!({"model": "any", "messages": messages, "tools": recorded()["tools"]});
    let answer: Value =
        serde_json::from_str(&post(&daemon, "/v1/chat/completions", &body).await).expect("JSON");
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
    let function = &choice["message"]["tool_calls"][0]["function"];
    assert_eq!(function["name"], "HassTurnOn", "{answer}");
    let arguments: Value = serde_json::from_str(function["arguments"].as_str().expect("text")).expect("JSON");
    assert_eq!(arguments, json!({"domain": ["light"], "area": "kitchen"}));
    daemon.stop().await;
}

#[tokio::test]
async fn sentences_become_calls_of_what_is_offered_and_of_nothing_else() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut client = daemon.client().await;
    let done = ask(&mut client, "set kitchen brightness to 50", json!({"stream": true})).await;
    let expected = json!({"domain": ["light"], "area": "kitchen", "brightness": 50});
    assert_eq!(call(&done), ("HassLightSet", &expected));
    let done = ask(&mut client, "add milk to the shopping list", json!({})).await;
    assert_eq!(call(&done), ("HassListAddItem", &json!({"item": "milk", "name": "shopping list"})));
    for (prompt, sentence) in [(NO_COMMAND, NOT_UNDERSTOOD), ("start the vacuum", NOT_POSSIBLE)] {
        let done = ask(&mut client, prompt, json!({})).await;
        assert_eq!((&done["text"], &done["tool_calls"]), (&json!(sentence), &Value::Null), "{prompt}");
        assert_eq!(done["finish_reason"], "stop");
    }
    // The same for each of several answers, and streamed.
    client
        .request(&[json!({"prompt": NO_COMMAND, "tools": recorded()["tools"], "n": 2, "stream": true})])
        .await;
    for index in 0..2 {
        let token = client.event().await;
        assert_eq!((&token["text"], &token["index"]), (&json!(NOT_UNDERSTOOD), &json!(index)), "{token}");
    }
    client.end().await;
    // An answer that is cut is none.
    let done = ask(&mut client, "turn on the kitchen lights", json!({"max_tokens": 3})).await;
    assert_eq!((&done["text"], &done["finish_reason"]), (&json!(""), &json!("length")), "{done}");
    daemon.stop().await;
}

#[tokio::test]
async fn sentences_that_are_no_command_call_nothing_over_ollama_s_api() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/intents/nothing.txt");
    let sentences = std::fs::read_to_string(file).expect("the sentences");
    let mut body = recorded();
    let (mut count, mut not_understood, mut called) = (0, 0, Vec::new());
    // Each takes some ten milliseconds, and far longer under emulation.
    for sentence in sentences.lines().step_by(if is_emulated() { 7 } else { 1 }) {
        let last =
            body["messages"].as_array_mut().and_then(|messages| messages.last_mut()).expect("a message");
        last["content"] = json!(sentence);
        let (text, calls) = chat(&daemon, &body).await;
        count += 1;
        match calls.first() {
            // An intent for which no function is offered.
            None if text == "I cannot do that." => {}
            None => {
                assert_eq!(text, NOT_UNDERSTOOD, "{sentence}");
                not_understood += 1;
            }
            Some(call) => called.push(format!("{sentence}: {call}")),
        }
    }
    let report = daemon.client().await.ask(json!({"telemetry": true})).await;
    assert_eq!(report["structured_output"]["nothing_fits"], not_understood, "{report}");
    println!("{} of {count} called something: {called:#?}", called.len());
    assert!(called.len() * 20 <= count, "more than 5 % called something: {called:#?}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_required_call_is_one_of_the_functions_or_refused() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut client = daemon.client().await;
    let named = |name: &str| json!({"tool_choice": {"type": "function", "function": {"name": name}}});
    let done = ask(&mut client, "turn on the kitchen lights", json!({"tool_choice": "required"})).await;
    assert_eq!(call(&done).0, "HassTurnOn");
    let done = ask(&mut client, "turn on the kitchen lights", named("HassTurnOff")).await;
    assert_eq!(call(&done).0, "HassTurnOff");
    // Without a list in the sentence there is nothing that the required slots could be.
    let refused = ask(&mut client, "", named("HassListAddItem")).await;
    assert_eq!(
        (&refused["code"], &refused["event"]),
        (&json!("invalid_request"), &json!("error")),
        "{refused}"
    );
    let messages = json!([
        {"role": "user", "content": "turn on the kitchen lights"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "HassTurnOn", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "{}"}
    ]);
    let request = json!({"messages": messages, "tools": recorded()["tools"], "tool_choice": "required"});
    let refused = client.ask(request).await;
    assert!(refused["message"].as_str().is_some_and(|text| text.starts_with("tool_choice: ")), "{refused}");
    // Without functions to call the answer is the intent, as ever.
    let done = ask(&mut client, "turn on the kitchen lights", json!({"tool_choice": "none"})).await;
    assert!(done["text"].as_str().is_some_and(|text| text.contains("\"HassTurnOn\"")), "{done}");
    daemon.stop().await;
}

#[tokio::test]
async fn calls_have_the_names_of_the_home_where_there_are_some() {
    let folder = Folder::new();
    let names = folder.path("home.toml");
    std::fs::write(
        &names,
        "[[devices]]\nname = \"Wall Lamp\"\ndomain = \"light\"\naliases = [\"reading light\"]\n",
    )
    .expect("a temporary folder");
    let settings = format!("[home]\nenabled = true\nfile = {:?}\n", names.display().to_string());
    let daemon = Daemon::start(&folder, &settings).await;
    let mut client = daemon.client().await;
    let done = ask(&mut client, "turn on the reading light", json!({})).await;
    assert_eq!(call(&done).1["name"], "Wall Lamp", "{done}");
    let done = ask(&mut client, "turn on the garden pump", json!({})).await;
    assert_eq!(done["text"], NOT_UNDERSTOOD, "{done}");
    daemon.stop().await;
}
