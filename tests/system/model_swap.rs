//! Another model in the place of the running one, without a restart, and the fallback for one that cannot be used.

use crate::daemon::{Client, Daemon, bitnetd};
use crate::listener::Listener;
use crate::support::broker::Mosquitto;
use crate::systemd::Manager;
use crate::{Folder, data, endless, linked, until};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

const TINY: &str = "reference/b158-tiny.i2_s.gguf";
const LLAMA: &str = "reference/llama-tiny.i2_s.gguf";

fn with_model(path: &Path, rest: &str) -> String {
    format!("[model]\npath = \"{}\"\n{rest}", path.display())
}

/// The event that a reload over the socket ends with.
async fn reload(client: &mut Client) -> Value {
    let report = client.ask(json!({"reload": true, "id": "r"})).await;
    assert_eq!((&report["event"], &report["id"]), (&json!("reload"), &json!("r")), "{report}");
    report
}

async fn short(client: &mut Client) -> Value {
    let done = client.ask(json!({"prompt": "go", "max_tokens": 3})).await;
    assert_eq!(done["event"], "done", "{done}");
    done
}

/// The name that the interface of OpenAI gives to the model, over the socket.
async fn listed(daemon: &Daemon) -> Value {
    let mut stream = tokio::net::UnixStream::connect(&daemon.socket).await.expect("somebody listens");
    let request = b"GET /api/tags HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stream, request).await.expect("it reads");
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer).await.expect("UTF-8");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
    let tags: Value = serde_json::from_str(body).expect("JSON");
    tags["models"][0]["details"]["family"].clone()
}

#[tokio::test]
async fn a_reload_loads_another_model_and_requests_go_on_or_wait() {
    let (folder, broker) = (Folder::new(), Mosquitto::start().await);
    let daemon = Daemon::start(&folder, &format!("{}{}", endless(), linked(broker.port))).await;
    let mut info = Listener::on(&broker, "bitnetd/cellar/info").await;
    let mut description = Listener::on(&broker, "homeassistant/device/bitnetd_cellar/config").await;
    let before = info.next().await.json();
    let (mut busy, mut waits, mut root) =
        (daemon.client().await, daemon.client().await, daemon.client().await);
    assert_eq!(listed(&daemon).await, "bitnet-b1.58");
    let first = short(&mut busy).await;

    busy.keep_busy().await;
    folder.config(&format!("{}{}", with_model(&data(LLAMA), ""), linked(broker.port)));
    daemon.process.signal(Signal::HUP);
    daemon.says("loads the model for: model.path, model.context").await;
    daemon.says("in the place of the running model").await;
    // It waits for the other model, while the first goes on with what it has begun.
    waits.request(&[json!({"id": "w", "prompt": "go", "max_tokens": 3})]).await;
    root.request(&[json!({"reload": true, "id": "r"})]).await;
    busy.cancel_busy().await;
    let cancelled = busy.end().await;
    assert_eq!((&cancelled["event"], &cancelled["finish_reason"]), (&json!("done"), &json!("cancelled")));
    assert_eq!(cancelled["model"], first["model"]);

    let done = waits.end().await;
    assert_eq!((&done["event"], &done["id"]), (&json!("done"), &json!("w")), "{done}");
    assert_ne!(done["model"], first["model"]);
    assert_eq!(listed(&daemon).await, "llama");
    let after = info.wait(|message| message.json() != before).await.json();
    assert_eq!((&after["model"], &after["architecture"]), (&done["model"], &json!("llama")));
    let device = |message: &Value| message["device"]["model"].clone();
    description.wait(|message| device(&message.json()) == done["model"]).await;
    // The second request to reload came while the first was under way, and found nothing to change.
    let report = root.end().await;
    assert_eq!((&report["outcome"], &report["changed"]), (&json!("applied"), &json!([])), "{report}");
    assert_eq!((&report["model"], &report["problem"]), (&done["model"], &Value::Null));
    assert_eq!(root.ask(json!({"health": true})).await["model"], done["model"]);
    daemon.stop().await;
}

