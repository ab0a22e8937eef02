//! Requests, events, and lines that are neither.

use super::{SocketServer, TIMEOUT};
use bitnetd::protocol::json::MAX_REQUEST;
use bitnetd::transport::BacklogPolicy;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::MetadataExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

#[tokio::test]
async fn a_request_line_gives_tokens_and_one_done() {
    let context = SocketServer::open();
    let mut client = context.client().await;
    client.ask("a", "hello there").await;
    let token = client.event().await.expect("a token");
    assert_eq!(token, json!({"event": "token", "id": "a", "text": "hello "}));
    assert_eq!(client.event().await.expect("a token")["text"], "there");
    let done = client.event().await.expect("the end");
    assert_eq!((&done["event"], &done["text"]), (&json!("done"), &json!("hello there")));
    let uid = fs::metadata(&context.path).expect("it is there").uid();
    assert_eq!(context.seen(0).expect("one request").client, format!("unix:uid={uid}"));
    context.shut().await;
}

#[tokio::test]
async fn several_requests_in_flight_are_distinguished_by_id() {
    let context = SocketServer::open();
    let mut client = context.client().await;
    client.ask("slow", "hang").await;
    for id in ["a", "b", "c"] {
        client.ask(id, "one two three").await;
    }
    let mut texts = std::collections::HashMap::<String, String>::new();
    for _ in 0..12 {
        let event = client.event().await.expect("nine tokens, three ends");
        let text = texts.entry(event["id"].as_str().expect("an id").into()).or_default();
        match event["event"].as_str() {
            Some("token") => text.push_str(event["text"].as_str().expect("text")),
            _ => assert_eq!(event["text"], text.as_str()),
        }
    }
    assert_eq!(texts.len(), 3);
    client.send("{\"cancel\":\"slow\"}\n").await;
    assert_eq!(client.end().await["finish_reason"], "cancelled");
}

#[tokio::test]
async fn an_id_that_is_a_number_comes_back_as_it_came() {
    let context = SocketServer::open();
    let mut client = context.client().await;
    client.send("{\"id\":1732.0,\"prompt\":\"one two\",\"stream\":true}\n").await;
    assert_eq!(client.end().await["id"], json!(1732.0));
    client.send("{\"id\":5,\"prompt\":\"hang\"}\n{\"id\":\"5\",\"prompt\":\"x\"}\n").await;
    let refused = client.end().await;
    assert!(
        refused["message"].as_str().is_some_and(|text| text.starts_with("id: \"5\" is in flight")),
        "{refused}"
    );
    client.send("{\"id\":5,\"promt\":\"x\"}\n").await;
    assert_eq!(client.end().await["id"], Value::Null, "one of that id is in flight");
    client.send("{\"cancel\":5}\n").await;
    let end = client.end().await;
    assert_eq!((&end["id"], &end["finish_reason"]), (&json!(5), &json!("cancelled")));
    client.send("{\"id\":6,\"promt\":\"x\"}\n").await;
    assert_eq!(client.end().await["id"], 6);
    context.shut().await;
}

#[tokio::test]
async fn ids_are_made_where_none_came_and_none_is_made_twice() {
    let context = SocketServer::open();
    let mut client = context.client().await;
    // The first id that would be made, taken by the client beforehand.
    client.ask("u1-1", "hang").await;
    client.send("{\"prompt\":\"x\"}\n{\"prompt\":\"y\"}\n").await;
    let (first, second) = (client.end().await, client.end().await);
    assert_ne!(first["id"], second["id"]);
    assert_ne!(first["id"], "u1-1");
    assert!(first["id"].as_str().is_some_and(|id| id.starts_with("u1-")), "{first}");
}

#[tokio::test]
async fn an_id_that_is_in_flight_is_refused_and_free_after_its_end() {
    let context = SocketServer::open();
    let mut client = context.client().await;
    client.ask("a", "hang").await;
    client.ask("a", "again").await;
    // Without the id: it would look like the end of the first.
    client.assert_error(Value::Null, "invalid_request").await;
    client.send("{\"cancel\":\"a\"}\n").await;
    assert_eq!(client.end().await["finish_reason"], "cancelled");
    client.ask("a", "again").await;
    assert_eq!(client.end().await["text"], "again");
    let mut other = context.client().await;
    client.ask("b", "hang").await;
    other.ask("b", "another connection").await;
    assert_eq!(other.end().await["text"], "another connection");
}

#[tokio::test]
async fn what_is_no_request_gets_an_error_and_the_connection_stays_open() {
    let context = SocketServer::open();
    let mut client = context.client().await;
    let bad: [&[u8]; 7] =
        [b"hello", b"{", b"[]", b"\xff\xfe{}", b"\0", b"{\"prompt\":\"a\0b\"}", b"{\"prompt\":1}"];
    for line in bad {
        client.send(line).await;
        client.send("\n").await;
        client.assert_error(Value::Null, "invalid_request").await;
    }
    client.send("{\"id\":\"k\",\"prompt\":\"x\",\"temprature\":1}\n").await;
    client.assert_error(json!("k"), "invalid_request").await;
    client.send("\n\r\n\n").await;
    client.assert_serves().await;
}

#[tokio::test]
async fn cancelling_what_is_not_there_is_an_error_and_ends_no_request() {
    let context = SocketServer::open();
    let mut client = context.client().await;
    let mut other = context.client().await;
    other.ask("a", "hang").await;
    context.wait_for(0).await;
    client.send("{\"cancel\":\"a\"}\n").await;
    client.assert_error(Value::Null, "invalid_request").await;
    assert!(!context.seen(0).expect("seen").cancel.is_raised());
}

