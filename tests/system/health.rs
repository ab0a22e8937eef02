//! The health of the daemon: for `bitnetd health`, and retained at the broker.

use crate::daemon::{Daemon, run};
use crate::listener::Listener;
use crate::support::broker::{Mosquitto, free_port};
use crate::{Folder, linked, text};
use serde_json::{Value, json};

#[tokio::test]
async fn the_command_tells_by_its_exit_code_whether_the_daemon_is_well() {
    let folder = Folder::new();
    let quiet = "temperature_c = 0\nthrottled = false\nunder_voltage = false\nmemory_percent = 0\n";
    let settings = format!("{}[alerts]\nbroker_link_s = 1\n{quiet}", linked(free_port()));
    let nobody = run(&["health", "--socket", text(&folder.path("s"))]).await;
    assert_eq!(nobody.code, Some(4), "{nobody:?}");
    let daemon = Daemon::start(&folder, &settings).await;
    let socket = text(&daemon.socket);
    daemon.says(" ALERT=broker_link STATE=raised ").await;
    let degraded = run(&["health", "--json", "--ask", "--socket", socket]).await;
    assert_eq!(degraded.code, Some(1), "{degraded:?}");
    assert_eq!(degraded.error_line(), "bitnetd: degraded: broker_link; the journal says more");
    let health = degraded.json();
    assert_eq!(
        (&health["reasons"], &health["broker"]["connected"]),
        (&json!(["broker_link"]), &json!(false))
    );
    assert_eq!((&health["self_test"]["ok"], &health["model"]), (&json!(true), &json!("home-intents")));
    assert!(health["memory"]["process_bytes"].as_u64() > Some(0), "{health}");
    assert!(health["ask"]["tokens"].as_u64().is_some_and(|tokens| (1..=10).contains(&tokens)), "{health}");
    let again = run(&["health", "--socket", socket]).await;
    let rows = ["state        degraded: broker_link\n", "\nlast answer  ", "\nself-test    ok; "];
    assert!(rows.iter().all(|row| again.out.contains(row)), "{again:?}");
    daemon.stop().await;

    let daemon = Daemon::start(&folder, &format!("[alerts]\n{quiet}")).await;
    let ready = run(&["health", "--socket", text(&daemon.socket)]).await;
    assert_eq!((ready.code, ready.err.as_str()), (Some(0), ""), "{ready:?}");
    assert!(ready.out.starts_with("state        ready\n"), "{ready:?}");
    daemon.stop().await;
}

/// The states that the broker has retained, or gets, up to this one.
async fn wait_for(states: &mut Listener, state: &str) -> Value {
    states.wait(|message| message.json()["state"] == state).await.json()
}

#[tokio::test]
async fn the_state_is_retained_also_after_a_restart_of_the_broker_and_at_a_stop() {
    let (folder, mut broker) = (Folder::new(), Mosquitto::start().await);
    let quiet = "[alerts]\ntemperature_c = 0\nthrottled = false\nunder_voltage = false\nmemory_percent = 0\n";
    let daemon = Daemon::start(&folder, &(linked(broker.port) + quiet)).await;
    Listener::hears_online(&broker).await;
    let ready = wait_for(&mut Listener::on(&broker, "bitnetd/cellar/health").await, "ready").await;
    let mut answering = Listener::on(&broker, "bitnetd/cellar/answering").await;
    assert_eq!(answering.wait(|state| state.retained).await.payload, "OFF");
    assert_eq!(ready["broker"], json!({"connected": true, "problem": null}), "{ready}");
    // This broker keeps nothing over a restart.
    broker.kill();
    broker.restart().await;
    Listener::hears_online(&broker).await;
    wait_for(&mut Listener::on(&broker, "bitnetd/cellar/health").await, "ready").await;
    daemon.stop().await;
    let mut late = Listener::on(&broker, "bitnetd/cellar/health").await;
    let last = late.wait(|message| message.retained).await.json();
    assert_eq!(last["state"], "draining", "{last}");
}
