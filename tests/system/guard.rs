//! The guard: what clients may ask, and how often, over each interface.

use crate::daemon::{Client, Daemon, run};
use crate::listener::Listener;
use crate::support::broker::{Mosquitto, free_port};
use crate::{Folder, PATIENCE, linked};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// A prompt that is answered at once.
fn quick() -> Value {
    json!({"prompt": "go", "max_tokens": 1})
}

async fn report(client: &mut Client) -> Value {
    client.ask(json!({"telemetry": true})).await
}

/// The status and the body of a call over TCP.
pub(crate) async fn call(port: u16, token: &str, body: &str) -> (u16, String) {
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let answered = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
        stream.write_all(format!("{head}{body}").as_bytes()).await.expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("text");
        answer
    };
    let answer = timeout(PATIENCE, answered).await.expect("an answer in time");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status.unwrap_or_else(|| panic!("{answer}")), body.to_owned())
}

/// A port with two tokens: `a`, whose holder has the name `kitchen`, and `b`, which has none.
pub(crate) fn http_settings(folder: &Folder, port: u16) -> String {
    let tokens = folder.write("tokens", "kitchen a\nb\n");
    std::fs::set_permissions(&tokens, std::fs::Permissions::from_mode(0o600)).expect("our own");
    format!("[http]\nlisten = \"127.0.0.1:{port}\"\ntoken_file = \"{}\"\n", tokens.display())
}

#[tokio::test]
async fn who_waits_as_long_as_it_was_told_is_admitted_again() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "[guard]\nrequests_per_minute = 2\n").await;
    // Two processes of one user are one client.
    let mut client = daemon.client().await;
    let mut other = daemon.client().await;
    assert_eq!(client.ask(quick()).await["event"], "done");
    assert_eq!(other.ask(quick()).await["event"], "done");
    let refused = client.ask(quick()).await;
    assert_eq!(refused["code"], "rate_limited", "{refused}");
    let ms = refused["retry_after_ms"].as_u64().expect("a time");
    assert!(ms <= 60_000, "{refused}");
    let refused = report(&mut client).await["security"].clone();
    assert_eq!(
        (&refused["refused"]["rate_limited"], &refused["clients"][0]["refused"]["rate_limited"]),
        (&json!(1), &json!(1)),
        "{refused}"
    );
    sleep(Duration::from_millis(ms)).await;
    assert_eq!(client.ask(quick()).await["event"], "done");
}

#[tokio::test]
async fn a_flood_of_the_broker_s_clients_and_of_holders_of_tokens_stops_at_the_limit_of_each() {
    let (folder, broker, port) = (Folder::new(), Mosquitto::start().await, free_port());
    let guard = "[guard]\nrequests_per_minute = 3\n";
    let settings = format!("{}{}{guard}", linked(broker.port), http_settings(&folder, port));
    let daemon = Daemon::start(&folder, &settings).await;
    Listener::hears_online(&broker).await;
    let mut replies = Listener::on(&broker, "bitnetd/cellar/reply/#").await;
    let mut outcomes = std::collections::HashMap::<(String, String), usize>::new();
    let began = Instant::now();
    for number in 0..6 {
        for client in ["hall", "attic"] {
            let request = json!({"id": format!("{client}-{number}"), "prompt": "go", "max_tokens": 1});
            let topic = format!("bitnetd/cellar/prompt/{client}");
            broker.publish(&["-q", "1", "-t", &topic, "-m", &request.to_string()]).await;
        }
    }
    for _ in 0..12 {
        let end = replies.next().await.json();
        let client = end["id"].as_str().and_then(|id| id.split('-').next()).expect("an id").to_owned();
        let outcome = end["code"].as_str().or(end["event"].as_str()).expect("an end").to_owned();
        *outcomes.entry((client, outcome)).or_default() += 1;
    }
    // On a machine so slow that it all took a minute, more are allowed.
    let is_within_a_minute = || began.elapsed() < Duration::from_secs(60);
    for client in ["hall", "attic"] {
        let count = |outcome: &str| outcomes.get(&(client.to_owned(), outcome.to_owned())).copied();
        let (done, limited) = (count("done").unwrap_or(0), count("rate_limited").unwrap_or(0));
        assert!(done >= 3 && done + limited == 6, "{outcomes:?}");
        assert!(done == 3 || !is_within_a_minute(), "{outcomes:?}");
    }
    let body = r#"{"model":"any","messages":[{"role":"user","content":"go"}],"max_tokens":1}"#;
    for token in ["a", "b"] {
        for _ in 0..3 {
            assert_eq!(call(port, token, body).await.0, 200, "{}", daemon.log());
        }
        let (status, text) = call(port, token, body).await;
        assert!(status == 429 && text.contains("rate_limit") || !is_within_a_minute(), "{status} {text}");
    }
    // A reload lifts the limit.
    folder.config(&settings.replace(guard, ""));
    daemon.process.signal(Signal::HUP);
    daemon.says("changed: guard.requests_per_minute").await;
    assert_eq!(call(port, "a", body).await.0, 200);
}

