//! `bitnetd demo`, as somebody tries it who has just unpacked the binary.

use crate::Folder;
use crate::daemon::{bitnetd, finish};

#[tokio::test]
async fn the_demo_answers_over_both_transports_reports_and_leaves_no_files() {
    let folder = Folder::new();
    let mut command = bitnetd();
    let ended = finish(command.arg("demo").env("TMPDIR", folder.path("")), "").await;
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
    let after = |door: &str| {
        let lines = ended.out.lines().skip_while(|line| !line.starts_with(door));
        lines.take(2).collect::<Vec<_>>().join("\n")
    };
    for door in ["MQTT", "socket"] {
        assert!(after(door).contains(r#"{"intent":"#), "{door}: {}", ended.out);
    }
    let report = ended.out.split("bitnetd/demo/telemetry\n").nth(1).expect("a report");
    let report: serde_json::Value = serde_json::from_str(report).expect("JSON");
    assert_eq!(report["requests"]["completed"], 4, "{report}");
    let left = std::fs::read_dir(folder.path("")).expect("a temporary folder").count();
    assert_eq!(left, 0, "files left in the temporary folder");
}
