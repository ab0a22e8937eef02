//! Recognises redelivered messages, and decides in which order messages are acknowledged.
//!
//! Pure. Deliberately knows nothing of what a prompt means or how it is answered: a prompt is a number here, and it
//! is settled when the broker has its last event. The rules that tell a redelivery from a new prompt:
//!
//! 1. A message without the DUP flag is a new prompt, whatever its content; it gets an answer of its own.
//! 2. A message with the DUP flag is the one that was received before with the same packet identifier in the same
//!    session of the broker, and with the same topic, properties and payload. It is acknowledged together with that
//!    one, and not answered again.
//! 3. After a restart of the daemon that message is looked up among the prompts and answers on disk.
//! 4. When the broker lost the session, its packet identifiers start anew and identify nothing received before.
//! 5. A new prompt with the same topic, client, id, payload, Response Topic and Correlation Data as one answered
//!    within ten minutes gets the stored answer instead of a computed one; if that one is still being answered, it
//!    waits for the answer.

#[cfg(test)]
mod tests;

use super::dedup_keys::{DedupKeys, hash_parts, presence_tagged};
use super::outbox::{DeliveryOutcome, PromptId};
use super::recent_answers::{RecentAnswers, StoredAnswer};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Settled deliveries that are remembered, in case their PUBACK did not reach the broker. More than a broker has in
/// flight at once (mosquitto: 20, or as many as the queue of an MQTT 3.1.1 client is long).
const MAX_SETTLED: usize = 4096;

/// The properties of a received message that identify it.
#[derive(Debug, Clone, Copy)]
pub struct Delivery<'a> {
    /// The packet identifier; `None` at QoS 0, where nothing is acknowledged.
    pub packet: Option<u16>,
    /// The DUP flag.
    pub redelivered: bool,
    /// The topic it was published to.
    pub topic: &'a [u8],
    /// The client that its topic or its properties name.
    pub client: &'a str,
    /// The id in the request.
    pub id: Option<&'a str>,
    /// The Response Topic.
    pub response_topic: Option<&'a str>,
    /// The Correlation Data.
    pub correlation: Option<&'a [u8]>,
    /// The payload.
    pub payload: &'a [u8],
}

/// What to do with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Answer it; this is its number.
    New(PromptId),
    /// A redelivery: its answer is pending, or with the broker.
    Duplicate,
}

/// Whether a prompt is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DiskState {
    NotSaved,
    Writing,
    Saved,
    /// It was saved and is acknowledged, but the file is gone since: this process has to answer it.
    Lost,
}

/// A prompt whose answer is not settled.
#[derive(Debug)]
struct OpenPrompt {
    keys: DedupKeys,
    disk_state: DiskState,
    /// The number of the stored answer that it gets instead of a computed one.
    stored_answer: Option<u64>,
}

/// A delivery whose answer is settled.
#[derive(Debug, Clone, Copy)]
struct SettledDelivery {
    delivery: u128,
    /// The number of its answer.
    answer: u64,
    /// The connection on which the broker acknowledged the answer. A broker that was down since then may have lost
    /// it.
    acknowledged_on: Option<u64>,
}

/// The messages received lately.
#[derive(Debug)]
pub struct Deduplicator {
    next_prompt: PromptId,
    /// The broker's session; packet identifiers are valid only within one.
    session: u64,
    /// Counts the connections that the broker or the network ended: what was acknowledged on an earlier one may be
    /// lost.
    connection: u64,
    /// Prompts whose answer is not settled, in order of arrival.
    open: BTreeMap<PromptId, OpenPrompt>,
    /// The latest answers, and the time since each was delivered.
    recent_answers: RecentAnswers,
    /// The latest settled deliveries, oldest first.
    settled: VecDeque<SettledDelivery>,
    /// Messages of this connection without a PUBACK, in order of arrival, which is the order of the PUBACKs
    /// [MQTT-4.6.0-2].
    unacknowledged: VecDeque<PendingAck>,
    duplicates: u64,
}

/// A message without a PUBACK.
#[derive(Debug)]
struct PendingAck {
    packet: u16,
    state: AckState,
}

/// What a PUBACK waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AckState {
    /// Nothing: it can be sent in its turn.
    Ready,
    /// Until this prompt is answered or saved to disk.
    AwaitsAnswer(PromptId),
    /// It is not sent on this connection, so that the broker redelivers the message on the next one.
    AwaitsReconnect,
}

