//! The MQTT event loop: waits for one event at a time, and does at once what follows from it.
//!
//! Decides nothing by itself; it passes what one module returns on to the others. `prompts` handles prompts,
//! `commands` cancellations and thread limits, `homeassistant` the device's entry there. Deliberately knows neither
//! rumqttc nor the format of the files.

mod alerts;
mod answering;
mod commands;
mod health;
mod home;
mod homeassistant;
mod last_answers;
mod messages;
mod model;
mod prompts;

use super::answering::AnsweringState;
use super::client::{BrokerInfo, Connection, ConnectionEvent, Identity, SubAcks, SubscriptionFilters};
use super::context::MqttContext;
use super::home_subscription::HomeSubscription;
use super::homeassistant::HomeAssistant;
use super::homeassistant::deletion_file::DeletionFile;
use super::link::{DEFERRED_PROMPTS, Disconnect, Link};
use super::shared_subscription::SharedSubscription;
use super::subscription_check::{CheckAction, SubscriptionCheck};
use super::topics::Topics;
use crate::protocol::MqttLink;
use crate::transport::mqtt::delivery::alert_queue::AlertQueue;
use crate::transport::mqtt::delivery::answer_log::record::Record;
use crate::transport::mqtt::delivery::answer_log::{AnswerLog, DiskOutcome};
use crate::transport::mqtt::delivery::backlog::Backlog;
use crate::transport::mqtt::delivery::clock::Clock;
use crate::transport::mqtt::delivery::dedup::Deduplicator;
use crate::transport::mqtt::delivery::outbox::Outbox;
use crate::transport::mqtt::delivery::persistence::{self, RestoredCounts};
use crate::transport::mqtt::delivery::requests::{ActiveRequests, IdGenerator};
use crate::transport::mqtt::delivery::retained_prompts::RetainedPrompts;
use crate::transport::mqtt::message::{OutgoingMessage, PublishLimits};
use health::PublishedState;
use prompts::StopCheck;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};
use tokio::time::{sleep_until, timeout};

/// Time for the DISCONNECT at a clean stop, after all replies are sent: a round trip or two.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for the disk at start and at a stop: a slow card is waited for, a hanging one is not.
const DISK_TIMEOUT: Duration = Duration::from_secs(5);
/// The Receive Maximum: prompts that the broker may deliver before one is acknowledged. Above the 20 of mosquitto,
/// so that its own limit applies, and far below its usual queue.
const RECEIVE_MAXIMUM: u16 = 64;

/// The state of the MQTT front end.
pub(super) struct EventLoop {
    context: MqttContext,
    topics: Topics,
    link: Link,
    shared_subscription: SharedSubscription,
    connection: Option<Connection>,
    /// Those of the present connection.
    limits: PublishLimits,
    /// Whether the broker supports retained messages.
    has_retained_messages: bool,
    outbox: Outbox,
    alert_queue: AlertQueue,
    answering: AnsweringState,
    published_state: PublishedState,
    dedup: Deduplicator,
    backlog: Backlog,
    active_requests: ActiveRequests,
    subscription_check: SubscriptionCheck,
    /// Whether the broker supports shared subscriptions, as far as it says.
    has_shared_subscriptions: bool,
    retained_prompts: RetainedPrompts,
    /// `None` where the device has no entry in Home Assistant to publish or remove.
    homeassistant: Option<HomeAssistant>,
    /// Remembers that the owner deleted that entry.
    deletion: DeletionFile,
    /// `None` where no names of the home are read.
    home: Option<HomeSubscription>,
    answer_log: AnswerLog,
    ids: IdGenerator,
    status: MqttLink,
    /// When the closing link stops sending what is left; `None` until it is to close.
    flush_deadline: Option<Instant>,
    stop_check: StopCheck,
    /// Acknowledged prompts that the stop has left without an answer.
    lost_at_stop: u64,
    /// The problem in the status is one of the connection, and over when a connection is stable.
    is_link_problem: bool,
}

