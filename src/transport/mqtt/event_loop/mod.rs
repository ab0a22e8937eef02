//! The desk where everything meets: one thing happens at a time, and what follows is done at once.
//!
//! Decides nothing by itself; it carries what one part says to the others. What concerns prompts is in `delivery`, what
//! concerns Home Assistant in `home`.

mod homeassistant;
mod prompts;

use super::client::{BrokerInfo, Connection, ConnectionEvent, Identity, IncomingMessage, SubAcks};
use super::homeassistant::Discovery;
use super::link::{DEFERRED_PROMPTS, Disconnect, Link};
use super::shared_subscription::Sharing;
use super::subscription_check::{CheckAction, SubscriptionCheck};
use super::topics::{TopicKind, Topics};
use super::{Door, LinkState};
use crate::telemetry::alerts::Alert;
use crate::transport::mqtt::delivery::alert_queue::Alarms;
use crate::transport::mqtt::delivery::answer_log::record::Record;
use crate::transport::mqtt::delivery::answer_log::{Finished, Store};
use crate::transport::mqtt::delivery::backlog::Backlog;
use crate::transport::mqtt::delivery::dedup::Deduplicator;
use crate::transport::mqtt::delivery::outbox::{Limits, Outbox, Packet};
use crate::transport::mqtt::delivery::persistence::{self, Clock, Restored};
use crate::transport::mqtt::delivery::requests::{Ids, Prompts};
use crate::transport::mqtt::delivery::retained_prompts::RetainedPrompts;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};
use tokio::time::{sleep_until, timeout};

/// Time for the goodbye on a clean stop, after all replies are out: a round trip or two.
const FAREWELL: Duration = Duration::from_secs(2);
/// Time for the disk at start and at a stop: a slow card is waited for, one that hangs is not.
const DISK: Duration = Duration::from_secs(5);
/// Prompts that the broker may deliver before one is acknowledged. Above the 20 of mosquitto, so that its own limit
/// counts, and far below its usual queue.
const RECEIVE_MAXIMUM: u16 = 64;
/// Everything the door changes.
pub(super) struct Desk {
    door: Door,
    topics: Topics,
    link: Link,
    sharing: Sharing,
    connection: Option<Connection>,
    /// Of the present connection.
    limits: Limits,
    /// Whether the broker keeps messages.
    retains: bool,
    outbox: Outbox,
    alarms: Alarms,
    dedup: Deduplicator,
    backlog: Backlog,
    prompts: Prompts,
    self_check: SubscriptionCheck,
    /// Whether the broker has shared subscriptions, as far as it says.
    shares: bool,
    retained: RetainedPrompts,
    /// `None` where Home Assistant is nothing to us.
    discovery: Option<Discovery>,
    store: Store,
    ids: Ids,
    state: LinkState,
    closing: Option<Instant>,
}

impl Desk {
    pub fn new(door: Door) -> Self {
        let topics = Topics::configured(&door.config, &door.device);
        let file = door.state_in.as_ref().map(|folder| folder.join(topics.file_name()));
        Desk {
            link: Link::new(Instant::now()),
            sharing: Sharing::new(door.config.group.as_deref()),
            connection: None,
            limits: Limits { packet: usize::MAX, window: 0 },
            retains: true,
            // Far from the numbers that an earlier process left on disk.
            outbox: Outbox::numbered_from(random() >> 1),
            alarms: Alarms::default(),
            dedup: Deduplicator::new(random(), random() >> 1),
            backlog: Backlog::new(if door.state_in.is_some() { door.inbox_bytes } else { 0 }),
            prompts: Prompts::new(door.requests.clone(), door.window),
            self_check: SubscriptionCheck::new(random(), topics.self_check().len()),
            shares: true,
            retained: RetainedPrompts::new(door.config.version),
            discovery: door.home.as_ref().map(|home| Discovery::new(&door, home, &topics)),
            store: Store::new(file, door.inbox_bytes, Instant::now()),
            ids: Ids::new(),
            state: LinkState::default(),
            closing: None,
            topics,
            door,
        }
    }

