//! Whether to ask the broker for Home Assistant's births, and what became of it.
//!
//! Pure. They stand in one SUBSCRIBE with the prompts, and a broker may end the connection over a filter that it forbids:
//! then prompts must come all the same.

use crate::transport::mqtt::topics::TopicFilter;

/// Connections that the broker ended over the question before it is asked no more.
const ENOUGH: u32 = 2;
const WITHOUT: &str = "so it is told of this device at connects only";
const WAY_OUT: &str = "allow it at the broker, or set mqtt.discovery = false";

/// The memory of one process.
#[derive(Debug)]
pub(super) struct Births {
    topics: Vec<String>,
    /// Asked on this connection, not yet answered.
    is_open: bool,
    ended: u32,
    reported: bool,
}

impl Births {
    pub fn new(topics: Vec<String>) -> Self {
        Births { topics, is_open: false, ended: 0, reported: false }
    }

    pub fn topics(&self) -> &[String] {
        &self.topics
    }

    /// What to ask for on a new connection. The error is said once.
    ///
    /// At QoS 0: a birth must not wait behind a window full of prompts, nor take a place in it.
    pub fn ask(&mut self) -> Result<Vec<TopicFilter>, String> {
        if self.ended >= ENOUGH {
            return self.tell("the broker ends the connection over it").map_or(Ok(Vec::new()), Err);
        }
        self.is_open = true;
        Ok(self.topics.iter().map(|topic| TopicFilter { topic: topic.clone(), is_qos_1: false }).collect())
    }

    /// The broker's answer, as what is to be said of it.
    pub fn answered(&mut self, granted: &Result<(), String>) -> Option<String> {
        self.is_open = false;
        self.ended = 0;
        match granted {
            Ok(()) => {
                self.reported = false;
                None
            }
            Err(reason) => self.tell(reason),
        }
    }

    /// Whether an answer is still to come.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// The connection ended.
    pub fn disconnected(&mut self, by_broker: bool) {
        self.ended += u32::from(std::mem::take(&mut self.is_open) && by_broker);
    }

    fn tell(&mut self, reason: &str) -> Option<String> {
        let first = !std::mem::replace(&mut self.reported, true);
        let topics = self.topics.join(", ");
        first.then(|| {
            format!(
                "may not subscribe to Home Assistant's birth on {topics} ({reason}), {WITHOUT}; {WAY_OUT}"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn births() -> Births {
        Births::new(vec!["homeassistant/status".into()])
    }

    #[test]
    fn a_broker_that_hangs_up_over_the_question_is_asked_twice_and_told_of_once() {
        let mut births = births();
        for _ in 0..ENOUGH {
            assert_eq!(births.ask().map(|filters| filters.len()), Ok(1));
            births.disconnected(true);
        }
        let text = births.ask().expect_err("said");
        assert!(text.contains("homeassistant/status") && text.contains("mqtt.discovery"), "{text}");
        births.disconnected(true);
        assert_eq!(births.ask(), Ok(vec![]));
    }

    #[test]
    fn a_connection_that_ends_by_itself_or_later_is_no_answer() {
        let mut births = births();
        for _ in 0..9 {
            assert!(births.ask().is_ok_and(|filters| !filters.is_empty()));
            births.disconnected(false);
            assert!(births.ask().is_ok_and(|filters| !filters.is_empty()));
            births.answered(&Ok(()));
            births.disconnected(true);
        }
    }

    #[test]
    fn a_refusal_is_said_once_and_again_after_it_was_granted() {
        let mut births = births();
        let refused = Err("NotAuthorized".to_owned());
        for (answer, is_told) in [(&refused, true), (&refused, false), (&Ok(()), false), (&refused, true)] {
            assert!(births.ask().is_ok());
            assert_eq!(births.answered(answer).is_some(), is_told);
        }
    }
}