impl EventLoop {
    pub fn new(context: MqttContext) -> Self {
        let topics = Topics::configured(&context.config, &context.device);
        let in_state_dir = |name| context.state_dir.as_ref().map(|folder| folder.join(name));
        let file = in_state_dir(topics.file_name("answers"));
        let deletion = DeletionFile::new(in_state_dir(topics.file_name("deleted")));
        if !context.config.discovery {
            deletion.remove();
        }
        EventLoop {
            link: Link::new(Instant::now()),
            shared_subscription: SharedSubscription::new(context.config.group.as_deref()),
            connection: None,
            limits: PublishLimits { packet: usize::MAX, window: 0 },
            has_retained_messages: true,
            // Random, so far from the numbers that an earlier process left on disk.
            outbox: Outbox::numbered_from(random() >> 1),
            alert_queue: AlertQueue::default(),
            answering: AnsweringState::default(),
            published_state: PublishedState::default(),
            dedup: Deduplicator::new(random(), random() >> 1),
            backlog: Backlog::new(if context.state_dir.is_some() { context.inbox_bytes } else { 0 }),
            active_requests: ActiveRequests::new(
                context.requests.clone(),
                context.max_active,
                context.parallel,
            ),
            subscription_check: SubscriptionCheck::new(random(), topics.self_check().len()),
            has_shared_subscriptions: true,
            retained_prompts: RetainedPrompts::new(context.config.version),
            homeassistant: context
                .has_homeassistant
                .then(|| HomeAssistant::new(&context, &topics, deletion.exists())),
            deletion,
            home: context.home.clone().map(HomeSubscription::new),
            answer_log: AnswerLog::new(file, context.inbox_bytes, Instant::now()),
            ids: IdGenerator::new(),
            status: MqttLink::default(),
            flush_deadline: None,
            stop_check: StopCheck::NotBegun,
            lost_at_stop: 0,
            is_link_problem: false,
            topics,
            context,
        }
    }

    /// Restores the answers of an earlier process before the first connection, so that a redelivered prompt finds
    /// its answer.
    pub async fn load(&mut self) {
        self.save();
        if self.answer_log.is_busy()
            && let Ok(finished) = timeout(DISK_TIMEOUT, self.answer_log.next()).await
        {
            self.on_disk_outcome(finished);
        }
    }

    /// Waits for one event and does what follows from it. Nothing is awaited meanwhile, so no module can block
    /// another.
    pub async fn step(&mut self) {
        self.context.heartbeat.beat();
        self.run_homeassistant_task(Instant::now());
        self.run_home(Instant::now());
        self.publish_answering_change(Instant::now());
        self.publish_state_changes();
        self.settle_delivered(Instant::now());
        self.start_requests(Instant::now());
        self.exchange(Instant::now());
        self.update_status();
        if self.is_finished(Instant::now()) {
            return;
        }
        let turn = Some(Instant::now() + self.context.max_idle);
        let check = self.subscription_check.due();
        let due = [
            self.link.due(),
            self.answer_log.due(),
            self.homeassistant_due(),
            self.home_due(),
            self.answering.due(self.is_answering()),
            check,
            self.flush_deadline,
            turn,
        ]
        .into_iter()
        .flatten()
        .min();
        tokio::select! {
            result = next_event(&mut self.connection) => self.on_connection_event(result),
            event = self.active_requests.next() => self.on_prompt_event(event),
            Ok(()) = self.context.reports.changed() => self.publish_telemetry(),
            Ok(()) = self.context.model.changed() => self.on_model_change(Instant::now()),
            // Published at the beginning of the next step.
            Ok(()) = self.context.answering.changed() => {}
            Some(alert) = self.context.alerts.recv() => self.on_alert(&alert),
            finished = self.answer_log.next() => self.on_disk_outcome(finished),
            () = sleep_until_due(due) => self.on_timer(Instant::now()),
            // The state is published at the beginning of the next step, too.
            () = self.context.draining.cancelled(), if !self.published_state.is_stop_noticed => {
                self.published_state.is_stop_noticed = true;
            }
            () = self.context.close.cancelled(), if self.flush_deadline.is_none() => {
                self.flush_deadline = Some(Instant::now() + self.context.flush_timeout);
                // The disk is checked once more, before what it keeps is left to the next process.
                self.stop_check = StopCheck::NotBegun;
            }
        }
    }

