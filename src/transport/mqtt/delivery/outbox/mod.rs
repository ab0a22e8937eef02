//! The outbox: replies and status messages until the broker has acknowledged them.
//!
//! Pure: the only memory of what is not yet acknowledged, besides its copy on disk. The MQTT library's own is
//! dropped with every connection, so that the library publishes nothing again by itself. Deliberately knows nothing
//! of who sent a prompt: it is a number here.

#[cfg(test)]
mod tests;

use super::refused_publishes::RefusedPublishes;
use crate::protocol::text::Shown;
use crate::protocol::{Code, Event, Refusal, RequestId, json};
use crate::transport::mqtt::message::{MAX_IN_FLIGHT, OutgoingMessage, PublishLimits};
use crate::transport::mqtt::strikes::{GIVE_UP, ISOLATE, Strikes};
use std::collections::{HashSet, VecDeque};
use std::time::Instant;

/// Maximum size of all entries in bytes, token events included: about fifty answers that fill a context of 4096
/// tokens (about 20 KiB each). Answers to accepted prompts are kept beyond it too.
const MAX_BYTES: usize = 1 << 20;
/// Maximum number of entries, token events included: what a minute without a broker produces at the speed of a
/// small board.
const MAX_ENTRIES: usize = 512;
/// With more waiting answers than this, no new prompt is submitted.
const MAX_ANSWERS: usize = 64;

/// The number of a prompt.
pub type PromptId = u64;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum EntryKind {
    /// A token event: the last event repeats its text.
    Token(PromptId),
    /// The last event of the request with this id.
    Last(PromptId, RequestId),
    /// A copy of the last event in the entry of this number, retained for clients that listen later.
    Copy(u64),
    /// A status message of the daemon, published on every connection and dropped with it.
    Status,
}

#[derive(Debug)]
struct OutboxEntry {
    number: u64,
    kind: EntryKind,
    packet: OutgoingMessage,
    /// It is being written to disk, and not published before that is done.
    is_awaiting_disk: bool,
    /// An error has replaced the answer.
    is_error: bool,
    is_in_flight: bool,
    /// Disconnects by the broker while it was in flight.
    strikes: Strikes,
}

/// The entries, oldest first.
#[derive(Debug, Default)]
pub struct Outbox {
    entries: VecDeque<OutboxEntry>,
    bytes: usize,
    next_number: u64,
    /// Prompts that lost a token event: later ones are not sent either, so that what a client received is always
    /// the beginning of the answer.
    ended_streams: HashSet<PromptId>,
    settled: Vec<(PromptId, DeliveryOutcome)>,
    /// Answers that could not be delivered.
    given_up: u64,
    refused_publishes: RefusedPublishes,
}

/// What happened to an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryOutcome {
    /// The number of its entry.
    pub number: u64,
    /// The request's id.
    pub id: RequestId,
    /// The event, as JSON; empty where it must not be sent again.
    pub payload: Vec<u8>,
    /// Whether the broker has it; otherwise nobody wants it any more.
    pub is_delivered: bool,
}

/// An answer that the broker has not acknowledged.
#[derive(Debug, Clone, Copy)]
pub struct PendingAnswer<'a> {
    /// The number of its entry.
    pub number: u64,
    /// The prompt.
    pub prompt: PromptId,
    /// The request's id.
    pub id: &'a RequestId,
    /// The message.
    pub packet: &'a OutgoingMessage,
}

