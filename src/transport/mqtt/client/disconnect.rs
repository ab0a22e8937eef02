//! Sorts what ends a connection: what it is for the log, whether the session is poisoned, and the way out for
//! the owner.

use super::{CONNECT_LIMIT, MAX_PACKET, tls};
use crate::config::{Mqtt, MqttVersion};
use crate::transport::mqtt::link::Loss;
use crate::transport::mqtt::protocol_limits::quoted;
use std::io::{self, ErrorKind};

/// What ended a connection, in either version.
#[derive(Debug)]
pub enum Trouble {
    Timeout,
    Silence,
    Closed,
    Io(io::Error),
    /// The broker said why: the kind, and what it means.
    Refused(String, String),
    /// Bytes that are no packet, or one that is too large.
    Unreadable(String),
    Other(String),
}

/// What the way out depends on.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances {
    version: MqttVersion,
    encrypted: bool,
    /// Whether we show a certificate of our own.
    certified: bool,
    /// Whether the broker has accepted us.
    pub welcomed: bool,
}

/// What the MQTT library says of TLS: nearly always an I/O error with the real one in it.
pub fn in_tls(error: rumqttc::TlsError) -> Trouble {
    match error {
        rumqttc::TlsError::Io(error) => Trouble::Io(error),
        rumqttc::TlsError::TLS(error) => Trouble::Io(io::Error::new(ErrorKind::InvalidData, error)),
        rumqttc::TlsError::DNSName(_) => {
            Trouble::Refused("host name".into(), "mqtt.host is no name that a certificate can have".into())
        }
        other => Trouble::Other(other.to_string()),
    }
}

impl Circumstances {
    pub fn of(config: &Mqtt) -> Self {
        let certified = config.tls.as_ref().is_some_and(|tls| tls.client.is_some());
        let encrypted = config.tls.is_some();
        Circumstances { version: config.version, encrypted, certified, welcomed: false }
    }

    /// The trouble as the link knows it.
    pub fn loss(self, trouble: Trouble) -> Loss {
        let unreadable = self.welcomed && matches!(trouble, Trouble::Unreadable(_));
        let (kind, text) = match trouble {
            Trouble::Timeout => {
                let said = format!("no answer within {CONNECT_LIMIT} s; is mqtt.host right?");
                ("timeout".into(), said)
            }
            Trouble::Silence => ("silence".into(), "no answer to a ping".into()),
            Trouble::Closed if self.welcomed => ("closed".into(), "the broker closed the connection".into()),
            Trouble::Closed => ("closed".into(), self.misunderstood("the broker hung up without an answer")),
            Trouble::Io(error) => self.io(&error),
            Trouble::Refused(kind, text) => (kind, text),
            Trouble::Unreadable(said) if self.welcomed => ("unreadable".into(), poisoned(&quoted(&said))),
            // No packet that is kept for us: it will not come again with the session.
            Trouble::Unreadable(said) => {
                let said = format!("what answers is no MQTT broker ({})", quoted(&said));
                ("no broker".into(), self.misunderstood(&said))
            }
            Trouble::Other(said) => ("other".into(), quoted(&said)),
        };
        Loss { kind, text, unreadable }
    }

    fn io(self, error: &io::Error) -> (String, String) {
        if let Some(error) = tls::inside(error) {
            return (format!("tls: {error}"), tls::complaint(error, self.certified));
        }
        let kind = format!("{:?}", error.kind());
        let text = match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset if !self.welcomed => {
                self.misunderstood("the broker hung up without an answer")
            }
            _ if self.welcomed => error.to_string(),
            _ => format!("{error}; see mqtt.host and mqtt.port"),
        };
        (kind, text)
    }

    /// Nobody hangs up on a CONNECT that he understands.
    fn misunderstood(self, what: &str) -> String {
        let version = match self.version {
            MqttVersion::V5 => "5 (a broker may speak \"3.1.1\" only)",
            MqttVersion::V311 => "\"3.1.1\"",
        };
        let tls = self.encrypted;
        format!("{what}; does it fit mqtt.port that tls = {tls} and version = {version}?")
    }
}

fn poisoned(said: &str) -> String {
    format!(
        "a packet cannot be read ({said}); if it comes thrice in a row the session is begun anew, \
         without the prompts that wait in it; limit message sizes at the broker to {MAX_PACKET} bytes"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circumstances(welcomed: bool) -> Circumstances {
        Circumstances { welcomed, ..Circumstances::of(&Mqtt::new("b", 1883)) }
    }

    #[test]
    fn bytes_that_are_no_packet_poison_a_session_only_once_there_is_one() {
        let trouble = || Trouble::Unreadable("bad".into());
        assert!(circumstances(true).loss(trouble()).unreadable);
        let before = circumstances(false).loss(trouble());
        assert!(!before.unreadable && before.text.contains("tls = false"), "{before:?}");
    }

    #[test]
    fn who_hangs_up_on_the_first_word_may_speak_something_else() {
        let said = circumstances(false).loss(Trouble::Closed).text;
        assert!(said.contains("mqtt.port") && said.contains("version = 5"), "{said}");
        let later = circumstances(true).loss(Trouble::Closed).text;
        assert!(!later.contains("version"), "{later}");
    }

    #[test]
    fn a_refused_connection_names_the_keys_of_the_place() {
        let refused = io::Error::from(ErrorKind::ConnectionRefused);
        let said = circumstances(false).loss(Trouble::Io(refused)).text;
        assert!(said.contains("mqtt.host") && said.contains("mqtt.port"), "{said}");
    }
}
