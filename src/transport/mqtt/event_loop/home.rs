//! What the event loop does for the names of the home: subscribes, and passes descriptions on.

use super::EventLoop;
use crate::home::NameTopics;
use crate::transport::mqtt::home_subscription::HomeSubscription;
use crate::transport::mqtt::link::Disconnect;
use crate::transport::mqtt::message::IncomingMessage;
use crate::transport::mqtt::topics::TopicFilter;
use std::time::Instant;

impl EventLoop {
    /// The filters of the descriptions.
    pub(super) fn home_filters(&mut self) -> Vec<TopicFilter> {
        let filters = self.home.as_mut().map_or(Ok(Vec::new()), |home| home.filters(Instant::now()));
        filters.unwrap_or_else(|text| {
            log::warn!("{}: {text}", self.broker_address());
            Vec::new()
        })
    }

    /// Handles the SUBACK for them.
    pub(super) fn on_home_suback(&mut self, granted: Option<Result<(), String>>) {
        let reported = self
            .home
            .as_mut()
            .zip(granted)
            .and_then(|(home, granted)| home.answered(&granted, Instant::now()));
        if let Some(text) = reported {
            log::warn!("{}: {text}", self.broker_address());
        }
    }

    /// Handles a message that may be a description; returns whether it was.
    pub(super) fn on_description(&mut self, message: &IncomingMessage, now: Instant) -> bool {
        let IncomingMessage { topic, payload, skipped_bytes, .. } = message;
        let Some(home) = &mut self.home else {
            self.end_home_subscription(topic);
            return false;
        };
        let Some(problem) = home.on_message(topic, payload, *skipped_bytes, now) else { return false };
        if let Some(text) = problem {
            log::warn!("{}: {text}", self.broker_address());
        }
        true
    }

    /// Unsubscribes from descriptions that only an earlier configuration asked for.
    fn end_home_subscription(&self, topic: &[u8]) {
        let topics = NameTopics { discovery_prefix: self.context.config.discovery_prefix.clone() };
        let is_description = std::str::from_utf8(topic).is_ok_and(|topic| topics.contains(topic));
        if let Some(connection) = self.connection.as_ref().filter(|_| is_description) {
            // If the request channel is full, the next description leads here again.
            for filter in topics.filters() {
                connection.unsubscribe(&filter);
            }
        }
    }

    /// Handles the end of the connection. Returns whether the request for descriptions may have ended it.
    pub(super) fn home_disconnected(&mut self, disconnect: &Disconnect) -> bool {
        let Some(home) = &mut self.home else { return false };
        let was_pending = home.is_pending();
        home.disconnected(disconnect, true);
        was_pending
    }

    /// When [`EventLoop::run_home`] has something to do.
    pub(super) fn home_due(&self) -> Option<Instant> {
        self.home.as_ref().and_then(HomeSubscription::due)
    }

    /// Does what is due for the names of the home.
    pub(super) fn run_home(&mut self, now: Instant) {
        if let Some(home) = &mut self.home {
            home.run(now);
        }
    }
}
