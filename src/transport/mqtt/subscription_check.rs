//! Checks that prompts still reach the daemon: publishes a message to its own prompt topics, which must be
//! received.
//!
//! Pure. A session can lose its subscriptions silently, for example where a broker is restored from an older backup
//! of its sessions, or where another client of the same client id unsubscribes. Only a received message proves the
//! opposite. A broker may forbid the daemon to publish there: then no message is ever received, and nothing is
//! concluded from it.

use super::strikes::{STOP_ASKING, Strikes};
use std::time::{Duration, Instant};

/// Time between two checks: a lost subscription is noticed within half a minute.
const INTERVAL: Duration = Duration::from_secs(20);
/// Time from the SUBACK to the first check.
const FIRST_CHECK_DELAY: Duration = Duration::from_secs(2);
/// Time for the message to be received. It is at QoS 0, so no full window delays it.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Consecutive failed checks before the subscription counts as lost: a broker may drop a message at QoS 0.
const FAILURES_BEFORE_LOST: u32 = 2;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckAction {
    /// Publish this payload at QoS 0 to each of the device's prompt topics.
    Publish(String),
    /// Subscribe again: prompts do not reach the daemon.
    Subscribe,
    /// Log, once, that the check is not possible.
    ReportImpossible,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No connection, or no subscription on it yet.
    Off,
    Scheduled {
        at: Instant,
    },
    /// This many of the messages are not received yet.
    AwaitingMessage {
        until: Instant,
        left: usize,
    },
}

/// The check, over all connections of one process.
#[derive(Debug)]
pub struct SubscriptionCheck {
    /// Random, so that no other daemon's message is taken for this one's.
    key: u64,
    count: u64,
    state: State,
    /// A message was received once: where none is received any more, something is wrong.
    was_received_once: bool,
    /// It was logged that the check is not possible.
    is_reported: bool,
    failures: u32,
    /// Disconnects that the check may have caused.
    strikes: Strikes,
    /// Prompts do not reach the daemon, as far as is known.
    is_subscription_lost: bool,
    /// How often subscriptions were found missing.
    lost: u64,
    /// The number of topics that a check publishes to.
    topics: usize,
}

impl SubscriptionCheck {
    /// A check of this many topics; `key` tells its messages from those of others.
    pub fn new(key: u64, topics: usize) -> Self {
        SubscriptionCheck {
            key,
            count: 0,
            state: State::Off,
            was_received_once: false,
            is_reported: false,
            failures: 0,
            strikes: Strikes::default(),
            is_subscription_lost: false,
            lost: 0,
            topics,
        }
    }

    /// Whether prompts do not reach the daemon, although it is connected.
    pub fn is_deaf(&self) -> bool {
        self.is_subscription_lost
    }

    /// How often subscriptions were found missing and asked for again.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// The broker granted the subscriptions.
    pub fn subscribed(&mut self, now: Instant) {
        if !self.strikes.has_reached(STOP_ASKING) || self.was_received_once {
            self.state = State::Scheduled { at: now + FIRST_CHECK_DELAY };
        }
    }

    /// The connection ended; `by_broker` where the broker closed it, perhaps because of the check.
    pub fn disconnected(&mut self, by_broker: bool) {
        let is_suspect =
            matches!(self.state, State::AwaitingMessage { .. }) && by_broker && !self.was_received_once;
        self.strikes.add_if(is_suspect);
        (self.state, self.failures) = (State::Off, 0);
    }

