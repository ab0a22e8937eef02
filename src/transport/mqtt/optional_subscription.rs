//! A subscription that the daemon can do without: the shared subscriptions of a group, or Home Assistant's birth topic.
//!
//! A broker that does not allow such a subscription may refuse it in the SUBACK, or close the connection over it
//! (MQTT 5, section 3.8.3.1). In both cases the device's own prompt topics must keep working, so after a few disconnects
//! the subscription is left out. Pure: no I/O. Deliberately knows nothing of topics and of how its problems are worded.

use super::strikes::{STOP_ASKING, Strikes};

/// Whether to request the subscription, and what the broker answered so far. Kept over connections.
#[derive(Debug, Default)]
pub struct OptionalSubscription {
    /// Requested on this connection, without a SUBACK so far.
    is_pending: bool,
    /// Connections that ended while the SUBACK was outstanding.
    strikes: Strikes,
    /// A problem was reported, and the broker has not granted the subscription since.
    is_problem_reported: bool,
}

impl OptionalSubscription {
    /// Notes that the subscription is requested on a new connection. `false` where it must be left out, because the
    /// broker closed the connection over it too often.
    pub fn request(&mut self) -> bool {
        self.is_pending = !self.strikes.has_reached(STOP_ASKING);
        self.is_pending
    }

    /// Whether the SUBACK is outstanding.
    pub fn is_pending(&self) -> bool {
        self.is_pending
    }

    /// Notes the broker's answer, which clears the suspicion that it closes connections over the request.
    pub fn answered(&mut self, is_granted: bool) {
        self.is_pending = false;
        self.strikes.clear();
        if is_granted {
            self.is_problem_reported = false;
        }
    }

    /// Notes the end of the connection; `may_be_the_cause` if the request may have ended it.
    pub fn disconnected(&mut self, may_be_the_cause: bool) {
        let was_pending = std::mem::take(&mut self.is_pending);
        self.strikes.add_if(was_pending && may_be_the_cause);
    }

    /// Whether a problem is to be reported now: once until the subscription is granted.
    pub fn report_once(&mut self) -> bool {
        !std::mem::replace(&mut self.is_problem_reported, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_closes_the_connection_over_the_request_is_asked_twice() {
        let mut subscription = OptionalSubscription::default();
        for _ in 0..STOP_ASKING {
            assert!(subscription.request());
            subscription.disconnected(true);
        }
        assert!(!subscription.request());
        subscription.disconnected(true);
        assert!(!subscription.request());
    }

    #[test]
    fn a_connection_that_ends_later_or_for_another_reason_is_no_strike() {
        let mut subscription = OptionalSubscription::default();
        for _ in 0..9 {
            assert!(subscription.request());
            subscription.answered(true);
            subscription.disconnected(true);
            assert!(subscription.request());
            subscription.disconnected(false);
        }
    }

    #[test]
    fn a_refusal_is_reported_once_and_again_after_the_subscription_was_granted() {
        let mut subscription = OptionalSubscription::default();
        for (is_granted, is_reported) in [(false, true), (false, false), (true, false), (false, true)] {
            assert!(subscription.request());
            subscription.answered(is_granted);
            assert_eq!(!is_granted && subscription.report_once(), is_reported);
        }
    }
}
