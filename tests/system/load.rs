//! The daemon under load: many clients, many waiting requests, answers that nobody reads.

use crate::daemon::{Client, Daemon, is_emulated};
use crate::limits::{peak_kib, resident_kib};
use crate::{Folder, PATIENCE, endless};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

/// Raises this process's limit on open files, since all clients are in it.
fn allow_files() {
    let now = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, ..now });
}

/// A client that reads only when the test calls it.
struct Idle(BufReader<UnixStream>);

impl Idle {
    async fn connect(daemon: &Daemon) -> Self {
        Idle(BufReader::new(UnixStream::connect(&daemon.socket).await.expect("somebody listens")))
    }

    async fn send(&mut self, line: &str) {
        let sent = timeout(PATIENCE, self.0.write_all(format!("{line}\n").as_bytes())).await;
        sent.expect("the daemon reads").expect("the connection is open");
    }

    async fn event(&mut self) -> Value {
        let mut line = String::new();
        let read = timeout(PATIENCE, self.0.read_line(&mut line)).await;
        read.expect("an event in time").expect("text");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    async fn ask(&mut self, line: &str) -> Value {
        self.send(line).await;
        self.event().await
    }
}

#[tokio::test]
async fn a_thousand_clients_are_served_at_once_and_one_more_closes_the_longest_idle_one() {
    allow_files();
    let count = if is_emulated() { 100 } else { 1000 };
    let folder = Folder::new();
    // The configuration begins with `[socket]`.
    let settings = format!("connections = {count}\n[budget]\nthreads = 1\nmemory_mb = 256\n");
    let daemon = Daemon::start(&folder, &settings).await;
    let before = resident_kib(&daemon.process);
    let ask = r#"{"prompt":"turn on the lamp"}"#;
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(Idle::connect(&daemon).await);
    }
    for client in &mut clients {
        assert_eq!(client.ask(ask).await["event"], "done");
    }
    assert_eq!(Idle::connect(&daemon).await.ask(ask).await["event"], "done");
    let told = clients[0].event().await;
    assert_eq!((&told["code"], &told["id"]), (&json!("timeout"), &Value::Null), "{told}");
    // The other connections are unaffected.
    assert_eq!(clients[1].ask(ask).await["event"], "done");
    let grown = resident_kib(&daemon.process).saturating_sub(before);
    println!("{count} connections: {grown} KiB more");
    drop(clients);
    crate::until("the connections are closed", || (open_files(&daemon) < count).then_some(())).await;
    assert_eq!(Idle::connect(&daemon).await.ask(ask).await["event"], "done");
}

/// Files that the daemon has open.
fn open_files(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.process.pid())).expect("it runs").count()
}

#[tokio::test]
async fn ten_thousand_requests_wait_and_the_next_is_refused_with_a_time_to_retry() {
    allow_files();
    // 50 from each client; a client may have 64 active.
    let (clients, each) = if is_emulated() { (10, 50) } else { (200, 50) };
    let depth = clients * each;
    let folder = Folder::new();
    let settings = format!(
        "connections = 256\n[budget]\nthreads = 1\nmemory_mb = 512\n{}[queue]\ndepth = {depth}\n",
        endless()
    );
    let daemon = Daemon::start(&folder, &settings).await;
    let mut busy = daemon.client().await;
    busy.keep_busy().await;
    let mut waiting = Vec::new();
    for _ in 0..clients {
        let mut client = daemon.client().await;
        let requests: Vec<Value> =
            (0..each).map(|n| json!({"id": format!("{n}"), "prompt": "go", "max_tokens": 1})).collect();
        client.request(&requests).await;
        waiting.push(client);
    }
    let mut late = daemon.client().await;
    // A late request that arrived before the others would take the slot of one of them.
    let all_wait = async {
        while late.ask(json!({"telemetry": true})).await["requests"]["queued"] != json!(depth) {
            sleep(Duration::from_millis(200)).await;
        }
    };
    timeout(PATIENCE, all_wait).await.expect("all of them wait in time");
    let refused = timeout(PATIENCE, queue_is_full(&mut late)).await.expect("a refusal in time");
    assert!(refused["retry_after_ms"].as_u64().is_some_and(|ms| ms > 0), "{refused}");
    println!("{depth} waiting: {} KiB at most", peak_kib(&daemon.process));
    busy.cancel_busy().await;
    assert_eq!(busy.end().await["finish_reason"], "cancelled");
    // The very last one may have been refused because `late` was in the queue.
    let mut done = 0;
    for client in &mut waiting {
        for _ in 0..each {
            let end = client.end().await;
            assert!(end["event"] == "done" || end["code"] == "queue_full", "{end}");
            done += usize::from(end["event"] == "done");
        }
    }
    assert!(done + 1 >= depth, "{done} of {depth}");
}

