//! Answers that survive the daemon, packet by packet: it is killed between any two steps of a delivery, and the next
//! process does the remaining ones.

use super::fake_broker::{Broker, Session};
use super::harness::{Harness, answer};
use rumqttc::v5::mqttbytes::v5::Publish;
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::sleep;

/// A device: its state folder, and its broker.
struct Device {
    broker: Broker,
    folder: TempDir,
}

impl Device {
    async fn new() -> Self {
        let folder = TempDir::with_prefix("bitnetd-").expect("a temporary folder");
        Device { broker: Broker::new().await, folder }
    }

    /// A daemon on this device.
    fn boot(&self) -> Harness {
        self.broker.harness_with(|context| context.state_dir = Some(self.folder.path().join("state")))
    }

    /// A daemon on this device, and its first session, with a prompt on its way.
    async fn asked(&self) -> (Harness, Session) {
        let harness = self.boot();
        let mut session = self.broker.session(false).await;
        session.deliver(7, false, "hi").await;
        (harness, session)
    }

    /// What is on disk.
    fn kept(&self) -> String {
        let files = std::fs::read_dir(self.folder.path().join("state")).expect("made by the daemon");
        let answers = files.map(|file| file.expect("readable").path());
        let answers = answers.filter(|path| path.extension().is_some_and(|end| end == "answers"));
        answers.map(|path| std::fs::read_to_string(path).unwrap_or_default()).collect()
    }

    /// Waits until this is on disk.
    async fn keeps(&self, text: &str) {
        while !self.kept().contains(text) {
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// The next daemon publishes this answer again; the prompt that comes again is acknowledged after
/// it, and nobody computes anything.
async fn is_delivered_once_more(mut harness: Harness, mut session: Session, text: &str) {
    session.deliver(7, true, "hi").await;
    let again = session.reply().await;
    assert!(said(&again).contains(text), "{}", said(&again));
    session.is_quiet().await;
    session.acknowledge(&again).await;
    session.is_acknowledged(7).await;
    session.is_quiet().await;
    harness.is_quiet().await;
}

fn said(publish: &Publish) -> String {
    String::from_utf8_lossy(&publish.payload).into_owned()
}

#[tokio::test]
async fn an_answer_that_was_never_published_is_published_by_the_next_daemon() {
    let device = Device::new().await;
    let (mut harness, session) = device.asked().await;
    let inbound = harness.request().await;
    drop(session);
    harness.until(|state| !state.connected).await;
    answer(inbound, "the only answer");
    device.keeps("the only answer").await;
    harness.kill().await;
    // It may have called again meanwhile.
    device.broker.forget_callers().await;
    let harness = device.boot();
    let session = device.broker.session_of_another().await;
    is_delivered_once_more(harness, session, "the only answer").await;
}

#[tokio::test]
async fn an_answer_that_was_not_acknowledged_is_published_again_by_the_next_daemon() {
    let device = Device::new().await;
    let (mut harness, mut session) = device.asked().await;
    answer(harness.request().await, "the only answer");
    assert!(said(&session.reply().await).contains("the only answer"));
    harness.kill().await;
    let harness = device.boot();
    let session = device.broker.session_of_another().await;
    is_delivered_once_more(harness, session, "the only answer").await;
}

#[tokio::test]
async fn an_answered_prompt_that_comes_again_to_the_next_daemon_is_not_computed_again() {
    let device = Device::new().await;
    let (mut harness, mut session) = device.asked().await;
    answer(harness.request().await, "the only answer");
    let reply = session.reply().await;
    session.acknowledge(&reply).await;
    session.is_acknowledged(7).await;
    device.keeps("Given").await;
    harness.kill().await;
    let harness = device.boot();
    let mut session = device.broker.session_of_another().await;
    session.is_quiet().await;
    is_delivered_once_more(harness, session, "the only answer").await;
}

#[tokio::test]
async fn an_answer_is_on_disk_before_the_broker_has_it() {
    let device = Device::new().await;
    let mut harness = device.boot();
    let mut session = device.broker.session(false).await;
    for (packet, text) in [(7, "one"), (8, "two")] {
        session.deliver(packet, false, text).await;
        harness.echo().await;
        let reply = session.reply().await;
        assert!(device.kept().contains(&format!("\\\"text\\\":\\\"{text}\\\"")), "{}", device.kept());
        session.acknowledge(&reply).await;
        session.is_acknowledged(packet).await;
    }
    assert!(harness.state.borrow().durable);
}

#[tokio::test]
async fn a_clean_stop_keeps_what_the_broker_did_not_take() {
    let device = Device::new().await;
    let mut harness = device.broker.harness_with(|context| {
        context.state_dir = Some(device.folder.path().join("state"));
        context.flush_timeout = Duration::from_millis(100);
    });
    let mut session = device.broker.session(false).await;
    session.deliver(7, false, "hi").await;
    let inbound = harness.request().await;
    harness.close_after(async { answer(inbound, "the only answer") }).await;
    let harness = device.boot();
    let session = device.broker.session_of_another().await;
    is_delivered_once_more(harness, session, "the only answer").await;
}

#[tokio::test]
async fn packet_ids_of_a_session_that_the_broker_forgot_mean_nothing_to_the_next_daemon() {
    let device = Device::new().await;
    let (mut harness, mut session) = device.asked().await;
    harness.echo().await;
    let reply = session.reply().await;
    session.acknowledge(&reply).await;
    session.is_acknowledged(7).await;
    device.keeps("Given").await;
    harness.kill().await;
    let mut harness = device.boot();
    let mut session = device.broker.session(false).await;
    session.deliver(7, true, "hi").await;
    assert_eq!(harness.echo().await, "hi", "another prompt of the same text");
}

#[tokio::test]
async fn without_a_disk_prompts_are_answered_and_the_report_says_why_nothing_is_saved() {
    let device = Device::new().await;
    std::fs::write(device.folder.path().join("state"), "no folder").expect("a temporary folder");
    let (mut harness, mut session) = device.asked().await;
    harness.echo().await;
    let reply = session.reply().await;
    session.acknowledge(&reply).await;
    session.is_acknowledged(7).await;
    let state = harness.state.borrow().clone();
    assert!(!state.durable, "{state:?}");
    assert!(state.storage_problem.is_some_and(|text| text.contains("device.state_dir")));
}

#[tokio::test]
async fn a_second_daemon_of_the_device_answers_without_the_file() {
    let device = Device::new().await;
    let _first = device.boot();
    let _session = device.broker.session(false).await;
    let mut second = device.boot();
    let mut session = device.broker.session(false).await;
    second.until(|state| state.storage_problem.is_some()).await;
    session.deliver(7, false, "hi").await;
    second.echo().await;
    session.reply().await;
    let text = second.state.borrow().storage_problem.clone().expect("seen above");
    assert!(text.contains("another daemon"), "{text}");
}