    /// Takes over the answers of an earlier process, before the first connection: then a prompt that
    /// the broker delivers again finds its answer.
    pub async fn recall(&mut self) {
        self.save();
        if self.store.is_busy()
            && let Ok(finished) = timeout(DISK, self.store.next()).await
        {
            self.on_saved(finished);
        }
    }

    /// Waits for one thing and does what follows from it. Nothing is awaited while it is done, so
    /// no part of it can wait for another.
    pub async fn step(&mut self) {
        self.door.pulse.beat();
        self.tell_home(Instant::now());
        self.settle(Instant::now());
        self.hand_over(Instant::now());
        self.pump(Instant::now());
        self.report();
        let turn = Some(Instant::now() + self.door.turn);
        let check = self.self_check.due();
        let due = [self.link.due(), self.store.due(), self.home_due(), check, self.closing, turn]
            .into_iter()
            .flatten()
            .min();
        tokio::select! {
            happened = next(&mut self.connection) => self.on_link(happened),
            event = self.prompts.next() => self.on_prompt_event(event),
            Ok(()) = self.door.telemetry.changed() => self.mention_telemetry(),
            Some(alert) = self.door.alerts.recv() => self.on_alert(&alert),
            finished = self.store.next() => self.on_saved(finished),
            () = at(due) => self.on_time(Instant::now()),
            () = self.door.close.cancelled(), if self.closing.is_none() => {
                self.closing = Some(Instant::now() + self.door.flush);
            }
        }
    }

    /// Hands the connection what is due, as far as it has room; there is a next time.
    fn pump(&mut self, now: Instant) {
        self.queue_alarms();
        if let Some(connection) = self.connection.as_mut().filter(|_| self.link.is_online()) {
            while let Some((row, packet)) = self.outbox.next(now, self.limits)
                && connection.publish(row, packet, now)
            {
                self.outbox.sent(row);
                self.alarms.sent(row);
                self.discovery.iter_mut().for_each(|home| home.handed(row, now));
            }
        }
        self.settle(now);
        self.save_waiting_prompts();
        if let Some(connection) = self.connection.as_mut().filter(|_| self.link.is_online()) {
            while let Some(packet) = self.dedup.next_ack()
                && connection.acknowledge(packet)
            {
                self.dedup.acknowledged();
            }
        }
        self.save();
        if self.dedup.has_postponed() && self.backlog.has_much_room() && !self.is_stopping() {
            let text = "prompts were left to the broker while too many waited; now there is room".into();
            self.on_lost(&Disconnect { kind: DEFERRED_PROMPTS.into(), text, unreadable: false });
        }
    }

    fn on_alert(&mut self, alert: &Alert) {
        self.alarms.put(alert.kind.name(), serde_json::to_vec(alert).expect("an alert is plain data"));
    }

    /// Gives what the broker does not know yet a place in the outbox, which forgets it with the connection.
    fn queue_alarms(&mut self) {
        if self.link.is_online() {
            let (outbox, topic) = (&mut self.outbox, self.topics.alert());
            self.alarms.push_all(|alert, ended| {
                outbox.push_again(Packet::json(topic.clone(), alert.to_vec()), ended)
            });
        }
    }

    /// Hands the disk what is due.
    fn save(&mut self) {
        let Desk { store, dedup, backlog, outbox, .. } = self;
        let clock = Clock::read();
        store.begin(clock.now, || persistence::all(dedup, backlog, outbox, clock));
    }

    fn on_saved(&mut self, finished: Finished) {
        finished.rows.iter().for_each(|row| self.outbox.saved(*row));
        finished.prompts.iter().for_each(|prompt| self.dedup.saved(*prompt));
        if finished.prompts_failed {
            self.dedup.saving_failed();
        }
        let Some(contents) = finished.contents else { return };
        match contents.session {
            Some(session) if self.link.counts().0 == 0 => self.dedup.set_session(session),
            // The disk told of it too late: by now packet ids are of another number.
            _ => self.store.note(&Record::Session(self.dedup.session())),
        }
        if !contents.answers.is_empty() || !contents.prompts.is_empty() {
            self.link.expect_session();
        }
        let Desk { dedup, backlog, outbox, .. } = self;
        let restored = persistence::restore(contents, dedup, backlog, outbox, Clock::read());
        if restored != Restored::default() {
            let Restored { answers, prompts } = restored;
            let place = self.place();
            log::info!(
                "{place}: {answers} answers of an earlier run are to be delivered, {prompts} prompts to be answered"
            );
        }
    }