/// Sends requests until the queue is full; until then each waits until its deadline.
async fn queue_is_full(client: &mut Client) -> Value {
    loop {
        client.request(&[json!({"id": "late", "prompt": "go", "timeout_ms": 50})]).await;
        let end = client.end().await;
        if end["code"] == "queue_full" {
            return end;
        }
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cancelled_and_delays_nobody() {
    if is_emulated() {
        return println!("skipped: filling a socket's buffer token by token takes minutes here");
    }
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &endless()).await;
    let mut deaf = Idle::connect(&daemon).await;
    deaf.send(r#"{"id":"deaf","prompt":"go","stream":true}"#).await;
    // It waits behind an endless answer, so it is answered only because that one is cancelled.
    let done = daemon.client().await.ask(json!({"prompt": "go", "max_tokens": 2})).await;
    assert_eq!(done["event"], "done", "{done}");
    let last = loop {
        let event = deaf.event().await;
        if event["event"] != "token" {
            break event;
        }
    };
    assert_eq!((&last["id"], &last["finish_reason"]), (&json!("deaf"), &json!("cancelled")));
}

#[tokio::test]
async fn unread_answers_are_refused_before_they_fill_the_memory_and_later_served_from_the_cache() {
    if is_emulated() {
        return println!("skipped: the emulator's own memory cannot be told from the daemon's");
    }
    let (folder, memory_mb) = (Folder::new(), 36);
    let settings = format!(
        "[budget]\nthreads = 1\nmemory_mb = {memory_mb}\n[queue]\ndepth = 100\n{}",
        endless().replace("65536", "4096")
    );
    let daemon = Daemon::start(&folder, &settings).await;
    // Some kilobytes, answered from the cache from then on.
    let ask = json!({"prompt": "go", "max_tokens": 2000});
    assert_eq!(daemon.client().await.ask(ask.clone()).await["event"], "done");
    let mut deaf = Vec::new();
    for _ in 0..60 {
        deaf.push(Idle::connect(&daemon).await);
    }
    // After each round a client that reads sends a request too. It is answered after the others, so that the queue
    // is hardly ever full.
    let mut reader = daemon.client().await;
    let mut refused = Value::Null;
    for _ in 0..63 {
        for client in &mut deaf {
            client.send(&ask.to_string()).await;
        }
        refused = reader.ask(json!({"prompt": "go", "max_tokens": 2})).await;
        if refused["code"] == "queue_full" {
            // On a busy machine the daemon may receive this one before the others.
            sleep(Duration::from_millis(200)).await;
        } else if refused["event"] == "error" {
            break;
        }
    }
    assert_eq!(refused["code"], "budget_exceeded", "{refused}");
    assert!(refused["retry_after_ms"].as_u64().is_some_and(|ms| ms > 0), "{refused}");
    drop(deaf);
    // The clients have closed, and their memory is freed.
    daemon.says("enough memory is free again").await;
    // On a busy machine the last of them may still be on their way; a refusal says when to ask again.
    let mut client = daemon.client().await;
    let mut done = client.ask(json!({"prompt": "go", "max_tokens": 2})).await;
    for _ in 0..5 {
        if let Some(ms) = done["retry_after_ms"].as_u64() {
            sleep(Duration::from_millis(ms)).await;
            done = client.ask(json!({"prompt": "go", "max_tokens": 2})).await;
        }
    }
    assert_eq!(done["event"], "done", "{done}");
    let peak = peak_kib(&daemon.process);
    println!("at most {:.1} of {memory_mb} MiB", peak as f64 / 1024.0);
    assert!(peak <= memory_mb << 10, "{peak} KiB of {memory_mb} MiB");
}
