//! A queue that is fair between clients: it serves one item of each client, then the next item of each.
//!
//! Within one client the highest priority goes first, then the earliest arrival; the effective priority of an item
//! rises with its age. Deliberately knows neither requests nor limits: its owner decides who may wait, and for how
//! long.

use crate::protocol::Priority;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Waiting this long raises an item's effective priority by one. Long compared with an answer of a few words, so
/// that a priority has an effect; two steps are short compared with the default timeout, so that an item of low
/// priority is never starved.
pub const PRIORITY_STEP: Duration = Duration::from_secs(5);

/// The number of priorities; each client has one list of items for each.
const PRIORITIES: usize = 3;

/// The effective priority before which no other goes.
pub const HIGHEST: usize = PRIORITIES - 1;

/// Items of any number of clients, which are served in turn.
#[derive(Debug)]
pub struct FairQueue<T> {
    /// The queue of each client with waiting items.
    clients: HashMap<Arc<str>, ClientQueue<T>>,
    /// The clients with waiting items, the next to be served first.
    order: BTreeMap<Position, Arc<str>>,
    /// Items served so far.
    served: u64,
    /// Clients that have joined so far.
    clients_joined: u64,
    /// Items that wait.
    length: usize,
}

/// A client's position in the order of service. A client that was just served moves behind all clients waiting at
/// that time. A client that joins goes behind them too, but before the client served last, whose item may still be
/// running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Position {
    /// Items that had been served when this client was last served, or joined.
    served_before: u64,
    /// Order among the clients that joined between two items; the client served last comes after them.
    join_order: u64,
}

/// The waiting items of one client.
#[derive(Debug)]
struct ClientQueue<T> {
    position: Position,
    /// The items of each priority, lowest first, in order of arrival.
    by_priority: [VecDeque<Item<T>>; PRIORITIES],
}

#[derive(Debug)]
struct Item<T> {
    arrived: Instant,
    value: T,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        FairQueue { clients: HashMap::new(), order: BTreeMap::new(), served: 0, clients_joined: 0, length: 0 }
    }
}

impl<T> FairQueue<T> {
    /// Adds an item of `client`. An item that is put back, with the time of its first arrival, regains its former
    /// position.
    pub fn push(&mut self, client: &str, priority: Priority, arrived: Instant, value: T) {
        let items = &mut self.join(client).by_priority[priority as usize];
        let at = items.partition_point(|waiting| waiting.arrived <= arrived);
        items.insert(at, Item { arrived, value });
        self.length += 1;
    }

    /// The queue of `client`, created if there is none.
    fn join(&mut self, client: &str) -> &mut ClientQueue<T> {
        if !self.clients.contains_key(client) {
            let name: Arc<str> = client.into();
            self.clients_joined += 1;
            let position = Position { served_before: self.served, join_order: self.clients_joined };
            self.order.insert(position, Arc::clone(&name));
            self.clients.insert(name, ClientQueue { position, by_priority: Default::default() });
        }
        self.clients.get_mut(client).expect("just added where it was missing")
    }

    /// Removes the next item of the client whose turn it is: the one of the highest effective priority, and among
    /// these the one that arrived first.
    pub fn pop(&mut self, now: Instant) -> Option<T> {
        self.pop_allowed(now, |_| true).map(|(_, value)| value)
    }

    /// Removes the next item to be served and returns it with its client. Clients for which `allowed` is false are
    /// skipped and keep their position.
    pub fn pop_allowed(
        &mut self,
        now: Instant,
        mut allowed: impl FnMut(&str) -> bool,
    ) -> Option<(String, T)> {
        let (position, name) = self.order.iter().find(|(_, name)| allowed(name))?;
        Some(self.pop_of(*position, Arc::clone(name), now))
    }

    /// The effective priority of the item that [`FairQueue::pop`] would remove, 0 to [`HIGHEST`].
    pub fn next_priority(&self, now: Instant) -> Option<usize> {
        let (_, name) = self.order.first_key_value()?;
        self.clients.get(name)?.best(now).map(|best| best.level)
    }

