//! Clients as they should be: they repeat a prompt until the broker has it, and count what comes.

use super::patience;
use crate::cases;
use crate::daemon::is_emulated;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PubAckReason};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Clients that ask at the same time.
const ASKERS: usize = 3;
/// Prompts that may await their answer: below the daemon's queue, so that none is refused; and few
/// where each takes an emulator a second.
fn most_awaited() -> usize {
    if is_emulated() { 3 } else { 12 }
}
/// Time before a client connects or looks again: shorter than a restart of the daemon, so that no client subscribes
/// too late for an answer.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest wait for an acknowledgement.
const ACKNOWLEDGED: Duration = Duration::from_secs(10);
/// Time before an unanswered prompt is published again.
const AGAIN: Duration = Duration::from_secs(11);

/// What a broker remembers when it is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// What it has acknowledged: a prompt is asked once.
    Kept,
    /// Nothing: a client asks again for what it has no answer to, as soon as it notices.
    Lost,
}

/// What was asked and what came.
#[derive(Debug, Default)]
struct Ledger {
    /// Accepted by the broker, by id.
    accepted: BTreeSet<String>,
    /// The different last events of an id, and how many came in all.
    answers: BTreeMap<String, (BTreeSet<String>, usize)>,
    /// The whole of the latest report.
    report: Value,
    closed: bool,
}

impl Ledger {
    fn awaited(&self) -> Vec<String> {
        let open = |id: &&String| !self.answers.contains_key(*id);
        self.accepted.iter().filter(open).cloned().collect()
    }
}

type Shared = Arc<Mutex<Ledger>>;

fn open(ledger: &Shared) -> MutexGuard<'_, Ledger> {
    ledger.lock().expect("no task dies with it")
}

/// Clients that ask without a pause, and one that collects all answers in a persistent session.
pub struct LoadClients {
    ledger: Shared,
    memory: Memory,
    port: u16,
    _tasks: JoinSet<()>,
}

/// What became of the prompts.
#[derive(Debug, Default)]
pub struct Tally {
    pub accepted: usize,
    /// Accepted, and never answered.
    pub lost: Vec<String>,
    /// Ids with two answers that differ, be it in a timing: it was computed twice.
    pub twice: Vec<String>,
    /// Last events that are no answer.
    pub errors: Vec<String>,
    /// Answers that came once more.
    pub copies: usize,
    /// Most connections of a daemon within a second, by the broker's log.
    pub calls_in_a_second: usize,
}

impl Tally {
    /// The sum of two deployments.
    pub fn and(mut self, other: Tally) -> Tally {
        self.accepted += other.accepted;
        self.copies += other.copies;
        self.lost.extend(other.lost);
        self.twice.extend(other.twice);
        self.errors.extend(other.errors);
        self.calls_in_a_second = self.calls_in_a_second.max(other.calls_in_a_second);
        self
    }

    /// Nothing was lost, nothing was answered twice.
    pub fn is_clean(&self) {
        assert!(self.accepted > 0, "nothing was asked");
        assert!(self.lost.is_empty() && self.twice.is_empty() && self.errors.is_empty(), "{self:#?}");
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (lost, twice) = (self.lost.len(), self.twice.len());
        write!(f, "{} | {lost} | {twice} | {} | {}", self.accepted, self.errors.len(), self.copies)?;
        write!(f, " | {}", self.calls_in_a_second)
    }
}

impl LoadClients {
    /// Clients that begin as soon as a daemon reads prompts, and whose answers are collected from the start.
    pub async fn at(port: u16, memory: Memory) -> Self {
        let ledger = Shared::default();
        let mut tasks = JoinSet::new();
        let (ready, subscribed) = tokio::sync::oneshot::channel();
        tasks.spawn(collect(port, Arc::clone(&ledger), ready));
        timeout(patience(), subscribed).await.expect("subscribed in time").expect("it runs");
        for number in 0..ASKERS {
            tasks.spawn(ask(number, port, memory, Arc::clone(&ledger)));
        }
        LoadClients { ledger, memory, port, _tasks: tasks }
    }

