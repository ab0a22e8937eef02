//! Counters of the security record, refusals also by client. Bounded, however many clients come: of those that are not among the
//! ones refused most only the sum is known.

use super::event::{ReloadOutcome, SecurityEvent, SecurityEventKind};
use crate::protocol::{ClientRefusals, GuardReason, GuardRefusals, Security};
use crate::telemetry::waiting::MAX_NAMED;
use std::collections::HashMap;

/// Clients that are counted by name: more than are named in a report, so that one that comes late can become one of them.
const MAX_COUNTED: usize = 64;

/// The counts since start.
#[derive(Debug, Default)]
pub(super) struct Counts {
    all: GuardRefusals,
    by_client: HashMap<String, GuardRefusals>,
    /// Those of clients that are no longer counted by name.
    others: GuardRefusals,
    failed_tokens: u64,
    commands: u64,
    reloads: u64,
    reloads_refused: u64,
}

impl Counts {
    /// Counts an event.
    pub fn add(&mut self, event: &SecurityEvent<'_>) {
        match event.kind {
            SecurityEventKind::Refused { reason, .. } => {
                self.refused(event.client.unwrap_or_default(), reason);
            }
            SecurityEventKind::FailedToken(_) => self.failed_tokens += 1,
            SecurityEventKind::Command(_) => self.commands += 1,
            SecurityEventKind::Reload(outcome) => {
                self.reloads += 1;
                self.reloads_refused += u64::from(outcome != ReloadOutcome::Applied);
            }
        }
    }

    fn refused(&mut self, client: &str, reason: GuardReason) {
        *self.all.of(reason) += 1;
        *self.of(client).of(reason) += 1;
    }

    /// The counts now.
    pub fn report(&self) -> Security {
        let mut by_client: Vec<(&String, &GuardRefusals)> = self.by_client.iter().collect();
        by_client.sort_by(|(name, a), (other, b)| b.sum().cmp(&a.sum()).then(name.cmp(other)));
        let mut others = self.others;
        by_client.iter().skip(MAX_NAMED).for_each(|(_, refused)| others.add(**refused));
        let named = by_client.into_iter().take(MAX_NAMED);
        let named =
            named.map(|(client, refused)| ClientRefusals { client: Some(client.clone()), refused: *refused });
        let rest = (others.sum() > 0).then_some(ClientRefusals { client: None, refused: others });
        Security {
            refused: self.all,
            clients: named.chain(rest).collect(),
            failed_tokens: self.failed_tokens,
            commands: self.commands,
            reloads: self.reloads,
            reloads_refused: self.reloads_refused,
        }
    }

    /// The count of a client. Where too many are counted, the one with the fewest is one of the others from then on.
    fn of(&mut self, client: &str) -> &mut GuardRefusals {
        if !self.by_client.contains_key(client) {
            if self.by_client.len() >= MAX_COUNTED
                && let Some((least, _)) = self.by_client.iter().min_by_key(|(_, refused)| refused.sum())
                && let Some(refused) = self.by_client.remove(&least.clone())
            {
                self.others.add(refused);
            }
            self.by_client.insert(client.to_owned(), GuardRefusals::default());
        }
        self.by_client.get_mut(client).expect("just added where it was missing")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_by_reason_and_by_client_the_most_refused_first() {
        let mut counters = Counts::default();
        assert_eq!(counters.report(), Security::default());
        counters.refused("a", GuardReason::RateLimited);
        counters.refused("b", GuardReason::RateLimited);
        counters.refused("b", GuardReason::PromptBytes);
        let counts = counters.report();
        assert_eq!((counts.refused.rate_limited, counts.refused.prompt_bytes), (2, 1));
        let names: Vec<_> =
            counts.clients.iter().map(|row| (row.client.as_deref(), row.refused.sum())).collect();
        assert_eq!(names, [(Some("b"), 2), (Some("a"), 1)]);
    }

    #[test]
    fn each_reason_has_the_name_of_its_field() {
        for reason in GuardReason::ALL {
            let mut refused = GuardRefusals::default();
            *refused.of(reason) = 1;
            assert_eq!(serde_json::to_value(refused).expect("JSON")[reason.name()], 1);
        }
    }

    #[test]
    fn however_many_clients_come_the_report_has_sixteen_names_and_the_sum_is_that_of_all() {
        let mut counters = Counts::default();
        (0..5).for_each(|_| counters.refused("busy", GuardReason::RateLimited));
        for number in 0..10_000 {
            counters.refused(&format!("client {number}"), GuardReason::RateLimited);
        }
        let counts = counters.report();
        assert_eq!((counts.clients.len(), counters.by_client.len()), (MAX_NAMED + 1, MAX_COUNTED));
        assert_eq!(counts.clients[0].client.as_deref(), Some("busy"));
        assert_eq!(counts.clients[MAX_NAMED].client, None);
        assert_eq!(counts.clients.iter().map(|row| row.refused.sum()).sum::<u64>(), 10_005);
        assert_eq!(counts.refused.sum(), 10_005);
    }
}
