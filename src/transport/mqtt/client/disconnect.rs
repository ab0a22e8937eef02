//! Explains why a connection ended or could not be made: its kind for the log, whether the broker would send the
//! same unreadable packet again, and what the owner can do.

use super::options::{CONNECT_TIMEOUT_S, MAX_PACKET};
use super::tls;
use crate::config::{Mqtt, MqttVersion};
use crate::transport::mqtt::link::{Disconnect, OVERSIZED};
use crate::transport::mqtt::protocol_limits::quoted;
use std::io::{self, ErrorKind};

/// Why a connection ended, in both protocol versions.
#[derive(Debug)]
pub enum ConnectError {
    Timeout,
    Silence,
    Closed,
    Io(io::Error),
    /// The broker gave a reason: its kind, and its meaning.
    Refused(String, String),
    /// Bytes that are no packet, or a packet that is too large for an MQTT 5 client that named its maximum.
    Unreadable(String),
    /// An MQTT 3.1.1 message that is too large: its size in bytes without the fixed header.
    Oversized(usize),
    Other(String),
}

/// What the advice depends on.
#[derive(Debug, Clone, Copy)]
pub struct ErrorContext {
    version: MqttVersion,
    is_encrypted: bool,
    /// Whether the daemon presents a certificate.
    has_client_certificate: bool,
    /// Whether the broker has accepted the connection.
    pub is_connected: bool,
}

/// A TLS error of the library: nearly always an I/O error that contains the actual one.
pub fn from_tls(error: rumqttc::TlsError) -> ConnectError {
    match error {
        rumqttc::TlsError::Io(error) => ConnectError::Io(error),
        rumqttc::TlsError::TLS(error) => ConnectError::Io(io::Error::new(ErrorKind::InvalidData, error)),
        rumqttc::TlsError::DNSName(_) => ConnectError::Refused(
            "host name".into(),
            "mqtt.host is no name that a certificate can have".into(),
        ),
        other => ConnectError::Other(other.to_string()),
    }
}

impl ErrorContext {
    /// The context of a connection by this configuration, before the CONNACK.
    pub fn of(config: &Mqtt) -> Self {
        let certified = config.tls.as_ref().is_some_and(|tls| tls.client.is_some());
        let encrypted = config.tls.is_some();
        ErrorContext {
            version: config.version,
            is_encrypted: encrypted,
            has_client_certificate: certified,
            is_connected: false,
        }
    }

    /// The error as the link records it.
    pub fn disconnect(self, cause: ConnectError) -> Disconnect {
        let unreadable =
            self.is_connected && matches!(cause, ConnectError::Unreadable(_) | ConnectError::Oversized(_));
        let (kind, text) = match cause {
            ConnectError::Timeout => {
                let message = format!("no answer within {CONNECT_TIMEOUT_S} s; is mqtt.host right?");
                ("timeout".into(), message)
            }
            ConnectError::Silence => ("silence".into(), "no answer to a ping".into()),
            ConnectError::Closed if self.is_connected => {
                ("closed".into(), "the broker closed the connection".into())
            }
            ConnectError::Closed => {
                ("closed".into(), self.mismatch_hint("the broker hung up without an answer"))
            }
            ConnectError::Io(error) => self.io_error(&error),
            ConnectError::Refused(kind, text) => (kind, text),
            ConnectError::Unreadable(message) if self.is_connected => {
                ("unreadable".into(), unreadable_packet_text(&quoted(&message)))
            }
            ConnectError::Oversized(bytes) if self.is_connected => (
                OVERSIZED.into(),
                format!(
                    "a message of {bytes} bytes is too large; it is refused at the next connect; limit message sizes at \
                     the broker to {MAX_PACKET} bytes"
                ),
            ),
            ConnectError::Oversized(bytes) => {
                return self.disconnect(ConnectError::Unreadable(format!("a packet of {bytes} bytes")));
            }
            // Not a packet of the session: it will not be delivered again.
            ConnectError::Unreadable(message) => {
                let message = format!("what answers is no MQTT broker ({})", quoted(&message));
                ("no broker".into(), self.mismatch_hint(&message))
            }
            ConnectError::Other(message) => ("other".into(), quoted(&message)),
        };
        Disconnect { kind, text, unreadable }
    }

    fn io_error(self, error: &io::Error) -> (String, String) {
        if let Some(error) = tls::tls_error_in(error) {
            return (format!("tls: {error}"), tls::explain(error, self.has_client_certificate));
        }
        let kind = format!("{:?}", error.kind());
        let text = match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset if !self.is_connected => {
                self.mismatch_hint("the broker hung up without an answer")
            }
            _ if self.is_connected => error.to_string(),
            _ => format!("{error}; see mqtt.host and mqtt.port"),
        };
        (kind, text)
    }

    /// A broker closes the connection without an answer only where it does not understand the CONNECT.
    fn mismatch_hint(self, what: &str) -> String {
        let version = match self.version {
            MqttVersion::V5 => "5 (a broker may speak \"3.1.1\" only)",
            MqttVersion::V311 => "\"3.1.1\"",
        };
        let tls = self.is_encrypted;
        format!("{what}; does it fit mqtt.port that tls = {tls} and version = {version}?")
    }
}

fn unreadable_packet_text(text: &str) -> String {
    format!(
        "a packet cannot be read ({text}); if it comes thrice in a row the session is begun anew, \
         without the prompts that wait in it; limit message sizes at the broker to {MAX_PACKET} bytes"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circumstances(welcomed: bool) -> ErrorContext {
        ErrorContext { is_connected: welcomed, ..ErrorContext::of(&Mqtt::new("b", 1883)) }
    }

    #[test]
    fn unreadable_bytes_count_against_the_session_only_after_the_connack() {
        let trouble = || ConnectError::Unreadable("bad".into());
        assert!(circumstances(true).disconnect(trouble()).unreadable);
        let before = circumstances(false).disconnect(trouble());
        assert!(!before.unreadable && before.text.contains("tls = false"), "{before:?}");
    }

    #[test]
    fn a_broker_that_closes_before_the_connack_may_speak_another_protocol() {
        let text = circumstances(false).disconnect(ConnectError::Closed).text;
        assert!(text.contains("mqtt.port") && text.contains("version = 5"), "{text}");
        let later = circumstances(true).disconnect(ConnectError::Closed).text;
        assert!(!later.contains("version"), "{later}");
    }

    #[test]
    fn a_refused_connection_names_the_keys_of_host_and_port() {
        let refused = io::Error::from(ErrorKind::ConnectionRefused);
        let text = circumstances(false).disconnect(ConnectError::Io(refused)).text;
        assert!(text.contains("mqtt.host") && text.contains("mqtt.port"), "{text}");
    }
}
