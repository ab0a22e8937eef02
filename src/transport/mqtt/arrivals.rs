//! Which messages came, which of them are the same prompt again, and in what order they are
//! acknowledged.
//!
//! Pure. Knows nothing of what a prompt says or how it is answered: a prompt is a number, and it
//! is settled when the broker has its last event.

use super::outbox::Serial;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// Answered prompts that are remembered: several times what a broker may hold unacknowledged.
const REMEMBERED: usize = 512;
/// How long an answered prompt is remembered against a copy that the broker does not mark as a
/// redelivery. Not for ever: a script may use one id, such as `"id":"ha"`, every day.
const RECENT: Duration = Duration::from_secs(600);

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
    /// The payload; with the packet id it tells a redelivery that has neither.
    pub payload: &'a [u8],
}

/// What to do with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Answer it under this number.
    New(Serial),
    /// Its answer is under way, or given: say nothing.
    Duplicate,
}

/// The memory of messages. Keys are hashes under a secret of this process, so that each has eight
/// bytes whatever a client sends, and no client can make two meet.
#[derive(Debug, Default)]
pub struct Arrivals {
    secret: RandomState,
    next_serial: Serial,
    /// Packet ids mean something only within one session.
    session: u64,
    running: HashMap<Serial, Keys>,
    recent: VecDeque<(u64, Instant)>,
    /// Messages of this connection that await their acknowledgement, in order of arrival, which
    /// is the order of acknowledgements [MQTT-4.6.0-2].
    unacknowledged: VecDeque<Pending>,
    duplicates: u64,
}

/// What a message is known by.
#[derive(Debug, Clone, Copy, Default)]
struct Keys {
    /// What the client called it.
    name: Option<u64>,
    /// What the session knows it by: all there is of a message without id and correlation.
    delivery: Option<u64>,
}

impl Keys {
    /// The name always tells; the delivery only where the broker says that it is one again.
    fn has(self, key: u64, redelivered: bool) -> bool {
        self.name == Some(key) || (redelivered && self.delivery == Some(key))
    }
}

#[derive(Debug)]
struct Pending {
    packet: u16,
    waits_for: Option<Serial>,
}

impl Arrivals {
    /// Messages that were the same prompt again.
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// A prompt came.
    pub fn arrive(&mut self, arrival: &Arrival, now: Instant) -> Verdict {
        let keys = self.keys(arrival);
        let known = self.running_as(keys, arrival.redelivered);
        let answered = known.is_none() && self.was_answered(keys, arrival.redelivered, now);
        if known.is_some() || answered {
            self.duplicates += 1;
            self.await_ack(arrival.packet, known);
            return Verdict::Duplicate;
        }
        let serial = self.next_serial;
        self.next_serial += 1;
        self.running.insert(serial, keys);
        self.await_ack(arrival.packet, Some(serial));
        Verdict::New(serial)
    }

    /// A message came that is no prompt: it only takes its turn to be acknowledged.
    pub fn pass(&mut self, packet: Option<u16>) {
        self.await_ack(packet, None);
    }

    /// The prompt got an error instead of an answer: asked again under its name it gets another
    /// chance, so that a client may correct it, or come back when the queue has room. A redelivery
    /// by the broker is still the same message.
    pub fn refused(&mut self, serial: Serial) {
        if let Some(keys) = self.running.get_mut(&serial) {
            keys.name = None;
        }
    }

    /// The daemon stops before the prompt is answered: it is forgotten and never acknowledged, nor is
    /// what came after it, so that the broker delivers it again at the next start. `false` at QoS 0,
    /// where nobody would.
    pub fn leave(&mut self, serial: Serial) -> bool {
        let comes_again = self.running.get(&serial).is_some_and(|keys| keys.delivery.is_some());
        if comes_again {
            self.running.remove(&serial);
        }
        comes_again
    }