    /// Hands the connection what is due until its request channel is full; the rest follows later.
    fn exchange(&mut self, now: Instant) {
        self.queue_alerts();
        if let Some(connection) = self.connection.as_mut().filter(|_| self.link.is_online()) {
            while let Some((entry, packet)) = self.outbox.next(now, self.limits)
                && connection.publish(entry, packet, now)
            {
                self.outbox.mark_sent(entry);
                self.alert_queue.mark_sent(entry);
                self.homeassistant.iter_mut().for_each(|homeassistant| homeassistant.mark_sent(entry, now));
            }
        }
        self.settle_delivered(now);
        self.save_unacknowledged();
        if let Some(connection) = self.connection.as_mut().filter(|_| self.link.is_online()) {
            while let Some(packet) = self.dedup.next_ack()
                && connection.acknowledge(packet)
            {
                self.dedup.acknowledged();
            }
        }
        self.save();
        if self.dedup.has_deferred() && self.backlog.is_half_empty() && !self.is_stopping() {
            let text =
                "prompts were left to the broker while too many waited; now there is space for them".into();
            self.on_disconnect(&Disconnect { kind: DEFERRED_PROMPTS.into(), text, unreadable: false });
        }
    }

    /// Starts the disk job that is due.
    fn save(&mut self) {
        let EventLoop { answer_log: log, dedup, backlog, outbox, .. } = self;
        let clock = Clock::read();
        log.start_job(clock.now, || persistence::log_lines(dedup, backlog, outbox, clock));
    }

    fn on_disk_outcome(&mut self, finished: DiskOutcome) {
        finished.answers_saved.iter().for_each(|entry| self.outbox.release_saved(*entry));
        finished.prompts_saved.iter().for_each(|prompt| self.dedup.mark_saved(*prompt));
        if finished.are_prompts_lost {
            self.dedup.mark_unsaved();
        }
        if finished.is_file_lost {
            self.dedup.mark_lost();
        }
        if finished.is_rewritten {
            self.dedup.mark_rewritten();
        }
        let Some(contents) = finished.contents else { return };
        match contents.session {
            Some(session) if self.link.connects() == 0 => self.dedup.set_session(session),
            // The file was read too late: by now packet identifiers belong to another session.
            _ => self.answer_log.append_record(&Record::Session(self.dedup.session())),
        }
        if !contents.answers.is_empty() || !contents.prompts.is_empty() {
            self.link.expect_session();
        }
        let EventLoop { dedup, backlog, outbox, .. } = self;
        let restored = persistence::restore(contents, dedup, backlog, outbox, Clock::read());
        self.keep_restored_answers(Instant::now());
        if restored != RestoredCounts::default() {
            let RestoredCounts { answers, prompts } = restored;
            let address = self.broker_address();
            log::info!(
                "{address}: {answers} answers of an earlier run are to be delivered, {prompts} prompts to be answered"
            );
        }
    }

    fn on_timer(&mut self, now: Instant) {
        if let Some(finished) = self.answer_log.check_timeout(now) {
            self.on_disk_outcome(finished);
        }
        self.run_subscription_check(now);
        if self.link.is_timed_out(now) {
            let text = "nothing received for too long".into();
            return self.on_disconnect(&Disconnect { kind: "silence".into(), text, unreadable: false });
        }
        let Some(how) = self.link.connect_if_due(now) else { return };
        let who = Identity {
            config: &self.context.config,
            device: &self.context.device,
            topics: &self.topics,
            receive_maximum: RECEIVE_MAXIMUM,
            has_retained_messages: self.has_retained_messages,
        };
        match Connection::open(&who, how) {
            Ok(connection) => self.connection = Some(connection),
            Err(disconnect) => self.on_disconnect(&disconnect),
        }
    }