#[tokio::test]
async fn a_model_that_cannot_be_used_leaves_the_running_one_in_its_place() {
    let folder = Folder::new();
    let small = "[budget]\nthreads = 1\nmemory_mb = 200\n";
    let daemon = Daemon::start(&folder, &with_model(&data(TINY), small)).await;
    let mut client = daemon.client().await;
    let first = short(&mut client).await;
    let broken = folder.write("broken.gguf", "GGUF, or not");
    for (path, reason) in [(folder.path("missing.gguf"), "No such file"), (broken.clone(), "broken.gguf")] {
        folder.config(&with_model(&path, &format!("{small}[queue]\ntimeout_ms = 90000\n")));
        let report = reload(&mut client).await;
        assert_eq!(report["outcome"], "model_kept", "{report}");
        let problem = report["problem"].as_str().expect("a problem");
        assert!(problem.starts_with("the model stays as it was: ") && problem.contains(reason), "{report}");
        daemon.says(problem).await;
        assert_eq!(short(&mut client).await["model"], first["model"]);
    }
    // Other lines of the connection are read while a reload is under way, and a second one is not begun.
    client.send("{\"reload\":true,\"id\":\"1\"}\n{\"reload\":true,\"id\":\"2\"}\n{\"health\":true}\n").await;
    let mut events = [client.event().await, client.event().await, client.event().await];
    events.sort_by_key(|event| event["event"].to_string());
    let names = events.each_ref().map(|event| event["event"].as_str().unwrap_or_default());
    assert_eq!(names, ["error", "health", "reload"], "{events:?}");
    assert_eq!((&events[0]["id"], &events[2]["id"]), (&json!("2"), &json!("1")), "{events:?}");
    // A context that is longer than the budget allows.
    folder.config(&with_model(&data(LLAMA), &format!("context = 1048576\n{small}")));
    let report = reload(&mut client).await;
    assert!(report["problem"].as_str().is_some_and(|text| text.contains("memory plan")), "{report}");
    assert_eq!(
        (&report["outcome"], &report["changed"]),
        (&json!("model_kept"), &json!(["queue.timeout_ms"])),
        "{report}"
    );
    folder.config("[queue]\ntimeout_ms = soon\n");
    let report = reload(&mut client).await;
    assert_eq!((&report["outcome"], &report["changed"]), (&json!("refused"), &json!([])), "{report}");

    // The file is mended.
    std::fs::copy(data(LLAMA), &broken).expect("a temporary folder");
    folder.config(&with_model(&broken, small));
    let report = reload(&mut client).await;
    assert_eq!((&report["outcome"], &report["problem"]), (&json!("applied"), &Value::Null), "{report}");
    assert_eq!(report["changed"], json!(["model.path"]), "{report}");
    assert_eq!(short(&mut client).await["model"], report["model"]);
    assert_ne!(report["model"], first["model"]);
    daemon.stop().await;
}

