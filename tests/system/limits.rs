//! The budget of the whole process: threads under load over both transports, and memory.

use crate::daemon::{Daemon, Process, bitnetd, is_emulated, threads};
use crate::listener::Listener;
use crate::support::broker::Mosquitto;
use crate::{Folder, LONG, linked};
use serde_json::json;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

/// Threads that the emulator adds to a process: what there is besides the one of a command that
/// waits for its input.
async fn threads_of_the_emulator() -> usize {
    let mut waiting = Process::start(bitnetd().args(["tokenize", "-"]).stdin(Stdio::piped()));
    // More than a pipe holds: once it is written the program itself reads, and an emulator has
    // started its own threads.
    waiting.feed(&[b'a'; 1 << 17]);
    let count = threads(&waiting);
    assert!(is_emulated() || count == 1, "{count} threads of a command that only waits");
    count - 1
}

/// The settings with a budget, and a broker that is looked up by its name: the look-up is a thread.
fn settings(port: u16, threads: usize) -> String {
    let link = linked(port).replace("127.0.0.1", "localhost");
    format!(
        "{link}[budget]\nmemory_mb = 256\nthreads = {threads}\nparallel = 16\n[queue]\ndepth = 64\ntimeout_ms = 600000\n"
    )
}

async fn most_threads_under_load(budget: usize) -> usize {
    let (folder, broker) = (Folder::new(), Mosquitto::start().await);
    let daemon = Daemon::start(&folder, &settings(broker.port, budget)).await;
    let mut all = Listener::on(&broker, "bitnetd/cellar/#").await;
    all.wait(|message| message.payload == "online").await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = daemon.client().await;
        client.send(&format!("{LONG}\n")).await;
        clients.push(client);
    }
    broker.publish(&["-q", "1", "-t", "bitnetd/cellar/prompt", "-m", r#"{"id":"a","prompt":"go"}"#]).await;
    let mut most = 0;
    let load = async {
        for client in &mut clients {
            assert_eq!(client.end().await["event"], "done");
        }
        all.wait(|message| message.topic.ends_with("/reply/a")).await;
    };
    let count = async {
        loop {
            most = most.max(daemon.threads());
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    };
    tokio::select! { () = load => {}, () = count => {} }
    most
}

#[tokio::test]
async fn the_process_never_has_more_than_two_threads_over_its_budget() {
    let emulator = threads_of_the_emulator().await;
    for budget in [1, 2] {
        let most = most_threads_under_load(budget).await - emulator;
        assert!(most >= budget && most <= budget + 2, "{most} threads with threads = {budget}");
    }
}

/// What a process held at most, in KiB.
pub fn peak_kib(process: &Process) -> u64 {
    status_kib(process, "VmHWM:")
}

/// What a process holds now, in KiB.
pub fn resident_kib(process: &Process) -> u64 {
    status_kib(process, "VmRSS:")
}

fn status_kib(process: &Process, key: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("Linux says so");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[tokio::test]
async fn the_process_stays_below_its_memory_plan() {
    if is_emulated() {
        return println!("skipped: the emulator's own memory cannot be told from the daemon's");
    }
    let (folder, broker) = (Folder::new(), Mosquitto::start().await);
    let daemon = Daemon::start(&folder, &settings(broker.port, 2)).await;
    let info = Listener::on(&broker, "bitnetd/cellar/info").await.next().await.json();
    let planned = info["budget"]["planned_mb"].as_u64().expect("a number");
    let mut client = daemon.client().await;
    // The whole context, a long prompt, and more than the answers that are kept.
    let whole = json!({"prompt": "go", "temperature": 10, "seed": 0});
    assert_eq!(client.ask(whole).await["finish_reason"], "length");
    // The same in all slots at once.
    let wholes: Vec<_> = (1..17)
        .map(|id| json!({"id": id, "prompt": "go", "temperature": 10, "seed": id, "stream": false}))
        .collect();
    client.request(&wholes).await;
    for _ in &wholes {
        assert_eq!(client.end().await["event"], "done");
    }
    assert_eq!(client.ask(json!({"prompt": "a ".repeat(200), "max_tokens": 5})).await["event"], "done");
    for number in 0..50 {
        let request = json!({"prompt": format!("turn on light {number}"), "max_tokens": 4});
        assert_eq!(client.ask(request).await["event"], "done");
    }
    // As many clients as there may be, each with a request that does not end.
    let unfinished = "x".repeat(60_000);
    let mut idle: Vec<UnixStream> = Vec::new();
    for _ in 0..60 {
        let mut stream = UnixStream::connect(&daemon.socket).expect("room for a client");
        stream.write_all(unfinished.as_bytes()).expect("the daemon reads it");
        idle.push(stream);
    }
    // Answered behind them all: by then they have been read.
    assert_eq!(client.ask(json!({"prompt": "turn on the lamp"})).await["event"], "done");
    let peak = peak_kib(&daemon.process);
    println!("at most {:.1} MiB, planned {planned} MiB", peak as f64 / 1024.0);
    assert!(peak <= planned << 10, "{peak} KiB, planned {planned} MiB");
}
