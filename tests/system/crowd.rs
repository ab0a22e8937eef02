//! More of everything than is usual: clients, waiting requests, answers that nobody reads.

use crate::daemon::{Client, Daemon, is_emulated};
use crate::limits::{peak_kib, resident_kib};
use crate::{Folder, endless, until};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

/// Lets this process have as many files open as it may: the clients are all in it.
fn allow_files() {
    let now = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, ..now });
}

/// A client that does nothing by itself: it reads only when it is told to.
struct Idle(BufReader<UnixStream>);

impl Idle {
    fn connect(daemon: &Daemon) -> Self {
        let stream = UnixStream::connect(&daemon.socket).expect("somebody listens");
        stream.set_read_timeout(Some(crate::PATIENCE)).expect("a socket");
        Idle(BufReader::new(stream))
    }

    /// `false` where the daemon has closed the connection.
    fn send(&mut self, line: &str) -> bool {
        self.0.get_mut().write_all(format!("{line}\n").as_bytes()).is_ok()
    }

    fn event(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("an event in time");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }
}

/// Waits, blocking, until it has said this.
fn wait_for(text: &str, daemon: &Daemon) {
    let begun = std::time::Instant::now();
    while !daemon.log().contains(text) {
        assert!(begun.elapsed() < crate::PATIENCE, "{text}: {}", daemon.log());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// In a test that blocks, so that the tests beside it go on.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("it asserts nothing that fails")
}

#[tokio::test]
async fn a_thousand_clients_are_served_at_once_and_one_more_is_told_to_come_back() {
    allow_files();
    let count = if is_emulated() { 100 } else { 1000 };
    let folder = Folder::new();
    // The configuration begins with `[socket]`.
    let settings = format!("connections = {count}\n[budget]\nthreads = 1\nmemory_mb = 256\n");
    let daemon = Daemon::start(&folder, &settings).await;
    let before = resident_kib(&daemon.process);
    let daemon = blocking(move || {
        let mut clients: Vec<Idle> = (0..count).map(|_| Idle::connect(&daemon)).collect();
        for client in &mut clients {
            assert!(client.send(r#"{"prompt":"turn on the lamp"}"#));
            assert_eq!(client.event()["event"], "done");
        }
        let mut extra = Idle::connect(&daemon);
        let told = extra.event();
        assert_eq!((&told["code"], &told["id"]), (&json!("queue_full"), &Value::Null), "{told}");
        assert!(told["retry_after_ms"].is_u64(), "{told}");
        // Those inside notice nothing, and a place is free again when one leaves.
        assert!(clients[0].send(r#"{"prompt":"turn on the lamp"}"#));
        assert_eq!(clients[0].event()["event"], "done");
        let grown = resident_kib(&daemon.process).saturating_sub(before);
        println!("{count} connections: {grown} KiB more");
        clients.clear();
        daemon
    })
    .await;
    let mut client = daemon.client().await;
    assert_eq!(client.ask(json!({"prompt": "turn on the lamp"})).await["event"], "done");
}

#[tokio::test]
async fn ten_thousand_requests_wait_and_the_next_is_told_when_to_come_back() {
    allow_files();
    // 50 from each client; a client may have 64 under way.
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
    let refused = queue_is_full(&mut late).await;
    assert!(refused["retry_after_ms"].as_u64().is_some_and(|ms| ms > 0), "{refused}");
    println!("{depth} waiting: {} KiB at most", peak_kib(&daemon.process));
    busy.cancel_busy().await;
    assert_eq!(busy.end().await["finish_reason"], "cancelled");
    for client in &mut waiting {
        for _ in 0..each {
            let done = client.end().await;
            assert_eq!(done["event"], "done", "{done}");
        }
    }
}

/// Asks until the queue is full; until then the request waits, and is cancelled.
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
async fn a_client_that_does_not_read_loses_its_own_answer_and_holds_up_nobody() {
    if is_emulated() {
        return println!("skipped: filling a socket's buffer token by token takes minutes here");
    }
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &endless()).await;
    let mut deaf = Idle::connect(&daemon);
    assert!(deaf.send(r#"{"id":"deaf","prompt":"go","stream":true}"#));
    // Comes behind an answer without an end, so it comes only because that one is ended.
    let done = daemon.client().await.ask(json!({"prompt": "go", "max_tokens": 2})).await;
    assert_eq!(done["event"], "done", "{done}");
    let last = blocking(move || {
        loop {
            let event = deaf.event();
            if event["event"] != "token" {
                return event;
            }
        }
    })
    .await;
    assert_eq!((&last["id"], &last["finish_reason"]), (&json!("deaf"), &json!("cancelled")));
}

#[tokio::test]
async fn answers_that_nobody_reads_are_refused_before_they_fill_the_memory_and_later_given_again() {
    if is_emulated() {
        return println!("skipped: the emulator's own memory cannot be told from the daemon's");
    }
    let (folder, memory_mb) = (Folder::new(), 35);
    let settings = format!(
        "[budget]\nthreads = 1\nmemory_mb = {memory_mb}\n[queue]\ndepth = 1000\n{}",
        endless().replace("65536", "4096")
    );
    let daemon = Daemon::start(&folder, &settings).await;
    // Some kilobytes, given again from then on without computing.
    let ask = json!({"prompt": "go", "max_tokens": 2000});
    assert_eq!(daemon.client().await.ask(ask.clone()).await["event"], "done");
    let daemon = blocking(move || {
        let mut deaf: Vec<Idle> = (0..60).map(|_| Idle::connect(&daemon)).collect();
        // Until it is short, or no client has anything left that it may ask.
        for _ in 0..63 {
            if daemon.log().contains("memory is short") {
                break;
            }
            deaf.iter_mut().for_each(|client| assert!(client.send(&ask.to_string()), "{}", daemon.log()));
        }
        wait_for("memory is short", &daemon);
        daemon
    })
    .await;
    // They are gone, and what they held comes back.
    let mut client = daemon.client().await;
    until("it refuses nothing any more", || daemon.log().contains("memory is there again").then_some(()))
        .await;
    let done = client.ask(json!({"prompt": "go", "max_tokens": 2})).await;
    assert_eq!(done["event"], "done", "{done}");
    let peak = peak_kib(&daemon.process);
    println!("at most {:.1} of {memory_mb} MiB", peak as f64 / 1024.0);
    assert!(peak <= memory_mb << 10, "{peak} KiB of {memory_mb} MiB");
}
