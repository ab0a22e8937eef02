//! Rejects violations of the protocol that rumqttc accepts: whatever would make its memory or ours grow without
//! bound, or leave the link unusable, ends the connection.
//!
//! Pure, for one connection. Deliberately knows nothing of packets but the few numbers that are passed in.

use super::link::Disconnect;
use crate::transport::mqtt::message::PublishLimits;
use std::time::Duration;

/// Maximum number of received messages without a PUBACK: there are no more packet identifiers. Not the Receive
/// Maximum of the CONNECT: after a restart with a smaller one a broker redelivers everything it had sent before.
const MAX_UNACKNOWLEDGED: u32 = u16::MAX as u32;
/// Maximum number of characters of a broker's text that are repeated in an error.
const MAX_QUOTED: usize = 200;

/// What the broker has done on this connection, as far as it limits what it may do next.
#[derive(Debug, Default)]
pub struct ProtocolGuard {
    is_connack_received: bool,
    unacknowledged: u32,
}

impl ProtocolGuard {
    /// Checks a CONNACK. Each makes rumqttc publish its pending messages, so a second one is not only a violation
    /// (MQTT 5, section 3.2) but would let the broker fill the memory.
    pub fn connack(&mut self, limits: PublishLimits) -> Result<(), Disconnect> {
        if std::mem::replace(&mut self.is_connack_received, true) {
            return Err(violation("a second CONNACK"));
        }
        if limits.window == 0 || limits.packet == 0 {
            return Err(violation(
                "a Receive Maximum or Maximum Packet Size of 0, which lets us say nothing",
            ));
        }
        Ok(())
    }

    /// Checks a PUBLISH. rumqttc would store every Topic Alias with the packet that defined it, 65,535 of up to 1
    /// MiB; the CONNECT allows the broker none.
    pub fn message(&mut self, awaits_acknowledgement: bool, alias: Option<u16>) -> Result<(), Disconnect> {
        if alias.is_some() {
            return Err(violation("a Topic Alias, and we allow none"));
        }
        self.unacknowledged += u32::from(awaits_acknowledgement);
        if self.unacknowledged > MAX_UNACKNOWLEDGED {
            return Err(violation("more unacknowledged messages than there are packet ids"));
        }
        Ok(())
    }

    /// Notes a PUBACK sent by the daemon.
    pub fn acknowledged(&mut self) {
        self.unacknowledged = self.unacknowledged.saturating_sub(1);
    }
}

/// The ping interval where the broker's CONNACK has a Server Keep Alive: 0 would mean pings without a pause, and
/// with one longer than `ours` a broker that vanished would not be noticed.
pub fn keep_alive(server: Duration, ours: Duration) -> Duration {
    if server.is_zero() { ours } else { server.min(ours) }
}

/// The beginning of a text whose length the broker may have chosen.
pub fn quoted(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn violation(what: &str) -> Disconnect {
    Disconnect {
        kind: "protocol".into(),
        text: format!("the broker broke the protocol: {what}; is it a broker?"),
        unreadable: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(window: usize, packet: usize) -> PublishLimits {
        PublishLimits { packet, window }
    }

    #[test]
    fn a_usual_broker_is_accepted() {
        let mut guard = ProtocolGuard::default();
        assert_eq!(guard.connack(limits(20, 1000)), Ok(()));
        for _ in 0..3 * MAX_UNACKNOWLEDGED {
            assert_eq!(guard.message(true, None), Ok(()));
            guard.acknowledged();
            assert_eq!(guard.message(false, None), Ok(()));
        }
    }

    #[test]
    fn a_second_connack_ends_the_connection() {
        let mut guard = ProtocolGuard::default();
        assert_eq!(guard.connack(limits(20, 1000)), Ok(()));
        let text = guard.connack(limits(20, 1000)).expect_err("a second").text;
        assert!(text.contains("CONNACK"), "{text}");
    }

    #[test]
    fn a_broker_with_limits_of_zero_is_rejected() {
        assert!(ProtocolGuard::default().connack(limits(0, 1000)).is_err());
        assert!(ProtocolGuard::default().connack(limits(20, 0)).is_err());
    }

    #[test]
    fn an_alias_ends_the_connection() {
        assert!(ProtocolGuard::default().message(false, Some(1)).is_err());
    }

    #[test]
    fn more_unacknowledged_messages_than_packet_ids_end_the_connection() {
        let mut guard = ProtocolGuard::default();
        assert!((0..MAX_UNACKNOWLEDGED).all(|_| guard.message(true, None).is_ok()));
        assert!(guard.message(true, None).is_err());
    }

    #[test]
    fn pings_are_at_least_as_frequent_as_ours_and_never_without_a_pause() {
        let ours = Duration::from_secs(30);
        let seconds = |server| keep_alive(Duration::from_secs(server), ours).as_secs();
        assert_eq!([seconds(0), seconds(10), seconds(30), seconds(65_535)], [30, 10, 30, 30]);
    }

    #[test]
    fn long_texts_of_the_broker_are_cut_between_characters() {
        assert_eq!(quoted("short"), "short");
        assert_eq!(quoted(&"ü".repeat(1000)).chars().count(), MAX_QUOTED + 1);
    }
}
