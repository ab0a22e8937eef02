//! The number of compute threads: measured and logged once, or pinned.

use crate::Folder;
use crate::daemon::Daemon;
use serde_json::json;

/// What the daemon says of numbers it found, after some answers.
async fn said(settings: &str) -> Vec<String> {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, settings).await;
    let mut client = daemon.client().await;
    for n in 0..8 {
        let prompt = format!("Turn on the light number {n} in the kitchen please");
        let answer = client.ask(json!({"id": format!("{n}"), "prompt": prompt})).await;
        assert_eq!(answer["event"], "done", "{answer}");
    }
    let log = daemon.log();
    daemon.stop().await;
    log.lines().filter(|line| line.contains("threads: decode ")).map(str::to_owned).collect()
}

#[tokio::test]
async fn numbers_of_threads_are_tuned_and_logged_once() {
    let lines = said("[budget]\nthreads = 2\n").await;
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
    let lines = said("[budget]\nthreads = 2\ndecode_threads = 1\nprefill_threads = 2\n").await;
    assert!(lines.is_empty(), "{lines:?}");
}
