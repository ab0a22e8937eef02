//! `bitnetd report` and `GET /report` of a running daemon, and what a restart leaves of its history.

use crate::daemon::{Daemon, run};
use crate::{Folder, PATIENCE, cases, text};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

async fn report(daemon: &Daemon, options: &[&str]) -> Value {
    run(&[&["report", "--json", "--socket", text(&daemon.socket)], options].concat()).await.json()
}

/// Asks, and waits until the report has the answers: it has them once the host was sampled, within a second.
async fn asked(daemon: &Daemon, answers: u64) -> Value {
    assert_eq!(run(&["ask", "--socket", text(&daemon.socket), &cases()[0].prompt]).await.code, Some(0));
    let counted = async {
        loop {
            let report = report(daemon, &["--hours", "1"]).await;
            if report["summary"]["requests"]["completed"] == answers {
                return report;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, counted).await.expect("the history has it in time")
}

fn history_files(folder: &Folder, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder.path("state")).expect("the state folder");
    let paths = entries.map(|entry| entry.expect("readable").path());
    paths.filter(|path| path.extension().is_some_and(|found| found == ending)).collect()
}

#[tokio::test]
async fn the_report_has_what_was_answered_in_every_form() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "[device]\nid = \"<b>cellar<b>\"\n").await;
    let report = asked(&daemon, 1).await;
    let summary = &report["summary"];
    assert_eq!((&summary["hours"], &summary["restarts"]), (&json!(1), &json!(0)), "{report}");
    assert_eq!(
        (&summary["requests"]["success_ratio"], &summary["ttft_ms"]["count"]),
        (&json!(1.0), &json!(1))
    );
    let columns = report["columns"].as_array().expect("names").len();
    let steps = report["steps"].as_array().expect("steps");
    assert!(!steps.is_empty() && steps.iter().all(|step| step.as_array().expect("a row").len() == columns));

    let socket = text(&daemon.socket);
    let csv = run(&["report", "--csv", "--socket", socket]).await.out;
    let lines: Vec<&str> = csv.lines().collect();
    assert!(lines[0].starts_with("time,observed_s,") && lines.len() > steps.len(), "{csv}");
    assert!(lines.iter().all(|line| line.split(',').count() == columns), "{csv}");
    let shown = run(&["report", "--socket", socket, "--hours", "720", "--price", "0.3"]).await;
    assert!(shown.out.contains("requests      1 completed, 0 refused") && shown.code == Some(0), "{shown:?}");

    let file = folder.path("report.html");
    let written = run(&["report", "--socket", socket, "--html", text(&file)]).await;
    assert_eq!((written.code, written.out.as_str()), (Some(0), ""), "{written:?}");
    let page = std::fs::read_to_string(&file).expect("written");
    assert!(page.starts_with("<!doctype html>") && page.contains("&lt;b&gt;cellar&lt;b&gt;"), "{page}");
    assert!(page.contains("<svg") && page.ends_with("</html>\n"), "{page}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_restart_goes_on_with_the_history_and_a_damaged_file_is_set_aside() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    asked(&daemon, 1).await;
    daemon.stop().await;
    let [file] = &history_files(&folder, "history")[..] else { panic!("one file") };

    let daemon = Daemon::start(&folder, "").await;
    let report = asked(&daemon, 2).await;
    assert_eq!(report["summary"]["restarts"], 1, "{report}");
    daemon.stop().await;

    let mut bytes = std::fs::read(file).expect("there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(file, &bytes).expect("space");
    let daemon = Daemon::start(&folder, "").await;
    daemon.says("the history begins anew").await;
    assert_eq!(asked(&daemon, 1).await["summary"]["restarts"], 0);
    daemon.stop().await;
    assert_eq!((history_files(&folder, "history").len(), history_files(&folder, "corrupt").len()), (1, 1));
}

#[tokio::test]
async fn a_kill_leaves_a_daemon_that_starts_again() {
    let folder = Folder::new();
    let mut daemon = Daemon::start(&folder, "").await;
    asked(&daemon, 1).await;
    daemon.process.kill();
    let daemon = Daemon::start(&folder, "").await;
    assert_eq!(asked(&daemon, 1).await["summary"]["restarts"], 0, "nothing was written yet");
    assert!(!daemon.log().contains("history:"), "{}", daemon.log());
    daemon.stop().await;
}

#[tokio::test]
async fn the_socket_serves_the_page_to_any_client_of_http() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut stream = UnixStream::connect(&daemon.socket).await.expect("it listens");
    stream.write_all(b"GET /report HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("to the end");
    let head = answer.split("\r\n\r\n").next().unwrap_or_default().to_lowercase();
    assert!(head.starts_with("http/1.1 200 ok\r\ncontent-type: text/html; charset=utf-8\r\n"), "{head}");
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    daemon.stop().await;
}

#[tokio::test]
async fn without_a_history_or_a_daemon_it_says_so() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "[history]\nenabled = false\n").await;
    let socket = text(&daemon.socket);
    let ended = run(&["report", "--socket", socket]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.error_line().contains("history.enabled is false"), "{ended:?}");
    for wrong in [&["--hours", "0"][..], &["--hours", "721"], &["--price", "-1"], &["--json", "--csv"]] {
        let ended = run(&[&["report", "--socket", socket], wrong].concat()).await;
        assert_eq!(ended.code, Some(2), "{ended:?}");
    }
    let nobody = folder.path("nobody");
    let ended = run(&["report", "--socket", text(&nobody)]).await;
    assert_eq!(ended.code, Some(4), "{ended:?}");
    daemon.stop().await;
}
