//! Faults of the daemon's surroundings: its disk, its clock, its sensors, its model file. The faults are real ones;
//! where a machine cannot make one, the test says so and passes.

use crate::daemon::{Daemon, Ended, bitnetd, finish, is_emulated, run, words};
use crate::endure::Line;
use crate::listener::{Listener, Message};
use crate::support::broker::Mosquitto;
use crate::support::output;
use crate::{Folder, data, endless, linked, text};
use serde_json::{Value, json};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

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

#[tokio::test]
async fn generate_over_a_model_file_that_is_cut_short_prints_an_error() {
    let folder = Folder::new();
    let (model, _) = own_model(&folder);
    let args = ["generate", "--model", text(&model), "--max-tokens", "1000000", "go"];
    let mut command = bitnetd();
    let ended = tokio::join!(finish(command.args(args), ""), async {
        crate::until("it reads the file", || is_open_somewhere(&model).then_some(())).await;
        cut(&model, 4096);
    });
    let Ended { code, err, .. } = ended.0;
    assert_eq!(code, Some(3), "{err}");
    assert!(err.lines().last().is_some_and(|line| line.contains(text(&model))), "{err}");
}

/// Whether a process has this file mapped.
fn is_open_somewhere(file: &Path) -> bool {
    let processes = std::fs::read_dir("/proc").expect("Linux").flatten();
    let mut maps = processes.filter_map(|process| std::fs::read_to_string(process.path().join("maps")).ok());
    maps.any(|maps| maps.contains(text(file)))
}

/// A separate file system, unmounted at the end.
struct Disk(PathBuf);

impl Disk {
    /// Half a page in all, or read-only; `None` where we may not mount.
    fn mount(folder: &Folder, options: &str) -> Option<Self> {
        let place = folder.path("disk");
        std::fs::create_dir(&place).expect("a temporary folder");
        let mounted =
            output(Command::new("mount").args(["-t", "tmpfs", "-o", options, "none", text(&place)]));
        mounted.is_ok_and(|mounted| mounted.status.success()).then_some(Disk(place))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = output(Command::new("umount").arg("-l").arg(&self.0));
    }
}

/// Full after a page; and one that takes nothing at all.
const DISKS: [(&str, &str); 2] = [("size=4k,nr_inodes=4", "No space left"), ("ro", "Read-only")];

#[tokio::test]
async fn with_a_full_or_read_only_cache_folder_it_answers_and_logs_what_is_not_stored() {
    for (options, why) in DISKS {
        let folder = Folder::new();
        let Some(disk) = Disk::mount(&folder, options) else {
            return println!("skipped: no file system can be mounted here");
        };
        let model = data("reference/b158-tiny.i2_s.gguf");
        let (model, cache) = (model.display(), disk.0.display());
        let settings = format!("[model]\npath = \"{model}\"\nhead = \"q8\"\ncache_dir = \"{cache}\"\n");
        let daemon = Daemon::start(&folder, &settings).await;
        let done = daemon.client().await.ask(json!({"prompt": "go", "max_tokens": 2})).await;
        assert_eq!(done["event"], "done", "{done}");
        let log = daemon.log();
        let said =
            log.lines().find(|line| line.contains("cannot be kept")).unwrap_or_else(|| panic!("{log}"));
        assert!(said.contains(why) && said.contains("model.cache_dir"), "{said}");
        let left = std::fs::read_dir(&disk.0).expect("mounted").flatten();
        let parts = left.flat_map(|entry| std::fs::read_dir(entry.path()).into_iter().flatten()).count();
        assert_eq!(parts, 0, "what was begun is cleaned up");
        daemon.stop().await;
    }
}

#[tokio::test]
async fn with_a_full_or_read_only_state_folder_prompts_are_answered_and_the_log_says_so() {
    for (options, why) in DISKS {
        let (folder, broker) = (Folder::new(), Mosquitto::start().await);
        let Some(disk) = Disk::mount(&folder, options) else {
            return println!("skipped: no file system can be mounted here");
        };
        // The only page is taken.
        let _ = std::fs::write(disk.0.join("other"), [0; 4096]);
        let settings = linked(broker.port);
        let state = format!("[device]\nstate_dir = \"{}\"\n", disk.0.display());
        let daemon = Daemon::start(&folder, &settings.replacen("[device]\n", &state, 1)).await;
        let mut replies = Listener::on(&broker, "bitnetd/cellar/reply/+").await;
        Listener::hears_online(&broker).await;
        for id in ["a", "b"] {
            let request = json!({"id": id, "prompt": "turn on the lamp"}).to_string();
            broker.publish(&["-q", "1", "-t", "bitnetd/cellar/prompt", "-m", &request]).await;
            assert_eq!(replies.end().await["event"], "done");
        }
        let log = daemon.log();
        let said: Vec<_> = log.lines().filter(|line| line.contains("answers are not saved")).collect();
        assert!(said.len() == 1 && said[0].contains(why) && said[0].contains("device.state_dir"), "{log}");
        let mut reports = Listener::on(&broker, "bitnetd/cellar/telemetry").await;
        let report = reports.next().await.json();
        assert_eq!(report["mqtt"]["durable"], false, "{report}");
        daemon.stop().await;
    }
}