    fn on_connection_event(&mut self, event: Result<ConnectionEvent, Disconnect>) {
        let now = Instant::now();
        self.link.received_packet(now);
        match event {
            Ok(ConnectionEvent::Connected(broker)) => self.on_connected(broker, now),
            Ok(ConnectionEvent::SubAck(granted)) => self.on_subscribed(granted),
            Ok(ConnectionEvent::Message(message)) => self.on_message(&message, now),
            Ok(ConnectionEvent::PubAck(entry, result)) => self.on_acknowledged(entry, result),
            Ok(ConnectionEvent::DisconnectSent | ConnectionEvent::Other) => {}
            Err(disconnect) => self.on_disconnect(&disconnect),
        }
    }

    fn on_connected(&mut self, broker: BrokerInfo, now: Instant) {
        if broker.is_clean_session {
            self.link.session_discarded();
            let text = "the session was begun anew; once more, for one that is kept".into();
            return self.on_disconnect(&Disconnect { kind: "begun anew".into(), text, unreadable: false });
        }
        let connection_info = self.link.connected(now, broker.session_present, broker.first_ping);
        self.limits = broker.limits;
        self.has_retained_messages &= broker.has_retained_messages;
        if !self.has_retained_messages {
            self.outbox.drop_copies();
        }
        let (address, count) = (self.broker_address(), connection_info.number);
        log::info!("{address}: connected (connection {count}, session kept: {})", broker.session_present);
        if connection_info.session_lost {
            log::warn!("{address}: the broker forgot our session; prompts it held for us are lost");
        }
        if !broker.session_present {
            self.dedup.set_session(random());
            self.answer_log.append_record(&Record::Session(self.dedup.session()));
        }
        self.status.subscribed = false;
        self.has_shared_subscriptions = broker.has_shared_subscriptions;
        // Also where the session is resumed: a broker that was restored from a backup has an older session.
        self.subscribe();
        self.publish_availability("online");
        self.publish_info();
        self.homeassistant_connected(now);
        self.publish_answering(now);
        self.publish_telemetry();
    }

    /// Subscribes to everything. On a new connection before `online` is published, which says that prompts are
    /// received.
    fn subscribe(&mut self) {
        let shared = self.shared_subscription.request(self.has_shared_subscriptions).unwrap_or_else(|text| {
            self.report_problem(&text);
            false
        });
        let group = if shared { self.topics.group_filters() } else { Vec::new() };
        let (homeassistant, home) = (self.birth_filters(), self.home_filters());
        if let Some(connection) = &mut self.connection {
            connection.subscribe(SubscriptionFilters {
                own: self.topics.filters(),
                homeassistant,
                home,
                group,
            });
            for topic in self.homeassistant.iter().flat_map(HomeAssistant::unwanted) {
                connection.unsubscribe(topic);
            }
        }
    }

    fn report_problem(&mut self, text: &str) {
        let text = format!("{}: {text}", self.broker_address());
        log::error!("{text}");
        (self.status.problem, self.is_link_problem) = (Some(text), false);
    }

    fn publish_availability(&mut self, word: &str) {
        let packet = OutgoingMessage::word(self.topics.availability(), word);
        self.outbox.push_status(OutgoingMessage { retain: self.has_retained_messages, ..packet });
    }