    /// When [`SubscriptionCheck::next_action`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        match self.state {
            State::Off => None,
            State::Scheduled { at } => Some(at),
            State::AwaitingMessage { until, .. } => Some(until),
        }
    }

    /// What is to be done now.
    pub fn next_action(&mut self, now: Instant) -> Option<CheckAction> {
        match self.state {
            State::Scheduled { at } if now >= at => {
                self.count += 1;
                self.state = State::AwaitingMessage { until: now + RESPONSE_TIMEOUT, left: self.topics };
                Some(CheckAction::Publish(self.payload()))
            }
            State::AwaitingMessage { until, .. } if now >= until => self.failed(now),
            _ => None,
        }
    }

    fn failed(&mut self, now: Instant) -> Option<CheckAction> {
        self.failures += 1;
        let is_enough = self.failures >= FAILURES_BEFORE_LOST;
        self.state = State::Scheduled { at: if is_enough { now + INTERVAL } else { now } };
        if !is_enough {
            return None;
        }
        self.failures = 0;
        if self.was_received_once {
            self.is_subscription_lost = true;
            self.lost += 1;
            return Some(CheckAction::Subscribe);
        }
        (!std::mem::replace(&mut self.is_reported, true)).then_some(CheckAction::ReportImpossible)
    }

    /// Whether a message on one of the device's prompt topics belongs to the check, and is therefore no prompt.
    pub fn receive(&mut self, payload: &[u8], now: Instant) -> bool {
        if !payload.starts_with(self.prefix().as_bytes()) {
            return false;
        }
        let is_latest = payload == self.payload().as_bytes();
        if let State::AwaitingMessage { left, .. } = &mut self.state
            && is_latest
        {
            *left -= 1;
            if *left == 0 {
                (self.was_received_once, self.is_subscription_lost, self.failures) = (true, false, 0);
                self.state = State::Scheduled { at: now + INTERVAL };
            }
        }
        true
    }

    fn prefix(&self) -> String {
        format!("{{\"self_check\":\"{:016x}-", self.key)
    }

    fn payload(&self) -> String {
        format!("{}{}\"}}", self.prefix(), self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    /// A check on a new subscription, whose messages were published.
    fn published(check: &mut SubscriptionCheck, now: Instant) -> String {
        check.subscribed(now);
        match check.next_action(now + FIRST_CHECK_DELAY) {
            Some(CheckAction::Publish(payload)) => payload,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_passes_when_the_message_comes_back_on_every_topic() {
        let now = Instant::now();
        let mut check = SubscriptionCheck::new(7, 2);
        let payload = published(&mut check, now);
        assert!(check.receive(payload.as_bytes(), at(now, 3)));
        assert!(!check.was_received_once, "one of two");
        assert!(check.receive(payload.as_bytes(), at(now, 3)));
        assert!(check.was_received_once && check.due() == Some(at(now, 23)));
        assert!(check.receive(payload.as_bytes(), at(now, 4)), "a late copy is no prompt either");
    }

    #[test]
    fn prompts_of_others_are_none_of_its_messages() {
        let now = Instant::now();
        let mut check = SubscriptionCheck::new(7, 1);
        let payload = published(&mut check, now);
        assert!(!check.receive(b"turn on the light", now));
        assert!(!SubscriptionCheck::new(8, 1).receive(payload.as_bytes(), now), "of another daemon");
    }

    #[test]
    fn a_subscription_that_is_lost_is_asked_for_again_and_counted() {
        let now = Instant::now();
        let mut check = SubscriptionCheck::new(7, 1);
        let payload = published(&mut check, now);
        check.receive(payload.as_bytes(), now);
        let mut later = now;
        let mut actions = Vec::new();
        while check.lost() == 0 {
            later = check.due().expect("it goes on");
            actions.extend(check.next_action(later));
        }
        assert!(later <= at(now, 40), "within half a minute of the last check");
        assert_eq!(actions.last(), Some(&CheckAction::Subscribe));
        assert!(check.is_deaf());
        let payload = published(&mut check, later);
        check.receive(payload.as_bytes(), later);
        assert!(!check.is_deaf() && check.lost() == 1);
    }

    #[test]
    fn one_message_that_is_dropped_says_nothing() {
        let now = Instant::now();
        let mut check = SubscriptionCheck::new(7, 1);
        let payload = published(&mut check, now);
        check.receive(payload.as_bytes(), now);
        let next = check.due().expect("scheduled");
        check.next_action(next);
        assert_eq!(check.next_action(next + RESPONSE_TIMEOUT), None);
        let Some(CheckAction::Publish(payload)) = check.next_action(next + RESPONSE_TIMEOUT) else {
            panic!("tried again at once")
        };
        assert!(check.receive(payload.as_bytes(), next + RESPONSE_TIMEOUT) && !check.is_deaf());
    }

    #[test]
    fn where_no_message_was_ever_received_nothing_is_concluded_and_it_is_logged_once() {
        let now = Instant::now();
        let mut check = SubscriptionCheck::new(7, 1);
        check.subscribed(now);
        let mut actions = Vec::new();
        for _ in 0..20 {
            let due = check.due().expect("it goes on");
            actions.extend(check.next_action(due));
        }
        assert_eq!(actions.iter().filter(|action| **action == CheckAction::ReportImpossible).count(), 1);
        assert!(!actions.contains(&CheckAction::Subscribe) && !check.is_deaf());
    }

    #[test]
    fn a_broker_that_ends_connections_over_it_is_not_asked_for_ever() {
        let now = Instant::now();
        let mut check = SubscriptionCheck::new(7, 1);
        for _ in 0..STOP_ASKING {
            published(&mut check, now);
            check.disconnected(true);
        }
        check.subscribed(now);
        assert_eq!(check.due(), None);
    }
}