    fn on_time(&mut self, now: Instant) {
        if let Some(finished) = self.store.overdue(now) {
            self.on_saved(finished);
        }
        self.check_itself(now);
        if self.link.is_timed_out(now) {
            let text = "nothing heard for too long".into();
            return self.on_lost(&Disconnect { kind: "silence".into(), text, unreadable: false });
        }
        let Some(how) = self.link.connect_if_due(now) else { return };
        let who = Identity {
            config: &self.door.config,
            device: &self.door.device,
            topics: &self.topics,
            receive_maximum: RECEIVE_MAXIMUM,
            has_retained_messages: self.retains,
        };
        match Connection::open(&who, how) {
            Ok(connection) => self.connection = Some(connection),
            Err(loss) => self.on_lost(&loss),
        }
    }

    fn on_link(&mut self, happened: Result<ConnectionEvent, Disconnect>) {
        let now = Instant::now();
        self.link.received_packet(now);
        match happened {
            Ok(ConnectionEvent::Connected(broker)) => self.on_connected(broker, now),
            Ok(ConnectionEvent::SubAck(granted)) => self.on_subscribed(granted),
            Ok(ConnectionEvent::Message(message)) => self.on_message(&message, now),
            Ok(ConnectionEvent::PubAck(row, taken)) => self.on_acknowledged(row, taken),
            Ok(ConnectionEvent::DisconnectSent | ConnectionEvent::Other) => {}
            Err(loss) => self.on_lost(&loss),
        }
    }

    fn on_connected(&mut self, broker: BrokerInfo, now: Instant) {
        if broker.is_clean_session {
            self.link.session_discarded();
            let text = "the session was begun anew; once more, for one that is kept".into();
            return self.on_lost(&Disconnect { kind: "begun anew".into(), text, unreadable: false });
        }
        let welcome = self.link.connected(now, broker.session_present, broker.first_ping);
        self.limits = broker.limits;
        self.retains &= broker.has_retained_messages;
        let (place, count) = (self.place(), welcome.number);
        log::info!("{place}: connected (connection {count}, session kept: {})", broker.session_present);
        if welcome.session_lost {
            log::warn!("{place}: the broker forgot our session; prompts it held for us are lost");
        }
        if !broker.session_present {
            self.dedup.set_session(random());
            self.store.note(&Record::Session(self.dedup.session()));
        }
        self.state.subscribed = false;
        self.shares = broker.has_shared_subscriptions;
        // Also where the session is kept: a broker that came back from an older save has an older session.
        self.subscribe();
        self.announce("online");
        let info = Packet::json(self.topics.info(), self.door.info.clone());
        self.outbox.push_status(Packet { retain: self.retains, ..info });
        self.home_connected(now);
        self.mention_telemetry();
    }

    /// Asks for all that is to reach us. On a new connection before `online`, which says that prompts are read.
    fn subscribe(&mut self) {
        let shared = self.sharing.ask(self.shares).unwrap_or_else(|said| {
            self.complain(&said);
            false
        });
        let group = if shared { self.topics.group_filters() } else { Vec::new() };
        let home = self.home_filters();
        if let Some(connection) = &mut self.connection {
            connection.subscribe([self.topics.filters(), home, group]);
            for topic in self.discovery.iter().flat_map(Discovery::unwanted) {
                connection.unsubscribe(topic);
            }
        }
    }

    fn complain(&mut self, said: &str) {
        let said = format!("{}: {said}", self.place());
        log::error!("{said}");
        self.state.problem = Some(said);
    }

    fn announce(&mut self, word: &str) {
        let packet = Packet::word(self.topics.availability(), word);
        self.outbox.push_status(Packet { retain: self.retains, ..packet });
    }