    fn on_subscribed(&mut self, granted: SubAcks) {
        self.status.subscribed = granted.own.is_ok();
        match granted.own {
            Ok(()) => self.subscription_check.subscribed(Instant::now()),
            Err(reason) => {
                let topic = self.topics.prompt();
                self.report_problem(&format!(
                    "may not subscribe to {topic} ({reason}); allow it in the broker's access list"
                ));
            }
        }
        self.on_birth_suback(granted.homeassistant);
        self.on_home_suback(granted.home);
        if let Some(text) = granted.group.and_then(|group| self.shared_subscription.answered(&group)) {
            self.report_problem(&text);
        }
    }

    fn on_acknowledged(&mut self, entry: u64, result: Result<(), String>) {
        let is_taken = result.is_ok();
        if !self.on_description_puback(entry, &result)
            && let Err(reason) = result
            && let Some(text) = self.outbox.refusal_to_log(entry, &reason)
        {
            log::warn!("{}: {text}", self.broker_address());
        }
        self.alert_queue.acknowledged(entry);
        self.outbox.acknowledged(entry, is_taken);
    }

    fn on_disconnect(&mut self, disconnect: &Disconnect) {
        self.connection = None;
        self.published_state.disconnected();
        self.answering.disconnected();
        // Where several were requested at once, the descriptions of the home are left out first, then Home Assistant's
        // birth topics.
        let is_home_suspected = self.home_disconnected(disconnect);
        let is_birth_suspected = self.is_birth_subscription_pending();
        self.shared_subscription.disconnected(!is_home_suspected && !is_birth_suspected);
        self.homeassistant_disconnected(disconnect, Instant::now());
        self.outbox.disconnected(disconnect.is_by_broker());
        for kind in self.alert_queue.disconnected(disconnect.is_by_broker()) {
            let address = self.broker_address();
            log::error!("{address}: the alert {kind} is given up: the broker ends the connection over it");
        }
        self.dedup.disconnected(disconnect.is_by_daemon());
        self.subscription_check.disconnected(disconnect.is_by_broker());
        self.has_retained_messages &= disconnect.kind != "RetainNotSupported";
        let retry = self.link.disconnected(Instant::now(), disconnect, random_fraction());
        let text =
            format!("{}: {}{}", self.broker_address(), disconnect.text, retry.advice(&self.context.device));
        if retry.log {
            log::warn!("{text}; next try in {:.1} s", retry.wait.as_secs_f32());
        }
        (self.status.problem, self.is_link_problem) = (Some(text), true);
    }

    /// Does what the subscription check requires now.
    fn run_subscription_check(&mut self, now: Instant) {
        if !self.link.is_online() {
            return;
        }
        match self.subscription_check.next_action(now) {
            None => {}
            Some(CheckAction::Publish(payload)) => {
                for topic in self.topics.self_check() {
                    let packet = OutgoingMessage::json(topic, payload.clone().into_bytes());
                    self.connection.iter().for_each(|connection| connection.publish_at_qos_0(&packet, now));
                }
            }
            Some(CheckAction::Subscribe) => {
                log::warn!(
                    "{}: prompts no longer reach us, a subscription is gone; subscribing again",
                    self.broker_address()
                );
                self.subscribe();
            }
            Some(CheckAction::ReportImpossible) => {
                let (address, topic) = (self.broker_address(), self.topics.prompt());
                log::info!(
                    "{address}: a message to ourselves does not come back, so a lost subscription would not be noticed; \
                     allow us to publish to {topic}"
                );
            }
        }
    }

    fn is_stopping(&self) -> bool {
        self.context.draining.is_cancelled() || self.flush_deadline.is_some()
    }

    /// Telemetry is published at QoS 0 and bypasses the outbox: the next report is more useful than a late one.
    fn publish_telemetry(&mut self) {
        let report = self.context.reports.borrow_and_update().clone();
        if let Some(report) = report {
            self.publish_report(report.to_vec());
        }
        self.update_sensors(Instant::now());
    }

