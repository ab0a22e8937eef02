//! The number of compute threads: measured and logged once, or pinned.

use crate::Folder;
use crate::daemon::Daemon;
use serde_json::json;

/// What the daemon says of numbers it found, after so many answers.
async fn said(settings: &str, answers: usize) -> Vec<String> {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, settings).await;
    let mut client = daemon.client().await;
    for n in 0..answers {
        let prompt = format!("Turn on the light number {n} in the kitchen please");
        let answer = client.ask(json!({"id": format!("{n}"), "prompt": prompt})).await;
        assert_eq!(answer["event"], "done", "{answer}");
    }
    let log = folder.path("log");
    daemon.stop().await;
    let log = std::fs::read_to_string(log).expect("the daemon's log");
    log.lines().filter(|line| line.contains("threads: decode ")).map(str::to_owned).collect()
}

#[tokio::test]
async fn numbers_of_threads_are_tuned_and_logged_once() {
    for warms_up in [true, false] {
        let settings = format!("[budget]\nthreads = 2\n[model]\nwarm_up = {warms_up}\n");
        assert_tuned(&said(&settings, 8).await);
    }
}

fn assert_tuned(lines: &[String]) {
    assert_eq!(lines.len(), 1, "{lines:?}");
    let number = |kind: &str| {
        let (_, rest) = lines[0].split_once(kind).expect(kind);
        rest.trim_start().split(',').next().and_then(|word| word.parse::<usize>().ok()).expect("a number")
    };
    for kind in ["decode", "prefill"] {
        assert!((1..=2).contains(&number(kind)), "{lines:?}");
    }
}

#[tokio::test]
async fn pinned_numbers_are_not_found_out() {
    let lines = said("[budget]\nthreads = 2\ndecode_threads = 1\nprefill_threads = 2\n", 8).await;
    assert!(lines.is_empty(), "{lines:?}");
}

#[tokio::test]
async fn a_daemon_that_warms_up_knows_them_before_the_first_request() {
    let settings = |warms_up: bool| format!("[budget]\nthreads = 2\n[model]\nwarm_up = {warms_up}\n");
    let lines = said(&settings(false), 0).await;
    assert!(lines.is_empty(), "{lines:?}");
    let mut lines = Vec::new();
    // Warming up ends after two seconds, which a machine may leave the daemon without a processor.
    for _ in 0..20 {
        lines = said(&settings(true), 0).await;
        if !lines.is_empty() {
            break;
        }
    }
    assert_tuned(&lines);
}
