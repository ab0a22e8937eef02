//! Replies until the broker has them.
//!
//! Pure: the only memory of what was not yet acknowledged, but for the disk's copy of it. The MQTT library's own is thrown away
//! with every connection, so that nothing is sent again behind our back. Knows nothing of who
//! asked; a prompt is a number here.

#[cfg(test)]
mod tests;

use super::refused_publishes::RefusedPublishes;
use crate::protocol::{Code, Event, Refusal, json};
use std::collections::{HashSet, VecDeque};
use std::time::Instant;

/// Most QoS 1 publishes on their way at once; less where the broker's Receive Maximum is lower.
/// Below the 20 that mosquitto allows by default.
pub const WINDOW: usize = 16;
/// Most bytes, tokens included: some fifty answers that fill a context of 4096 tokens (about 20 KiB each). Answers
/// to prompts that were taken are kept above it too.
const BYTES: usize = 1 << 20;
/// Most rows, tokens included: what a minute without a broker makes at the speed of a small board.
const ROWS: usize = 512;
/// Answers waiting above this, no new prompt is taken.
const ANSWERS: usize = 64;
/// Connections that the broker ended while a row was on its way before it travels alone; and before
/// an error goes in its place. Alone, it and no other is what the broker ends the connection over.
const SUSPECT: u32 = 2;
const POISON: u32 = 5;
/// No PUBLISH has more bytes beside topic, payload and correlation: lengths, packet id, expiry,
/// payload format, content type.
const PROPERTIES: usize = 64;

/// One message for the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Checked by `topics`.
    pub topic: String,
    /// JSON, or a word.
    pub payload: Vec<u8>,
    /// Whether `payload` is JSON.
    pub json: bool,
    /// Whether the broker keeps it.
    pub retain: bool,
    /// The prompt's Correlation Data, unchanged.
    pub correlation: Option<Vec<u8>>,
    /// When nobody wants it any more.
    pub expires: Option<Instant>,
}

impl Packet {
    /// A plain retained word.
    pub fn word(topic: String, word: &str) -> Self {
        let payload = word.as_bytes().to_vec();
        Packet { topic, payload, json: false, retain: true, correlation: None, expires: None }
    }

    /// JSON that is not kept by the broker.
    pub fn json(topic: String, payload: Vec<u8>) -> Self {
        Packet { topic, payload, json: true, retain: false, correlation: None, expires: None }
    }

    /// Seconds it is still wanted, rounded up, at least one.
    pub fn expiry(&self, now: Instant) -> Option<u32> {
        let left = self.expires?.saturating_duration_since(now);
        let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
        Some(u32::try_from(seconds.max(1)).unwrap_or(u32::MAX))
    }

    /// No PUBLISH of it is larger: topic, payload, correlation, and all else that is in one.
    pub fn size(&self) -> usize {
        let correlation = self.correlation.as_ref().map_or(0, Vec::len);
        self.topic.len() + self.payload.len() + correlation + PROPERTIES
    }
}

/// Names a prompt.
pub type PromptId = u64;

/// What a row is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// A token event: the answer's text comes again in its last event.
    Token(PromptId),
    /// The last event of a request with this id.
    Last(PromptId, String),
    /// Ours to say on every connection; forgotten with it.
    Status,
}

#[derive(Debug)]
struct Row {
    number: u64,
    kind: Kind,
    packet: Packet,
    /// It is being saved, and not published before that.
    is_held: bool,
    /// An error stands in the answer's place.
    is_error: bool,
    on_its_way: bool,
    /// Connections that the broker ended while it was on its way.
    ended: u32,
}

/// The rows, oldest first.
#[derive(Debug, Default)]
pub struct Outbox {
    rows: VecDeque<Row>,
    bytes: usize,
    next_number: u64,
    /// Prompts that lost a token: what follows it is not sent either, so that what a client saw is
    /// always the beginning of the answer.
    muted: HashSet<PromptId>,
    settled: Vec<(PromptId, Outcome)>,
    /// Answers that never reached the broker.
    given_up: u64,
    refused: RefusedPublishes,
}

/// What became of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
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
pub struct Waiting<'a> {
    /// Its row.
    pub number: u64,
    /// The prompt.
    pub prompt: PromptId,
    /// The request's id.
    pub id: &'a str,
    /// What is to be sent.
    pub packet: &'a Packet,
}

/// What the present connection allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The broker's Maximum Packet Size.
    pub packet: usize,
    /// QoS 1 publishes on their way.
    pub window: usize,
}

impl Outbox {
    /// An empty one whose rows are counted from `first`.
    pub fn numbered_from(first: u64) -> Self {
        Outbox { next_number: first, ..Outbox::default() }
    }

