//! Whether to ask the broker for the group's shared subscriptions, and what became of it.
//!
//! Pure. A broker without them may say so at once, refuse the subscription, or end the connection over it
//! [MQTT-3.8.3]; the device's own topics must work all the same.

/// Connections that ended over the question before it is asked no more.
const ENOUGH: u32 = 2;

/// The memory of one process.
#[derive(Debug)]
pub struct Sharing {
    group: Option<String>,
    /// Asked on this connection, not yet answered.
    is_open: bool,
    ended: u32,
    reported: bool,
}

impl Sharing {
    /// Nothing to ask without a group.
    pub fn new(group: Option<&str>) -> Self {
        Sharing { group: group.map(Into::into), is_open: false, ended: 0, reported: false }
    }

    /// Whether to ask on a new connection, to a broker that claims to have them or not. The error is
    /// said once.
    pub fn ask(&mut self, is_offered: bool) -> Result<bool, String> {
        if self.group.is_none() {
            return Ok(false);
        }
        if !is_offered {
            return self.tell("the broker has none").map_or(Ok(false), Err);
        }
        if self.ended >= ENOUGH {
            return self.tell("the broker ends the connection over them").map_or(Ok(false), Err);
        }
        self.is_open = true;
        Ok(true)
    }

    /// The broker's answer, as what is to be said of it.
    pub fn answered(&mut self, granted: &Result<(), String>) -> Option<String> {
        self.is_open = false;
        match granted {
            Ok(()) => {
                (self.ended, self.reported) = (0, false);
                None
            }
            Err(reason) => self.tell(reason),
        }
    }

    /// The connection ended, over the question where that `may_be`.
    pub fn disconnected(&mut self, may_be: bool) {
        self.ended += u32::from(std::mem::take(&mut self.is_open) && may_be);
    }

    fn tell(&mut self, reason: &str) -> Option<String> {
        let group = self.group.as_deref()?;
        let first = !std::mem::replace(&mut self.reported, true);
        first.then(|| {
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

    fn of_kitchens() -> Sharing {
        Sharing::new(Some("kitchens"))
    }

    #[test]
    fn without_a_group_nothing_is_asked_and_nothing_said() {
        let mut subscription = Sharing::new(None);
        assert_eq!((subscription.ask(true), subscription.ask(false)), (Ok(false), Ok(false)));
    }

    #[test]
    fn a_broker_that_has_none_is_told_of_once() {
        let mut subscription = of_kitchens();
        let text = subscription.ask(false).expect_err("said");
        assert!(text.contains("mqtt.group"), "{text}");
        assert_eq!(subscription.ask(false), Ok(false));
    }

    #[test]
    fn a_refusal_is_said_once_and_again_after_it_was_granted() {
        let mut subscription = of_kitchens();
        let refused = Err("NotAuthorized".to_owned());
        assert_eq!(subscription.ask(true), Ok(true));
        assert!(subscription.answered(&refused).expect("said").contains("NotAuthorized"));
        assert_eq!(subscription.ask(true), Ok(true));
        assert_eq!(subscription.answered(&refused), None);
        assert_eq!(subscription.answered(&Ok(())), None);
        assert!(subscription.answered(&refused).is_some());
    }

    #[test]
    fn a_broker_that_hangs_up_over_the_question_is_not_asked_for_ever() {
        let mut subscription = of_kitchens();
        for _ in 0..ENOUGH {
            assert_eq!(subscription.ask(true), Ok(true));
            subscription.disconnected(true);
        }
        assert!(subscription.ask(true).is_err());
        subscription.disconnected(true);
        assert_eq!(subscription.ask(true), Ok(false));
    }

    #[test]
    fn a_connection_that_ends_later_or_over_something_else_is_no_answer() {
        let mut subscription = of_kitchens();
        for _ in 0..9 {
            assert_eq!(subscription.ask(true), Ok(true));
            subscription.answered(&Ok(()));
            subscription.disconnected(true);
            assert_eq!(subscription.ask(true), Ok(true));
            subscription.disconnected(false);
        }
    }
}
