//! Prompts that wait for the worker: received from the broker, kept in memory, and saved to disk where more wait
//! than a broker delivers at a time.
//!
//! Pure. The clients are served in turn. Deliberately knows neither the broker link nor the disk: it returns the
//! records to be written.

use super::outbox::PromptId;
use super::requests::ReplyRoute;
use crate::protocol::{Priority, RequestId};
use crate::transport::fair_queue::FairQueue;
use crate::transport::mqtt::delivery::answer_log::record::{SavedPrompt, Work};
use crate::transport::mqtt::delivery::clock::Clock;
use crate::transport::mqtt::delivery::dedup_keys::DedupKeys;
use crate::transport::mqtt::prompt_client::PromptClient;
use std::collections::HashMap;
use std::time::Instant;

/// Memory in bytes of a prompt besides its texts: its entries in the maps here and in the deduplicator.
const PROMPT_OVERHEAD_BYTES: usize = 512;
/// Bytes of prompts beyond the inbox that are accepted from the broker all the same, unacknowledged: a broker may
/// send more than the Receive Maximum (mosquitto 2.0.11), or not know it (MQTT 3.1.1).
const UNSAVED_BYTES: usize = 1 << 20;
/// Maximum number of waiting prompts at QoS 0: there is no flow control for their sender, and no promise to it.
const MAX_AT_QOS_0: usize = 16;

/// A prompt, until its last event is in the outbox.
#[derive(Debug)]
pub struct BacklogPrompt {
    /// Who sent it.
    pub client: PromptClient,
    /// Where its events are published.
    pub route: ReplyRoute,
    /// What is to be done.
    pub work: Work,
    /// Its priority among those of its client.
    pub priority: Priority,
    /// When it was received, or read from disk.
    pub received: Instant,
    /// Whether it was received at QoS 1.
    pub is_qos_1: bool,
}

impl BacklogPrompt {
    fn bytes(&self) -> usize {
        let text = match &self.work {
            Work::Ask(text) | Work::Refuse(text) => text.len(),
        };
        PROMPT_OVERHEAD_BYTES + text + self.client.bytes() + self.route.bytes()
    }
}

/// The prompts whose last event is not yet in the outbox.
#[derive(Debug)]
pub struct Backlog {
    prompts: HashMap<PromptId, BacklogPrompt>,
    queue: FairQueue<PromptId>,
    /// Prompts that wait for the answer of an earlier one, by the number of that one.
    followers: HashMap<PromptId, Vec<PromptId>>,
    /// Size of all prompts in bytes.
    bytes: usize,
    at_qos_0: usize,
    /// Size in bytes of the durable inbox: prompts that may be acknowledged before they are answered.
    inbox_bytes: usize,
}

impl Backlog {
    /// An empty backlog; at most `inbox` bytes of prompts will be acknowledged before they are answered.
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

    /// The number of prompts, those with the worker included.
    pub fn len(&self) -> usize {
        self.prompts.len()
    }

    /// Whether one more prompt can be accepted from the broker.
    pub fn has_space(&self, is_qos_1: bool) -> bool {
        if is_qos_1 { self.bytes < self.inbox_bytes + UNSAVED_BYTES } else { self.at_qos_0 < MAX_AT_QOS_0 }
    }

    /// Whether so little waits that the prompts left to the broker may be requested again.
    pub fn is_half_empty(&self) -> bool {
        self.bytes < (self.inbox_bytes + UNSAVED_BYTES) / 2
    }

    /// Whether more prompts may be written to the inbox.
    pub fn inbox_has_space(&self) -> bool {
        self.bytes < self.inbox_bytes
    }

    /// Adds a prompt.
    pub fn push(&mut self, number: PromptId, prompt: BacklogPrompt) {
        self.bytes += prompt.bytes();
        self.at_qos_0 += usize::from(!prompt.is_qos_1);
        self.queue.push(&prompt.client.turn_key(), prompt.priority, prompt.received, number);
        self.prompts.insert(number, prompt);
    }

    /// The prompt to be answered next, among those of clients whose turn keys are `allowed`. It stays here until [`Backlog::remove`].
    pub fn next(&mut self, now: Instant, allowed: impl FnMut(&str) -> bool) -> Option<PromptId> {
        self.queue.pop_allowed(now, allowed).map(|(_, number)| number)
    }

    /// The prompt that was sent with a high priority and is the next of its client, which is one of those `allowed`. It stays
    /// here too.
    pub fn next_high(&mut self, now: Instant, allowed: impl Fn(&str) -> bool) -> Option<PromptId> {
        let Backlog { queue, prompts, .. } = self;
        let is_high =
            |number: &PromptId| prompts.get(number).is_some_and(|prompt| prompt.priority == Priority::High);
        queue.pop_ahead(now, |client, number| allowed(client) && is_high(number))
    }