impl Outbox {
    /// An empty outbox whose entries are numbered from `first`.
    pub fn numbered_from(first: u64) -> Self {
        Outbox { next_number: first, ..Outbox::default() }
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the broker has everything.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Answers that could not be delivered.
    pub fn given_up(&self) -> u64 {
        self.given_up
    }

    /// Whether so many answers wait that no new prompt is to be submitted.
    pub fn is_full(&self) -> bool {
        let last = self.entries.iter().filter(|entry| matches!(entry.kind, EntryKind::Last(..)));
        let (count, bytes) = last.fold((0, 0), |(n, b), entry| (n + 1, b + entry.packet.size()));
        count >= MAX_ANSWERS || bytes >= MAX_BYTES / 2
    }

    /// Whether a status message waits for its PUBACK.
    pub fn has_status(&self) -> bool {
        self.entries.iter().any(|entry| entry.kind == EntryKind::Status)
    }

    /// Adds a token event, or drops it if the outbox is full.
    pub fn push_token(&mut self, prompt: PromptId, packet: OutgoingMessage) {
        if self.ended_streams.contains(&prompt) {
            return;
        }
        if self.entries.len() >= MAX_ENTRIES || self.bytes + packet.size() > MAX_BYTES {
            self.ended_streams.insert(prompt);
            return;
        }
        self.push(EntryKind::Token(prompt), packet);
    }

    /// Adds the last event of request `id`, and returns the number of its entry. Waiting token events are dropped
    /// until there is space for it.
    pub fn push_last(&mut self, prompt: PromptId, id: impl Into<RequestId>, packet: OutgoingMessage) -> u64 {
        while (self.entries.len() >= MAX_ENTRIES || self.bytes + packet.size() > MAX_BYTES)
            && self.drop_newest_token()
        {}
        self.push(EntryKind::Last(prompt, id.into()), packet)
    }

    /// Adds a retained copy of the last event in the entry of this number, which is published before that and awaits the
    /// disk with it. The broker's answer to it changes nothing for the prompt. It is left out where there is no space, and
    /// replaces an earlier one on its topic.
    pub fn push_copy(&mut self, of: u64, packet: OutgoingMessage) {
        let is_older = |entry: &OutboxEntry| {
            matches!(entry.kind, EntryKind::Copy(_))
                && !entry.is_in_flight
                && entry.packet.topic == packet.topic
        };
        if let Some(at) = self.entries.iter().position(is_older) {
            self.remove(at);
        }
        let Some(at) = self.entries.iter().position(|entry| entry.number == of) else { return };
        if self.entries.len() >= MAX_ENTRIES || self.bytes + packet.size() > MAX_BYTES {
            return;
        }
        self.push(EntryKind::Copy(of), packet);
        let mut entry = self.entries.pop_back().expect("just pushed");
        entry.is_awaiting_disk = self.entries[at].is_awaiting_disk;
        self.entries.insert(at, entry);
    }

    /// Drops the retained copies: the broker supports none.
    pub fn drop_copies(&mut self) {
        while let Some(at) = self.entries.iter().position(|entry| matches!(entry.kind, EntryKind::Copy(_))) {
            self.remove(at);
        }
    }

    /// Adds an answer of an earlier process under its former number.
    pub fn restore(
        &mut self,
        number: u64,
        prompt: PromptId,
        id: impl Into<RequestId>,
        packet: OutgoingMessage,
    ) {
        self.push_last(prompt, id, packet);
        self.entries.back_mut().expect("just pushed").number = number;
    }

    /// Keeps the entry from being published until [`Outbox::release_saved`].
    pub fn hold_until_saved(&mut self, number: u64) {
        self.update_entry(number, |entry| entry.is_awaiting_disk = true);
    }

    /// The entry is on disk, or cannot be saved.
    pub fn release_saved(&mut self, number: u64) {
        let is_it =
            |entry: &&mut OutboxEntry| entry.number == number || entry.kind == EntryKind::Copy(number);
        self.entries.iter_mut().filter(is_it).for_each(|entry| entry.is_awaiting_disk = false);
    }

    /// The answers that the broker has not acknowledged, oldest first.
    pub fn pending_answers(&self) -> impl Iterator<Item = PendingAnswer<'_>> {
        self.entries.iter().filter_map(|entry| match &entry.kind {
            EntryKind::Last(prompt, id) => {
                Some(PendingAnswer { number: entry.number, prompt: *prompt, id, packet: &entry.packet })
            }
            EntryKind::Token(_) | EntryKind::Copy(_) | EntryKind::Status => None,
        })
    }