    /// Rows kept.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether the broker has everything.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Answers that were given up.
    pub fn given_up(&self) -> u64 {
        self.given_up
    }

    /// Whether so many answers wait that no new prompt is to be taken.
    pub fn is_full(&self) -> bool {
        let last = self.rows.iter().filter(|row| matches!(row.kind, Kind::Last(..)));
        let (count, bytes) = last.fold((0, 0), |(n, b), row| (n + 1, b + row.packet.size()));
        count >= ANSWERS || bytes >= BYTES / 2
    }

    /// Whether one of our own messages waits for its acknowledgement.
    pub fn has_status(&self) -> bool {
        self.rows.iter().any(|row| row.kind == Kind::Status)
    }

    /// Keeps a token event, or drops it where there is no room.
    pub fn push_token(&mut self, prompt: PromptId, packet: Packet) {
        if self.muted.contains(&prompt) {
            return;
        }
        if self.rows.len() >= ROWS || self.bytes + packet.size() > BYTES {
            self.muted.insert(prompt);
            return;
        }
        self.push(Kind::Token(prompt), packet);
    }

    /// Keeps the last event of request `id`, in the row of this number; waiting tokens make room for it.
    pub fn push_last(&mut self, prompt: PromptId, id: &str, packet: Packet) -> u64 {
        while (self.rows.len() >= ROWS || self.bytes + packet.size() > BYTES) && self.drop_token() {}
        self.push(Kind::Last(prompt, id.to_owned()), packet)
    }

    /// Keeps an answer of an earlier process under the number it had.
    pub fn restore(&mut self, number: u64, prompt: PromptId, id: &str, packet: Packet) {
        self.push_last(prompt, id, packet);
        self.rows.back_mut().expect("just pushed").number = number;
    }

    /// Holds the row back until it is [`Outbox::saved`].
    pub fn hold(&mut self, number: u64) {
        self.row(number, |row| row.is_held = true);
    }

    /// The row is on disk, or cannot be.
    pub fn saved(&mut self, number: u64) {
        self.row(number, |row| row.is_held = false);
    }