    fn on_subscribed(&mut self, granted: SubAcks) {
        self.state.subscribed = granted.own.is_ok();
        match granted.own {
            Ok(()) => self.self_check.subscribed(Instant::now()),
            Err(reason) => {
                let topic = self.topics.prompt();
                self.complain(&format!(
                    "may not subscribe to {topic} ({reason}); allow it in the broker's access list"
                ));
            }
        }
        self.home_granted(granted.homeassistant);
        if let Some(said) = granted.group.and_then(|group| self.sharing.answered(&group)) {
            self.complain(&said);
        }
    }

    /// What the broker keeps of an earlier prefix or group is answered, and no more of it asked for.
    fn give_up(&self, topic: &[u8]) {
        let filters = self.topics.stale_filters(topic);
        let Some(connection) = self.connection.as_ref().filter(|_| !filters.is_empty()) else { return };
        let topic = String::from_utf8_lossy(topic);
        log::warn!("{}: {topic} is of an earlier prefix or group; unsubscribed", self.place());
        for filter in &filters {
            // Where there is no room the next message asks again.
            connection.unsubscribe(filter);
        }
    }

    fn on_acknowledged(&mut self, row: u64, taken: Result<(), String>) {
        let is_taken = taken.is_ok();
        if !self.is_home(row, &taken)
            && let Err(reason) = taken
            && let Some(said) = self.outbox.refused(row, &reason)
        {
            log::warn!("{}: {said}", self.place());
        }
        self.alarms.acknowledged(row);
        self.outbox.acknowledged(row, is_taken);
    }

    fn on_lost(&mut self, loss: &Disconnect) {
        self.connection = None;
        // Asked for both at once, Home Assistant's births are left out first.
        self.sharing.disconnected(!self.is_home_asking());
        self.home_lost(loss, Instant::now());
        self.outbox.disconnected(loss.is_by_broker());
        for kind in self.alarms.disconnected(loss.is_by_broker()) {
            let place = self.place();
            log::error!("{place}: the alert {kind} is given up: the broker ends the connection over it");
        }
        self.dedup.disconnected(loss.is_by_daemon());
        self.self_check.disconnected(loss.is_by_broker());
        self.retains &= loss.kind != "RetainNotSupported";
        let retry = self.link.disconnected(Instant::now(), loss, chance());
        let said = format!("{}: {}{}", self.place(), loss.text, retry.advice(&self.door.device));
        if retry.log {
            log::warn!("{said}; next try in {:.1} s", retry.wait.as_secs_f32());
        }
        self.state.problem = Some(said);
    }

    fn on_message(&mut self, message: &IncomingMessage, now: Instant) {
        self.give_up(&message.topic);
        if self.is_birth(message, now) {
            return self.dedup.acknowledge_only(message.packet);
        }
        match self.topics.parse_with_client(&message.topic, message.client.as_deref()) {
            // How a retained message is taken back: nothing is asked, and nobody waits for an answer.
            Some(TopicKind::Prompt(_)) if message.payload.is_empty() => {
                self.dedup.acknowledge_only(message.packet)
            }
            Some(TopicKind::Prompt(client)) => self.on_prompt(message, &client, now),
            Some(TopicKind::Cancel) => {
                self.on_cancel(message);
                self.dedup.acknowledge_only(message.packet);
            }
            Some(TopicKind::Threads) => {
                self.on_threads(message);
                self.dedup.acknowledge_only(message.packet);
            }
            // Nothing that anybody asks.
            None => self.dedup.acknowledge_only(message.packet),
        }
    }

    /// Does what is due to know that prompts reach us.
    fn check_itself(&mut self, now: Instant) {
        if !self.link.is_online() {
            return;
        }
        match self.self_check.next_action(now) {
            None => {}
            Some(CheckAction::Publish(payload)) => {
                for topic in self.topics.self_check() {
                    let packet = Packet::json(topic, payload.clone().into_bytes());
                    self.connection.iter().for_each(|connection| connection.publish_at_qos_0(&packet, now));
                }
            }
            Some(CheckAction::Subscribe) => {
                log::warn!(
                    "{}: prompts no longer reach us, a subscription is gone; subscribing again",
                    self.place()
                );
                self.subscribe();
            }
            Some(CheckAction::ReportImpossible) => {
                let (place, topic) = (self.place(), self.topics.prompt());
                log::info!(
                    "{place}: a message to ourselves does not come back, so a lost subscription would not be noticed; \
                     allow us to publish to {topic}"
                );
            }
        }
    }

