//! Replies until the broker has them.
//!
//! Pure: the only memory of what was not yet acknowledged, but for the disk's copy of it. The MQTT library's own is thrown away
//! with every connection, so that nothing is sent again behind our back. Knows nothing of who
//! asked; a prompt is a number here.

#[cfg(test)]
mod tests;

use super::refused_publishes::RefusedPublishes;
use crate::protocol::{Code, Event, Refusal, json};
use crate::transport::mqtt::message::{MAX_IN_FLIGHT, OutgoingMessage, PublishLimits};
use crate::transport::mqtt::strikes::{GIVE_UP, ISOLATE, Strikes};
use std::collections::{HashSet, VecDeque};
use std::time::Instant;

/// Most bytes, tokens included: some fifty answers that fill a context of 4096 tokens (about 20 KiB each). Answers
/// to prompts that were taken are kept above it too.
const MAX_BYTES: usize = 1 << 20;
/// Most rows, tokens included: what a minute without a broker makes at the speed of a small board.
const MAX_ENTRIES: usize = 512;
/// Answers waiting above this, no new prompt is taken.
const MAX_ANSWERS: usize = 64;

/// Names a prompt.
pub type PromptId = u64;

/// What a row is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum EntryKind {
    /// A token event: the answer's text comes again in its last event.
    Token(PromptId),
    /// The last event of a request with this id.
    Last(PromptId, String),
    /// Ours to say on every connection; forgotten with it.
    Status,
}

#[derive(Debug)]
struct OutboxEntry {
    number: u64,
    kind: EntryKind,
    packet: OutgoingMessage,
    /// It is being saved, and not published before that.
    is_awaiting_disk: bool,
    /// An error stands in the answer's place.
    is_error: bool,
    is_in_flight: bool,
    /// Connections that the broker ended while it was on its way.
    strikes: Strikes,
}

/// The rows, oldest first.
#[derive(Debug, Default)]
pub struct Outbox {
    entries: VecDeque<OutboxEntry>,
    bytes: usize,
    next_number: u64,
    /// Prompts that lost a token: what follows it is not sent either, so that what a client saw is
    /// always the beginning of the answer.
    ended_streams: HashSet<PromptId>,
    settled: Vec<(PromptId, DeliveryOutcome)>,
    /// Answers that never reached the broker.
    given_up: u64,
    refused_publishes: RefusedPublishes,
}

/// What became of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryOutcome {
    /// Its row.
    pub number: u64,
    /// The request's id.
    pub id: String,
    /// The event, as JSON; empty where saying nothing is better than saying it again.
    pub payload: Vec<u8>,
    /// Whether the broker has it; else nobody wants it any more.
    pub is_delivered: bool,
}

/// An answer that the broker does not have yet.
#[derive(Debug, Clone, Copy)]
pub struct PendingAnswer<'a> {
    /// Its row.
    pub number: u64,
    /// The prompt.
    pub prompt: PromptId,
    /// The request's id.
    pub id: &'a str,
    /// What is to be sent.
    pub packet: &'a OutgoingMessage,
}

impl Outbox {
    /// An empty one whose rows are counted from `first`.
    pub fn numbered_from(first: u64) -> Self {
        Outbox { next_number: first, ..Outbox::default() }
    }

    /// Rows kept.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the broker has everything.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Answers that were given up.
    pub fn given_up(&self) -> u64 {
        self.given_up
    }

    /// Whether so many answers wait that no new prompt is to be taken.
    pub fn is_full(&self) -> bool {
        let last = self.entries.iter().filter(|entry| matches!(entry.kind, EntryKind::Last(..)));
        let (count, bytes) = last.fold((0, 0), |(n, b), entry| (n + 1, b + entry.packet.size()));
        count >= MAX_ANSWERS || bytes >= MAX_BYTES / 2
    }

    /// Whether one of our own messages waits for its acknowledgement.
    pub fn has_status(&self) -> bool {
        self.entries.iter().any(|entry| entry.kind == EntryKind::Status)
    }

    /// Keeps a token event, or drops it where there is no room.
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

    /// Keeps the last event of request `id`, in the row of this number; waiting tokens make room for it.
    pub fn push_last(&mut self, prompt: PromptId, id: &str, packet: OutgoingMessage) -> u64 {
        while (self.entries.len() >= MAX_ENTRIES || self.bytes + packet.size() > MAX_BYTES)
            && self.drop_newest_token()
        {}
        self.push(EntryKind::Last(prompt, id.to_owned()), packet)
    }

    /// Keeps an answer of an earlier process under the number it had.
    pub fn restore(&mut self, number: u64, prompt: PromptId, id: &str, packet: OutgoingMessage) {
        self.push_last(prompt, id, packet);
        self.entries.back_mut().expect("just pushed").number = number;
    }

    /// Holds the row back until it is [`Outbox::saved`].
    pub fn hold_until_saved(&mut self, number: u64) {
        self.update_entry(number, |entry| entry.is_awaiting_disk = true);
    }