    /// Makes a prompt wait until the earlier `leader` is settled, whose answer is its own as well.
    pub fn follow(&mut self, leader: PromptId, number: PromptId) {
        self.followers.entry(leader).or_default().push(number);
    }

    /// The prompt is settled: those that waited for its answer are queued again.
    pub fn release(&mut self, leader: PromptId) {
        for number in self.followers.remove(&leader).unwrap_or_default() {
            self.requeue(number);
        }
    }

    /// Queues a prompt of the backlog again.
    pub fn requeue(&mut self, number: PromptId) {
        if let Some(prompt) = self.prompts.get(&number) {
            self.queue.push(&prompt.client.turn_key(), prompt.priority, prompt.received, number);
        }
    }

    /// A prompt of the backlog.
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

    /// Removes from the queue what waits under this id. Clients may share an id, and a cancellation does not tell
    /// whose prompt it means: all of them are removed.
    pub fn take_waiting(&mut self, id: &RequestId) -> Vec<PromptId> {
        let prompts = &self.prompts;
        let is_it = |number: &PromptId| prompts.get(number).is_some_and(|prompt| prompt.route.id == *id);
        let mut result = self.queue.extract(is_it);
        for followers in self.followers.values_mut() {
            result.extend(followers.extract_if(.., |number| is_it(number)));
        }
        result
    }

    /// Removes everything from the queue.
    pub fn take_all_waiting(&mut self) -> Vec<PromptId> {
        let mut result = self.queue.extract(|_| true);
        result.extend(self.followers.drain().flat_map(|(_, followers)| followers));
        result
    }

    /// The record of a prompt to be written to disk.
    pub fn record(&self, number: PromptId, keys: DedupKeys, clock: Clock) -> Option<SavedPrompt> {
        let BacklogPrompt { client, route, work, .. } = self.prompts.get(&number)?;
        Some(SavedPrompt {
            number,
            keys,
            client: client.cache_key(),
            id: route.id.clone(),
            topic: route.topic().to_owned(),
            correlation: route.correlation().map(<[u8]>::to_vec),
            left_ms: route.remaining_ms(clock.now),
            work: work.clone(),
            time_s: clock.time_s,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(id: &str, client: &str, text: &str, is_qos_1: bool) -> BacklogPrompt {
        BacklogPrompt {
            client: PromptClient::of_topic("bitnetd/cellar", client),
            route: ReplyRoute::restored(id.into(), format!("reply/{id}"), None, None, None),
            work: Work::Ask(text.into()),
            priority: Priority::Normal,
            received: Instant::now(),
            is_qos_1,
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
        assert!(backlog.inbox_has_space() && backlog.has_space(true));
        backlog.push(2, prompt("x", "a", &"x".repeat(9_000), true));
        assert!(!backlog.inbox_has_space() && backlog.has_space(true), "the rest is held unacknowledged");
        backlog.push(3, prompt("x", "a", &"x".repeat(UNSAVED_BYTES), true));
        assert!(!backlog.has_space(true) && !backlog.is_half_empty());
        backlog.remove(3);
        assert!(backlog.has_space(true) && backlog.is_half_empty());
    }

    #[test]
    fn a_flood_at_qos_0_does_not_take_the_space_of_qos_1() {
        let mut backlog = Backlog::new(1 << 20);
        for number in 0..MAX_AT_QOS_0 as u64 {
            assert!(backlog.has_space(false));
            backlog.push(number, prompt("x", "a", "hello", false));
        }
        assert!(!backlog.has_space(false) && backlog.has_space(true));
        backlog.remove(0);
        assert!(backlog.has_space(false));
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
        assert_eq!(backlog.take_waiting(&"x".into()), [2], "a cancellation reaches it too");
    }

    #[test]
    fn a_high_priority_goes_beside_what_its_client_has_with_the_worker() {
        let (mut backlog, now) = (Backlog::new(1 << 20), Instant::now());
        backlog.push(1, prompt("x", "a", "hello", true));
        assert_eq!(backlog.next_high(now, |_| true), None);
        backlog.push(2, BacklogPrompt { priority: Priority::High, ..prompt("y", "a", "hello", true) });
        assert_eq!(backlog.next_high(now, |_| false), None);
        assert_eq!((backlog.next_high(now, |_| true), backlog.next(now, |_| true)), (Some(2), Some(1)));
    }

    #[test]
    fn a_cancellation_takes_every_waiting_prompt_of_its_id() {
        let mut backlog = Backlog::new(1 << 20);
        for (number, id) in [(1, "x"), (2, "y"), (3, "x")] {
            backlog.push(number, prompt(id, "a", "hello", true));
        }
        let mut result = backlog.take_waiting(&"x".into());
        result.sort_unstable();
        assert_eq!(result, [1, 3]);
        assert_eq!(backlog.next(Instant::now(), |_| true), Some(2));
        assert_eq!(backlog.next(Instant::now(), |_| true), None);
    }
}
