//! Which messages came, which of them are the same prompt again, and in what order they are
//! acknowledged.
//!
//! Pure. Knows nothing of what a prompt says or how it is answered: a prompt is a number, and it
//! is settled when the broker has its last event.

#[cfg(test)]
mod tests;

use super::answered::{Answered, Copy, Given};
use super::outbox::{Outcome, Serial};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// What tells a message from others.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    /// The packet id; `None` at QoS 0, where nothing is acknowledged.
    pub packet: Option<u16>,
    /// Whether the broker says that it is a redelivery.
    pub redelivered: bool,
    /// The client's level of the topic.
    pub client: &'a str,
    /// The id in the request.
    pub id: Option<&'a str>,
    /// The Correlation Data; it counts where there is no id.
    pub correlation: Option<&'a [u8]>,
    /// The payload; the same id with another text is another prompt.
    pub payload: &'a [u8],
}

/// What to do with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Answer it under this number.
    New(Serial),
    /// Give it this answer, which it got before, under this number.
    Again(Serial, Given),
    /// Its answer is under way, or with the broker: say nothing.
    Duplicate,
}

/// What a message is known by. Keys are half of a SHA-256: each has sixteen bytes whatever a client
/// sends, no client can make two meet, and they mean the same after a restart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    /// What the client called it, and what it said.
    pub name: Option<u128>,
    /// What the session knows it by: all there is of a message without id and correlation.
    pub delivery: Option<u128>,
}

impl Keys {
    /// Whether a message with the keys `other` is the one with these. The name always tells; the
    /// delivery only where the broker says that it is one again.
    pub fn meet(self, other: Keys, redelivered: bool) -> bool {
        let same = |mine: Option<u128>, others: Option<u128>| mine.is_some() && mine == others;
        same(self.name, other.name) || (redelivered && same(self.delivery, other.delivery))
    }
}

/// The memory of messages.
#[derive(Debug)]
pub struct Arrivals {
    next_serial: Serial,
    /// Packet ids mean something only within one session.
    session: u64,
    /// Counts connections: what was acknowledged on an earlier one may be lost.
    connection: u64,
    running: HashMap<Serial, Running>,
    answered: Answered,
    /// Messages of this connection that await their acknowledgement, in order of arrival, which
    /// is the order of acknowledgements [MQTT-4.6.0-2].
    unacknowledged: VecDeque<Pending>,
    duplicates: u64,
}

#[derive(Debug)]
struct Running {
    keys: Keys,
    /// The row of the answer that is given again.
    again: Option<u64>,
}

#[derive(Debug)]
struct Pending {
    packet: u16,
    waits_for: Waits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    Nothing,
    Answer(Serial),
    /// The next connection, on which the broker delivers it again.
    Reconnect,
}

impl Arrivals {
    /// Packet ids are at first of this session.
    pub fn new(session: u64) -> Self {
        Arrivals {
            next_serial: 0,
            session,
            connection: 0,
            running: HashMap::new(),
            answered: Answered::default(),
            unacknowledged: VecDeque::new(),
            duplicates: 0,
        }
    }

    /// Messages that were the same prompt again.
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// The session that packet ids belong to.
    pub fn session(&self) -> u64 {
        self.session
    }

    /// A prompt came.
    pub fn arrive(&mut self, arrival: &Arrival, now: Instant) -> Verdict {
        let keys = self.keys_of(arrival);
        if let Some(serial) = self.running_as(keys, arrival.redelivered) {
            self.duplicates += 1;
            if let Some(running) = self.running.get_mut(&serial) {
                // A copy at QoS 1 of a prompt at QoS 0 makes it one that is to outlive us.
                running.keys.delivery = running.keys.delivery.or(keys.delivery);
            }
            self.await_ack(arrival.packet, Waits::Answer(serial));
            return Verdict::Duplicate;
        }
        match self.answered.find(keys, arrival.redelivered, self.connection, now) {
            Some(Copy::Silent) => {
                self.duplicates += 1;
                self.await_ack(arrival.packet, Waits::Nothing);
                Verdict::Duplicate
            }
            Some(Copy::Again(given)) => {
                self.duplicates += 1;
                // A refusal is still not known by its name.
                let keys = Keys { name: given.keys.name, delivery: keys.delivery.or(given.keys.delivery) };
                let serial = self.begin(keys, Some(given.number));
                self.await_ack(arrival.packet, Waits::Answer(serial));
                Verdict::Again(serial, given)
            }
            None => {
                let serial = self.begin(keys, None);
                self.await_ack(arrival.packet, Waits::Answer(serial));
                Verdict::New(serial)
            }
        }
    }

    /// A message came that is no prompt: it only takes its turn to be acknowledged.
    pub fn pass(&mut self, packet: Option<u16>) {
        self.await_ack(packet, Waits::Nothing);
    }

    /// Whether messages wait for the next connection.
    pub fn has_left(&self) -> bool {
        self.unacknowledged.iter().any(|pending| pending.waits_for == Waits::Reconnect)
    }

    /// The prompt got an error instead of an answer: asked again under its name it gets another
    /// chance, so that a client may correct it, or come back when the queue has room. A redelivery
    /// by the broker is still the same message.
    pub fn refused(&mut self, serial: Serial) {
        if let Some(running) = self.running.get_mut(&serial) {
            running.keys.name = None;
        }
    }