    /// Waits for so many more answers.
    pub async fn hears(&mut self, more: usize) {
        let count = || open(&self.ledger).answers.len();
        let wanted = count() + more;
        let heard = async {
            while count() < wanted {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let heard = timeout(patience(), heard).await;
        assert!(heard.is_ok(), "{} of {wanted} answers; {:?}", count(), open(&self.ledger).awaited());
    }

    /// A number of the broker link, as the latest report has it.
    pub fn reported(&self, key: &str) -> u64 {
        open(&self.ledger).report["mqtt"][key].as_u64().unwrap_or(0)
    }

    /// Asks no more, and waits until all is answered or nothing comes any more.
    pub async fn finish(&mut self) -> Tally {
        open(&self.ledger).closed = true;
        let start = Instant::now();
        let mut asked = Instant::now();
        while !open(&self.ledger).awaited().is_empty() && start.elapsed() < patience() {
            sleep(PAUSE).await;
            if self.memory == Memory::Lost && asked.elapsed() > AGAIN {
                self.ask_again().await;
                asked = Instant::now();
            }
        }
        self.count()
    }

    async fn ask_again(&self) {
        let mut line = Line::new(self.port, "again");
        let awaited = open(&self.ledger).awaited();
        for id in awaited {
            let _ = line.deliver("bitnetd/cellar/prompt", &prompt(&id)).await;
        }
    }

    fn count(&self) -> Tally {
        let ledger = open(&self.ledger);
        let all = || ledger.answers.iter();
        let texts = all().flat_map(|(_, (texts, _))| texts);
        Tally {
            accepted: ledger.accepted.len(),
            lost: ledger.awaited(),
            twice: all().filter(|(_, (texts, _))| texts.len() > 1).map(|(id, _)| id.clone()).collect(),
            errors: texts.filter(|text| !is_right(text)).cloned().collect(),
            copies: all().map(|(_, (_, count))| count - 1).sum(),
            calls_in_a_second: 0,
        }
    }
}

/// The prompt of an id. Every other one is drawn at random, so that a second answer to it would
/// be another text; of the rest the right answer is known.
fn prompt(id: &str) -> String {
    let case = &cases()[number(id) % cases().len()];
    let mut request = json!({"id": id, "prompt": case.prompt});
    if number(id) % 2 == 1 {
        request["temperature"] = json!(10);
        request["max_tokens"] = json!(40);
        request["stream"] = json!(number(id) % 4 == 1);
    }
    request.to_string()
}

fn number(id: &str) -> usize {
    id.rsplit('-').next().and_then(|number| number.parse().ok()).expect("an id of ours")
}

fn is_right(event: &str) -> bool {
    let event: Value = serde_json::from_str(event).expect("JSON");
    let number = number(event["id"].as_str().expect("an id"));
    let known = &cases()[number % cases().len()].answer;
    event["event"] == "done" && (number % 2 == 1 || event["text"] == known.as_str())
}

async fn ask(asker: usize, port: u16, memory: Memory, ledger: Shared) {
    let mut line = Line::new(port, &format!("asker-{asker}"));
    let mut mine = Vec::new();
    for count in 0.. {
        while open(&ledger).awaited().len() >= most_awaited() {
            sleep(PAUSE).await;
        }
        if open(&ledger).closed {
            return;
        }
        let id = format!("p-{asker}-{count}");
        while line.is_accepted(&prompt(&id)).await.is_err() {
            sleep(PAUSE).await;
            line = Line::new(port, &format!("asker-{asker}"));
            if memory == Memory::Lost {
                let unanswered = open(&ledger).awaited();
                for id in mine.iter().filter(|id| unanswered.contains(id)) {
                    // Where this fails, the prompt at hand will, too.
                    let _ = line.is_accepted(&prompt(id)).await;
                }
            }
        }
        open(&ledger).accepted.insert(id.clone());
        mine.push(id);
    }
}

/// One connection of a client.
pub struct Line {
    client: AsyncClient,
    events: EventLoop,
}

impl Line {
    /// A connection under this name, made with the first message.
    pub fn new(port: u16, name: &str) -> Self {
        let mut options = MqttOptions::new(name, "127.0.0.1", port);
        // Nothing is sent while a test waits for something else, such as a hundred answers under emulation.
        options.set_connection_timeout(5).set_keep_alive(Duration::from_secs(3600));
        let (client, events) = AsyncClient::new(options, 4);
        Line { client, events }
    }

    /// Connects as the client `id`, which ends the connection of another one of that id, and gives up one of its
    /// subscriptions.
    pub async fn takes_over(port: u16, id: &str, filter: &str) {
        let mut options = MqttOptions::new(id, "127.0.0.1", port);
        options.set_clean_start(false).set_session_expiry_interval(Some(3600));
        let (client, mut events) = AsyncClient::new(options, 4);
        client.try_unsubscribe(filter).expect("room");
        let unsubscribed = async {
            while !matches!(events.poll().await.expect("connected"), Event::Incoming(Packet::UnsubAck(_))) {}
        };
        timeout(ACKNOWLEDGED, unsubscribed).await.expect("in time");
    }

    /// Repeats the prompt until somebody reads it, and makes sure that the broker has it for good:
    /// mosquitto acknowledges first, and writes its file at the end of a turn in which a retained
    /// message came. The second one is acknowledged in a later turn than that.
    async fn is_accepted(&mut self, payload: &str) -> Result<(), ()> {
        while self.deliver("bitnetd/cellar/prompt", payload).await? == PubAckReason::NoMatchingSubscribers {
            sleep(PAUSE).await;
        }
        for _ in 0..2 {
            self.publish("clients/turn", true, "over").await?;
        }
        Ok(())
    }

    /// Publishes, and waits for the broker's acknowledgement.
    pub async fn deliver(&mut self, topic: &str, payload: &str) -> Result<PubAckReason, ()> {
        self.publish(topic, false, payload).await
    }

    async fn publish(&mut self, topic: &str, retain: bool, payload: &str) -> Result<PubAckReason, ()> {
        self.client.try_publish(topic, QoS::AtLeastOnce, retain, payload.to_owned()).map_err(|_| ())?;
        let acknowledged = async {
            loop {
                if let Event::Incoming(Packet::PubAck(ack)) = self.events.poll().await.map_err(|_| ())? {
                    return Ok(ack.reason);
                }
            }
        };
        timeout(ACKNOWLEDGED, acknowledged).await.map_err(|_| ())?
    }
}

async fn collect(port: u16, ledger: Shared, ready: tokio::sync::oneshot::Sender<()>) {
    let mut options = MqttOptions::new("collector", "127.0.0.1", port);
    options.set_clean_start(false).set_session_expiry_interval(Some(3600)).set_max_packet_size(Some(1 << 20));
    let (client, mut events) = AsyncClient::new(options, 4);
    let mut ready = Some(ready);
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(connack))) if !connack.session_present => {
                for topic in ["bitnetd/cellar/reply/#", "bitnetd/cellar/telemetry"] {
                    client.try_subscribe(topic, QoS::AtLeastOnce).expect("room");
                }
            }
            Ok(Event::Incoming(Packet::SubAck(_))) => {
                let _ = ready.take().map(|ready| ready.send(()));
            }
            Ok(Event::Incoming(Packet::Publish(message))) => {
                note(&ledger, &String::from_utf8_lossy(&message.topic), &message.payload);
            }
            Ok(_) => {}
            Err(_) => sleep(PAUSE).await,
        }
    }
}

fn note(ledger: &Shared, topic: &str, payload: &[u8]) {
    let event: Value = serde_json::from_slice(payload).expect("JSON");
    let mut ledger = open(ledger);
    if topic.ends_with("/telemetry") {
        ledger.report = event;
    } else if event["event"] != "token" {
        let id = event["id"].as_str().expect("an id").to_owned();
        let (texts, count) = ledger.answers.entry(id).or_default();
        texts.insert(String::from_utf8_lossy(payload).into_owned());
        *count += 1;
    }
}
