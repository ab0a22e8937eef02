//! The subscription to the descriptions of the home's devices: whether it is requested, when all that is retained has
//! been delivered, and when the names are published.
//!
//! Pure: the time is passed in. Deliberately knows nothing of what a description contains.

use super::link::{Disconnect, OVERSIZED};
use super::optional_subscription::OptionalSubscription;
use super::topics::TopicFilter;
use crate::home::SharedHome;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The delivery of retained messages is over when none has come for so long,
const DELIVERY_PAUSE: Duration = Duration::from_secs(5);
/// and at the latest after this.
const MAX_DELIVERY: Duration = Duration::from_secs(60);
/// Time from a change to the snapshot with it, so that a thousand descriptions in a row make a few snapshots.
const PUBLISH_DELAY: Duration = Duration::from_millis(300);
/// Connections that may end over a message too large before the descriptions are left out.
const MAX_OVERSIZED: u32 = 2;

/// The subscription, over all connections of this process.
#[derive(Debug)]
pub struct HomeSubscription {
    home: Arc<SharedHome>,
    subscription: OptionalSubscription,
    delivery: Option<Delivery>,
    publish_at: Option<Instant>,
    oversized: u32,
}

/// A delivery of retained messages.
#[derive(Debug, Clone, Copy)]
struct Delivery {
    began: Instant,
    ends: Instant,
}

impl HomeSubscription {
    pub fn new(home: Arc<SharedHome>) -> Self {
        HomeSubscription {
            home,
            subscription: OptionalSubscription::default(),
            delivery: None,
            publish_at: None,
            oversized: 0,
        }
    }

    /// The filters to subscribe to on a new connection. The error is the problem to report, returned once.
    ///
    /// At QoS 0: descriptions must not take places in the window of prompts. What is lost comes with the next
    /// connection.
    pub fn filters(&mut self, now: Instant) -> Result<Vec<TopicFilter>, String> {
        if self.oversized >= MAX_OVERSIZED {
            let reason =
                "a description is larger than 1 MiB, and MQTT 3.1.1 cannot refuse it: use mqtt.version = 5";
            return self.report(reason).map_or(Ok(Vec::new()), Err);
        }
        if !self.subscription.request() {
            return self.report("the broker ends the connection over it").map_or(Ok(Vec::new()), Err);
        }
        self.home.delivery_began();
        self.delivery = Some(Delivery { began: now, ends: now + MAX_DELIVERY });
        let filter = |topic| TopicFilter { topic, is_qos_1: false, wants_retained: true };
        Ok(self.home.topics().filters().map(filter).into())
    }

    /// Notes the SUBACK. Returns the problem to report, if there is a new one.
    pub fn answered(&mut self, granted: &Result<(), String>, now: Instant) -> Option<String> {
        self.subscription.answered(granted.is_ok());
        match granted {
            Ok(()) => self.await_more(now),
            // Nothing is delivered, and what was read before stays.
            Err(_) => self.delivery = None,
        }
        granted.as_ref().err().and_then(|reason| self.report(reason))
    }

    /// Whether the SUBACK is outstanding.
    pub fn is_pending(&self) -> bool {
        self.subscription.is_pending()
    }

    /// Notes the end of the connection; `may_be_the_cause` if the request may have ended it.
    pub fn disconnected(&mut self, disconnect: &Disconnect, may_be_the_cause: bool) {
        self.subscription.disconnected(may_be_the_cause);
        if self.delivery.take().is_some() {
            self.oversized += u32::from(disconnect.kind == OVERSIZED);
        }
    }

    /// Reads a message that may be a description. `None` where it is none; otherwise the problem to report, if there
    /// is a new one.
    pub fn on_message(
        &mut self,
        topic: &[u8],
        payload: &[u8],
        skipped_bytes: usize,
        now: Instant,
    ) -> Option<Option<String>> {
        let topic = std::str::from_utf8(topic).ok().filter(|topic| self.home.topics().contains(topic))?;
        self.await_more(now);
        match self.home.on_message(topic, payload, skipped_bytes) {
            Ok(is_changed) => {
                self.publish_soon(is_changed, now);
                Some(None)
            }
            Err(problem) => {
                self.publish_soon(true, now);
                Some(Some(problem))
            }
        }
    }

