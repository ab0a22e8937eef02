//! The daemon restarted again and again under load. How often is `BITNETD_RESTARTS`; 5 where it is not set,
//! once under emulation.

use crate::daemon::{Daemon, is_emulated};
use crate::listener::Listener;
use crate::support::broker::Mosquitto;
use crate::systemd::activated;
use crate::{Folder, PATIENCE, linked, text, until};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Clients at once: the daemon is never idle, and they fit its queue.
const CLIENTS: usize = 4;
/// Requests that a client writes before it reads the first answer.
const AT_ONCE: usize = 3;
/// Answers between two restarts at the least: each daemon works.
const BETWEEN: usize = 2 * CLIENTS;

fn rounds() -> usize {
    let wanted = std::env::var("BITNETD_RESTARTS").ok().and_then(|rounds| rounds.parse().ok());
    wanted.unwrap_or(if is_emulated() { 1 } else { 5 })
}

/// What became of connections and requests.
#[derive(Debug, Default)]
struct Tally {
    connected: AtomicUsize,
    refused: AtomicUsize,
    answered: AtomicUsize,
    told: AtomicUsize,
    /// They could not be written to the connection.
    unsent: AtomicUsize,
    /// Written to the connection, and never answered.
    lost: AtomicUsize,
}

fn count(counter: &AtomicUsize) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn counted(counter: &AtomicUsize) -> usize {
    counter.load(Ordering::Relaxed)
}

/// Connects, sends requests, reads every answer and disconnects, until `stop` is cancelled.
async fn come_and_go(path: PathBuf, tally: Arc<Tally>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        match UnixStream::connect(&path).await {
            Ok(stream) => {
                count(&tally.connected);
                visit(stream, &tally).await;
            }
            Err(_) => count(&tally.refused),
        }
    }
}

async fn visit(mut stream: UnixStream, tally: &Tally) {
    let mut owed = 0;
    for _ in 0..AT_ONCE {
        let request = json!({"prompt": "turn on the light in the hall", "cache": false});
        match stream.write_all(format!("{request}\n").as_bytes()).await {
            Ok(()) => owed += 1,
            Err(_) => count(&tally.unsent),
        }
    }
    let mut lines = BufReader::new(stream).lines();
    for _ in 0..owed {
        let line = timeout(PATIENCE, lines.next_line()).await.expect("the daemon, or the next one, answers");
        note(line.ok().flatten().as_deref(), tally);
    }
}

fn note(line: Option<&str>, tally: &Tally) {
    let Some(line) = line else { return count(&tally.lost) };
    let event: Value = serde_json::from_str(line).expect("JSON");
    match (event["event"].as_str(), event["code"].as_str()) {
        (Some("done"), _) => count(&tally.answered),
        (_, Some("shutting_down")) => count(&tally.told),
        _ => panic!("{event}"),
    }
}

async fn start(listener: &UnixListener, folder: &Folder, config: &Path) -> Daemon {
    let mut daemon = activated(listener, folder, &["serve", "--config", text(config)]);
    daemon.ready().await;
    daemon
}

#[tokio::test]
async fn no_connect_fails_across_restarts_and_no_request_goes_unanswered() {
    let folder = Folder::new();
    let config = folder.config("[queue]\ndrain_ms = 20\n");
    let listener = UnixListener::bind(folder.path("s")).expect("a free path");
    let (tally, stop) = (Arc::new(Tally::default()), CancellationToken::new());
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(come_and_go(folder.path("s"), tally.clone(), stop.clone()));
    }
    let mut daemon = start(&listener, &folder, &config).await;
    for _ in 0..rounds() {
        let before = counted(&tally.answered);
        until("answers", || (counted(&tally.answered) >= before + BETWEEN).then_some(())).await;
        daemon.process.terminate();
        assert_eq!(daemon.process.ended().await.code(), Some(0), "{}", daemon.log());
        daemon = start(&listener, &folder, &config).await;
    }
    stop.cancel();
    timeout(PATIENCE, clients.join_all()).await.expect("every request ends");
    eprintln!("{} restarts: {tally:?}", rounds());
    assert_eq!((counted(&tally.refused), counted(&tally.lost)), (0, 0), "{tally:?}");
}

#[tokio::test]
async fn no_prompt_is_lost_across_restarts_and_none_is_answered_with_an_error() {
    let (folder, broker) = (Folder::new(), Mosquitto::start().await);
    let settings = format!("{}[queue]\ndrain_ms = 20\n", linked(broker.port));
    let mut replies = Listener::on(&broker, "bitnetd/cellar/reply/+").await;
    let mut daemon = Daemon::start(&folder, &settings).await;
    Listener::hears_online(&broker).await;
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    for round in 0..rounds() {
        for number in 0..BETWEEN {
            let id = format!("{round}-{number}");
            let request = json!({"id": id, "prompt": "turn on the light in the hall", "cache": false});
            broker.publish(&["-q", "1", "-t", "bitnetd/cellar/prompt", "-m", &request.to_string()]).await;
            ends.insert(id, 0);
            // In the middle of them: some are answered, some wait, some arrive while it stops or is down.
            if number == BETWEEN / 2 {
                daemon.process.terminate();
            }
        }
        daemon.ends_well().await;
        daemon = Daemon::start(&folder, &settings).await;
    }
    while ends.values().any(|heard| *heard == 0) {
        let event = replies.end().await;
        assert_eq!(event["event"], "done", "{event}");
        let id = event["id"].as_str().expect("an id");
        *ends.get_mut(id).expect("one of ours") += 1;
    }
    let again: usize = ends.values().map(|heard| heard - 1).sum();
    eprintln!("{} restarts: {} prompts answered, {again} of them answered again", rounds(), ends.len());
    daemon.stop().await;
}