    /// The row is on disk, or cannot be.
    pub fn release_saved(&mut self, number: u64) {
        self.update_entry(number, |entry| entry.is_awaiting_disk = false);
    }

    /// The answers that the broker does not have yet, oldest first.
    pub fn pending_answers(&self) -> impl Iterator<Item = PendingAnswer<'_>> {
        self.entries.iter().filter_map(|entry| match &entry.kind {
            EntryKind::Last(prompt, id) => {
                Some(PendingAnswer { number: entry.number, prompt: *prompt, id, packet: &entry.packet })
            }
            EntryKind::Token(_) | EntryKind::Status => None,
        })
    }

    /// Keeps one of our own messages, before all others, in the row of this number.
    pub fn push_status(&mut self, packet: OutgoingMessage) -> u64 {
        let at = self.entries.iter().take_while(|entry| entry.kind == EntryKind::Status).count();
        let number = self.push(EntryKind::Status, packet);
        let entry = self.entries.pop_back().expect("just pushed");
        self.entries.insert(at, entry);
        number
    }

    /// Keeps one of our own messages again, over which the broker may have ended so many connections.
    pub fn push_status_retry(&mut self, packet: OutgoingMessage, strikes: Strikes) -> u64 {
        let number = self.push_status(packet);
        self.update_entry(number, |entry| entry.strikes = strikes);
        number
    }

    /// The next row to publish: its number for [`Outbox::sent`] and [`Outbox::acknowledged`], and
    /// what to send. What is no longer wanted or fits no packet is settled on the way.
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

    /// The row is with the MQTT library.
    pub fn mark_sent(&mut self, number: u64) {
        self.update_entry(number, |entry| entry.is_in_flight = true);
    }

    /// The broker has the row, or refused it for good.
    pub fn acknowledged(&mut self, number: u64, is_taken: bool) {
        if let Some(at) = self.entries.iter().position(|entry| entry.number == number) {
            self.settle(at, is_taken);
        }
    }

    /// The broker refuses the row for this reason: what to log of it, once for each topic.
    pub fn refusal_to_log(&mut self, number: u64, reason: &str) -> Option<String> {
        let entry = self.entries.iter().find(|entry| entry.number == number)?;
        self.refused_publishes.refused(&entry.packet.topic, reason)
    }

    /// The connection is gone: what was on its way is to be published again. `by_broker`: it may have
    /// been over one of these rows.
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

    /// Prompts whose last event is done with, since the last call.
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

    /// Where the next row is that may be published.
    fn next_publishable(&self, limits: PublishLimits) -> Option<usize> {
        let suspect = self.entries.iter().any(|entry| entry.strikes.has_reached(ISOLATE));
        let window = if suspect { 1 } else { limits.window.min(MAX_IN_FLIGHT) };
        if self.entries.iter().filter(|entry| entry.is_in_flight).count() >= window {
            return None;
        }
        self.entries.iter().position(|entry| !entry.is_in_flight && !entry.is_awaiting_disk)
    }

    /// Drops the newest token that is not on its way. Newest, so that a prefix stays.
    fn drop_newest_token(&mut self) -> bool {
        let is_spare = |entry: &OutboxEntry| matches!(entry.kind, EntryKind::Token(_)) && !entry.is_in_flight;
        let Some(at) = self.entries.iter().rposition(is_spare) else { return false };
        if let Some(OutboxEntry { kind: EntryKind::Token(prompt), .. }) = self.remove(at) {
            self.ended_streams.insert(prompt);
        }
        true
    }

    /// Puts an error in the place of an answer that the broker would not take.
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

    /// Puts an error in the place of an answer over which the broker ends the connection.
    fn replace_undeliverable(&mut self, at: usize) {
        let why = "the broker ended the connection each time it was published";
        let text = format!("the answer cannot be delivered: {why}");
        self.entries[at].strikes.clear();
        self.replace_with_error(at, Refusal::new(Code::Internal, text), usize::MAX, why);
    }

    /// A token is not worth an error: what follows it is not sent either. Where the error itself stands
    /// already, or is too large, that was all that could be done.
    fn replace_with_error(&mut self, at: usize, refusal: Refusal, limit: usize, why: &str) {
        let entry = &mut self.entries[at];
        let id = match &entry.kind {
            EntryKind::Last(_, id) => id,
            EntryKind::Token(_) => return self.settle(at, false),
            EntryKind::Status => return self.give_up(at, why),
        };
        let payload = json::event(&Event::Error { id: Some(id.clone()), refusal });
        let smaller = OutgoingMessage { payload, ..entry.packet.clone() };
        if smaller.size() > limit || entry.is_error {
            return self.give_up(at, why);
        }
        self.bytes = self.bytes - entry.packet.size() + smaller.size();
        entry.packet = smaller;
        entry.is_error = true;
    }

    fn give_up(&mut self, at: usize, why: &str) {
        log::error!("mqtt: a reply to {} is given up: {why}", self.entries[at].packet.topic);
        self.given_up += 1;
        // Said again it would do the same again.
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