impl Deduplicator {
    /// `session` is the first session; prompts are numbered from `first`.
    pub fn new(session: u64, first: PromptId) -> Self {
        Deduplicator {
            next_prompt: first,
            session,
            connection: 0,
            open: BTreeMap::new(),
            recent_answers: RecentAnswers::default(),
            settled: VecDeque::new(),
            unacknowledged: VecDeque::new(),
            duplicates: 0,
        }
    }

    /// Redeliveries so far.
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// The session that packet identifiers belong to.
    pub fn session(&self) -> u64 {
        self.session
    }

    /// Decides whether a received message is a new prompt.
    pub fn receive(&mut self, delivery: &Delivery) -> Verdict {
        let keys = self.keys_of(delivery);
        let known = keys.delivery.filter(|_| delivery.redelivered);
        if let Some(key) = known {
            if let Some(prompt) = self.open_by_delivery(key) {
                self.duplicates += 1;
                let is_saved = self.is_saved(prompt);
                self.await_ack(
                    delivery.packet,
                    if is_saved { AckState::Ready } else { AckState::AwaitsAnswer(prompt) },
                );
                return Verdict::Duplicate;
            }
            if let Some(settled) = self.settled.iter().rev().find(|settled| settled.delivery == key).copied()
            {
                self.duplicates += 1;
                let arrived = settled.acknowledged_on == Some(self.connection);
                let stored =
                    (!arrived && self.recent_answers.contains(settled.answer)).then_some(settled.answer);
                let Some(answer) = stored else {
                    self.await_ack(delivery.packet, AckState::Ready);
                    return Verdict::Duplicate;
                };
                return self.open_prompt(delivery, keys, Some(answer));
            }
        }
        self.open_prompt(delivery, keys, None)
    }

    fn open_prompt(&mut self, delivery: &Delivery, keys: DedupKeys, stored: Option<u64>) -> Verdict {
        let prompt = self.next_prompt;
        self.next_prompt += 1;
        self.open.insert(prompt, OpenPrompt { keys, disk_state: DiskState::NotSaved, stored_answer: stored });
        self.await_ack(delivery.packet, AckState::AwaitsAnswer(prompt));
        Verdict::New(prompt)
    }

    /// The stored answer that an open prompt gets instead of a computed one.
    pub fn stored_answer(&mut self, prompt: PromptId, now: Instant) -> Option<StoredAnswer> {
        let open = self.open.get_mut(&prompt)?;
        let found = match (open.stored_answer, open.keys.name) {
            (Some(number), _) => self.recent_answers.by_number(number),
            (None, Some(name)) => self.recent_answers.by_name(name, now),
            (None, None) => None,
        };
        open.stored_answer = found.map(|answer| answer.number);
        found.cloned()
    }

    /// The earliest open prompt of the same name, if it is another one: its answer will be this one's too.
    pub fn leader(&self, prompt: PromptId) -> Option<PromptId> {
        let name = self.open.get(&prompt)?.keys.name?;
        let first = self.open.iter().find(|(_, open)| open.keys.name == Some(name));
        first.map(|(first, _)| *first).filter(|first| *first != prompt)
    }

    /// A message was received that is no prompt: it only waits for its turn to be acknowledged.
    pub fn ack_only(&mut self, packet: Option<u16>) {
        self.await_ack(packet, AckState::Ready);
    }

    /// Whether messages wait for a redelivery on the next connection.
    pub fn has_deferred(&self) -> bool {
        self.unacknowledged.iter().any(|pending| pending.state == AckState::AwaitsReconnect)
    }

    /// The prompt got an error instead of an answer: the same request again is computed, so that a client may
    /// retry. A redelivery by the broker is still the same message.
    pub fn mark_refused(&mut self, prompt: PromptId) {
        if let Some(open) = self.open.get_mut(&prompt) {
            open.keys.name = None;
        }
    }

    /// The prompt is not answered by this process, or not on this connection. One on disk is answered by the next
    /// process, and stays open here, so that it is also in a file that is written anew. Another one is not
    /// acknowledged, nor is any message after it, so that the broker redelivers it on the next connection. `false` at
    /// QoS 0 and for a lost prompt, which nobody would redeliver.
    pub fn defer(&mut self, prompt: PromptId) -> bool {
        let Some(open) = self.open.get(&prompt) else { return false };
        match open.disk_state {
            DiskState::Saved => self.set_ack_state(prompt, AckState::Ready),
            DiskState::NotSaved | DiskState::Writing if open.keys.delivery.is_some() => {
                self.open.remove(&prompt);
                self.set_ack_state(prompt, AckState::AwaitsReconnect);
            }
            DiskState::NotSaved | DiskState::Writing | DiskState::Lost => return false,
        }
        true
    }