    /// The broker has the prompt's last event.
    pub fn settled(&mut self, serial: Serial, now: Instant) {
        let keys = self.running.remove(&serial).unwrap_or_default();
        self.recent.extend([keys.name, keys.delivery].into_iter().flatten().map(|key| (key, now)));
        let excess = self.recent.len().saturating_sub(REMEMBERED);
        self.recent.drain(..excess);
        for pending in &mut self.unacknowledged {
            if pending.waits_for == Some(serial) {
                pending.waits_for = None;
            }
        }
    }

    /// The packet id to acknowledge next; [`Arrivals::acknowledged`] once it is.
    pub fn next_ack(&self) -> Option<u16> {
        let pending = self.unacknowledged.front()?;
        pending.waits_for.is_none().then_some(pending.packet)
    }

    /// The acknowledgement is with the MQTT library.
    pub fn acknowledged(&mut self) {
        self.unacknowledged.pop_front();
    }

    /// The connection is gone and with it every acknowledgement due on it: the broker delivers
    /// those messages again, and the copies take over.
    pub fn disconnected(&mut self) {
        self.unacknowledged.clear();
    }

    /// The broker forgot the session: it gives packet ids anew.
    pub fn session_lost(&mut self) {
        self.session += 1;
    }

    fn keys(&self, arrival: &Arrival) -> Keys {
        let name = match (arrival.id, arrival.correlation) {
            (Some(id), _) => Some(self.secret.hash_one(("id", arrival.client, id))),
            (None, Some(data)) => Some(self.secret.hash_one(("data", arrival.client, data))),
            (None, None) => None,
        };
        // A packet id is used again for other messages, so the payload is part of the key.
        let delivery = arrival
            .packet
            .map(|packet| self.secret.hash_one((self.session, packet, arrival.client, arrival.payload)));
        Keys { name, delivery }
    }

    fn running_as(&self, keys: Keys, redelivered: bool) -> Option<Serial> {
        let same = |held: &Keys| {
            let named = held.name.is_some_and(|key| keys.has(key, redelivered));
            named || held.delivery.is_some_and(|key| keys.has(key, redelivered))
        };
        self.running.iter().find(|(_, held)| same(held)).map(|(serial, _)| *serial)
    }

    fn was_answered(&self, keys: Keys, redelivered: bool, now: Instant) -> bool {
        let is_recent = |at: Instant| redelivered || now < at + RECENT;
        self.recent.iter().any(|(key, at)| keys.has(*key, redelivered) && is_recent(*at))
    }