    fn is_stopping(&self) -> bool {
        self.door.draining.is_cancelled() || self.closing.is_some()
    }

    /// Telemetry is at QoS 0 and bypasses the outbox: a later report says more than a kept one.
    fn mention_telemetry(&mut self) {
        let report = self.door.telemetry.borrow_and_update().clone();
        if let Some(report) = report {
            self.mention_report(report.to_vec());
        }
        self.look_at_sources(Instant::now());
    }

    fn mention_report(&self, report: Vec<u8>) {
        if let Some(connection) = self.connection.as_ref().filter(|_| self.link.is_online()) {
            let now = Instant::now();
            let packet = Packet::json(self.topics.telemetry(), report);
            let packet = Packet { expires: Some(now + *self.door.interval.borrow()), ..packet };
            if packet.size() <= self.limits.packet {
                connection.publish_at_qos_0(&packet, now);
            }
        }
    }

    fn report(&mut self) {
        let (connects, sessions_lost) = self.link.counts();
        let now = LinkState {
            connected: self.link.is_online(),
            subscribed: self.link.is_online() && self.state.subscribed,
            connects,
            sessions_lost,
            outbox: self.outbox.len() as u64,
            waiting: self.backlog.len() as u64,
            deaf: self.self_check.is_deaf(),
            subscriptions_lost: self.self_check.lost(),
            duplicates: self.dedup.duplicates(),
            resent: self.state.resent,
            durable: self.store.is_durable(),
            storage_problem: self.store.problem().map(str::to_owned),
            dropped: self.state.dropped + self.outbox.given_up(),
            problem: self.state.problem.clone(),
        };
        self.door.state.send_if_modified(|shown| {
            let changed = *shown != now;
            *shown = now;
            changed
        });
    }

    /// Whether what was left is sent, or its time is up.
    pub fn is_finished(&self, now: Instant) -> bool {
        let done = self.outbox.is_empty() && self.prompts.is_empty();
        self.closing.is_some_and(|deadline| done || now >= deadline)
    }

    /// Says `offline` and goodbye, so that the last will is not needed.
    pub async fn farewell(&mut self) {
        if self.link.is_online() {
            self.announce("offline");
            if timeout(FAREWELL, self.leave()).await.is_err() {
                log::warn!("{}: no answer to the goodbye", self.place());
            }
        }
        self.connection = None;
        self.link = Link::new(Instant::now());
        if timeout(DISK, self.save_the_rest()).await.is_err() {
            log::warn!("{}: the disk does not take the last answers", self.place());
        }
        self.report();
    }

    async fn save_the_rest(&mut self) {
        self.save();
        while self.store.is_busy() {
            let finished = self.store.next().await;
            self.on_saved(finished);
            self.save();
        }
    }

    /// Messages that still come are not acknowledged: the broker keeps them for the next start.
    async fn leave(&mut self) {
        let mut asked = false;
        loop {
            self.pump(Instant::now());
            if let Some(connection) = self.connection.as_ref().filter(|_| !asked) {
                asked = !self.outbox.has_status() && connection.disconnect();
            }
            match next(&mut self.connection).await {
                Ok(ConnectionEvent::PubAck(row, taken)) => self.on_acknowledged(row, taken),
                Ok(ConnectionEvent::DisconnectSent) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    fn place(&self) -> String {
        format!("mqtt {}:{}", self.door.config.host, self.door.config.port)
    }
}

/// What happens next on the connection; without one, nothing ever.
async fn next(connection: &mut Option<Connection>) -> Result<ConnectionEvent, Disconnect> {
    match connection {
        Some(connection) => connection.next().await,
        None => std::future::pending().await,
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// From 0 to 1.
fn chance() -> f64 {
    random() as f64 / u64::MAX as f64
}

/// Every `RandomState` has keys of its own.
fn random() -> u64 {
    RandomState::new().hash_one(())
}
