//! Prompts that wait for the worker: taken over from the broker, in memory, and on disk where more wait than a broker
//! hands over at a time.
//!
//! Pure. Clients take turns. Knows neither the broker link nor the disk: it says what is to be written.

use super::outbox::PromptId;
use super::requests::ReplyRoute;
use crate::protocol::Priority;
use crate::transport::fair_queue::FairQueue;
use crate::transport::mqtt::delivery::answer_log::record::{SavedPrompt, Work};
use crate::transport::mqtt::delivery::clock::Clock;
use crate::transport::mqtt::delivery::dedup_keys::DedupKeys;
use std::collections::HashMap;
use std::time::Instant;

/// Memory that a prompt takes beside its texts: its places in the maps here and in the deduplicator.
const PROMPT_OVERHEAD_BYTES: usize = 512;
/// Bytes of prompts above the inbox that are taken from the broker all the same, unacknowledged: a broker sends more
/// than the Receive Maximum (mosquitto 2.0.11), or knows none (MQTT 3.1.1).
const UNSAVED_BYTES: usize = 1 << 20;
/// Prompts at QoS 0 that wait at a time: nothing holds their sender back, and nothing is promised to it.
const MAX_AT_QOS_0: usize = 16;

/// A prompt, until its last event is on its way.
#[derive(Debug)]
pub struct BacklogPrompt {
    /// Whose turn it takes.
    pub client: String,
    /// Where its events go.
    pub route: ReplyRoute,
    /// What is to be done.
    pub work: Work,
    /// Its place among those of its client.
    pub priority: Priority,
    /// When it came, or was read from the disk.
    pub received: Instant,
    /// Whether it came at QoS 1.
    pub is_qos_1: bool,
}

impl BacklogPrompt {
    fn bytes(&self) -> usize {
        let text = match &self.work {
            Work::Ask(text) | Work::Refuse(text) => text.len(),
        };
        PROMPT_OVERHEAD_BYTES + text + self.client.len() + self.route.bytes()
    }
}

/// The prompts without a last event.
#[derive(Debug)]
pub struct Backlog {
    prompts: HashMap<PromptId, BacklogPrompt>,
    queue: FairQueue<PromptId>,
    /// Prompts that wait for the answer of an earlier one, which is the key.
    followers: HashMap<PromptId, Vec<PromptId>>,
    /// Bytes of them all.
    bytes: usize,
    at_qos_0: usize,
    /// Bytes that may be acknowledged before they are answered: the size of the inbox.
    inbox_bytes: usize,
}

impl Backlog {
    /// Nothing waits; at most `inbox` bytes will be acknowledged before they are answered.
    pub fn new(inbox: usize) -> Self {
        Backlog {
            prompts: HashMap::new(),
            queue: FairQueue::default(),
            followers: HashMap::new(),
            bytes: 0,
            at_qos_0: 0,
            inbox_bytes: inbox,
        }
    }

    /// Prompts that are not answered, those with the worker included.
    pub fn len(&self) -> usize {
        self.prompts.len()
    }

    /// Whether a prompt can be taken from the broker.
    pub fn has_room(&self, is_assured: bool) -> bool {
        if is_assured { self.bytes < self.inbox_bytes + UNSAVED_BYTES } else { self.at_qos_0 < MAX_AT_QOS_0 }
    }

    /// Whether so little waits that prompts which were left to the broker may be asked for again.
    pub fn is_half_empty(&self) -> bool {
        self.bytes < (self.inbox_bytes + UNSAVED_BYTES) / 2
    }

    /// Whether more may be written to the inbox.
    pub fn inbox_has_room(&self) -> bool {
        self.bytes < self.inbox_bytes
    }

    /// Takes a prompt in.
    pub fn push(&mut self, number: PromptId, prompt: BacklogPrompt) {
        self.bytes += prompt.bytes();
        self.at_qos_0 += usize::from(!prompt.is_qos_1);
        self.queue.push(&prompt.client, prompt.priority, prompt.received, number);
        self.prompts.insert(number, prompt);
    }

    /// The prompt whose turn it is, of the clients that are `allowed` now. It stays here until it is [`removed`].
    ///
    /// [`removed`]: Backlog::remove
    pub fn next(&mut self, now: Instant, allowed: impl FnMut(&str) -> bool) -> Option<PromptId> {
        self.queue.pop_allowed(now, allowed).map(|(_, number)| number)
    }

    /// Has a prompt wait until the earlier `leader` is settled, whose answer is its own as well.
    pub fn follow(&mut self, leader: PromptId, number: PromptId) {
        self.followers.entry(leader).or_default().push(number);
    }

    /// The prompt is settled: what waited for its answer has its turn again.
    pub fn release(&mut self, leader: PromptId) {
        for number in self.followers.remove(&leader).unwrap_or_default() {
            if let Some(prompt) = self.prompts.get(&number) {
                self.queue.push(&prompt.client, prompt.priority, prompt.received, number);
            }
        }
    }

    /// A prompt that is here.
    pub fn get(&self, number: PromptId) -> Option<&BacklogPrompt> {
        self.prompts.get(&number)
    }

