//! A configuration that changes while the daemon runs.

use crate::daemon::{Daemon, bitnetd};
use crate::listener::Listener;
use crate::support::broker::Mosquitto;
use crate::systemd::Manager;
use crate::{Folder, endless, linked};
use rustix::process::Signal;
use serde_json::json;

#[tokio::test]
async fn what_can_change_live_does_and_the_rest_is_named() {
    let folder = Folder::new();
    let manager = Manager::new(&folder);
    let mut daemon = Daemon::spawn(&mut manager.starts(&folder, &endless()), &folder);
    manager.hears("READY=1").await;
    daemon.ready().await;
    let changed = "[queue]\ntimeout_ms = 3000\ndepth = 3\n[budget]\nthreads = 2\n[log]\nlevel = \"debug\"\n";
    folder.config(&format!("{}{changed}", endless()));
    daemon.process.signal(Signal::HUP);
    let reloading = manager.hears("RELOADING=1").await;
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    manager.hears("READY=1").await;
    let said = "changed: queue.timeout_ms, log.level; needs a restart: budget.threads, queue.depth\n";
    daemon.says(said).await;
    // It would run for ever, and for two minutes by the old settings.
    let done = daemon.client().await.ask(json!({"prompt": "go"})).await;
    assert_eq!(done["finish_reason"], "timeout", "{done}");
    daemon.says("DEBUG prompt: ").await;
    daemon.process.terminate();
    daemon.ends_well().await;
}

#[tokio::test]
async fn a_broken_file_is_refused_with_its_place_and_the_old_settings_go_on() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let file = folder.config("[queue]\ntimeout_ms = \"soon\"\n");
    daemon.process.signal(Signal::HUP);
    daemon.says("not reloaded, the settings stay as they were: ").await;
    daemon.says(&format!("{}:9: queue.timeout_ms: ", file.display())).await;
    std::fs::remove_file(&file).expect("our own");
    daemon.process.signal(Signal::HUP);
    daemon.says(&format!("{}: cannot be read", file.display())).await;
    assert_eq!(daemon.client().await.ask(json!({"prompt": "go"})).await["event"], "done");
    daemon.stop().await;
}

#[tokio::test]
async fn the_command_line_outlives_a_reload() {
    let folder = Folder::new();
    let mut command = bitnetd();
    command.arg("serve").arg("--config").arg(folder.config("")).arg("--socket").arg(folder.path("elsewhere"));
    let mut daemon = Daemon::spawn(&mut command, &folder);
    daemon.ready().await;
    daemon.process.signal(Signal::HUP);
    daemon.says("configuration read again; nothing has changed").await;
}

#[tokio::test]
async fn a_new_telemetry_interval_applies_at_once() {
    let (folder, broker) = (Folder::new(), Mosquitto::start().await);
    let settings =
        |seconds: u32| linked(broker.port).replace("interval_s = 1\n", &format!("interval_s = {seconds}\n"));
    let daemon = Daemon::start(&folder, &settings(86_400)).await;
    let mut reports = Listener::on(&broker, "bitnetd/cellar/telemetry").await;
    folder.config(&settings(1));
    daemon.process.signal(Signal::HUP);
    daemon.says("changed: telemetry.interval_s").await;
    reports.next().await;
    daemon.stop().await;
}