#[tokio::test]
async fn a_backlog_on_a_disk_that_is_too_small_for_it_gets_one_answer_each_over_a_stop() {
    let (folder, broker) = (Folder::new(), Mosquitto::start().await);
    let Some(disk) = Disk::mount(&folder, "size=48k") else {
        return println!("skipped: no file system can be mounted here");
    };
    let state = format!("[device]\nstate_dir = \"{}\"\n", disk.0.display());
    let settings = linked(broker.port).replacen("[device]\n", &state, 1);
    let daemon = Daemon::start(&folder, &settings).await;
    Listener::hears_online(&broker).await;
    let mut replies = Listener::on(&broker, "bitnetd/cellar/reply/+").await;
    let mut line = Line::new(broker.port, "backlog");
    // White space takes space on the disk and no time in the model.
    let padding = " ".repeat(500);
    let count = 150;
    for number in 0..count {
        let prompt = json!({"id": number.to_string(), "prompt": format!("lamp {number}"), "max_tokens": 4});
        line.deliver("bitnetd/cellar/prompt", &format!("{prompt}{padding}"))
            .await
            .expect("the broker takes it");
    }
    daemon.says("No space left").await;
    daemon.stop().await;
    let _daemon = Daemon::start(&folder, &settings).await;
    let mut ends = std::collections::BTreeMap::<String, usize>::new();
    while ends.len() < count {
        let end = replies.end().await;
        assert_eq!(end["event"], "done", "{end}");
        *ends.entry(end["id"].to_string()).or_default() += 1;
    }
    let last = r#"{"id":"last","prompt":"hello"}"#;
    broker.publish(&["-q", "1", "-t", "bitnetd/cellar/prompt", "-m", last]).await;
    loop {
        let end = replies.end().await;
        if end["id"] == "last" {
            break;
        }
        *ends.entry(end["id"].to_string()).or_default() += 1;
    }
    assert!(ends.values().all(|times| *times == 1), "{ends:?}");
}

/// Debian's libfaketime, which gives a process another wall clock while it runs.
fn faketime() -> Option<PathBuf> {
    let places = std::fs::read_dir("/usr/lib").ok()?.flatten();
    places.map(|place| place.path().join("faketime/libfaketime.so.1")).find(|library| library.exists())
}

#[tokio::test]
async fn a_clock_that_jumps_changes_the_time_of_day_and_no_duration() {
    let Some(library) = faketime().filter(|_| !is_emulated()) else {
        return println!("skipped: there is no libfaketime (Debian: faketime) for this binary");
    };
    let (folder, broker) = (Folder::new(), Mosquitto::start().await);
    let clock = folder.write("clock", "+0\n");
    let mut command = bitnetd();
    command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", &clock).env("FAKETIME_NO_CACHE", "1");
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let config = folder.config(&format!("{}{}", endless(), linked(broker.port)));
    let mut daemon = Daemon::spawn(command.arg("serve").arg("--config").arg(config), &folder);
    daemon.ready().await;
    let mut reports = Listener::on(&broker, "bitnetd/cellar/telemetry").await;
    let now = year(&reports.next().await);
    let mut client = daemon.client().await;
    // Five years on, five years back: as on a device without a clock battery when it receives the time.
    for (offset, later) in [("+1825d\n", 5), ("-1825d\n", -5), ("+0\n", 0)] {
        client.keep_busy().await;
        client.request(&[json!({"id": "timed", "prompt": "go", "timeout_ms": 1500})]).await;
        std::fs::write(&clock, offset).expect("a temporary folder");
        let report = reports.wait(|report| (year(report) - now - later).abs() <= 1).await.json();
        assert!(report["uptime_s"].as_u64().is_some_and(|seconds| seconds < 3600), "{report}");
        let timed = client.end().await;
        assert_eq!((&timed["id"], &timed["code"]), (&json!("timed"), &json!("timeout")), "{timed}");
        client.cancel_busy().await;
        let busy = client.end().await;
        assert_eq!((&busy["id"], &busy["finish_reason"]), (&json!("busy"), &json!("cancelled")), "{busy}");
        assert!(busy["timings"]["total_ms"].as_f64().is_some_and(|ms| (0.0..3.6e6).contains(&ms)), "{busy}");
        let ran = client.ask(json!({"prompt": "go", "timeout_ms": 300})).await;
        assert_eq!(ran["finish_reason"], "timeout", "{ran}");
        assert!(ran["timings"]["total_ms"].as_f64().is_some_and(|ms| ms >= 300.0), "{ran}");
    }
}

fn year(report: &Message) -> i64 {
    let report = report.json();
    report["time"].as_str().and_then(|time| time.get(..4)?.parse().ok()).unwrap_or_else(|| panic!("{report}"))
}

#[tokio::test]
async fn without_any_sensor_it_answers_and_reports_null() {
    // An empty /sys, and a /proc that shows processes only, as `ProcSubset=pid` of a unit makes it.
    let hide = "mount -t tmpfs none /sys && mount -t proc -o subset=pid proc /proc";
    let alone = |then: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &format!("{hide} && {then}"), "sh"]);
        command
    };
    if is_emulated() || !output(&mut alone("true")).is_ok_and(|ended| ended.status.success()) {
        return println!("skipped: /sys and /proc cannot be hidden here");
    }
    let (folder, broker) = (Folder::new(), Mosquitto::start().await);
    let config = folder.config(&linked(broker.port));
    let mut command = alone("exec \"$@\"");
    command.args(words()).args(["serve", "--config", text(&config)]);
    let mut daemon = Daemon::spawn(&mut command, &folder);
    daemon.ready().await;
    assert_eq!(daemon.client().await.ask(json!({"prompt": "turn on the lamp"})).await["event"], "done");
    let report = Listener::on(&broker, "bitnetd/cellar/telemetry").await.next().await.json();
    for place in ["/power", "/energy", "/thermal/cpu", "/memory/host_total_bytes", "/cpu/load_1m"] {
        assert_eq!(report.pointer(place), Some(&Value::Null), "{place}: {report}");
    }
    assert_eq!(report["memory"]["memory_limit_enforced"], false, "{report}");
    assert!(report["memory"]["process_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{report}");
    daemon.stop().await;
}