#[tokio::test]
async fn a_request_may_come_byte_by_byte() {
    let context = SocketServer::open();
    let mut client = context.client().await;
    for byte in b"{\"id\":\"a\",\"prompt\":\"gr\xc3\xbc\xc3\x9f dich\"}\r\n" {
        client.send([*byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(client.end().await["text"], "grüß dich");
}

#[tokio::test]
async fn a_line_of_one_megabyte_is_too_large_and_the_next_is_served() {
    let context = SocketServer::open();
    let mut client = context.client().await;
    client.send(vec![b'x'; 1 << 20]).await;
    client.assert_error(Value::Null, "too_large").await;
    client.send("x\n").await;
    client.assert_serves().await;
    let longest = format!("{{\"id\":\"a\",\"prompt\":\"{}\"}}\n", "y".repeat(MAX_REQUEST - 22));
    assert_eq!(longest.len(), MAX_REQUEST + 1);
    client.send(longest).await;
    assert_eq!(client.end().await["event"], "done");
}

#[tokio::test]
async fn a_client_that_speaks_http_gets_an_http_answer() {
    let context = SocketServer::open();
    let mut stream = UnixStream::connect(&context.path).await.expect("somebody listens");
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 100000\r\n\r\n{}",
        "y".repeat(100_000)
    );
    stream.write_all(request.as_bytes()).await.expect("read to its end");
    let mut answer = String::new();
    let read = timeout(TIMEOUT, stream.read_to_string(&mut answer)).await;
    read.expect("in time").expect("closed, not reset");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{answer}");
    let error: Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(error["error"]["type"], "invalid_request_error", "{body}");
}

/// What the socket answers to these bytes, up to the end of the connection.
async fn answer_to(context: &SocketServer, request: &str) -> String {
    let mut stream = UnixStream::connect(&context.path).await.expect("somebody listens");
    stream.write_all(request.as_bytes()).await.expect("read");
    let mut answer = String::new();
    let read = timeout(TIMEOUT, stream.read_to_string(&mut answer)).await;
    read.expect("in time").expect("closed, not reset");
    answer
}

#[tokio::test]
async fn metrics_and_health_are_pages_for_whoever_speaks_http() {
    let context = SocketServer::open();
    let metrics = answer_to(&context, "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n").await;
    let (head, body) = metrics.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    assert!(body.contains("\nbitnetd_requests_received_total 0\n"), "{body}");
    let head_only = answer_to(&context, "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(head_only.ends_with("\r\n\r\n") && head_only.starts_with("HTTP/1.1 200 "), "{head_only}");
    let well = answer_to(&context, "GET /health HTTP/1.0\r\n\r\n").await;
    let ready = "\r\n\r\n{\"status\":\"ok\",\"state\":\"ready\",\"reasons\":[],\"time\":\"";
    assert!(well.starts_with("HTTP/1.0 200 ") && well.contains(ready), "{well}");
    assert!(well.contains("\"queue\":{\"waiting\":0,"), "{well}");
    assert!(answer_to(&context, "GET /nowhere HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 404 "));
    assert!(answer_to(&context, "DELETE /health HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 405 "));
    context.draining.cancel();
    let ill = answer_to(&context, "GET /health HTTP/1.1\r\n\r\n").await;
    assert!(ill.starts_with("HTTP/1.1 503 ") && ill.contains("\"state\":\"draining\""), "{ill}");
}

#[tokio::test]
async fn metrics_come_as_one_event_between_others() {
    let context = SocketServer::open();
    let mut client = context.client().await;
    client.send("{\"metrics\":true}\n{\"telemetry\":true}\n{\"metrics\":false}\n{\"metrics\":true}\n").await;
    let metrics = client.event().await.expect("an event");
    let text = metrics["text"].as_str().expect("a text");
    assert_eq!(metrics["event"], "metrics");
    assert!(text.starts_with("# HELP ") && text.ends_with('\n'), "{text}");
    assert_eq!(client.event().await.expect("an event")["event"], "telemetry");
    assert_eq!(client.event().await.expect("an event")["code"], "invalid_request");
    assert_eq!(client.event().await.expect("an event")["event"], "metrics");
}

#[tokio::test]
async fn a_client_that_asks_for_metrics_and_reads_none_is_asked_no_more() {
    let context = SocketServer::open();
    let mut stream = UnixStream::connect(&context.path).await.expect("somebody listens");
    let asked = "{\"metrics\":true}\n".repeat(20_000);
    // What is not read is not answered, so the socket's buffer fills up.
    let written = timeout(std::time::Duration::from_secs(2), stream.write_all(asked.as_bytes())).await;
    assert!(written.is_err(), "all was taken in");
    assert!(
        answer_to(&context, "GET /health HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 200 "),
        "others are served"
    );
}

#[tokio::test]
async fn while_the_model_loads_the_state_is_told_and_requests_wait() {
    let context = SocketServer::loading(BacklogPolicy::Refuse);
    let (mut client, mut watcher) = (context.client().await, context.client().await);
    client.ask("early", "patience").await;
    watcher.send("{\"health\":true}\n").await;
    let health = watcher.event().await.expect("the state");
    assert_eq!((&health["event"], &health["state"]), (&json!("health"), &json!("loading")), "{health}");
    assert!(context.seen(0).is_none());
    context.loaded.cancel();
    assert_eq!(client.end().await["text"], "patience");
    watcher.send("{\"health\":false}\n{\"health\":true}\n").await;
    assert_eq!(watcher.event().await.expect("a refusal")["code"], "invalid_request");
    assert_eq!(watcher.event().await.expect("the state")["state"], "ready");
    context.draining.cancel();
    watcher.send("{\"health\":true}\n").await;
    assert_eq!(watcher.event().await.expect("the state")["state"], "draining");
    context.shut().await;
}
