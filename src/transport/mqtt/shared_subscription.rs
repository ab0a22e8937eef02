//! The shared subscriptions of `mqtt.group` (MQTT 5, section 4.8.2): whether they are requested, and what is reported
//! about them.
//!
//! Pure: no I/O. A broker without shared subscriptions may say so in its CONNACK, refuse the subscription, or close the
//! connection over it; the device's own topics must work all the same.

use super::optional_subscription::OptionalSubscription;

/// The group's subscriptions, over all connections of this process.
#[derive(Debug)]
pub struct SharedSubscription {
    /// `mqtt.group`; without it nothing is requested.
    group: Option<String>,
    subscription: OptionalSubscription,
}

impl SharedSubscription {
    /// The subscriptions of this group, if there is one.
    pub fn new(group: Option<&str>) -> Self {
        SharedSubscription { group: group.map(Into::into), subscription: OptionalSubscription::default() }
    }

    /// Whether to request the subscriptions on a new connection; `is_supported` is what the broker's CONNACK says of
    /// them. The error is the problem to report, returned once.
    pub fn request(&mut self, is_supported: bool) -> Result<bool, String> {
        if self.group.is_none() {
            return Ok(false);
        }
        if !is_supported {
            return self.report("the broker has none").map_or(Ok(false), Err);
        }
        if !self.subscription.request() {
            return self.report("the broker ends the connection over them").map_or(Ok(false), Err);
        }
        Ok(true)
    }

    /// Notes the SUBACK. Returns the problem to report, if there is a new one.
    pub fn answered(&mut self, granted: &Result<(), String>) -> Option<String> {
        self.subscription.answered(granted.is_ok());
        granted.as_ref().err().and_then(|reason| self.report(reason))
    }

    /// Notes the end of the connection; `may_be_the_cause` if the request may have ended it.
    pub fn disconnected(&mut self, may_be_the_cause: bool) {
        self.subscription.disconnected(may_be_the_cause);
    }

    fn report(&mut self, reason: &str) -> Option<String> {
        let group = self.group.as_deref()?;
        self.subscription.report_once().then(|| {
            format!(
                "no shared subscriptions for mqtt.group = \"{group}\" ({reason}); prompts to the group do not \
                 come here: allow them at the broker, or take the key out"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::mqtt::strikes::STOP_ASKING;

    fn of_kitchens() -> SharedSubscription {
        SharedSubscription::new(Some("kitchens"))
    }

    #[test]
    fn without_a_group_nothing_is_requested_or_reported() {
        let mut subscription = SharedSubscription::new(None);
        assert_eq!((subscription.request(true), subscription.request(false)), (Ok(false), Ok(false)));
    }

    #[test]
    fn a_broker_without_shared_subscriptions_is_reported_once() {
        let mut subscription = of_kitchens();
        let text = subscription.request(false).expect_err("reported");
        assert!(text.contains("mqtt.group"), "{text}");
        assert_eq!(subscription.request(false), Ok(false));
    }

    #[test]
    fn a_refusal_is_reported_once_and_again_after_it_was_granted() {
        let mut subscription = of_kitchens();
        let refused = Err("NotAuthorized".to_owned());
        assert_eq!(subscription.request(true), Ok(true));
        assert!(subscription.answered(&refused).expect("reported").contains("NotAuthorized"));
        assert_eq!(subscription.request(true), Ok(true));
        assert_eq!(subscription.answered(&refused), None);
        assert_eq!(subscription.answered(&Ok(())), None);
        assert!(subscription.answered(&refused).is_some());
    }

    #[test]
    fn a_broker_that_closes_the_connection_over_the_request_is_asked_twice() {
        let mut subscription = of_kitchens();
        for _ in 0..STOP_ASKING {
            assert_eq!(subscription.request(true), Ok(true));
            subscription.disconnected(true);
        }
        assert!(subscription.request(true).is_err());
        subscription.disconnected(true);
        assert_eq!(subscription.request(true), Ok(false));
    }

    #[test]
    fn a_connection_that_ends_later_or_for_another_reason_is_no_strike() {
        let mut subscription = of_kitchens();
        for _ in 0..9 {
            assert_eq!(subscription.request(true), Ok(true));
            subscription.answered(&Ok(()));
            subscription.disconnected(true);
            assert_eq!(subscription.request(true), Ok(true));
            subscription.disconnected(false);
        }
    }
}