    fn await_ack(&mut self, packet: Option<u16>, waits_for: Option<Serial>) {
        if let Some(packet) = packet {
            self.unacknowledged.push_back(Pending { packet, waits_for });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Arrival = Arrival {
        packet: Some(1),
        redelivered: false,
        client: "-",
        id: None,
        correlation: None,
        payload: b"hello",
    };

    const NAMED: Arrival = Arrival { id: Some("a"), ..PLAIN };

    fn serial(verdict: Verdict) -> Serial {
        match verdict {
            Verdict::New(serial) => serial,
            Verdict::Duplicate => panic!("not new"),
        }
    }

    /// Every acknowledgement that is due, taken.
    fn acks(arrivals: &mut Arrivals) -> Vec<u16> {
        let mut all = Vec::new();
        while let Some(packet) = arrivals.next_ack() {
            arrivals.acknowledged();
            all.push(packet);
        }
        all
    }

    #[test]
    fn a_prompt_is_acknowledged_only_when_it_is_settled() {
        let now = Instant::now();
        let mut arrivals = Arrivals::default();
        let first = serial(arrivals.arrive(&NAMED, now));
        assert!(acks(&mut arrivals).is_empty());
        arrivals.settled(first, now);
        assert_eq!(acks(&mut arrivals), [1]);
    }

    #[test]
    fn acknowledgements_keep_the_order_of_arrival() {
        let now = Instant::now();
        let mut arrivals = Arrivals::default();
        let one = serial(arrivals.arrive(&NAMED, now));
        let two = serial(arrivals.arrive(&Arrival { packet: Some(2), id: Some("b"), ..PLAIN }, now));
        arrivals.pass(Some(3));
        arrivals.settled(two, now);
        assert!(acks(&mut arrivals).is_empty());
        arrivals.settled(one, now);
        assert_eq!(acks(&mut arrivals), [1, 2, 3]);
    }

    #[test]
    fn a_copy_of_a_running_prompt_is_acknowledged_with_it() {
        let now = Instant::now();
        let mut arrivals = Arrivals::default();
        let first = serial(arrivals.arrive(&NAMED, now));
        let copy = Arrival { packet: Some(2), ..NAMED };
        assert_eq!(arrivals.arrive(&copy, now), Verdict::Duplicate);
        assert!(acks(&mut arrivals).is_empty());
        arrivals.settled(first, now);
        assert_eq!(acks(&mut arrivals), [1, 2]);
        assert_eq!(arrivals.duplicates(), 1);
    }

    #[test]
    fn a_redelivery_takes_over_the_acknowledgement() {
        let now = Instant::now();
        let mut arrivals = Arrivals::default();
        let first = serial(arrivals.arrive(&NAMED, now));
        arrivals.disconnected();
        let again = Arrival { redelivered: true, ..NAMED };
        assert_eq!(arrivals.arrive(&again, now), Verdict::Duplicate);
        arrivals.settled(first, now);
        assert_eq!(acks(&mut arrivals), [1]);
    }

    #[test]
    fn nothing_of_an_earlier_connection_is_acknowledged() {
        let now = Instant::now();
        let mut arrivals = Arrivals::default();
        let first = serial(arrivals.arrive(&NAMED, now));
        arrivals.disconnected();
        arrivals.settled(first, now);
        assert!(acks(&mut arrivals).is_empty());
    }

    #[test]
    fn a_prompt_that_is_left_is_never_acknowledged_nor_what_came_after_it() {
        let now = Instant::now();
        let mut arrivals = Arrivals::default();
        let one = serial(arrivals.arrive(&NAMED, now));
        let left = serial(arrivals.arrive(&Arrival { packet: Some(2), id: Some("b"), ..PLAIN }, now));
        let three = serial(arrivals.arrive(&Arrival { packet: Some(3), id: Some("c"), ..PLAIN }, now));
        assert!(arrivals.leave(left));
        arrivals.settled(three, now);
        arrivals.settled(one, now);
        assert_eq!(acks(&mut arrivals), [1]);
    }

    #[test]
    fn a_prompt_that_nobody_delivers_again_cannot_be_left() {
        let now = Instant::now();
        let mut arrivals = Arrivals::default();
        let unsure = serial(arrivals.arrive(&Arrival { packet: None, ..NAMED }, now));
        assert!(!arrivals.leave(unsure));
    }

    #[test]
    fn a_copy_of_an_answered_prompt_is_acknowledged_at_once() {
        let now = Instant::now();
        let mut arrivals = Arrivals::default();
        let first = serial(arrivals.arrive(&NAMED, now));
        arrivals.settled(first, now);
        acks(&mut arrivals);
        let copy = Arrival { packet: Some(9), ..NAMED };
        assert_eq!(arrivals.arrive(&copy, now), Verdict::Duplicate);
        assert_eq!(acks(&mut arrivals), [9]);
    }

    #[test]
    fn a_refused_prompt_may_be_asked_again_but_its_redelivery_is_the_same() {
        let now = Instant::now();
        let mut arrivals = Arrivals::default();
        let first = serial(arrivals.arrive(&NAMED, now));
        arrivals.refused(first);
        arrivals.settled(first, now);
        let redelivery = Arrival { redelivered: true, ..NAMED };
        assert_eq!(arrivals.arrive(&redelivery, now), Verdict::Duplicate);
        serial(arrivals.arrive(&NAMED, now));
    }

    #[test]
    fn the_same_id_of_another_client_is_another_prompt() {
        let now = Instant::now();
        let mut arrivals = Arrivals::default();
        arrivals.arrive(&NAMED, now);
        serial(arrivals.arrive(&Arrival { client: "hall", ..NAMED }, now));
    }

    #[test]
    fn correlation_data_names_a_prompt_without_an_id() {
        let now = Instant::now();
        let mut arrivals = Arrivals::default();
        let first = Arrival { correlation: Some(b"\0x"), ..PLAIN };
        serial(arrivals.arrive(&first, now));
        let copy = Arrival { packet: Some(2), ..first };
        assert_eq!(arrivals.arrive(&copy, now), Verdict::Duplicate);
        serial(arrivals.arrive(&Arrival { correlation: Some(b"y"), ..copy }, now));
    }

    #[test]
    fn a_text_sent_twice_on_purpose_is_answered_twice() {
        let now = Instant::now();
        let mut arrivals = Arrivals::default();
        let first = serial(arrivals.arrive(&PLAIN, now));
        arrivals.settled(first, now);
        serial(arrivals.arrive(&PLAIN, now));
    }

    #[test]
    fn a_redelivered_text_without_any_name_is_recognised() {
        let now = Instant::now();
        let mut arrivals = Arrivals::default();
        let first = serial(arrivals.arrive(&PLAIN, now));
        arrivals.disconnected();
        let again = Arrival { redelivered: true, ..PLAIN };
        assert_eq!(arrivals.arrive(&again, now), Verdict::Duplicate);
        arrivals.settled(first, now);
        arrivals.disconnected();
        assert_eq!(arrivals.arrive(&again, now), Verdict::Duplicate);
    }

    #[test]
    fn a_redelivered_text_under_a_used_packet_id_is_new() {
        let now = Instant::now();
        let mut arrivals = Arrivals::default();
        let first = serial(arrivals.arrive(&PLAIN, now));
        arrivals.settled(first, now);
        let other = Arrival { redelivered: true, payload: b"good night", ..PLAIN };
        serial(arrivals.arrive(&other, now));
    }

    #[test]
    fn packet_ids_of_a_lost_session_mean_nothing() {
        let now = Instant::now();
        let mut arrivals = Arrivals::default();
        let first = serial(arrivals.arrive(&PLAIN, now));
        arrivals.settled(first, now);
        arrivals.session_lost();
        serial(arrivals.arrive(&Arrival { redelivered: true, ..PLAIN }, now));
    }

    #[test]
    fn an_id_used_again_later_is_a_new_prompt_unless_the_broker_repeats_it() {
        let now = Instant::now();
        let later = now + RECENT;
        let mut arrivals = Arrivals::default();
        let first = serial(arrivals.arrive(&NAMED, now));
        arrivals.settled(first, now);
        let again = Arrival { redelivered: true, ..NAMED };
        assert_eq!(arrivals.arrive(&again, later), Verdict::Duplicate);
        serial(arrivals.arrive(&NAMED, later));
    }

    #[test]
    fn a_prompt_at_qos_0_is_never_acknowledged_but_answered_once() {
        let now = Instant::now();
        let mut arrivals = Arrivals::default();
        let unsure = Arrival { packet: None, ..NAMED };
        let first = serial(arrivals.arrive(&unsure, now));
        assert_eq!(arrivals.arrive(&unsure, now), Verdict::Duplicate);
        arrivals.settled(first, now);
        assert!(acks(&mut arrivals).is_empty());
    }

    #[test]
    fn memory_of_answered_prompts_is_bounded() {
        let now = Instant::now();
        let mut arrivals = Arrivals::default();
        for n in 0..10_000_u32 {
            let id = n.to_string();
            let one = serial(arrivals.arrive(&Arrival { id: Some(&id), ..PLAIN }, now));
            arrivals.settled(one, now);
            arrivals.acknowledged();
        }
        assert_eq!(arrivals.recent.len(), REMEMBERED);
        assert!(arrivals.running.is_empty() && arrivals.unacknowledged.is_empty());
    }
}