    /// Adds a status message, before all other entries but earlier ones of its kind, and returns the number of its
    /// entry.
    pub fn push_status(&mut self, packet: OutgoingMessage) -> u64 {
        let at = self.entries.iter().take_while(|entry| entry.kind == EntryKind::Status).count();
        let number = self.push(EntryKind::Status, packet);
        let entry = self.entries.pop_back().expect("just pushed");
        self.entries.insert(at, entry);
        number
    }

    /// Adds a status message again, with the strikes it had on earlier connections.
    pub fn push_status_retry(&mut self, packet: OutgoingMessage, strikes: Strikes) -> u64 {
        let number = self.push_status(packet);
        self.update_entry(number, |entry| entry.strikes = strikes);
        number
    }

    /// The next entry to publish: its number for [`Outbox::mark_sent`] and [`Outbox::acknowledged`], and the
    /// message. An entry that has expired or fits no packet is settled first.
    pub fn next(&mut self, now: Instant, limits: PublishLimits) -> Option<(u64, &OutgoingMessage)> {
        loop {
            let at = self.next_publishable(limits)?;
            let entry = &self.entries[at];
            if entry.packet.expires.is_some_and(|expires| now >= expires) {
                self.settle(at, false);
            } else if entry.packet.size() > limits.packet {
                self.replace_oversized(at, limits.packet);
            } else {
                return Some((self.entries[at].number, &self.entries[at].packet));
            }
        }
    }

    /// The entry was handed to the MQTT library.
    pub fn mark_sent(&mut self, number: u64) {
        self.update_entry(number, |entry| entry.is_in_flight = true);
    }

    /// The broker has the entry, or refused it for good.
    pub fn acknowledged(&mut self, number: u64, is_taken: bool) {
        if let Some(at) = self.entries.iter().position(|entry| entry.number == number) {
            self.settle(at, is_taken);
        }
    }

    /// The broker refuses the entry for this reason. Returns what to log, once for each topic.
    pub fn refusal_to_log(&mut self, number: u64, reason: &str) -> Option<String> {
        let entry = self.entries.iter().find(|entry| entry.number == number)?;
        self.refused_publishes.refused(&entry.packet.topic, reason)
    }

    /// The connection ended: what was in flight is to be published again. `by_broker`: one of these entries may be
    /// the cause.
    pub fn disconnected(&mut self, by_broker: bool) {
        self.refused_publishes.disconnected();
        for entry in self.entries.iter_mut().filter(|entry| entry.is_in_flight) {
            entry.is_in_flight = false;
            entry.strikes.add_if(by_broker);
        }
        while let Some(at) = self.entries.iter().position(|entry| entry.kind == EntryKind::Status) {
            self.remove(at);
        }
        while let Some(at) = self.entries.iter().position(|entry| entry.strikes.has_reached(GIVE_UP)) {
            self.replace_undeliverable(at);
        }
    }

    /// Prompts whose last event was settled since the last call.
    pub fn take_settled(&mut self) -> Vec<(PromptId, DeliveryOutcome)> {
        std::mem::take(&mut self.settled)
    }

    fn push(&mut self, kind: EntryKind, packet: OutgoingMessage) -> u64 {
        self.bytes += packet.size();
        let number = self.next_number;
        self.next_number += 1;
        self.entries.push_back(OutboxEntry {
            number,
            kind,
            packet,
            is_awaiting_disk: false,
            is_error: false,
            is_in_flight: false,
            strikes: Strikes::default(),
        });
        number
    }