#[tokio::test]
async fn prompts_and_answers_are_as_long_as_allowed_and_no_longer() {
    let (folder, broker, port) = (Folder::new(), Mosquitto::start().await, free_port());
    let guard = "[guard]\nmax_prompt_bytes = 200\nmax_prompt_tokens = 40\nmax_output_tokens = 2\n";
    let settings = format!("{}{}{guard}", linked(broker.port), http_settings(&folder, port));
    let daemon = Daemon::start(&folder, &settings).await;
    Listener::hears_online(&broker).await;
    let mut client = daemon.client().await;
    let spoken = |bytes: usize| json!({"prompt": "go ".repeat(bytes / 3), "cache": false});
    let refused = client.ask(spoken(201)).await;
    assert_eq!(refused["code"], "too_large", "{refused}");
    assert!(refused["message"].as_str().is_some_and(|text| text.contains("201 bytes")), "{refused}");
    let refused = client.ask(spoken(198)).await;
    assert_eq!(refused["code"], "too_large", "{refused}");
    assert!(
        refused["message"].as_str().is_some_and(|text| text.contains(" tokens, and a client may send 40")),
        "{refused}"
    );
    for wanted in [json!({}), json!({"max_tokens": 50})] {
        let mut request = json!({"prompt": "turn on the light", "cache": false});
        request.as_object_mut().expect("an object").extend(wanted.as_object().expect("an object").clone());
        let done = client.ask(request).await;
        assert_eq!(
            (&done["finish_reason"], &done["usage"]["completion_tokens"]),
            (&json!("length"), &json!(2)),
            "{done}"
        );
    }
    let mut replies = Listener::on(&broker, "bitnetd/cellar/reply/#").await;
    broker.publish(&["-q", "1", "-t", "bitnetd/cellar/prompt/hall", "-m", &"x".repeat(201)]).await;
    assert_eq!(replies.next().await.json()["code"], "too_large");
    let long = json!({"model": "any", "messages": [{"role": "user", "content": "x".repeat(201)}]});
    let (status, text) = call(port, "a", &long.to_string()).await;
    assert!(status == 413 && text.contains("201 bytes"), "{status} {text}");
    let security = report(&mut client).await["security"]["refused"].clone();
    assert_eq!((&security["prompt_bytes"], &security["prompt_tokens"]), (&json!(3), &json!(1)), "{security}");
}

#[tokio::test]
async fn control_characters_are_removed_or_refused() {
    let folder = Folder::new();
    let settings = |value: &str| format!("[guard]\ncontrol_characters = \"{value}\"\n");
    let daemon = Daemon::start(&folder, &settings("remove")).await;
    let mut client = daemon.client().await;
    let plain = client.ask(json!({"prompt": "turn on\tthe\r\nlight", "cache": false})).await;
    let hidden = client.ask(json!({"prompt": "\u{7}turn \u{1b}on\tthe\r\n\u{0}light", "cache": false})).await;
    assert_eq!((&plain["event"], &plain["text"]), (&json!("done"), &hidden["text"]));
    assert_eq!(plain["usage"], hidden["usage"]);
    folder.config(&settings("refuse"));
    daemon.process.signal(Signal::HUP);
    daemon.says("changed: guard.control_characters").await;
    let refused = client.ask(json!({"prompt": "turn \u{1b}on the light"})).await;
    assert_eq!(refused["code"], "invalid_request", "{refused}");
    assert!(refused["message"].as_str().is_some_and(|text| text.contains("U+001B at byte 5")), "{refused}");
    assert_eq!(client.ask(json!({"prompt": "turn on\tthe\r\nlight"})).await["event"], "done");
}