    /// Removes an item of the highest effective priority that matches, ahead of its client's turn: the first in turn of
    /// those whose client's next item is one. A client that was served passes nobody who waits since before that.
    pub fn pop_ahead(&mut self, now: Instant, matches: impl Fn(&str, &T) -> bool) -> Option<T> {
        let may_go = |position: &Position, name: &Arc<str>| {
            let is_first = self.order.first_key_value().is_some_and(|(first, _)| first == position);
            let best = self.clients.get(name)?.best(now)?;
            let is_high = best.level == HIGHEST && matches(name, &best.item.value);
            (is_high && (is_first || position.join_order != u64::MAX)).then_some(())
        };
        let (position, name) = self.order.iter().find(|(position, name)| may_go(position, name).is_some())?;
        let (position, name) = (*position, Arc::clone(name));
        Some(self.pop_of(position, name, now).1)
    }

    /// Removes the next item of a client that has some.
    fn pop_of(&mut self, position: Position, name: Arc<str>, now: Instant) -> (String, T) {
        let client = self.clients.get_mut(&name).expect("each client in the order has items");
        let value = client.pop(now).expect("a client without items is removed");
        self.order.remove(&position);
        (self.served, self.length) = (self.served + 1, self.length - 1);
        if client.is_empty() {
            self.clients.remove(&name);
        } else {
            client.position = Position { served_before: self.served, join_order: u64::MAX };
            self.order.insert(client.position, Arc::clone(&name));
        }
        (name.as_ref().to_owned(), value)
    }

    /// Removes the item of `client` that would be served last: the newest of its lowest priority.
    pub fn pop_last(&mut self, client: &str) -> Option<T> {
        let waiting = self.clients.get_mut(client)?;
        let value = waiting.by_priority.iter_mut().find_map(VecDeque::pop_back)?.value;
        self.length -= 1;
        if waiting.is_empty() {
            self.order.remove(&waiting.position);
            self.clients.remove(client);
        }
        Some(value)
    }

    /// Removes all items that match, in no particular order.
    pub fn extract(&mut self, mut matches: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut extracted = Vec::new();
        for items in self.clients.values_mut().flat_map(|client| &mut client.by_priority) {
            // Most searches match nothing, and then no item is moved.
            if items.iter().any(|item| matches(&item.value)) {
                let (result, saved) = items.drain(..).partition(|item| matches(&item.value));
                *items = saved;
                extracted.extend(Vec::from(result).into_iter().map(|item: Item<T>| item.value));
            }
        }
        self.length -= extracted.len();
        if !extracted.is_empty() {
            self.clients.retain(|_, client| !client.is_empty());
            self.order.retain(|_, name| self.clients.contains_key(name));
        }
        extracted
    }

    /// The number of waiting items.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The number of waiting items of one client.
    pub fn count(&self, client: &str) -> usize {
        self.clients.get(client).map_or(0, ClientQueue::len)
    }

    /// Clients that have something waiting.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// All items, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.clients.values().flat_map(|client| &client.by_priority).flatten().map(|item| &item.value)
    }
}

/// The item of a client that is served next.
struct Best<'q, T> {
    priority: usize,
    /// The same with its age counted in.
    level: usize,
    item: &'q Item<T>,
}

impl<T> ClientQueue<T> {
    /// The item of the highest priority, its age counted in, and of these the one that arrived first. Within one
    /// priority that is the first, so only three items are compared, however many wait.
    fn best(&self, now: Instant) -> Option<Best<'_, T>> {
        let heads = self.by_priority.iter().enumerate().filter_map(|(priority, items)| {
            let item = items.front()?;
            let level = effective_priority(priority, now.saturating_duration_since(item.arrived));
            Some(Best { priority, level, item })
        });
        heads.max_by(|a, b| a.level.cmp(&b.level).then(b.item.arrived.cmp(&a.item.arrived)))
    }

    fn pop(&mut self, now: Instant) -> Option<T> {
        let priority = self.best(now)?.priority;
        self.by_priority[priority].pop_front().map(|item| item.value)
    }

    fn len(&self) -> usize {
        self.by_priority.iter().map(VecDeque::len).sum()
    }

    fn is_empty(&self) -> bool {
        self.by_priority.iter().all(VecDeque::is_empty)
    }
}