    /// Nothing more is to be done for the prompt.
    pub fn remove(&mut self, number: PromptId) {
        if let Some(prompt) = self.prompts.remove(&number) {
            self.bytes -= prompt.bytes();
            self.at_qos_0 -= usize::from(!prompt.is_qos_1);
        }
    }

    /// Takes out of the turns what waits under this id. Clients may share an id, and a cancellation does not tell whose
    /// prompt it means: all of them are taken.
    pub fn take_waiting(&mut self, id: &str) -> Vec<PromptId> {
        let prompts = &self.prompts;
        let is_it = |number: &PromptId| prompts.get(number).is_some_and(|prompt| prompt.route.id == id);
        let mut result = self.queue.extract(is_it);
        for followers in self.followers.values_mut() {
            result.extend(followers.extract_if(.., |number| is_it(number)));
        }
        result
    }

    /// Takes everything that waits out of the turns.
    pub fn take_all_waiting(&mut self) -> Vec<PromptId> {
        let mut result = self.queue.extract(|_| true);
        result.extend(self.followers.drain().flat_map(|(_, followers)| followers));
        result
    }

    /// What is to be written of a prompt that is known by `keys`.
    pub fn record(&self, number: PromptId, keys: DedupKeys, clock: Clock) -> Option<SavedPrompt> {
        let BacklogPrompt { client, route: way, work, .. } = self.prompts.get(&number)?;
        Some(SavedPrompt {
            number,
            keys,
            client: client.clone(),
            id: way.id.clone(),
            topic: way.topic().to_owned(),
            correlation: way.correlation().map(<[u8]>::to_vec),
            left_ms: way.remaining_ms(clock.now),
            work: work.clone(),
            time_s: clock.time_s,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(id: &str, client: &str, text: &str, is_assured: bool) -> BacklogPrompt {
        BacklogPrompt {
            client: client.into(),
            route: ReplyRoute::restored(id.into(), format!("reply/{id}"), None, None),
            work: Work::Ask(text.into()),
            priority: Priority::Normal,
            received: Instant::now(),
            is_qos_1: is_assured,
        }
    }

    #[test]
    fn clients_take_turns_and_a_prompt_stays_until_it_is_removed() {
        let mut backlog = Backlog::new(1 << 20);
        for (number, client) in [(1, "a"), (2, "a"), (3, "b")] {
            backlog.push(number, prompt("x", client, "hello", true));
        }
        let order: Vec<_> = std::iter::from_fn(|| backlog.next(Instant::now(), |_| true)).collect();
        assert_eq!(order, [1, 3, 2]);
        assert_eq!(backlog.len(), 3);
        (1..=3).for_each(|number| backlog.remove(number));
        assert_eq!((backlog.len(), backlog.bytes), (0, 0));
    }

    #[test]
    fn bytes_bound_what_is_saved_and_what_is_taken() {
        let mut backlog = Backlog::new(10_000);
        backlog.push(1, prompt("x", "a", &"x".repeat(9_000), true));
        assert!(backlog.inbox_has_room() && backlog.has_room(true));
        backlog.push(2, prompt("x", "a", &"x".repeat(9_000), true));
        assert!(!backlog.inbox_has_room() && backlog.has_room(true), "the rest is held unacknowledged");
        backlog.push(3, prompt("x", "a", &"x".repeat(UNSAVED_BYTES), true));
        assert!(!backlog.has_room(true) && !backlog.is_half_empty());
        backlog.remove(3);
        assert!(backlog.has_room(true) && backlog.is_half_empty());
    }

    #[test]
    fn a_flood_at_qos_0_takes_its_few_places_and_none_of_the_others() {
        let mut backlog = Backlog::new(1 << 20);
        for number in 0..MAX_AT_QOS_0 as u64 {
            assert!(backlog.has_room(false));
            backlog.push(number, prompt("x", "a", "hello", false));
        }
        assert!(!backlog.has_room(false) && backlog.has_room(true));
        backlog.remove(0);
        assert!(backlog.has_room(false));
    }

    #[test]
    fn a_prompt_that_follows_another_has_its_turn_when_that_is_settled() {
        let mut backlog = Backlog::new(1 << 20);
        (1..=2).for_each(|number| backlog.push(number, prompt("x", "a", "hello", true)));
        let next = |backlog: &mut Backlog| backlog.next(Instant::now(), |_| true);
        assert_eq!((next(&mut backlog), next(&mut backlog)), (Some(1), Some(2)));
        backlog.follow(1, 2);
        assert_eq!(next(&mut backlog), None);
        backlog.release(1);
        assert_eq!(next(&mut backlog), Some(2));
        backlog.follow(1, 2);
        assert_eq!(backlog.take_waiting("x"), [2], "a cancellation reaches it too");
    }

    #[test]
    fn a_cancellation_takes_every_waiting_prompt_of_its_id() {
        let mut backlog = Backlog::new(1 << 20);
        for (number, id) in [(1, "x"), (2, "y"), (3, "x")] {
            backlog.push(number, prompt(id, "a", "hello", true));
        }
        let mut result = backlog.take_waiting("x");
        result.sort_unstable();
        assert_eq!(result, [1, 3]);
        assert_eq!(backlog.next(Instant::now(), |_| true), Some(2));
        assert_eq!(backlog.next(Instant::now(), |_| true), None);
    }
}