/// The settings of a filter with these patterns.
fn filter_settings(folder: &Folder, patterns: &str) -> String {
    let file = folder.write("filter", patterns);
    format!("[guard]\nfilter_file = \"{}\"\n", file.display())
}

#[tokio::test]
async fn a_prompt_with_a_forbidden_text_is_refused_over_every_interface_until_a_reload_allows_it() {
    let (folder, broker, port) = (Folder::new(), Mosquitto::start().await, free_port());
    let guard = filter_settings(&folder, "# none of these\nbad word\n/[0-9]{8}/\n");
    let settings = format!("{}{}{guard}", linked(broker.port), http_settings(&folder, port));
    let daemon = Daemon::start(&folder, &settings).await;
    Listener::hears_online(&broker).await;
    let mut client = daemon.client().await;
    let message = |content: &str| json!({"role": "user", "content": content});
    for request in [
        json!({"prompt": "a BAD word"}),
        json!({"prompt": "call 12345678"}),
        json!({"messages": [message("bad word"), message("go")]}),
        json!({"prompt": "go", "tools": [{"type": "function", "function": {"name": "f", "description": "bad word"}}]}),
    ] {
        let refused = client.ask(request.clone()).await;
        assert_eq!(refused["code"], "content_filtered", "{request}: {refused}");
        assert!(!refused.to_string().contains("bad word"), "{refused}");
    }
    let mut replies = Listener::on(&broker, "bitnetd/cellar/reply/#").await;
    broker.publish(&["-q", "1", "-t", "bitnetd/cellar/prompt/hall", "-m", "a bad word"]).await;
    assert_eq!(replies.next().await.json()["code"], "content_filtered");
    let asked = json!({"model": "any", "messages": [message("a bad word")]});
    let (status, text) = call(port, "a", &asked.to_string()).await;
    assert!(status == 400 && text.contains("content_policy_violation"), "{status} {text}");
    assert_eq!(report(&mut client).await["security"]["refused"]["content_filtered"], 6);
    // A file with an error changes nothing; one without the pattern allows the prompt.
    folder.write("filter", "fine\n/(/\n");
    daemon.process.signal(Signal::HUP);
    daemon.says("the filter stays as it was: ").await;
    daemon.says("filter:2: is no regular expression: unclosed group").await;
    assert_eq!(client.ask(json!({"prompt": "a bad word"})).await["code"], "content_filtered");
    let file = folder.path("bitnetd.toml").display().to_string();
    let checked = run(&["check-config", &file]).await;
    assert_eq!(checked.code, Some(2), "{checked:?}");
    assert!(checked.error_line().contains("filter:2: is no regular expression"), "{checked:?}");
    folder.write("filter", "fine\n");
    assert_eq!(run(&["check-config", &file]).await.code, Some(0));
    daemon.process.signal(Signal::HUP);
    let allowed = async {
        while client.ask(json!({"prompt": "a bad word", "max_tokens": 1})).await["event"] != "done" {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, allowed).await.expect("the new filter in time");
}

#[tokio::test]
async fn a_forbidden_answer_is_refused_before_any_of_the_forbidden_text_is_streamed() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut client = daemon.client().await;
    let asked =
        |id: &str, stream: bool| json!({"id": id, "prompt": "turn on the kitchen light", "stream": stream});
    let text = client.ask(asked("free", false)).await["text"].as_str().expect("an answer").to_owned();
    // From the middle of the answer almost to its end, so that it takes several tokens.
    let (begin, end) = (text.floor_char_boundary(text.len() / 3), text.floor_char_boundary(text.len() - 2));
    let forbidden = &text[begin..end];
    assert!(forbidden.len() > 8, "{text:?}");
    folder.config(&filter_settings(&folder, &format!("{forbidden}\n")));
    daemon.process.signal(Signal::HUP);
    daemon.says("changed: guard.filter_file").await;
    for (id, is_streamed, cache) in
        [("cached", false, true), ("whole", false, false), ("streamed", true, false)]
    {
        let mut request = asked(id, is_streamed);
        request["cache"] = cache.into();
        client.request(&[request]).await;
        let mut streamed = String::new();
        let refused = loop {
            let event = client.event().await;
            match event["text"].as_str().filter(|_| event["event"] == "token") {
                Some(piece) => streamed.push_str(piece),
                None => break event,
            }
        };
        assert_eq!(refused["code"], "response_filtered", "{id}: {refused}");
        assert!(text[..begin].starts_with(&streamed), "{id}: {streamed:?} of {text:?}");
    }
    assert_eq!(report(&mut client).await["security"]["refused"]["response_filtered"], 3);
    // What could have become a match, and did not, comes with the end.
    let almost = format!("{forbidden}\u{1}");
    folder.config(&filter_settings(&folder, &format!("{almost}\n")));
    daemon.process.signal(Signal::HUP);
    daemon.says("configuration read again; nothing has changed").await;
    let mut request = asked("almost", true);
    request["cache"] = false.into();
    client.request(&[request]).await;
    let mut streamed = String::new();
    let done = loop {
        let event = client.event().await;
        match event["text"].as_str().filter(|_| event["event"] == "token") {
            Some(piece) => streamed.push_str(piece),
            None => break event,
        }
    };
    assert_eq!((&done["event"], done["text"].as_str()), (&json!("done"), Some(streamed.as_str())), "{done}");
}

