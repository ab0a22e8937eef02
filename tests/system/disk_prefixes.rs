//! Beginnings of prompts on disk: found after a restart, and never wrong, however the daemon ended. How often it is killed
//! while it writes is `BITNETD_DISK_KILLS`; 6 where it is not set, twice under emulation.

use crate::daemon::{Client, Daemon, is_emulated};
use crate::{Folder, PATIENCE, data, until};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::{sleep, timeout};

fn settings(folder: &Folder, disk_mb: u64) -> String {
    let cache = folder.path("cache");
    format!("[model]\ncache_dir = \"{}\"\n[cache]\ndisk_mb = {disk_mb}\n", cache.display())
}

fn blocks(folder: &Folder) -> Vec<PathBuf> {
    let entries = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten();
    let models = entries(folder.path("cache"));
    let files = models.flat_map(|model| entries(model.path().join("prefixes"))).map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|end| end == "kv")).collect()
}

/// A question behind a long text.
fn question(number: usize) -> Value {
    let text = "the lights of the kitchen and of the hall ".repeat(26);
    json!({"prompt": format!("house {number}: {text}turn on the lamp"), "max_tokens": 6, "cache": false, "stream": false})
}

async fn ask(client: &mut Client, number: usize) -> (Value, u64) {
    let done = client.ask(question(number)).await;
    let found = done["usage"]["cached_tokens"].as_u64().unwrap_or_else(|| panic!("{done}"));
    (done["text"].clone(), found)
}

#[tokio::test]
async fn a_beginning_is_found_after_a_restart_where_the_owner_wants_it() {
    let folder = Folder::new();
    let without = settings(&folder, 0);
    let daemon = Daemon::start(&folder, &without).await;
    let (expected, _) = ask(&mut daemon.client().await, 1).await;
    daemon.stop().await;
    assert!(blocks(&folder).is_empty(), "off by default");

    let with = settings(&folder, 64);
    let daemon = Daemon::start(&folder, &with).await;
    assert_eq!(ask(&mut daemon.client().await, 1).await, (expected.clone(), 0));
    until("the blocks are written", || (blocks(&folder).len() >= 3).then_some(())).await;
    daemon.stop().await;
    let daemon = Daemon::start(&folder, &with).await;
    let (text, found) = ask(&mut daemon.client().await, 1).await;
    assert_eq!(text, expected);
    assert!(found >= 192, "{found}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_damaged_file_is_reported_and_changes_nothing() {
    let folder = Folder::new();
    let with = settings(&folder, 64);
    let daemon = Daemon::start(&folder, &with).await;
    let (expected, _) = ask(&mut daemon.client().await, 1).await;
    until("the blocks are written", || (blocks(&folder).len() >= 3).then_some(())).await;
    daemon.stop().await;
    for path in blocks(&folder) {
        let bytes = std::fs::read(&path).expect("there");
        std::fs::write(&path, &bytes[..bytes.len() - 7]).expect("written");
    }
    let daemon = Daemon::start(&folder, &with).await;
    assert_eq!(ask(&mut daemon.client().await, 1).await, (expected, 0));
    daemon.says("the file is ignored and removed").await;
    daemon.stop().await;
}

#[tokio::test]
async fn killed_while_it_writes_it_gives_no_wrong_answer() {
    let folder = Folder::new();
    let kills = std::env::var("BITNETD_DISK_KILLS").ok().and_then(|kills| kills.parse().ok());
    let kills: usize = kills.unwrap_or(if is_emulated() { 2 } else { 6 });
    let daemon = Daemon::start(&folder, &settings(&folder, 0)).await;
    let mut expected = Vec::new();
    let mut client = daemon.client().await;
    for number in 0..4 {
        expected.push(ask(&mut client, number).await.0);
    }
    daemon.stop().await;
    // Space for some of the blocks, so that others are removed at the same time.
    let with = settings(&folder, 2);
    let mut found = 0;
    for round in 0..kills {
        let mut daemon = Daemon::start(&folder, &with).await;
        let mut client = daemon.client().await;
        for (number, expected) in expected.iter().enumerate() {
            let (text, cached) = ask(&mut client, number).await;
            assert_eq!(text, *expected, "round {round}, question {number}");
            found += cached;
        }
        // The last blocks are being written just now.
        sleep(Duration::from_micros(300 * (round as u64 % 8))).await;
        daemon.process.kill();
    }
    assert!(found > 0 || kills < 2, "nothing was found in {kills} rounds");
}

/// Settings of a daemon that answers one request at a time, with a model that never ends an answer by itself, and a context
/// that two long texts do not share.
fn one_slot(folder: &Folder, disk_mb: u64) -> String {
    let model = data("reference/b158-tiny.i2_s.gguf");
    format!(
        "[model]\npath = \"{}\"\ncontext = 4096\ncache_dir = \"{}\"\n[budget]\nthreads = 1\nparallel = 1\n\
         [cache]\ndisk_mb = {disk_mb}\n",
        model.display(),
        folder.path("cache").display()
    )
}

#[tokio::test]
async fn a_suspended_request_whose_prompt_came_from_disk_gives_the_same_text() {
    if is_emulated() {
        return println!("skipped: reading prompts of thousands of tokens takes minutes here");
    }
    let folder = Folder::new();
    let text = |times: usize| "the lights of the kitchen and of the hall ".repeat(times);
    let low = |max_tokens: u32| {
        let prompt = text(60);
        json!({"prompt": prompt, "priority": "low", "max_tokens": max_tokens, "cache": false, "speculate": false})
    };
    let most = 3000;
    let daemon = Daemon::start(&folder, &one_slot(&folder, 0)).await;
    let expected = daemon.client().await.ask(low(most)).await;
    daemon.stop().await;
    let with = one_slot(&folder, 64);
    let daemon = Daemon::start(&folder, &with).await;
    daemon.client().await.ask(low(1)).await;
    until("the blocks are written", || (blocks(&folder).len() >= 8).then_some(())).await;
    daemon.stop().await;

    let daemon = Daemon::start(&folder, &with).await;
    let (mut slow, mut quick) = (daemon.client().await, daemon.client().await);
    let mut suspensions = 0;
    // A machine that leaves the test without a processor may answer the low one before the high one comes.
    for round in 0..20 {
        let before = quick.decoding_steps().await;
        slow.request(&[low(most)]).await;
        let begun = async { while quick.decoding_steps().await <= before {} };
        timeout(PATIENCE, begun).await.expect("the low one runs in time");
        // Takes the memory of nearly all blocks.
        let high = json!({"prompt": format!("{round} {}", text(430)), "priority": "high", "max_tokens": 2});
        let done = quick.ask(high).await;
        assert!(done["usage"]["prompt_tokens"].as_u64().is_some_and(|tokens| tokens > 3800), "{done}");
        let done = slow.end().await;
        assert_eq!(
            (&done["text"], &done["finish_reason"]),
            (&expected["text"], &json!("length")),
            "round {round}"
        );
        assert!(done["usage"]["cached_tokens"].as_u64().is_some_and(|found| found >= 512), "{done}");
        let report = quick.ask(json!({"telemetry": true})).await;
        suspensions = report["decoding"]["suspensions"].as_u64().expect("a count");
        if suspensions > 0 {
            break;
        }
    }
    assert!(suspensions > 0, "none was suspended");
    daemon.stop().await;
}
