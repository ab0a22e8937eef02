//! How long the requests of each client waited until they were begun, and how many wait now. Bounded, however many clients
//! come: of those that are not among the busiest only the sum is known.

use super::locked;
use crate::protocol::ClientWaiting;
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

/// Clients that are named in a report; more would make it long.
pub const MAX_NAMED: usize = 16;

/// Clients that are counted by name. More than are named in a report, so that one that comes late can become one of them.
const MAX_COUNTED: usize = 64;

/// The counts since start.
#[derive(Debug, Default)]
pub struct WaitingCounters(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    by_client: HashMap<String, Count>,
    /// Those of clients that are no longer counted by name.
    others: Count,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Count {
    begun: u64,
    waited_ms: u64,
    waiting: u64,
}

impl Count {
    fn add(&mut self, other: Count) {
        self.begun += other.begun;
        self.waited_ms += other.waited_ms;
        self.waiting += other.waiting;
    }
}

impl WaitingCounters {
    /// A request of `client` was begun after it had waited for so long.
    pub fn begun(&self, client: &str, waited: Duration) {
        let mut counts = locked(&self.0);
        let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
        counts.of(client).add(Count { begun: 1, waited_ms, waiting: 0 });
    }

    /// A request of `client` waits from now on.
    pub fn joined(&self, client: &str) {
        locked(&self.0).of(client).waiting += 1;
    }

    /// A request of `client` that [joined](Self::joined) waits no longer.
    pub fn left(&self, client: &str) {
        let mut counts = locked(&self.0);
        let Counts { by_client, others } = &mut *counts;
        // Its client may have become one of the others since it joined.
        let count = by_client.get_mut(client).filter(|count| count.waiting > 0).unwrap_or(others);
        count.waiting = count.waiting.saturating_sub(1);
    }

    /// How many requests wait now.
    pub fn total(&self) -> u64 {
        let counts = locked(&self.0);
        counts.others.waiting + counts.by_client.values().map(|count| count.waiting).sum::<u64>()
    }

    /// The counts now: those of the busiest clients, the most requests first, then the sum of all others, without a name,
    /// where there are any.
    pub fn counts(&self) -> Vec<ClientWaiting> {
        let counts = locked(&self.0);
        let mut by_client: Vec<(&String, Count)> =
            counts.by_client.iter().map(|(client, count)| (client, *count)).collect();
        by_client.sort_by(|(name, a), (other, b)| {
            (b.begun + b.waiting).cmp(&(a.begun + a.waiting)).then(name.cmp(other))
        });
        let mut others = counts.others;
        by_client.iter().skip(MAX_NAMED).for_each(|(_, count)| others.add(*count));
        let report = |client: Option<String>, count: Count| ClientWaiting {
            client,
            begun: count.begun,
            waited_ms: count.waited_ms,
            waiting: count.waiting,
        };
        let named = by_client.into_iter().take(MAX_NAMED);
        let named = named.map(|(client, count)| report(Some(client.clone()), count));
        named.chain((others != Count::default()).then(|| report(None, others))).collect()
    }
}

impl Counts {
    /// The count of a client. Where too many are counted, the one with the fewest requests is one of the others from then on.
    fn of(&mut self, client: &str) -> &mut Count {
        if !self.by_client.contains_key(client) {
            if self.by_client.len() >= MAX_COUNTED
                && let Some((least, _)) = self.by_client.iter().min_by_key(|(_, count)| **count)
                && let Some(count) = self.by_client.remove(&least.clone())
            {
                self.others.add(count);
            }
            self.by_client.insert(client.to_owned(), Count::default());
        }
        self.by_client.get_mut(client).expect("just added where it was missing")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn the_busiest_clients_come_first_with_their_times_and_what_waits_now() {
        let counters = WaitingCounters::default();
        assert_eq!(counters.counts(), []);
        counters.begun("a", second(1));
        counters.begun("b", second(2));
        counters.begun("b", second(3));
        ["a", "a", "c", "a", "a"].into_iter().for_each(|client| counters.joined(client));
        assert_eq!(counters.total(), 5);
        let row = |client: &str, begun, waited_ms, waiting| ClientWaiting {
            client: Some(client.into()),
            begun,
            waited_ms,
            waiting,
        };
        assert_eq!(
            counters.counts(),
            [row("a", 1, 1000, 4), row("b", 2, 5000, 0), row("c", 0, 0, 1)],
            "by what was begun and waits"
        );
        ["a", "a", "c", "a", "a"].into_iter().for_each(|client| counters.left(client));
        assert_eq!(counters.counts()[..2], [row("b", 2, 5000, 0), row("a", 1, 1000, 0)]);
        assert_eq!(counters.total(), 0);
    }

    #[test]
    fn what_waits_is_counted_down_also_for_a_client_that_is_no_longer_named() {
        let counters = WaitingCounters::default();
        ["a", "a"].into_iter().for_each(|client| counters.joined(client));
        for number in 0..2 * MAX_COUNTED {
            (0..9).for_each(|_| counters.begun(&format!("client {number}"), second(1)));
        }
        counters.joined("a");
        assert!(locked(&counters.0).others.waiting == 2 && counters.total() == 3);
        for left in [2, 1, 0] {
            counters.left("a");
            assert_eq!(counters.total(), left);
        }
        counters.left("a");
        assert_eq!(counters.total(), 0, "never below");
    }

    #[test]
    fn however_many_clients_come_the_report_has_sixteen_names_and_the_sum_is_that_of_all() {
        let counters = WaitingCounters::default();
        (0..5).for_each(|_| counters.begun("busy", second(1)));
        for number in 0..10_000 {
            counters.begun(&format!("client {number}"), second(1));
        }
        (0..7).for_each(|_| counters.begun("late", second(2)));
        let counts = counters.counts();
        assert_eq!((counts.len(), locked(&counters.0).by_client.len()), (MAX_NAMED + 1, MAX_COUNTED));
        let names: Vec<_> = counts[..2].iter().map(|count| count.client.as_deref()).collect();
        assert_eq!(names, [Some("late"), Some("busy")]);
        assert_eq!(counts[MAX_NAMED].client, None);
        assert_eq!(counts.iter().map(|count| count.begun).sum::<u64>(), 10_012);
        assert_eq!(counts.iter().map(|count| count.waited_ms).sum::<u64>(), 10_019_000);
    }
}
