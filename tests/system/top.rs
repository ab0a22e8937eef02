//! `bitnetd top` on a pipe, on a terminal, and where no daemon is.

use crate::daemon::{Daemon, is_emulated, run};
use crate::terminal::Terminal;
use crate::{Folder, cases, text};
use rustix::process::Signal;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How long the view waits for a report.
const LONGEST_REPORT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn what_is_no_terminal_gets_one_picture() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let ended = run(&["top", "--socket", text(&daemon.socket)]).await;
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
    let title = ended.out.lines().next().expect("a title");
    assert!(title.starts_with("bitnetd up ") && title.ends_with(text(&daemon.socket)), "{ended:?}");
    assert!(ended.out.contains("\nrequests    0 running, 0 waiting; 0 answered"), "{ended:?}");
    assert!(!ended.out.contains('\x1b'), "{ended:?}");
}

#[tokio::test]
async fn json_is_the_report_with_what_was_just_answered() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let socket = text(&daemon.socket);
    assert_eq!(run(&["ask", "--socket", socket, &cases()[0].prompt]).await.code, Some(0));
    let report = run(&["top", "--json", "--socket", socket]).await.json();
    assert_eq!((&report["event"], &report["requests"]["completed"]), (&"telemetry".into(), &1.into()));
    assert_eq!(report["latency"]["ttft_ms"]["count"], 1);
    for key in [
        "time",
        "uptime_s",
        "power",
        "thermal",
        "cpu",
        "memory",
        "latency",
        "throughput",
        "requests",
        "energy",
        "cache",
        "alerts",
    ] {
        assert!(report.get(key).is_some(), "{key}: {report}");
    }
}

#[tokio::test]
async fn without_a_daemon_it_is_exit_code_4_and_names_the_socket() {
    let folder = Folder::new();
    let socket = folder.path("nobody");
    let ended = run(&["top", "--socket", text(&socket)]).await;
    assert_eq!(ended.code, Some(4), "{ended:?}");
    assert!(ended.error_line().contains(text(&socket)), "{ended:?}");
}

/// Ends the view with its key, or as a closed window does where keys are not to be had.
fn leave(terminal: &mut Terminal) {
    match has_keys() {
        true => terminal.press("q"),
        false => terminal.command.signal(Signal::HUP),
    }
}

/// The emulator does not know the call that the program takes single keys with (TCGETS2); every Linux since 2.6.20 does.
fn has_keys() -> bool {
    !is_emulated()
}

const ENTERED: &str = "\x1b[?1049h";
const LEFT: &str = "\x1b[?1049l";

/// A daemon and a view of it that is drawn.
async fn watched(folder: &Folder) -> (Daemon, Terminal) {
    let daemon = Daemon::start(folder, "").await;
    let mut terminal = Terminal::start(&["top", "--socket", text(&daemon.socket)]);
    terminal.shows(ENTERED).await;
    (daemon, terminal)
}

#[tokio::test]
async fn a_terminal_is_drawn_on_until_q_and_left_as_it_was() {
    let folder = Folder::new();
    let (daemon, mut terminal) = watched(&folder).await;
    assert_eq!(run(&["ask", "--socket", text(&daemon.socket), &cases()[0].prompt]).await.code, Some(0));
    terminal.shows("1 answered").await;
    assert_eq!(terminal.echoes(), !has_keys());
    leave(&mut terminal);
    terminal.shows(LEFT).await;
    assert_eq!(terminal.command.ended().await.code(), Some(0));
    assert!(terminal.echoes());
}

#[tokio::test]
async fn a_daemon_that_goes_is_waited_for_and_a_signal_ends_the_view() {
    let folder = Folder::new();
    let (daemon, mut terminal) = watched(&folder).await;
    drop(daemon);
    // It was killed: its socket is still there.
    terminal.shows("is gone; start it again").await;
    let _again = Daemon::start(&folder, "").await;
    terminal.shows("bitnetd up ").await;
    terminal.command.signal(Signal::TERM);
    terminal.shows(LEFT).await;
    assert_eq!(terminal.command.ended().await.code(), Some(0));
}

#[tokio::test]
async fn q_ends_the_view_of_a_daemon_that_hangs() {
    let folder = Folder::new();
    let (daemon, mut terminal) = watched(&folder).await;
    daemon.process.signal(Signal::STOP);
    // By now it waits for a report that does not come.
    sleep(Duration::from_millis(1500)).await;
    leave(&mut terminal);
    let ended = timeout(LONGEST_REPORT / 2, terminal.command.ended()).await;
    daemon.process.signal(Signal::CONT);
    assert_eq!(ended.expect("long before the report is given up").code(), Some(0));
}
