//! What fails around the daemon: its disk, its clock, its sensors, the file under its model. The faults are real
//! ones; where a machine cannot make one, the test says so and passes.

use crate::daemon::{Daemon, run};
use crate::{Folder, data, text};
use serde_json::json;
use std::fs::File;
use std::path::{Path, PathBuf};

/// A copy of the tiny model, which can be damaged, and settings for it; see [`crate::endless`].
fn own_model(folder: &Folder) -> (PathBuf, String) {
    let model = folder.path("model.gguf");
    std::fs::copy(data("reference/b158-tiny.i2_s.gguf"), &model).expect("a temporary folder");
    let settings = format!("[model]\npath = \"{}\"\ncontext = 65536\n", model.display());
    (model, settings)
}

fn cut(model: &Path, length: u64) {
    File::options().write(true).open(model).and_then(|file| file.set_len(length)).expect("it can be cut");
}

/// The daemon ends by itself, as systemd is to start another, and the next one says what is wrong with the file.
async fn ends_over(mut daemon: Daemon, folder: &Folder, model: &Path) {
    assert_eq!(daemon.process.ended().await.code(), Some(1), "{}", daemon.log());
    let log = daemon.log();
    let last = log.lines().last().unwrap_or_default();
    assert!(last.starts_with("bitnetd: ") && last.contains(text(model)), "{log}");
    assert!(last.contains("has 4096 now"), "{log}");
    let config = folder.path("bitnetd.toml");
    let next = run(&["serve", "--config", text(&config)]).await;
    assert_eq!(next.code, Some(3), "{next:?}");
    assert!(next.err.lines().last().is_some_and(|line| line.contains(text(model))), "{next:?}");
}

#[tokio::test]
async fn a_model_file_cut_short_while_an_answer_is_computed_ends_in_an_error_and_no_signal() {
    let folder = Folder::new();
    let (model, settings) = own_model(&folder);
    let daemon = Daemon::start(&folder, &settings).await;
    let (mut client, mut other) = (daemon.client().await, daemon.client().await);
    client.keep_busy().await;
    other.request(&[json!({"id": "waits", "prompt": "go"})]).await;
    cut(&model, 4096);
    let end = client.end().await;
    assert_eq!((&end["id"], &end["code"]), (&json!("busy"), &json!("shutting_down")), "{end}");
    assert!(end["message"].as_str().is_some_and(|said| said.contains(text(&model))), "{end}");
    assert_eq!(other.end().await["code"], "shutting_down", "nobody waits for a daemon that is gone");
    ends_over(daemon, &folder, &model).await;
}

#[tokio::test]
async fn a_model_file_changed_between_two_answers_gives_no_third() {
    let folder = Folder::new();
    let (model, settings) = own_model(&folder);
    let daemon = Daemon::start(&folder, &settings).await;
    let mut client = daemon.client().await;
    assert_eq!(client.ask(json!({"prompt": "go", "max_tokens": 2})).await["event"], "done");
    cut(&model, 4096);
    // Not from the cache either: what was right for the old file need not be for the new one.
    let refused = client.ask(json!({"prompt": "go", "max_tokens": 2})).await;
    assert_eq!(refused["code"], "shutting_down", "{refused}");
    ends_over(daemon, &folder, &model).await;
}
