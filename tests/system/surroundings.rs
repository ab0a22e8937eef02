//! Changes to the daemon's environment while it runs: a log that is no longer read, a state folder and a socket file
//! that are removed.

use crate::daemon::{Daemon, Process, bitnetd, is_emulated, words};
use crate::listener::Listener;
use crate::support::broker::Mosquitto;
use crate::support::output;
use crate::{Folder, linked, text, until};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use serde_json::{Value, json};
use std::io::{PipeReader, PipeWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::Command;

/// Every line is wanted, and each answer writes some.
const CHATTY: &str = "[log]\nlevel = \"debug\"\n";

/// A full pipe without a reader.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let flags = fcntl_getfl(&writer).expect("open");
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).expect("open");
    while writer.write(&[b'x'; 1024]).is_ok() {}
    while writer.write(b"x").is_ok() {}
    fcntl_setfl(&writer, flags).expect("open");
    (reader, writer)
}

async fn answers(daemon: &Daemon, count: usize) {
    let mut client = daemon.client().await;
    for number in 0..count {
        let done = client.ask(json!({"prompt": format!("turn on the lamp {number}"), "max_tokens": 4})).await;
        assert_eq!(done["event"], "done", "{done}");
    }
}

/// It answers, counts the dropped lines, and stops.
async fn answers_and_stops_though_lines_are_dropped(daemon: &mut Daemon, count: usize) {
    // The log, which names the moment, is not read here; the file is there before anybody listens on it.
    until("it listens", || UnixStream::connect(&daemon.socket).ok()).await;
    answers(daemon, count).await;
    let report = daemon.client().await.ask(json!({"telemetry": true})).await;
    assert!(
        report.pointer("/log/dropped").and_then(Value::as_u64).is_some_and(|lines| lines > 0),
        "{report}"
    );
    daemon.process.terminate();
    daemon.ends_well().await;
}

#[tokio::test]
async fn an_unread_log_delays_neither_answers_nor_the_stop() {
    let folder = Folder::new();
    let config = folder.config(CHATTY);
    let (_unread, writer) = full_pipe();
    let mut command = bitnetd();
    command.args(["serve", "--config", text(&config)]).stderr(writer);
    command.env("STATE_DIRECTORY", folder.path("state"));
    let mut daemon = Daemon::of(Process::start(&mut command), &folder);
    answers_and_stops_though_lines_are_dropped(&mut daemon, 50).await;
}

#[tokio::test]
async fn a_command_that_fails_ends_though_nobody_reads_why() {
    let (_unread, writer) = full_pipe();
    let mut command = bitnetd();
    let mut process = Process::start(command.args(["serve", "--config", "/nowhere.toml"]).stderr(writer));
    assert_eq!(process.ended().await.code(), Some(2));
}

/// A socket in the place of journald's, and the command of a daemon that logs to it; `None` where it cannot be replaced.
pub(crate) fn with_journal(folder: &Folder, settings: &str) -> Option<(UnixDatagram, Command)> {
    let journal = folder.path("journal");
    std::fs::create_dir(&journal).expect("a temporary folder");
    let socket = UnixDatagram::bind(journal.join("socket")).expect("a short path");
    let mount = format!(
        "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && mount --bind {} /run/systemd/journal",
        text(&journal)
    );
    let alone = |then: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &format!("{mount} && {then}"), "sh"]);
        command
    };
    if is_emulated() || !output(&mut alone("true")).is_ok_and(|ended| ended.status.success()) {
        println!("skipped: journald's socket cannot be replaced here");
        return None;
    }
    let config = folder.config(settings);
    // As systemd says it: this is the standard error that journald reads.
    let log = std::fs::metadata(folder.write("log", "")).expect("just made");
    let mut command = alone("exec \"$@\"");
    command.args(words()).args(["serve", "--config", text(&config)]);
    command.env("JOURNAL_STREAM", format!("{}:{}", log.dev(), log.ino()));
    Some((socket, command))
}

#[tokio::test]
async fn a_stalled_journald_does_not_block() {
    let folder = Folder::new();
    // Never read: datagrams pile up until the kernel takes no more.
    let Some((_unread, mut command)) = with_journal(&folder, CHATTY) else { return };
    let mut daemon = Daemon::spawn(&mut command, &folder);
    answers_and_stops_though_lines_are_dropped(&mut daemon, 100).await;
}

#[tokio::test]
async fn a_state_folder_that_is_removed_is_noticed_and_prompts_are_answered() {
    let (folder, broker) = (Folder::new(), Mosquitto::start().await);
    let daemon = Daemon::start(&folder, &linked(broker.port)).await;
    let mut replies = Listener::on(&broker, "bitnetd/cellar/reply/+").await;
    let mut reports = Listener::on(&broker, "bitnetd/cellar/telemetry").await;
    Listener::hears_online(&broker).await;
    reports.wait(|report| report.json()["mqtt"]["durable"] == true).await;
    std::fs::remove_dir_all(folder.path("state")).expect("it was made");
    for id in ["a", "b", "c"] {
        let request = json!({"id": id, "prompt": "turn on the lamp"}).to_string();
        broker.publish(&["-q", "1", "-t", "bitnetd/cellar/prompt", "-m", &request]).await;
        assert_eq!(replies.end().await["event"], "done");
    }
    let report = reports.wait(|report| report.json()["mqtt"]["durable"] == false).await.json();
    let problem = report.pointer("/mqtt/storage_problem").and_then(Value::as_str).unwrap_or_default();
    assert!(problem.contains("removed"), "{report}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_removed_socket_file_is_created_again_and_that_is_logged() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut before = daemon.client().await;
    std::fs::remove_file(&daemon.socket).expect("it was made");
    daemon.says("it has been created again").await;
    let request = json!({"prompt": "turn on the lamp", "max_tokens": 2});
    assert_eq!(daemon.client().await.ask(request.clone()).await["event"], "done");
    assert_eq!(before.ask(request).await["event"], "done", "who was connected stays connected");
    daemon.stop().await;
}
