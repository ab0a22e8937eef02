//! The governor in a running daemon. What it does about heat is tested with a thermal model, in `src/daemon/governor`.

use crate::Folder;
use crate::daemon::{Client, Daemon};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{sleep, timeout};

fn settings(rest: &str) -> String {
    format!("[budget]\nthreads = 2\n[governor]\n{rest}")
}

/// Asks for the report until it tells this of the governor.
async fn until_governed(client: &mut Client, wanted: Value) {
    let told = async {
        while client.ask(json!({"telemetry": true})).await["governor"] != wanted {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(crate::PATIENCE, told).await.unwrap_or_else(|_| panic!("in time: {wanted}"));
}

#[tokio::test]
async fn quiet_hours_reduce_the_effort_change_no_answer_and_end_with_a_reload() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &settings("")).await;
    let mut client = daemon.client().await;
    let ask = json!({"prompt": "turn on the kitchen light", "cache": false});
    let usual = client.ask(ask.clone()).await;
    assert!(client.ask(json!({"telemetry": true})).await["governor"].is_null(), "it is off by default");
    folder.config(&settings("quiet_hours = \"00:00-24:00\"\nreduced_percent = 10\n"));
    daemon.process.signal(Signal::HUP);
    daemon.says("changed: governor.quiet_hours, governor.reduced_percent").await;
    until_governed(
        &mut client,
        json!({"threads": 1, "percent": 20, "reason": "quiet_hours", "target_c": null, "limit_watts": null}),
    )
    .await;
    daemon.says("governor: 1 of 2 threads, 20 % of the time: these are quiet hours").await;
    let quiet = client.ask(ask).await;
    assert_eq!((&quiet["text"], &quiet["event"]), (&usual["text"], &json!("done")));
    folder.config(&settings("target_c = 100\n"));
    daemon.process.signal(Signal::HUP);
    until_governed(
        &mut client,
        json!({"threads": 2, "percent": 100, "reason": "none", "target_c": 100.0, "limit_watts": null}),
    )
    .await;
    daemon.stop().await;
}
