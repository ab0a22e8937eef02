//! Alerts until the broker has them: of each kind the latest change, so that a broker that was down for long
//! receives the present state and not the history.
//!
//! Pure. The outbox drops status messages with each connection; this queue puts them into it again. Deliberately
//! knows nothing of what an alert means.

use crate::transport::mqtt::strikes::{GIVE_UP, Strikes};

/// At most one alert of each kind.
#[derive(Debug, Default)]
pub struct AlertQueue(Vec<QueuedAlert>);

#[derive(Debug)]
struct QueuedAlert {
    kind: &'static str,
    /// JSON.
    payload: Vec<u8>,
    /// Its entry in the outbox of the present connection.
    entry: Option<u64>,
    /// Whether it was handed to the connection: an entry that only waits in the outbox cannot end a connection.
    is_in_flight: bool,
    /// Disconnects by the broker while it was in flight; the outbox sends it alone after some.
    strikes: Strikes,
}

impl AlertQueue {
    /// Queues a change, in place of an older one of its kind.
    pub fn put(&mut self, kind: &'static str, payload: Vec<u8>) {
        self.0.retain(|alert| alert.kind != kind);
        self.0.push(QueuedAlert {
            kind,
            payload,
            entry: None,
            is_in_flight: false,
            strikes: Strikes::default(),
        });
    }

    /// Puts each alert without an entry into the outbox, oldest first. `push` is passed the strikes of the alert,
    /// and returns its entry.
    pub fn push_all(&mut self, mut push: impl FnMut(&[u8], Strikes) -> u64) {
        for alert in self.0.iter_mut().filter(|alert| alert.entry.is_none()) {
            alert.entry = Some(push(&alert.payload, alert.strikes));
        }
    }

    /// The entry was handed to the connection.
    pub fn mark_sent(&mut self, entry: u64) {
        for alert in self.0.iter_mut().filter(|alert| alert.entry == Some(entry)) {
            alert.is_in_flight = true;
        }
    }

    /// The broker has the entry, or refused it for good.
    pub fn acknowledged(&mut self, entry: u64) {
        self.0.retain(|alert| alert.entry != Some(entry));
    }

    /// The connection ended, and its entries are dropped. Returns the kinds of the alerts that are given up.
    pub fn disconnected(&mut self, by_broker: bool) -> Vec<&'static str> {
        for alert in &mut self.0 {
            alert.entry = None;
            alert.strikes.add_if(by_broker && alert.is_in_flight);
            alert.is_in_flight = false;
        }
        let given_up = self.0.extract_if(.., |alert| alert.strikes.has_reached(GIVE_UP));
        given_up.map(|alert| alert.kind).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::outbox::Outbox;
    use super::*;
    use crate::transport::mqtt::message::{MAX_IN_FLIGHT, OutgoingMessage, PublishLimits};
    use std::time::Instant;

    /// What would be published on a connection now, with entries numbered from `first`.
    fn pushed(queue: &mut AlertQueue, first: u64) -> Vec<String> {
        let mut payloads = Vec::new();
        queue.push_all(|payload, _| {
            payloads.push(String::from_utf8_lossy(payload).into_owned());
            first + payloads.len() as u64 - 1
        });
        payloads
    }

    #[test]
    fn only_the_latest_change_of_each_kind_is_published_when_the_broker_is_back() {
        let mut queue = AlertQueue::default();
        queue.put("queue", b"queue raised".into());
        queue.put("temperature", b"temperature raised".into());
        queue.put("queue", b"queue cleared".into());
        assert_eq!(pushed(&mut queue, 1), ["temperature raised", "queue cleared"]);
        assert!(pushed(&mut queue, 3).is_empty(), "once for each connection");
    }