    /// The prompt is not answered at all.
    pub fn drop_prompt(&mut self, prompt: PromptId) {
        self.open.remove(&prompt);
        self.set_ack_state(prompt, AckState::Ready);
    }

    /// The keys of an open prompt whose answer must survive the process: not at QoS 0, where nobody redelivers it,
    /// and not where the answer was stored before.
    pub fn durable_keys(&self, prompt: PromptId) -> Option<DedupKeys> {
        let open = self.open.get(&prompt)?;
        (open.keys.delivery.is_some() && open.stored_answer.is_none()).then_some(open.keys)
    }

    /// The number of prompts whose PUBACK waits for an answer.
    pub fn awaiting_answer(&self) -> usize {
        self.unacknowledged.iter().filter(|one| matches!(one.state, AckState::AwaitsAnswer(_))).count()
    }

    /// Those of them that are neither on disk nor being written, with their keys.
    pub fn unsaved(&self) -> Vec<(PromptId, DedupKeys)> {
        let waiting = self.unacknowledged.iter().filter_map(|one| match one.state {
            AckState::AwaitsAnswer(prompt) => self.open.get(&prompt).map(|open| (prompt, open)),
            AckState::Ready | AckState::AwaitsReconnect => None,
        });
        waiting
            .filter(|(_, open)| open.disk_state == DiskState::NotSaved)
            .map(|(prompt, open)| (prompt, open.keys))
            .collect()
    }

    /// The prompt is being written to disk.
    pub fn mark_writing(&mut self, prompt: PromptId) {
        self.set_disk_state(prompt, DiskState::Writing);
    }

    /// The prompt is on disk: its PUBACK waits for nothing any more.
    pub fn mark_saved(&mut self, prompt: PromptId) {
        self.set_disk_state(prompt, DiskState::Saved);
        self.set_ack_state(prompt, AckState::Ready);
    }

    /// What was being written to disk could not be written.
    pub fn mark_unsaved(&mut self) {
        for open in self.open.values_mut().filter(|open| open.disk_state == DiskState::Writing) {
            open.disk_state = DiskState::NotSaved;
        }
    }

    /// The file with all saved prompts is gone.
    pub fn mark_lost(&mut self) {
        for open in self.open.values_mut().filter(|open| open.disk_state == DiskState::Saved) {
            open.disk_state = DiskState::Lost;
        }
    }

    /// The lost prompts are on disk again.
    pub fn mark_rewritten(&mut self) {
        for prompt in self.lost_prompts() {
            self.mark_saved(prompt);
        }
    }

    /// The open prompts that were saved, and are no longer.
    pub fn lost_prompts(&self) -> Vec<PromptId> {
        let lost = self.open.iter().filter(|(_, open)| open.disk_state == DiskState::Lost);
        lost.map(|(prompt, _)| *prompt).collect()
    }

    /// Whether the prompt was saved, and is no longer.
    pub fn is_lost(&self, prompt: PromptId) -> bool {
        self.open.get(&prompt).is_some_and(|open| open.disk_state == DiskState::Lost)
    }

    fn set_disk_state(&mut self, prompt: PromptId, saving: DiskState) {
        if let Some(open) = self.open.get_mut(&prompt) {
            open.disk_state = saving;
        }
    }

    /// Whether the prompt is on disk.
    pub fn is_saved(&self, prompt: PromptId) -> bool {
        self.open.get(&prompt).is_some_and(|open| open.disk_state == DiskState::Saved)
    }

    /// The open prompts that are on disk or being written.
    pub fn saved_prompts(&self) -> impl Iterator<Item = (PromptId, DedupKeys)> {
        self.open
            .iter()
            .filter(|(_, open)| open.disk_state != DiskState::NotSaved)
            .map(|(prompt, open)| (*prompt, open.keys))
    }

    /// Whether a prompt with these keys is open: it was received before its record was read from disk.
    pub fn is_open(&self, keys: DedupKeys) -> bool {
        keys.delivery.is_some_and(|key| self.open_by_delivery(key).is_some())
    }

    /// Reopens a prompt of an earlier process whose answer is to be delivered, or that is to be answered;
    /// `is_saved` where the prompt itself is on disk.
    pub fn resume(&mut self, prompt: PromptId, keys: DedupKeys, is_saved: bool) {
        let saving = if is_saved { DiskState::Saved } else { DiskState::NotSaved };
        self.open.insert(prompt, OpenPrompt { keys, disk_state: saving, stored_answer: None });
        self.next_prompt = self.next_prompt.max(prompt.saturating_add(1));
    }

