//! What happens on a connection, in the terms of MQTT rather than of the library, for both protocol versions.

use crate::transport::mqtt::message::{IncomingMessage, PublishLimits};
use std::time::Duration;

/// What happened on a connection.
#[derive(Debug, PartialEq)]
pub enum ConnectionEvent {
    /// The broker accepted us.
    Connected(BrokerInfo),
    /// What it granted.
    SubAck(SubAcks),
    /// A message came.
    Message(IncomingMessage),
    /// The broker has the row, or refused it with a reason.
    PubAck(u64, Result<(), String>),
    /// The goodbye is written.
    DisconnectSent,
    /// Only a sign of life, or room for the next request.
    Other,
}

/// Subscriptions granted, or refused with the reason.
#[derive(Debug, PartialEq, Eq)]
pub struct SubAcks {
    /// To our own topics.
    pub own: Result<(), String>,
    /// To Home Assistant's birth, where that was asked for.
    pub homeassistant: Option<Result<(), String>>,
    /// To the group's, where they were asked for.
    pub group: Option<Result<(), String>>,
}

/// What the broker said of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BrokerInfo {
    pub session_present: bool,
    /// The session ends with this connection: what MQTT 3.1.1 makes of a clean one.
    pub is_clean_session: bool,
    pub has_retained_messages: bool,
    /// Highest quality of service.
    pub max_qos: u8,
    /// Whether it has shared subscriptions, as far as it says.
    pub has_shared_subscriptions: bool,
    /// Time to the first ping.
    pub first_ping: Duration,
    pub limits: PublishLimits,
}

/// What rumqttc saw or did, the same in both versions.
pub enum RawEvent {
    Connected(BrokerInfo),
    /// A reason for each filter that was refused.
    SubAck(Vec<Result<(), String>>),
    /// With the Topic Alias it came under.
    Message(IncomingMessage, Option<u16>),
    PubAck(u16, Result<(), String>),
    /// A publish went out under this packet id, 0 at QoS 0.
    Published(u16),
    DisconnectSent,
    Other,
}
