//! Power and energy of a daemon with a configured power of the board: the machine that runs the tests needs no sensor.

use crate::daemon::Daemon;
use crate::{Folder, PATIENCE, endless};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{sleep, timeout};

const BOARD: &str = "[telemetry]\nidle_watts = 2\nfull_watts = 10\n";

/// Asks for the report until its energy is more than `joules`.
async fn more_than(daemon: &Daemon, joules: f64) -> Value {
    let mut client = daemon.client().await;
    let grows = async {
        loop {
            let report = client.ask(json!({"telemetry": true})).await;
            if report["energy"]["joules"].as_f64() > Some(joules) {
                return report;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, grows).await.expect("the energy grows")
}

/// Where a sensor measures the power of the machine that runs this, it is preferred.
fn is_estimated(energy: &Value) -> bool {
    energy["method"] == "estimated"
}

#[tokio::test]
async fn configured_watts_become_power_and_energy_marked_as_estimated() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, BOARD).await;
    let first = more_than(&daemon, 0.0).await;
    let later = more_than(&daemon, first["energy"]["joules"].as_f64().expect("a number")).await;
    for report in [first, later] {
        let (power, energy) = (&report["power"], &report["energy"]);
        let watts = power["value"].as_f64().expect("a number");
        let sound = power["scope"] == "board" && (2.0..=10.0).contains(&watts);
        assert!(sound || !is_estimated(power), "{report}");
        assert!(["method", "source", "scope"].iter().all(|key| energy[key] == power[key]), "{report}");
    }
}

#[tokio::test]
async fn an_answer_longer_than_the_sensors_interval_has_its_energy_and_the_total_includes_it() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &format!("{}{BOARD}", endless())).await;
    // The first reading has no load to tell.
    more_than(&daemon, 0.0).await;
    // Asked again within its pace of 100 ms, the estimate would say of the time before computing what was true earlier.
    sleep(Duration::from_millis(150)).await;
    let mut client = daemon.client().await;
    client.keep_busy().await;
    sleep(Duration::from_secs(1)).await;
    client.cancel_busy().await;
    let done = client.end().await;
    let (energy, timings) = (&done["energy"], &done["timings"]);
    let joules = energy["joules"].as_f64().unwrap_or_else(|| panic!("{done}"));
    let milliseconds = |key: &str| timings[key].as_f64().unwrap_or_else(|| panic!("{done}"));
    let computed_ms = milliseconds("total_ms") - milliseconds("queue_ms");
    // Both are reported in whole microseconds.
    let least = 2.0 * (computed_ms - 0.001) / 1e3;
    let most = 10.0 * (computed_ms + 0.001) / 1e3;
    assert!(!is_estimated(energy) || (least..=most).contains(&joules), "{least} to {most} J: {done}");
    assert!(energy["joules_per_token"].as_f64() < Some(joules), "{done}");
    let report = more_than(&daemon, joules).await;
    assert_eq!(report["energy"]["requests_joules"], energy["joules"], "{report}");
}
