//! Thousands of mixed prompts over all transports at once: the budget is kept, and no memory leaks.
//!
//! `BITNETD_SOAK` is how many prompts there are; few in everyday tests.

use crate::daemon::{Client, Daemon, finish, is_emulated};
use crate::limits::{peak_kib, resident_kib};
use crate::listener::Listener;
use crate::support::broker::Mosquitto;
use crate::{Folder, cases, linked};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fmt::Write;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

const THREADS: usize = 2;
/// Kinds of requests of a socket client; see [`ask`].
const KINDS: usize = 12;
/// Prompts that one `mosquitto_pub` brings; with those of the clients they fit the queue, or most would be refused.
const BATCH: usize = 20;

fn prompts() -> usize {
    std::env::var("BITNETD_SOAK").map_or(240, |count| count.parse().expect("BITNETD_SOAK is a number"))
}

/// How many are answered at the same time, and in how much memory.
struct Load {
    parallel: usize,
    /// As small as the built-in model with a broker link and structured output allows, so that the bound means something.
    memory_mb: u64,
    /// Clients of the socket that ask at the same time.
    clients: usize,
    /// Whether the beginnings of prompts are stored on disk.
    has_disk: bool,
}

/// What is known of the process from outside.
#[derive(Debug, Default)]
struct Seen {
    threads: usize,
    /// Resident KiB when half was asked, and at the end.
    halfway: u64,
    late: u64,
}

#[tokio::test]
async fn mixed_prompts_over_all_transports_keep_to_the_budget_without_leaks() {
    soak(Load { parallel: 1, memory_mb: 44, clients: 6, has_disk: false }).await;
}

#[tokio::test]
async fn sixteen_at_once_keep_to_the_budget_without_leaks() {
    soak(Load { parallel: 16, memory_mb: 62, clients: 20, has_disk: true }).await;
}