    #[test]
    fn it_is_published_again_on_each_connection_until_it_is_acknowledged() {
        let mut queue = AlertQueue::default();
        queue.put("queue", b"raised".into());
        for first in [1, 10] {
            assert_eq!(pushed(&mut queue, first), ["raised"]);
            assert!(queue.disconnected(false).is_empty());
        }
        pushed(&mut queue, 20);
        queue.acknowledged(10);
        queue.acknowledged(20);
        queue.disconnected(false);
        assert!(pushed(&mut queue, 30).is_empty());
    }

    #[test]
    fn a_puback_for_an_older_change_does_not_acknowledge_a_newer_one() {
        let mut queue = AlertQueue::default();
        queue.put("queue", b"raised".into());
        pushed(&mut queue, 1);
        queue.put("queue", b"cleared".into());
        queue.acknowledged(1);
        assert_eq!(pushed(&mut queue, 2), ["cleared"]);
    }

    #[test]
    fn an_alert_over_which_the_broker_ends_each_connection_is_given_up() {
        let mut queue = AlertQueue::default();
        queue.put("queue", b"raised".into());
        let given_up: Vec<_> = (0..9)
            .map(|n| {
                pushed(&mut queue, n);
                queue.mark_sent(n);
                queue.disconnected(true).len()
            })
            .collect();
        assert_eq!(given_up, [0, 0, 0, 0, 1, 0, 0, 0, 0]);
        for n in 0..99 {
            queue.put("latency", b"raised".into());
            pushed(&mut queue, n);
            queue.mark_sent(n);
            assert!(queue.disconnected(false).is_empty(), "a cable that was pulled is not its fault");
        }
    }

    #[test]
    fn an_alert_that_was_never_sent_gets_no_strike() {
        let mut queue = AlertQueue::default();
        queue.put("queue", b"raised".into());
        for n in 0..99 {
            assert_eq!(pushed(&mut queue, n), ["raised"]);
            assert!(queue.disconnected(true).is_empty());
        }
    }

    /// Queue and outbox as the event loop combines them: `broker` says whether it accepts a text, or closes the
    /// connection over what it received. Returns what was given up, and what the broker accepted.
    fn run_connections(queue: &mut AlertQueue, broker: fn(&str) -> bool) -> (Vec<&'static str>, Vec<String>) {
        let (mut outbox, mut given_up, mut result) = (Outbox::default(), Vec::new(), Vec::new());
        let limits = PublishLimits { packet: usize::MAX, window: MAX_IN_FLIGHT };
        for _ in 0..20 {
            queue.push_all(|payload, ended| {
                outbox.push_status_retry(OutgoingMessage::json("alert".into(), payload.to_vec()), ended)
            });
            let mut sent = Vec::new();
            let mut is_ended = false;
            while !is_ended {
                while let Some((entry, packet)) = outbox.next(Instant::now(), limits) {
                    sent.push((entry, String::from_utf8_lossy(&packet.payload).into_owned()));
                    outbox.mark_sent(entry);
                    queue.mark_sent(entry);
                }
                is_ended = sent.is_empty() || sent.iter().any(|(_, text)| !broker(text));
                for (entry, text) in sent.drain(..).filter(|_| !is_ended) {
                    queue.acknowledged(entry);
                    outbox.acknowledged(entry, true);
                    result.push(text);
                }
            }
            outbox.disconnected(true);
            given_up.extend(queue.disconnected(true));
        }
        (given_up, result)
    }

    #[test]
    fn of_several_only_the_one_is_given_up_over_which_the_broker_ends_the_connection() {
        let mut queue = AlertQueue::default();
        for kind in ["queue", "temperature", "memory"] {
            queue.put(kind, kind.into());
        }
        let (given_up, result) = run_connections(&mut queue, |text| text != "temperature");
        assert_eq!((given_up, result), (vec!["temperature"], vec!["queue".into(), "memory".into()]));
    }

    #[test]
    fn memory_is_one_message_for_each_kind() {
        let mut queue = AlertQueue::default();
        (0..999).for_each(|_| ["queue", "cpu"].into_iter().for_each(|kind| queue.put(kind, b"x".into())));
        assert_eq!(queue.0.len(), 2);
    }
}
