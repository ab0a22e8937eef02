//! Alerts, on the broker, in the log and over the socket.

use crate::daemon::{Client, Daemon, run};
use crate::listener::Listener;
use crate::support::broker::Mosquitto;
use crate::{Folder, endless, linked, text, until};
use rustix::process::Signal;
use serde_json::{Value, json};

/// What the board that runs the tests may say of itself is no matter of theirs.
const QUIET: &str = "temperature_c = 0\nthrottled = false\nunder_voltage = false\n";

/// The alerts that the report over the socket names.
async fn raised(client: &mut Client) -> Value {
    client.ask(json!({"telemetry": true})).await["alerts"].clone()
}

/// The lines of the log about this alert's changes.
fn lines(daemon: &Daemon, kind: &str) -> Vec<String> {
    let name = format!(" ALERT={kind} ");
    daemon.log().lines().filter(|line| line.contains(&name)).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_queue_that_stays_full_raises_one_alert_and_clears_it_once() {
    let (folder, broker) = (Folder::new(), Mosquitto::start().await);
    let settings = format!(
        "{}{}[queue]\ndepth = 1\n[alerts]\nhold_s = 1\nmemory_percent = 0\n{QUIET}",
        endless(),
        linked(broker.port)
    );
    let daemon = Daemon::start(&folder, &settings).await;
    Listener::hears_online(&broker).await;
    let mut alerts = Listener::on(&broker, "bitnetd/cellar/alert").await;
    let (mut busy, mut watcher) = (daemon.client().await, daemon.client().await);
    busy.keep_busy().await;
    assert_eq!(raised(&mut watcher).await, json!([]));
    busy.request(&[json!({"id": "waits", "prompt": "a"})]).await;
    let told = alerts.next().await;
    let alert = told.json();
    assert!(!told.retained, "{told:?}");
    assert_eq!((&alert["type"], &alert["state"]), (&json!("queue"), &json!("raised")));
    assert_eq!((&alert["value"], &alert["threshold"]), (&json!(100.0), &json!(90.0)));
    assert_eq!(alert["severity"], "warning");
    assert!(alert["message"].as_str().is_some_and(|said| said.contains("queue.depth")), "{alert}");
    assert_eq!(raised(&mut watcher).await, json!(["queue"]));
    let list = watcher.ask(json!({"alerts": true})).await;
    assert_eq!(list, json!({"event": "alerts", "raised": [alert], "recent": []}));
    for question in ["alerts", "health", "telemetry", "metrics"] {
        let answer = watcher.ask(json!({"id": format!("my {question}"), question: true})).await;
        assert_eq!((&answer["event"], &answer["id"]), (&question.into(), &format!("my {question}").into()));
    }
    // What is raised is retained, for whoever comes later.
    let mut retained = Listener::on(&broker, "bitnetd/cellar/alerts").await;
    assert_eq!(retained.wait(|list| list.json() != json!([])).await.json(), json!([alert]));
    let view = run(&["top", "--socket", text(&daemon.socket)]).await;
    assert!(view.out.contains("\nALERT       queue: 100 (alert at 90), warning since "), "{view:?}");
    busy.send("{\"cancel\":\"waits\"}\n").await;
    let over = alerts.next().await.json();
    assert_eq!((&over["type"], &over["state"]), (&json!("queue"), &json!("cleared")));
    assert_eq!(retained.wait(|list| list.json() == json!([])).await.json(), json!([]));
    let list = watcher.ask(json!({"alerts": true})).await;
    assert_eq!((&list["raised"], &list["recent"][0]["time"]), (&json!([]), &alert["time"]), "{list}");
    assert_eq!(list["recent"][0]["cleared_time"], over["time"], "{list}");
    let view = run(&["top", "--socket", text(&daemon.socket)]).await;
    assert!(view.out.contains("\nearlier     queue: 100 (alert at 90), "), "{view:?}");
    assert_eq!(raised(&mut watcher).await, json!([]));
    let lines = lines(&daemon, "queue");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("WARN  alert: the queue is full to 100 %"), "{lines:?}");
    assert!(lines[0].ends_with("STATE=raised VALUE=100 THRESHOLD=90"), "{lines:?}");
    assert!(lines[1].starts_with("INFO  alert: ") && lines[1].contains("STATE=cleared"), "{lines:?}");
    drop(busy);
    daemon.stop().await;
}

#[tokio::test]
async fn the_alert_for_a_lost_broker_is_published_when_it_is_back() {
    let (folder, mut broker) = (Folder::new(), Mosquitto::persistent().await);
    let settings = format!(
        "{}[alerts]\nhold_s = 1\nbroker_link_s = 2\nmemory_percent = 0\n{QUIET}",
        linked(broker.port)
    );
    let daemon = Daemon::start(&folder, &settings).await;
    Listener::hears_online(&broker).await;
    // The broker keeps for it what comes before it is back itself.
    let wanted =
        ["-c", "-i", "owner", "-x", "600", "-q", "1", "-t", "bitnetd/cellar/alert", "-C", "2", "-W", "28"];
    let owner = broker.subscribe(&wanted).await;
    broker.kill();
    until("the alert", || (lines(&daemon, "broker_link").len() == 1).then_some(())).await;
    broker.restart().await;
    let output = owner.output().await;
    let told: Vec<Value> = output.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let states: Vec<_> = told.iter().map(|alert| (alert["type"].as_str(), alert["state"].as_str())).collect();
    let name = Some("broker_link");
    let times: Vec<_> = told.iter().map(|alert| alert["time"].as_str()).collect();
    assert!(times[0].is_some() && times[0] < times[1], "when each happened: {output}");
    assert_eq!(states, [(name, Some("raised")), (name, Some("cleared"))], "{output}");
    assert!(told[0]["value"].as_f64().is_some_and(|seconds| seconds >= 2.0), "{output}");
    assert_eq!(lines(&daemon, "broker_link").len(), 2);
    daemon.stop().await;
}

#[tokio::test]
async fn reloaded_alert_rules_apply_at_once() {
    let folder = Folder::new();
    let settings = |ms: &str| {
        let budget = "[budget]\nthreads = 1\nmemory_mb = 256\n";
        format!("{budget}[alerts]\nhold_s = 0\nmemory_percent = 0\nttft_ms = {ms}\n{QUIET}")
    };
    let daemon = Daemon::start(&folder, &settings("0.001")).await;
    let mut client = daemon.client().await;
    assert_eq!(raised(&mut client).await, json!([]));
    client.request(&[json!({"id": "a", "prompt": "a"})]).await;
    client.end().await;
    daemon.says(" ALERT=latency STATE=raised ").await;
    assert_eq!(raised(&mut client).await, json!(["latency"]));
    folder.config(&settings("0"));
    daemon.process.signal(Signal::HUP);
    daemon.says("changed: alerts.ttft_ms").await;
    daemon.says("alert: the alert latency is switched off ALERT=latency STATE=cleared ").await;
    assert_eq!(raised(&mut client).await, json!([]));
    daemon.stop().await;
}