async fn soak(load: Load) {
    if is_emulated() {
        return println!("skipped: the emulator's own memory cannot be told from the daemon's");
    }
    let (folder, broker) = (Folder::new(), Mosquitto::start().await);
    let Load { parallel, memory_mb, .. } = load;
    let daemon = Arc::new(Daemon::start(&folder, &settings(&load, &folder, broker.port)).await);
    Listener::on(&broker, "bitnetd/cellar/availability").await.wait(|said| said.payload == "online").await;
    let (count, mut seen) = (prompts(), Seen::default());
    let watch = async {
        loop {
            seen.threads = seen.threads.max(daemon.threads());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // The first half fills what is bounded, such as the latest answers over MQTT; what grows after that, grows on.
    let ends = tokio::select! {
        ends = async {
            let mut ends = round(&load, &daemon, &broker, 0, count / 2).await;
            seen.halfway = resident_kib(&daemon.process);
            add(&mut ends, round(&load, &daemon, &broker, count / 2, count - count / 2).await);
            seen.late = resident_kib(&daemon.process);
            ends
        } => ends,
        () = watch => unreachable!("it watches for ever"),
    };
    let report = daemon.client().await.ask(json!({"telemetry": true})).await;
    let peak = peak_kib(&daemon.process);
    let mib = |kib: u64| kib as f64 / 1024.0;
    let steps = |key: &str| report["decoding"][key].as_f64().expect("a count");
    println!("{count} prompts, {parallel} at once: {ends:?}");
    println!(
        "peak {:.1} of {memory_mb} MiB, after half {:.1}, at the end {:.1}; {} of {} threads; {:.1} requests a step",
        mib(peak),
        mib(seen.halfway),
        mib(seen.late),
        seen.threads,
        THREADS + 2,
        steps("step_requests") / steps("steps"),
    );
    assert!(peak <= memory_mb << 10, "{peak} KiB of {memory_mb} MiB");
    assert!(seen.threads <= THREADS + 2, "{} threads", seen.threads);
    for refused in ["internal", "queue_full", "budget_exceeded"] {
        assert!(!ends.contains_key(refused), "{ends:?}");
    }
    // The others are cancelled, time out, or are wrong on purpose.
    assert!(ends.get("stop").is_some_and(|answered| 3 * answered >= count), "{ends:?}");
    // Half of a few prompts does not fill everything.
    assert!(count < 5000 || seen.late <= seen.halfway + 1024, "{seen:?}");
    Arc::into_inner(daemon).expect("the clients have ended").stop().await;
}

fn settings(load: &Load, folder: &Folder, port: u16) -> String {
    let Load { parallel, memory_mb, has_disk, .. } = load;
    let cache_dir = folder.path("cache");
    let disk = format!("[model]\ncache_dir = \"{}\"\n[cache]\ndisk_mb = 8\n", cache_dir.display());
    format!(
        "{}[budget]\nmemory_mb = {memory_mb}\nthreads = {THREADS}\nparallel = {parallel}\n[queue]\ndepth = 32\n{}",
        linked(port),
        if *has_disk { &disk } else { "" }
    )
}

/// How requests ended: by `finish_reason` or `code`.
type Ends = HashMap<String, usize>;

fn add(ends: &mut Ends, more: Ends) {
    more.into_iter().for_each(|(end, count)| *ends.entry(end).or_default() += count);
}

fn note(ends: &mut Ends, event: &Value) {
    let end = event["finish_reason"].as_str().or(event["code"].as_str());
    *ends.entry(end.unwrap_or_else(|| panic!("no end: {event}")).to_owned()).or_default() += 1;
}

/// So many prompts, a quarter of them over MQTT; each is seen to its end.
async fn round(load: &Load, daemon: &Arc<Daemon>, broker: &Mosquitto, first: usize, count: usize) -> Ends {
    let mqtt = count / 4;
    let each = (count - mqtt).div_ceil(load.clients);
    let mut clients = JoinSet::new();
    for client in 0..load.clients {
        clients.spawn(socket(Arc::clone(daemon), first + client * each, each));
    }
    let (mut ends, of_clients) = tokio::join!(over_mqtt(broker, first, mqtt), clients.join_all());
    of_clients.into_iter().for_each(|some| add(&mut ends, some));
    ends
}

/// One client of the socket; it disconnects and reconnects now and then.
async fn socket(daemon: Arc<Daemon>, first: usize, count: usize) -> Ends {
    let (mut client, mut ends, cases) = (daemon.client().await, Ends::new(), cases());
    for number in first..first + count {
        let prompt = &cases[number % cases.len()].prompt;
        match number % KINDS {
            0 => {
                // Gone in the middle of an answer.
                client.request(&[json!({"prompt": prompt, "stream": true, "cache": false})]).await;
                client.event().await;
                client = daemon.client().await;
                *ends.entry("left".into()).or_default() += 1;
            }
            1 => {
                let hot =
                    json!({"id": "c", "prompt": prompt, "temperature": 9, "stream": true, "max_tokens": 300});
                client.request(&[hot]).await;
                client.send("{\"cancel\":\"c\"}\n").await;
                note(&mut ends, &last(&mut client).await);
            }
            kind => {
                client.send(&format!("{}\n", ask(kind, prompt))).await;
                note(&mut ends, &last(&mut client).await);
            }
        }
    }
    ends
}

/// The last event of the one active request. The answer to a late cancellation, which has no id, is skipped.
async fn last(client: &mut Client) -> Value {
    loop {
        let end = client.end().await;
        let is_late = end["message"].as_str().is_some_and(|said| said.starts_with("cancel: no request"));
        if !is_late {
            return end;
        }
    }
}

fn ask(kind: usize, prompt: &str) -> String {
    let request = match kind {
        2 => json!({"prompt": prompt}),
        3 => json!({"prompt": prompt, "stream": true, "cache": false}),
        4 => json!({"prompt": prompt, "timeout_ms": 1, "cache": false}),
        5 => json!({"prompt": "x".repeat(70_000)}),
        6 => json!({"prompt": "light ".repeat(5_000)}),
        7 => return "{\"prompt\": ".into(),
        8 => json!({"prompt": prompt, "colour": "blue"}),
        9 => {
            json!({"prompt": prompt, "temperature": 5, "seed": 1, "max_tokens": 20, "cache": false, "priority": "high"})
        }
        10 => json!({"messages": [{"role": "user", "content": prompt}], "stop": ["}"], "priority": "low"}),
        _ => json!({"prompt": "turn ".repeat(90), "cache": false, "max_tokens": 5}),
    };
    request.to_string()
}

/// Publishes each line as a prompt of its own, over one connection.
async fn publish(broker: &Mosquitto, qos: &str, lines: &str) {
    let mut command = Command::new("mosquitto_pub");
    command.args(["-V", "5", "-h", "127.0.0.1", "-p", &broker.port.to_string(), "-q", qos]);
    let ended = finish(command.args(["-t", "bitnetd/cellar/prompt", "-l"]), lines).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

/// Prompts over MQTT in batches, at QoS 0 and 1 by turns; the next batch goes when the one before has ended.
async fn over_mqtt(broker: &Mosquitto, first: usize, count: usize) -> Ends {
    let (mut ends, cases) = (Ends::new(), cases());
    let mut replies = Listener::on(broker, "bitnetd/cellar/reply/+").await;
    for (round, start) in (first..first + count).step_by(BATCH).enumerate() {
        let numbers = start..(first + count).min(start + BATCH);
        let mut lines = String::new();
        for number in numbers.clone() {
            let prompt = &cases[number % cases.len()].prompt;
            let request = json!({"id": format!("m{number}"), "prompt": prompt, "stream": number % 3 == 0});
            writeln!(lines, "{request}").expect("into a string");
        }
        let qos = if round % 2 == 0 { "1" } else { "0" };
        publish(broker, qos, &lines).await;
        for _ in numbers {
            note(&mut ends, &replies.end().await);
        }
    }
    ends
}