/// The priority of an item after its age is counted in: never above the highest, where the earliest arrival
/// decides.
pub fn effective_priority(priority: usize, age: Duration) -> usize {
    let steps = usize::try_from(age.as_secs() / PRIORITY_STEP.as_secs()).unwrap_or(usize::MAX);
    priority.saturating_add(steps).min(HIGHEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    /// Everything that waits, in turn.
    fn drain(queue: &mut FairQueue<&'static str>, now: Instant) -> Vec<&'static str> {
        std::iter::from_fn(|| queue.pop(now)).collect()
    }

    #[test]
    fn clients_are_served_in_turn_whatever_each_has_waiting() {
        let (mut queue, now) = (FairQueue::default(), Instant::now());
        for item in ["a1", "a2", "a3", "a4"] {
            queue.push("a", Priority::High, now, item);
        }
        queue.push("b", Priority::Low, now, "b1");
        queue.push("c", Priority::Normal, now, "c1");
        queue.push("c", Priority::Normal, now, "c2");
        assert_eq!(drain(&mut queue, now), ["a1", "b1", "c1", "a2", "c2", "a3", "a4"]);
        assert!(queue.is_empty() && queue.clients() == 0);
    }

    #[test]
    fn a_newcomer_waits_for_one_item_of_each_other_client_and_goes_before_the_one_just_served() {
        let (mut queue, now) = (FairQueue::default(), Instant::now());
        for item in ["a1", "a2", "a3"] {
            queue.push("a", Priority::Normal, now, item);
        }
        for item in ["b1", "b2"] {
            queue.push("b", Priority::Normal, now, item);
        }
        assert_eq!((queue.pop(now), queue.pop(now), queue.pop(now)), (Some("a1"), Some("b1"), Some("a2")));
        queue.push("new", Priority::Low, now, "new");
        assert_eq!(drain(&mut queue, now), ["b2", "new", "a3"]);
    }

    #[test]
    fn a_stream_of_newcomers_does_not_starve_a_client_that_waits() {
        let (mut queue, now) = (FairQueue::default(), Instant::now());
        (0..100).for_each(|_| queue.push("old", Priority::Normal, now, true));
        let (mut served, mut last) = (0, 0);
        for number in 0..100 {
            queue.push(&format!("new {number}"), Priority::High, now, false);
            let others = queue.clients() - 1;
            if queue.pop(now).expect("some wait") {
                (served, last) = (served + 1, number);
            }
            assert!(
                number - last <= others,
                "{others} other clients wait, and it waits {} turns",
                number - last
            );
        }
        assert!(served > 10, "{served} of 100 turns");
    }

    #[test]
    fn a_client_that_comes_back_after_each_answer_gets_every_other_turn() {
        let (mut queue, now) = (FairQueue::default(), Instant::now());
        (0..10).for_each(|_| queue.push("flood", Priority::High, now, "flood"));
        let mut order = Vec::new();
        for _ in 0..4 {
            order.extend(queue.pop(now));
            queue.push("asks", Priority::Low, now, "asks");
            order.extend(queue.pop(now));
        }
        assert_eq!(order, ["flood", "asks"].repeat(4));
    }

    #[test]
    fn inside_one_client_the_highest_priority_goes_first_and_then_the_oldest() {
        let (mut queue, now) = (FairQueue::default(), Instant::now());
        for (priority, item) in [
            (Priority::Low, "low"),
            (Priority::Normal, "normal"),
            (Priority::High, "high"),
            (Priority::Normal, "later"),
        ] {
            queue.push("a", priority, now, item);
        }
        assert_eq!(drain(&mut queue, now), ["high", "normal", "later", "low"]);
    }

    #[test]
    fn a_low_priority_rises_with_its_age_until_nothing_goes_before_it() {
        let (mut queue, start) = (FairQueue::default(), Instant::now());
        queue.push("a", Priority::Low, start, "low");
        queue.push("a", Priority::Normal, start, "normal");
        let mut order = Vec::new();
        for tick in 0..20 {
            let now = start + second(tick);
            queue.push("a", Priority::High, now, "high");
            order.push(queue.pop(now).expect("some wait"));
        }
        let at = |item| order.iter().position(|other| *other == item);
        // After one step the normal one counts as high, after two the low one, and both are older than the high ones.
        assert_eq!((at("normal"), at("low")), (Some(5), Some(10)), "{order:?}");
    }

    #[test]
    fn an_item_put_back_regains_its_position() {
        let (mut queue, now) = (FairQueue::default(), Instant::now());
        queue.push("a", Priority::Normal, now, "first");
        queue.push("a", Priority::Normal, now + second(1), "second");
        let first = queue.pop(now).expect("two wait");
        queue.push("a", Priority::Normal, now, first);
        assert_eq!(drain(&mut queue, now), ["first", "second"]);
    }

    #[test]
    fn a_client_that_is_not_allowed_is_skipped_and_keeps_its_position() {
        let (mut queue, now) = (FairQueue::default(), Instant::now());
        queue.push("a", Priority::Normal, now, "a");
        queue.push("b", Priority::Normal, now, "b1");
        queue.push("b", Priority::Normal, now, "b2");
        assert_eq!(queue.pop_allowed(now, |client| client != "a"), Some(("b".to_owned(), "b1")));
        assert_eq!(queue.pop_allowed(now, |client| client == "c"), None);
        assert_eq!(drain(&mut queue, now), ["a", "b2"]);
    }

    #[test]
    fn what_goes_ahead_is_of_the_highest_priority_and_passes_nobody_twice() {
        let (mut queue, now) = (FairQueue::default(), Instant::now());
        queue.push("waits", Priority::Normal, now, "normal");
        assert_eq!((queue.pop_ahead(now, |_, _| true), queue.next_priority(now)), (None, Some(1)));
        for item in ["high 1", "high 2"] {
            queue.push("flood", Priority::High, now, item);
        }
        queue.push("voice", Priority::High, now, "voice");
        assert_eq!(queue.pop_ahead(now, |_, item| *item == "none"), None);
        assert_eq!(queue.pop_ahead(now, |_, _| true), Some("high 1"));
        // The client that was served is behind the one it has passed; another may still pass.
        assert_eq!(queue.pop_ahead(now, |_, _| true), Some("voice"));
        assert_eq!(queue.pop_ahead(now, |_, _| true), None);
        assert_eq!(queue.pop(now), Some("normal"));
        assert_eq!(queue.pop_ahead(now, |_, _| true), Some("high 2"), "nobody waits before it");
        // An item that waits rises to the highest priority.
        queue.push("old", Priority::Normal, now, "old");
        let later = now + PRIORITY_STEP;
        assert_eq!((queue.pop_ahead(now, |_, _| true), queue.next_priority(later)), (None, Some(HIGHEST)));
        assert_eq!(queue.pop_ahead(later, |_, _| true), Some("old"));
        assert!(queue.is_empty() && queue.next_priority(later).is_none());
    }

    #[test]
    fn the_last_of_a_client_is_the_newest_of_its_lowest_priority() {
        let (mut queue, now) = (FairQueue::default(), Instant::now());
        for (priority, item) in
            [(Priority::Normal, "first"), (Priority::Normal, "second"), (Priority::High, "third")]
        {
            queue.push("a", priority, now, item);
        }
        queue.push("b", Priority::Low, now, "other");
        let last: Vec<_> = std::iter::from_fn(|| queue.pop_last("a")).collect();
        assert_eq!(last, ["second", "first", "third"]);
        assert_eq!((queue.len(), queue.clients(), queue.pop_last("a")), (1, 1, None));
        assert_eq!(drain(&mut queue, now), ["other"]);
    }

    #[test]
    fn what_matches_is_taken_out_and_the_rest_stays_in_order() {
        let (mut queue, now) = (FairQueue::default(), Instant::now());
        for item in ["keep 1", "drop 1", "keep 2"] {
            queue.push("a", Priority::Normal, now, item);
        }
        queue.push("b", Priority::High, now, "drop 2");
        queue.push("c", Priority::Low, now, "keep 3");
        assert_eq!(queue.extract(|item| item.starts_with("none")), [""; 0]);
        let mut dropped = queue.extract(|item| item.starts_with("drop"));
        dropped.sort_unstable();
        assert_eq!(dropped, ["drop 1", "drop 2"]);
        assert_eq!((queue.len(), queue.clients(), queue.count("a"), queue.count("b")), (3, 2, 2, 0));
        assert_eq!(queue.iter().count(), 3);
        assert_eq!(drain(&mut queue, now), ["keep 1", "keep 3", "keep 2"]);
    }

    #[test]
    fn ten_thousand_items_of_a_thousand_clients_are_handed_out_quickly_and_in_rounds() {
        let (mut queue, now) = (FairQueue::default(), Instant::now());
        for number in 0..10_000 {
            queue.push(&format!("client {}", number % 1000), Priority::Normal, now, number);
        }
        assert_eq!((queue.len(), queue.clients(), queue.count("client 7")), (10_000, 1000, 10));
        let order: Vec<i32> = std::iter::from_fn(|| queue.pop(now)).collect();
        assert_eq!(order, (0..10_000).collect::<Vec<_>>());
        assert!(now.elapsed() < second(5), "{:?}", now.elapsed());
    }
}