#[tokio::test]
async fn no_prompt_over_the_broker_is_lost_while_models_are_loaded_one_after_the_other() {
    let (folder, broker) = (Folder::new(), Mosquitto::start().await);
    let link = linked(broker.port);
    let context = "context = 4096\n";
    let settings = |model: &str| format!("{}{link}", with_model(&data(model), context));
    let daemon = Daemon::start(&folder, &settings(TINY)).await;
    Listener::hears_online(&broker).await;
    let mut answers = Listener::on(&broker, "bitnetd/cellar/reply/#").await;
    let mut root = daemon.client().await;
    let mut models = std::collections::BTreeSet::new();
    let mut busy = daemon.client().await;
    for round in 0..4 {
        // What runs is long enough for the reload to meet it, and what was published before waits behind it.
        busy.request(&[json!({"prompt": "go", "max_tokens": 400, "stream": false, "cache": false})]).await;
        for number in 0..5 {
            let prompt = json!({"id": format!("p{round}-{number}"), "prompt": "go", "max_tokens": 20, "stream": false});
            broker.publish(&["-q", "1", "-t", "bitnetd/cellar/prompt/a", "-m", &prompt.to_string()]).await;
        }
        folder.config(&settings(if round % 2 == 0 { LLAMA } else { TINY }));
        models.insert(reload(&mut root).await["model"].to_string());
    }
    let mut missing: std::collections::BTreeSet<String> =
        (0..4).flat_map(|round| (0..5).map(move |number| format!("p{round}-{number}"))).collect();
    while !missing.is_empty() {
        let done = answers.end().await;
        assert_eq!(done["event"], "done", "{done}");
        assert!(missing.remove(done["id"].as_str().expect("a text")), "twice: {done}");
    }
    for _ in 0..4 {
        assert_eq!(busy.end().await["event"], "done");
    }
    assert_eq!(models.len(), 2, "{models:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn the_fallback_answers_and_raises_an_alert_until_the_model_can_be_used() {
    let folder = Folder::new();
    let missing = folder.path("later.gguf");
    let settings = with_model(&missing, "fallback = \"built-in\"\n[alerts]\nhold_s = 0\n");
    let daemon = Daemon::start(&folder, &settings).await;
    daemon.says("answering with model.fallback, the built-in model").await;
    let mut client = daemon.client().await;
    assert_eq!(short(&mut client).await["model"], "home-intents");
    daemon.says("the configured model cannot be used, and model.fallback answers").await;
    let raised = client.ask(json!({"alerts": true})).await;
    assert!(raised["raised"].to_string().contains("\"fallback\""), "{raised}");
    let report = reload(&mut client).await;
    assert_eq!((&report["outcome"], &report["model"]), (&json!("model_kept"), &json!("home-intents")));

    std::fs::copy(data(TINY), &missing).expect("a temporary folder");
    let report = reload(&mut client).await;
    assert_eq!((&report["outcome"], &report["changed"]), (&json!("applied"), &json!([])), "{report}");
    assert_ne!(short(&mut client).await["model"], "home-intents");
    daemon.says("the configured model answers again").await;
    daemon.stop().await;
}

/// Its name is a list of numbers, which nothing needs to compute with it, and clients are to see.
#[tokio::test]
async fn a_model_that_cannot_be_described_is_replaced_by_the_fallback_too() {
    let folder = Folder::new();
    let mut bytes = std::fs::read(data(TINY)).expect("a file of the tests");
    let key = b"general.name";
    let at = bytes.windows(key.len()).position(|part| part == key).expect("it has a name") + key.len();
    let length = u64::from_le_bytes(bytes[at + 4..at + 12].try_into().expect("8 bytes"));
    // Type 8 is a text, of so many bytes; type 9 a list, here of as many u8 as there is place for.
    let list = [&9u32.to_le_bytes()[..], &0u32.to_le_bytes(), &(length - 4).to_le_bytes()].concat();
    bytes[at..at + list.len()].copy_from_slice(&list);
    let path = folder.path("odd.gguf");
    std::fs::write(&path, bytes).expect("a temporary folder");
    let daemon = Daemon::start(&folder, &with_model(&path, "fallback = \"built-in\"\n")).await;
    daemon.says("general.name").await;
    assert_eq!(short(&mut daemon.client().await).await["model"], "home-intents");
    daemon.stop().await;
}

/// The status of systemd is that of the model that answers, also after another one was tried.
#[tokio::test]
async fn systemd_shows_where_the_daemon_is_reached_and_never_a_model_that_was_not_loaded() {
    let folder = Folder::new();
    let manager = Manager::new(&folder);
    let mut daemon = Daemon::spawn(&mut manager.starts(&folder, &with_model(&data(TINY), "")), &folder);
    let ready = manager.hears("READY=1").await;
    assert!(ready.contains(&format!("; socket {}", daemon.socket.display())), "{ready}");
    daemon.ready().await;
    folder.config(&with_model(&folder.path("missing.gguf"), ""));
    daemon.process.signal(Signal::HUP);
    manager.hears("RELOADING=1").await;
    let ended = manager.hears("READY=1").await;
    assert!(!ended.contains("missing.gguf"), "{ended}");
    daemon.says("the model stays as it was").await;
    daemon.process.terminate();
    daemon.ends_well().await;
}

#[tokio::test]
async fn a_fallback_that_is_missing_too_ends_the_daemon_with_the_error_of_the_first() {
    let folder = Folder::new();
    let (first, second) = (folder.path("first.gguf"), folder.path("second.gguf"));
    let keys = format!("fallback = \"{}\"\n", second.display());
    let mut command = bitnetd();
    command.arg("serve").arg("--config").arg(folder.config(&with_model(&first, &keys)));
    let mut daemon = Daemon::spawn(&mut command, &folder);
    assert_eq!(daemon.process.ended().await.code(), Some(3));
    let log = daemon.log();
    assert!(log.contains("second.gguf, cannot be used either: "), "{log}");
    assert!(log.lines().last().is_some_and(|line| line.contains("first.gguf")), "{log}");
}

/// Only root can ask as another user.
#[tokio::test]
async fn other_users_cannot_ask_for_a_reload() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "mode = \"0666\"\n").await;
    std::fs::set_permissions(folder.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("a temporary folder");
    let mut command = Command::new("nc");
    command.args(["-U", "-q", "2"]).arg(&daemon.socket).uid(65534).gid(65534);
    let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("netcat");
    std::io::Write::write_all(&mut client.stdin.take().expect("piped"), b"{\"reload\":true}\n")
        .expect("it runs");
    let status = until("netcat ends", || client.try_wait().expect("our child")).await;
    let output = client.wait_with_output().expect("our child");
    let answer: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {status}"));
    assert_eq!(answer["code"], "invalid_request", "{answer}");
    assert!(answer["message"].as_str().is_some_and(|text| text.contains("only root")), "{answer}");
    daemon.stop().await;
}