    /// A number for a prompt of an earlier process that has none.
    pub fn allocate_id(&mut self) -> PromptId {
        self.next_prompt += 1;
        self.next_prompt - 1
    }

    /// Notes a prompt that an earlier process answered `age` ago.
    pub fn remember(&mut self, answer: StoredAnswer, age: Duration, now: Instant) {
        self.note_settled(answer.keys, answer.number, None);
        self.recent_answers.insert(answer, age, now);
    }

    /// The latest answers, and how long ago they were given.
    pub fn recent_answers(&self, now: Instant) -> impl Iterator<Item = (&StoredAnswer, Duration)> {
        self.recent_answers.iter(now)
    }

    /// Nothing more will be sent for the prompt. Returns whether it was on disk.
    pub fn settle(&mut self, prompt: PromptId, outcome: DeliveryOutcome, now: Instant) -> bool {
        let Some(OpenPrompt { keys, stored_answer: stored, disk_state: saving }) = self.open.remove(&prompt)
        else {
            return false;
        };
        let DeliveryOutcome { number, id, payload, is_delivered } = outcome;
        self.note_settled(keys, stored.unwrap_or(number), is_delivered.then_some(self.connection));
        if stored.is_none() && keys != DedupKeys::default() {
            self.recent_answers.insert(StoredAnswer { number, keys, id, payload }, Duration::ZERO, now);
        }
        self.set_ack_state(prompt, AckState::Ready);
        saving == DiskState::Saved
    }

    fn note_settled(&mut self, keys: DedupKeys, answer: u64, acknowledged_on: Option<u64>) {
        if let Some(delivery) = keys.delivery {
            self.settled.push_back(SettledDelivery { delivery, answer, acknowledged_on });
            if self.settled.len() > MAX_SETTLED {
                self.settled.pop_front();
            }
        }
    }

    /// The packet identifier to acknowledge next; to be followed by [`Deduplicator::acknowledged`].
    pub fn next_ack(&self) -> Option<u16> {
        let pending = self.unacknowledged.front()?;
        (pending.state == AckState::Ready).then_some(pending.packet)
    }

    /// The PUBACK was handed to the MQTT library.
    pub fn acknowledged(&mut self) {
        self.unacknowledged.pop_front();
    }

    /// The connection ended, and with it every pending PUBACK: the broker redelivers those messages. `by_us`: the
    /// daemon ended it, so that the broker has lost nothing.
    pub fn disconnected(&mut self, by_us: bool) {
        self.unacknowledged.clear();
        self.connection += u64::from(!by_us);
    }

    /// Packet identifiers belong to this session from now on.
    pub fn set_session(&mut self, session: u64) {
        self.session = session;
    }

    fn set_ack_state(&mut self, prompt: PromptId, waits_for: AckState) {
        let waiting =
            self.unacknowledged.iter_mut().filter(|one| one.state == AckState::AwaitsAnswer(prompt));
        waiting.for_each(|one| one.state = waits_for);
    }

    fn keys_of(&self, delivery: &Delivery) -> DedupKeys {
        let Delivery { packet, topic, client, response_topic, id, correlation, payload, .. } = *delivery;
        let response = presence_tagged(response_topic.map(str::as_bytes));
        let correlated = presence_tagged(correlation);
        let content = hash_parts(&[topic, client.as_bytes(), &response, &correlated, payload]).to_le_bytes();
        let is_named = id.is_some() || correlation.is_some();
        let name =
            is_named.then(|| hash_parts(&[b"name", &presence_tagged(id.map(str::as_bytes)), &content]));
        // Packet identifiers are reused for other messages, so the content is part of the key.
        let session = self.session.to_le_bytes();
        let delivery = packet.map(|packet| hash_parts(&[&session, &packet.to_le_bytes(), &content]));
        DedupKeys { name, delivery }
    }

    /// The latest open prompt with this delivery key.
    fn open_by_delivery(&self, delivery: u128) -> Option<PromptId> {
        let is_it = |(_, open): &(&PromptId, &OpenPrompt)| open.keys.delivery == Some(delivery);
        self.open.iter().rev().find(is_it).map(|(prompt, _)| *prompt)
    }

    fn await_ack(&mut self, packet: Option<u16>, waits_for: AckState) {
        if let Some(packet) = packet {
            self.unacknowledged.push_back(PendingAck { packet, state: waits_for });
        }
    }
}