#[tokio::test]
async fn a_client_appears_as_the_same_eight_characters_after_a_restart_until_its_name_is_wanted() {
    let (folder, broker) = (Folder::new(), Mosquitto::start().await);
    let settings = linked(broker.port);
    let mut names = Vec::new();
    for _ in 0..2 {
        let daemon = Daemon::start(&folder, &settings).await;
        Listener::hears_online(&broker).await;
        let mut replies = Listener::on(&broker, "bitnetd/cellar/reply/#").await;
        broker.publish(&["-q", "1", "-t", "bitnetd/cellar/prompt/kitchen", "-m", "go"]).await;
        assert_eq!(replies.next().await.json()["event"], "done");
        let waiting = report(&mut daemon.client().await).await["waiting"].clone();
        names.push(waiting[0]["client"].as_str().unwrap_or_else(|| panic!("{waiting}")).to_owned());
        daemon.says(&format!("CLIENT={}", names[0])).await;
        assert!(!daemon.log().contains("kitchen"), "{}", daemon.log());
        daemon.stop().await;
    }
    assert_eq!(names[0], names[1]);
    assert!(names[0].len() == 8 && names[0].bytes().all(|digit| digit.is_ascii_hexdigit()), "{names:?}");
    let key = std::fs::metadata(folder.path("state").join("client-key")).expect("the key");
    assert_eq!((key.len(), key.permissions().mode() & 0o777), (32, 0o600));
    let daemon = Daemon::start(&folder, &format!("{settings}[guard]\nclear_ids = true\n")).await;
    Listener::hears_online(&broker).await;
    broker.publish(&["-q", "1", "-t", "bitnetd/cellar/prompt/kitchen", "-m", "stop"]).await;
    daemon.says("mqtt:kitchen").await;
}

#[tokio::test]
async fn a_reload_whose_filter_has_no_place_in_the_memory_plan_keeps_the_filter() {
    let folder = Folder::new();
    let few = filter_settings(&folder, "bad word\n");
    // The smallest budget with which it starts leaves nothing besides the plan.
    folder.config(&format!("{few}[budget]\nmemory_mb = 8\nparallel = 1\n"));
    let file = folder.path("bitnetd.toml").display().to_string();
    let refused =
        run(&["serve", "--config", &file, "--socket", &folder.path("s").display().to_string()]).await;
    let allow = refused.error_line().split("; allow ").nth(1).unwrap_or_else(|| panic!("{refused:?}"));
    let least: usize =
        allow.split(|c: char| !c.is_ascii_digit()).next().and_then(|mb| mb.parse().ok()).expect("MiB");
    let settings = format!("{few}[budget]\nmemory_mb = {least}\nparallel = 1\n");
    let daemon = Daemon::start(&folder, &settings).await;
    let mut client = daemon.client().await;
    folder.write("filter", "mad word\n");
    daemon.process.signal(Signal::HUP);
    let changed = async {
        while client.ask(json!({"prompt": "a mad word", "max_tokens": 1})).await["event"] != "error" {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, changed).await.expect("a filter of the same size has a place");
    let many: String = (0..1500).map(|word| format!("word {word} and some more of it\n")).collect();
    folder.write("filter", &many);
    daemon.process.signal(Signal::HUP);
    daemon.says("and the memory plan has ").await;
    daemon.says("\"reason\":\"filter_kept\"").await;
    let refused = client.ask(json!({"prompt": "a mad word"})).await;
    assert_eq!(refused["code"], "content_filtered", "{refused}");
}