    /// When [`HomeSubscription::run`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        self.delivery.map(|delivery| delivery.ends).into_iter().chain(self.publish_at).min()
    }

    /// Does what is due.
    pub fn run(&mut self, now: Instant) {
        if self.delivery.is_some_and(|delivery| now >= delivery.ends) {
            self.delivery = None;
            self.oversized = 0;
            let is_changed = self.home.delivery_ended();
            self.publish_soon(is_changed, now);
        }
        if self.publish_at.is_some_and(|at| now >= at) {
            self.publish_at = None;
            self.home.publish();
        }
    }

    fn await_more(&mut self, now: Instant) {
        if let Some(delivery) = &mut self.delivery {
            delivery.ends = (now + DELIVERY_PAUSE).min(delivery.began + MAX_DELIVERY);
        }
    }

    fn publish_soon(&mut self, is_changed: bool, now: Instant) {
        if is_changed {
            self.publish_at.get_or_insert(now + PUBLISH_DELAY);
        }
    }

    fn report(&mut self, reason: &str) -> Option<String> {
        self.subscription.report_once().then(|| {
            let topics = self.home.topics().filters().join(", ");
            format!("no names of the home from the broker ({reason}); allow us to read {topics}, or write home.file")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::{NameList, NameTopics};

    const TOPIC: &[u8] = b"homeassistant/light/a/config";

    fn subscription() -> (Arc<SharedHome>, HomeSubscription) {
        let topics = NameTopics { discovery_prefix: "homeassistant".into() };
        let home = Arc::new(SharedHome::new(NameList::default(), topics));
        (Arc::clone(&home), HomeSubscription::new(home))
    }

    fn lost(kind: &str) -> Disconnect {
        Disconnect { kind: kind.into(), text: String::new(), unreadable: false }
    }

    #[test]
    fn names_are_published_soon_and_go_when_they_are_not_retained_any_more() {
        let (home, mut subscription) = subscription();
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        assert_eq!(subscription.filters(at(0)).expect("asked").len(), 4);
        assert_eq!(subscription.answered(&Ok(()), at(1)), None);
        let lamp = br#"{"name":"Lamp","uniq_id":"a"}"#;
        assert_eq!(subscription.on_message(TOPIC, lamp, 0, at(2)), Some(None));
        assert_eq!(subscription.on_message(b"bitnetd/a/prompt", b"x", 0, at(2)), None);
        assert_eq!(subscription.due(), Some(at(302)));
        subscription.run(at(302));
        assert_eq!(home.current().names().devices.len(), 1);
        assert_eq!(subscription.due(), Some(at(5002)));
        subscription.run(at(5002));
        assert_eq!((home.current().names().devices.len(), subscription.due()), (1, None));
        subscription.disconnected(&lost("closed"), true);
        subscription.filters(at(9000)).expect("asked");
        subscription.answered(&Ok(()), at(9000));
        subscription.run(at(14_000));
        subscription.run(at(14_300));
        assert!(home.current().names().devices.is_empty());
    }

    #[test]
    fn a_refusal_is_reported_once_and_keeps_what_was_read() {
        let (home, mut subscription) = subscription();
        let now = Instant::now();
        subscription.filters(now).expect("asked");
        subscription.on_message(TOPIC, br#"{"name":"Lamp","uniq_id":"a"}"#, 0, now);
        let text = subscription.answered(&Err("NotAuthorized".into()), now).expect("reported");
        assert!(text.contains("NotAuthorized") && text.contains("homeassistant/+/+/config"), "{text}");
        subscription.run(now + MAX_DELIVERY);
        assert_eq!(home.current().names().devices.len(), 1);
        subscription.filters(now).expect("asked");
        assert_eq!(subscription.answered(&Err("NotAuthorized".into()), now), None);
    }

    #[test]
    fn a_description_that_is_too_large_does_not_end_one_connection_after_the_other() {
        let (_, mut subscription) = subscription();
        let now = Instant::now();
        for _ in 0..MAX_OVERSIZED {
            assert_eq!(subscription.filters(now).map(|filters| filters.len()), Ok(4));
            subscription.answered(&Ok(()), now);
            subscription.disconnected(&lost(OVERSIZED), true);
        }
        assert!(subscription.filters(now).expect_err("reported").contains("mqtt.version"));
        assert_eq!(subscription.filters(now), Ok(Vec::new()));
    }
}