    /// The answers that the broker does not have yet, oldest first.
    pub fn waiting(&self) -> impl Iterator<Item = Waiting<'_>> {
        self.rows.iter().filter_map(|row| match &row.kind {
            Kind::Last(prompt, id) => {
                Some(Waiting { number: row.number, prompt: *prompt, id, packet: &row.packet })
            }
            Kind::Token(_) | Kind::Status => None,
        })
    }

    /// Keeps one of our own messages, before all others, in the row of this number.
    pub fn push_status(&mut self, packet: Packet) -> u64 {
        let at = self.rows.iter().take_while(|row| row.kind == Kind::Status).count();
        let number = self.push(Kind::Status, packet);
        let row = self.rows.pop_back().expect("just pushed");
        self.rows.insert(at, row);
        number
    }

    /// Keeps one of our own messages again, over which the broker may have ended so many connections.
    pub fn push_again(&mut self, packet: Packet, ended: u32) -> u64 {
        let number = self.push_status(packet);
        self.row(number, |row| row.ended = ended);
        number
    }

    /// The next row to publish: its number for [`Outbox::sent`] and [`Outbox::acknowledged`], and
    /// what to send. What is no longer wanted or fits no packet is settled on the way.
    pub fn next(&mut self, now: Instant, limits: Limits) -> Option<(u64, &Packet)> {
        loop {
            let at = self.candidate(limits)?;
            let row = &self.rows[at];
            if row.packet.expires.is_some_and(|expires| now >= expires) {
                self.settle(at, false);
            } else if row.packet.size() > limits.packet {
                self.shrink(at, limits.packet);
            } else {
                return Some((self.rows[at].number, &self.rows[at].packet));
            }
        }
    }

    /// The row is with the MQTT library.
    pub fn sent(&mut self, number: u64) {
        self.row(number, |row| row.on_its_way = true);
    }

    /// The broker has the row, or refused it for good.
    pub fn acknowledged(&mut self, number: u64, is_taken: bool) {
        if let Some(at) = self.rows.iter().position(|row| row.number == number) {
            self.settle(at, is_taken);
        }
    }

    /// The broker refuses the row for this reason: what to log of it, once for each topic.
    pub fn refused(&mut self, number: u64, reason: &str) -> Option<String> {
        let row = self.rows.iter().find(|row| row.number == number)?;
        self.refused.refused(&row.packet.topic, reason)
    }

    /// The connection is gone: what was on its way is to be published again. `by_broker`: it may have
    /// been over one of these rows.
    pub fn disconnected(&mut self, by_broker: bool) {
        self.refused.disconnected();
        for row in self.rows.iter_mut().filter(|row| row.on_its_way) {
            row.on_its_way = false;
            row.ended += u32::from(by_broker);
        }
        while let Some(at) = self.rows.iter().position(|row| row.kind == Kind::Status) {
            self.remove(at);
        }
        while let Some(at) = self.rows.iter().position(|row| row.ended >= POISON) {
            self.poisoned(at);
        }
    }

    /// Prompts whose last event is done with, since the last call.
    pub fn take_settled(&mut self) -> Vec<(PromptId, Outcome)> {
        std::mem::take(&mut self.settled)
    }

    fn push(&mut self, kind: Kind, packet: Packet) -> u64 {
        self.bytes += packet.size();
        let number = self.next_number;
        self.next_number += 1;
        self.rows.push_back(Row {
            number,
            kind,
            packet,
            is_held: false,
            is_error: false,
            on_its_way: false,
            ended: 0,
        });
        number
    }

    fn row(&mut self, number: u64, change: impl FnOnce(&mut Row)) {
        if let Some(row) = self.rows.iter_mut().find(|row| row.number == number) {
            change(row);
        }
    }

    /// Where the next row is that may be published.
    fn candidate(&self, limits: Limits) -> Option<usize> {
        let suspect = self.rows.iter().any(|row| row.ended >= SUSPECT);
        let window = if suspect { 1 } else { limits.window.min(WINDOW) };
        if self.rows.iter().filter(|row| row.on_its_way).count() >= window {
            return None;
        }
        self.rows.iter().position(|row| !row.on_its_way && !row.is_held)
    }

    /// Drops the newest token that is not on its way. Newest, so that a prefix stays.
    fn drop_token(&mut self) -> bool {
        let is_spare = |row: &Row| matches!(row.kind, Kind::Token(_)) && !row.on_its_way;
        let Some(at) = self.rows.iter().rposition(is_spare) else { return false };
        if let Some(Row { kind: Kind::Token(prompt), .. }) = self.remove(at) {
            self.muted.insert(prompt);
        }
        true
    }

    /// Puts an error in the place of an answer that the broker would not take.
    fn shrink(&mut self, at: usize, limit: usize) {
        let said = format!(
            "the answer has {} bytes and the broker takes packets of {limit}; ask for less or raise its limit",
            self.rows[at].packet.payload.len()
        );
        self.put_error(at, Refusal::new(Code::TooLarge, said), limit, "it is larger than the broker takes");
    }

    /// Puts an error in the place of an answer over which the broker ends the connection.
    fn poisoned(&mut self, at: usize) {
        let why = "the broker ended the connection each time it was published";
        let said = format!("the answer cannot be delivered: {why}");
        self.rows[at].ended = 0;
        self.put_error(at, Refusal::new(Code::Internal, said), usize::MAX, why);
    }

    /// A token is not worth an error: what follows it is not sent either. Where the error itself stands
    /// already, or is too large, that was all that could be done.
    fn put_error(&mut self, at: usize, refusal: Refusal, limit: usize, why: &str) {
        let row = &mut self.rows[at];
        let id = match &row.kind {
            Kind::Last(_, id) => id,
            Kind::Token(_) => return self.settle(at, false),
            Kind::Status => return self.give_up(at, why),
        };
        let payload = json::event(&Event::Error { id: Some(id.clone()), refusal });
        let smaller = Packet { payload, ..row.packet.clone() };
        if smaller.size() > limit || row.is_error {
            return self.give_up(at, why);
        }
        self.bytes = self.bytes - row.packet.size() + smaller.size();
        row.packet = smaller;
        row.is_error = true;
    }

    fn give_up(&mut self, at: usize, why: &str) {
        log::error!("mqtt: a reply to {} is given up: {why}", self.rows[at].packet.topic);
        self.given_up += 1;
        // Said again it would do the same again.
        let row = &mut self.rows[at];
        self.bytes -= row.packet.payload.len();
        row.packet.payload.clear();
        self.settle(at, false);
    }

    fn settle(&mut self, at: usize, is_delivered: bool) {
        match self.remove(at) {
            Some(Row { number, kind: Kind::Last(prompt, id), packet, .. }) => {
                self.muted.remove(&prompt);
                let outcome = Outcome { number, id, payload: packet.payload, is_delivered };
                self.settled.push((prompt, outcome));
            }
            Some(Row { kind: Kind::Token(prompt), .. }) if !is_delivered => {
                self.muted.insert(prompt);
            }
            _ => {}
        }
    }

    fn remove(&mut self, at: usize) -> Option<Row> {
        let row = self.rows.remove(at)?;
        self.bytes -= row.packet.size();
        Some(row)
    }
}