    fn update_entry(&mut self, number: u64, change: impl FnOnce(&mut OutboxEntry)) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.number == number) {
            change(entry);
        }
    }

    /// The index of the next entry that may be published.
    fn next_publishable(&self, limits: PublishLimits) -> Option<usize> {
        let suspect = self.entries.iter().any(|entry| entry.strikes.has_reached(ISOLATE));
        let window = if suspect { 1 } else { limits.window.min(MAX_IN_FLIGHT) };
        if self.entries.iter().filter(|entry| entry.is_in_flight).count() >= window {
            return None;
        }
        self.entries.iter().position(|entry| !entry.is_in_flight && !entry.is_awaiting_disk)
    }

    /// Drops the newest token event that is not in flight. The newest, so that the beginning of the text stays.
    fn drop_newest_token(&mut self) -> bool {
        let is_spare = |entry: &OutboxEntry| matches!(entry.kind, EntryKind::Token(_)) && !entry.is_in_flight;
        let Some(at) = self.entries.iter().rposition(is_spare) else { return false };
        if let Some(OutboxEntry { kind: EntryKind::Token(prompt), .. }) = self.remove(at) {
            self.ended_streams.insert(prompt);
        }
        true
    }

    /// Replaces an answer that exceeds the broker's Maximum Packet Size with an error.
    fn replace_oversized(&mut self, at: usize, limit: usize) {
        let text = format!(
            "the answer has {} bytes and the broker takes packets of {limit}; ask for less or raise its limit",
            self.entries[at].packet.payload.len()
        );
        self.replace_with_error(
            at,
            Refusal::new(Code::TooLarge, text),
            limit,
            "it is larger than the broker takes",
        );
    }

    /// Replaces an answer over which the broker closes the connection with an error.
    fn replace_undeliverable(&mut self, at: usize) {
        let why = "the broker ended the connection each time it was published";
        let text = format!("the answer cannot be delivered: {why}");
        self.entries[at].strikes.clear();
        self.replace_with_error(at, Refusal::new(Code::Internal, text), usize::MAX, why);
    }

    /// A token event is not worth an error: later ones are not sent either. Where the entry is an error already, or
    /// the error is too large as well, the answer is given up.
    fn replace_with_error(&mut self, at: usize, refusal: Refusal, limit: usize, why: &str) {
        let entry = &mut self.entries[at];
        let id = match &entry.kind {
            EntryKind::Last(_, id) => id,
            EntryKind::Token(_) | EntryKind::Copy(_) => return self.settle(at, false),
            EntryKind::Status => return self.give_up(at, why),
        };
        let metadata = json::metadata_of(&entry.packet.payload);
        let payload = json::event(&Event::Error { id: Some(id.clone()), refusal, metadata });
        let smaller = OutgoingMessage { payload, ..entry.packet.clone() };
        if smaller.size() > limit || entry.is_error {
            return self.give_up(at, why);
        }
        self.bytes = self.bytes - entry.packet.size() + smaller.size();
        entry.packet = smaller;
        entry.is_error = true;
    }

    fn give_up(&mut self, at: usize, why: &str) {
        log::error!("mqtt: a reply to {} is given up: {why}", Shown(&self.entries[at].packet.topic));
        self.given_up += 1;
        // Sent again, it would cause the same failure.
        let entry = &mut self.entries[at];
        self.bytes -= entry.packet.payload.len();
        entry.packet.payload.clear();
        self.settle(at, false);
    }

    fn settle(&mut self, at: usize, is_delivered: bool) {
        match self.remove(at) {
            Some(OutboxEntry { number, kind: EntryKind::Last(prompt, id), packet, .. }) => {
                self.ended_streams.remove(&prompt);
                let outcome = DeliveryOutcome { number, id, payload: packet.payload, is_delivered };
                self.settled.push((prompt, outcome));
            }
            Some(OutboxEntry { kind: EntryKind::Token(prompt), .. }) if !is_delivered => {
                self.ended_streams.insert(prompt);
            }
            _ => {}
        }
    }

    fn remove(&mut self, at: usize) -> Option<OutboxEntry> {
        let entry = self.entries.remove(at)?;
        self.bytes -= entry.packet.size();
        Some(entry)
    }
}