    fn publish_report(&self, report: Vec<u8>) {
        if let Some(connection) = self.connection.as_ref().filter(|_| self.link.is_online()) {
            let now = Instant::now();
            let packet = OutgoingMessage::json(self.topics.telemetry(), report);
            let packet =
                OutgoingMessage { expires: Some(now + *self.context.report_interval.borrow()), ..packet };
            if packet.size() <= self.limits.packet {
                connection.publish_at_qos_0(&packet, now);
            }
        }
    }

    fn update_status(&mut self) {
        let now = Instant::now();
        if self.is_link_problem && self.link.is_stable(now) {
            (self.status.problem, self.is_link_problem) = (None, false);
        }
        let storage_problem = self.answer_log.problem(now).map(str::to_owned);
        let now = MqttLink {
            connected: self.link.is_online(),
            subscribed: self.link.is_online() && self.status.subscribed,
            connects: self.link.connects(),
            sessions_lost: self.link.sessions_lost(),
            outbox: self.outbox.len() as u64,
            waiting: self.backlog.len() as u64,
            deaf: self.subscription_check.is_deaf(),
            subscriptions_lost: self.subscription_check.lost(),
            duplicates: self.dedup.duplicates(),
            resent: self.status.resent,
            durable: self.answer_log.is_durable() && storage_problem.is_none(),
            storage_problem,
            dropped: self.status.dropped + self.outbox.given_up(),
            problem: self.status.problem.clone(),
        };
        self.context.status.send_if_modified(|shown| {
            let changed = *shown != now;
            *shown = now;
            changed
        });
    }

    /// Whether everything left is sent, or the time for that is over.
    pub fn is_finished(&self, now: Instant) -> bool {
        let is_checked = self.stop_check == StopCheck::Finished;
        let done = is_checked && self.outbox.is_empty() && self.active_requests.is_empty();
        self.flush_deadline.is_some_and(|deadline| done || now >= deadline)
    }

    /// Publishes `offline` and sends a DISCONNECT, so that the last will is not needed; then saves what is left.
    pub async fn close(&mut self) {
        self.publish_state_changes();
        if self.link.is_online() {
            self.publish_availability("offline");
            if timeout(DISCONNECT_TIMEOUT, self.send_disconnect()).await.is_err() {
                log::warn!("{}: the broker did not confirm the DISCONNECT in time", self.broker_address());
            }
        }
        self.connection = None;
        self.link = Link::new(Instant::now());
        if timeout(DISK_TIMEOUT, self.save_remaining()).await.is_err() {
            log::warn!("{}: the disk does not take the last answers", self.broker_address());
        }
        self.log_lost_prompts();
        self.update_status();
    }

    async fn save_remaining(&mut self) {
        self.save();
        while self.answer_log.is_busy() {
            let finished = self.answer_log.next().await;
            self.on_disk_outcome(finished);
            self.save();
        }
    }

    /// Messages that are still received are not acknowledged: the broker keeps them for the next start.
    async fn send_disconnect(&mut self) {
        let mut asked = false;
        loop {
            self.exchange(Instant::now());
            if let Some(connection) = self.connection.as_ref().filter(|_| !asked) {
                asked = !self.outbox.has_status() && connection.disconnect();
            }
            match next_event(&mut self.connection).await {
                Ok(ConnectionEvent::PubAck(entry, result)) => self.on_acknowledged(entry, result),
                Ok(ConnectionEvent::DisconnectSent) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    fn broker_address(&self) -> String {
        format!("mqtt {}:{}", self.context.config.host, self.context.config.port)
    }
}

/// The next event of the connection; never returns without one.
async fn next_event(connection: &mut Option<Connection>) -> Result<ConnectionEvent, Disconnect> {
    match connection {
        Some(connection) => connection.next().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until_due(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// A random number from 0 to 1.
fn random_fraction() -> f64 {
    random() as f64 / u64::MAX as f64
}

/// Every `RandomState` has random keys of its own.
fn random() -> u64 {
    RandomState::new().hash_one(())
}
