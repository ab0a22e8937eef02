//! A network that is slow, drips, or silently swallows everything.

use super::load::{LoadClients, Memory};
use super::proxy::{Pace, Proxy};
use super::{Deployment, is_long, settings, tell};
use crate::Folder;
use crate::daemon::Daemon;
use crate::support::broker::Mosquitto;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Silence after which a link counts as dead, and some time to notice.
const NOTICED: Duration = Duration::from_secs(90);

/// A daemon behind a proxy; the clients are connected to the broker directly.
async fn behind(proxy: &Proxy, broker: Mosquitto) -> Deployment {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &settings(proxy.port, 0)).await;
    let clients = LoadClients::at(broker.port, Memory::Kept).await;
    let mut deployment = Deployment { number: 0, folder, broker, daemon, clients };
    deployment.clients.hears(1).await;
    deployment
}

#[tokio::test]
async fn a_slow_network_makes_answers_late_and_nothing_else() {
    let broker = Mosquitto::start().await;
    let proxy = Proxy::to(broker.port).await;
    let mut deployment = behind(&proxy, broker).await;
    proxy.pace(Pace::Late(Duration::from_millis(if is_long() { 500 } else { 50 })));
    deployment.clients.hears(if is_long() { 100 } else { 5 }).await;
    let tally = deployment.tally().await;
    tell("every packet late", 1, &tally);
    tally.is_clean();
    assert_eq!(proxy.calls(), 1, "it held the connection");
}

#[tokio::test]
async fn a_network_that_drips_is_survived_and_then_used() {
    let broker = Mosquitto::start().await;
    let proxy = Proxy::to(broker.port).await;
    let mut deployment = behind(&proxy, broker).await;
    proxy.pace(Pace::Drip(Duration::from_secs(1)));
    sleep(Duration::from_secs(if is_long() { 150 } else { 2 })).await;
    proxy.pace(Pace::Free);
    deployment.clients.hears(3).await;
    let tally = deployment.tally().await;
    tell("1 byte per second", 1, &tally);
    tally.is_clean();
    assert!(proxy.shortest_gap().is_none_or(|gap| gap >= Duration::from_millis(950)));
}

/// Takes more than a minute by nature: only a silence of that length tells a vanished broker from
/// one that has nothing to say.
#[tokio::test]
async fn a_broker_that_vanished_without_closing_is_noticed() {
    if !is_long() {
        return println!("skipped: it takes a minute; BITNETD_ENDURE=1 runs it");
    }
    let broker = Mosquitto::start().await;
    let proxy = Proxy::to(broker.port).await;
    let mut deployment = behind(&proxy, broker).await;
    proxy.vanish();
    let (start, calls) = (Instant::now(), proxy.calls());
    crate::until("another connection", || (proxy.calls() > calls).then_some(())).await;
    let noticed = start.elapsed();
    assert!(noticed <= NOTICED, "{noticed:?}");
    deployment.clients.hears(5).await;
    let tally = deployment.tally().await;
    tell(&format!("half-open connection, noticed after {} s", noticed.as_secs()), 1, &tally);
    tally.is_clean();
}