    /// The prompt is not answered now: it is forgotten and not acknowledged on this connection, nor is
    /// what came after it, so that the broker delivers it again on the next. `false` at QoS 0, where
    /// nobody would.
    pub fn leave(&mut self, serial: Serial) -> bool {
        let comes_again = self.running.get(&serial).is_some_and(|running| running.keys.delivery.is_some());
        if comes_again {
            self.running.remove(&serial);
            self.no_longer_wait(serial, Waits::Reconnect);
        }
        comes_again
    }

    /// The prompt is not answered at all.
    pub fn forget(&mut self, serial: Serial) {
        self.running.remove(&serial);
        self.no_longer_wait(serial, Waits::Nothing);
    }

    /// What a running prompt is known by, if its answer is to outlive us: not at QoS 0, where nobody
    /// delivers it again, and not where the answer is one that was kept before.
    pub fn durable(&self, serial: Serial) -> Option<Keys> {
        let running = self.running.get(&serial)?;
        (running.keys.delivery.is_some() && running.again.is_none()).then_some(running.keys)
    }

    /// Whether a prompt with these keys is at work: it came before the disk told of its answer.
    pub fn is_running(&self, keys: Keys) -> bool {
        self.running_as(keys, true).is_some()
    }

    /// A prompt of an earlier process, whose answer is still to be delivered.
    pub fn resume(&mut self, keys: Keys) -> Serial {
        self.begin(keys, None)
    }

    /// A prompt that an earlier process answered so long ago.
    pub fn remember(&mut self, given: Given, age: Duration, now: Instant) {
        self.answered.keep(given, age, None, now);
    }

    /// What was answered, and how long ago.
    pub fn answered(&self, now: Instant) -> impl Iterator<Item = (&Given, Duration)> {
        self.answered.all(now)
    }

    /// Nothing more will be said to the prompt here.
    pub fn settled(&mut self, serial: Serial, outcome: Outcome, now: Instant) {
        if let Some(Running { keys, again }) = self.running.remove(&serial)
            && keys != Keys::default()
        {
            let Outcome { number, id, payload, is_delivered } = outcome;
            let given = Given { number: again.unwrap_or(number), keys, id, payload };
            self.answered.keep(given, Duration::ZERO, is_delivered.then_some(self.connection), now);
        }
        self.no_longer_wait(serial, Waits::Nothing);
    }

    /// The packet id to acknowledge next; [`Arrivals::acknowledged`] once it is.
    pub fn next_ack(&self) -> Option<u16> {
        let pending = self.unacknowledged.front()?;
        (pending.waits_for == Waits::Nothing).then_some(pending.packet)
    }

    /// The acknowledgement is with the MQTT library.
    pub fn acknowledged(&mut self) {
        self.unacknowledged.pop_front();
    }

    /// The connection is gone and with it every acknowledgement due on it: the broker delivers
    /// those messages again, and the copies take over.
    pub fn disconnected(&mut self) {
        self.unacknowledged.clear();
        self.connection += 1;
    }

    /// Packet ids are of this session from now on.
    pub fn set_session(&mut self, session: u64) {
        self.session = session;
    }

    fn no_longer_wait(&mut self, serial: Serial, waits_for: Waits) {
        let waiting = self.unacknowledged.iter_mut().filter(|one| one.waits_for == Waits::Answer(serial));
        waiting.for_each(|one| one.waits_for = waits_for);
    }

    fn begin(&mut self, keys: Keys, again: Option<u64>) -> Serial {
        let serial = self.next_serial;
        self.next_serial += 1;
        self.running.insert(serial, Running { keys, again });
        serial
    }

    fn keys_of(&self, arrival: &Arrival) -> Keys {
        let client = arrival.client.as_bytes();
        let name = match (arrival.id, arrival.correlation) {
            (Some(id), _) => Some(key(&[b"id", client, id.as_bytes(), arrival.payload])),
            (None, Some(data)) => Some(key(&[b"data", client, data, arrival.payload])),
            (None, None) => None,
        };
        // A packet id is used again for other messages, so what they say is part of the key.
        let session = self.session.to_le_bytes();
        let correlation = arrival.correlation.unwrap_or_default();
        let delivery = arrival
            .packet
            .map(|packet| key(&[&session, &packet.to_le_bytes(), client, correlation, arrival.payload]));
        Keys { name, delivery }
    }

    fn running_as(&self, keys: Keys, redelivered: bool) -> Option<Serial> {
        self.running
            .iter()
            .find(|(_, running)| running.keys.meet(keys, redelivered))
            .map(|(serial, _)| *serial)
    }

    fn await_ack(&mut self, packet: Option<u16>, waits_for: Waits) {
        if let Some(packet) = packet {
            self.unacknowledged.push_back(Pending { packet, waits_for });
        }
    }
}

/// Parts with their lengths before them, so that no two lists of parts look alike.
fn key(parts: &[&[u8]]) -> u128 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    u128::from_le_bytes(hash.finalize()[..16].try_into().expect("sixteen of thirty-two bytes"))
}
