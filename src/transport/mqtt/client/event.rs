//! What happens on a connection, in the terms of MQTT, for both protocol versions.
//!
//! Plain data. Deliberately knows nothing of the MQTT library.

use crate::transport::mqtt::message::{IncomingMessage, PublishLimits};
use std::time::Duration;

/// What happened on a connection.
#[derive(Debug, PartialEq)]
pub enum ConnectionEvent {
    /// The broker accepted the connection (CONNACK).
    Connected(BrokerInfo),
    /// The subscriptions it granted.
    SubAck(SubAcks),
    /// A PUBLISH was received.
    Message(IncomingMessage),
    /// The broker has this outbox entry, or refused it for this reason.
    PubAck(u64, Result<(), String>),
    /// The DISCONNECT is written.
    DisconnectSent,
    /// Anything else: the connection is alive, and the request channel may have free capacity again.
    Other,
}

/// Subscriptions granted, or refused with the reason.
#[derive(Debug, PartialEq, Eq)]
pub struct SubAcks {
    /// Those to the device's own topics.
    pub own: Result<(), String>,
    /// Those to Home Assistant's birth topics, where they were requested.
    pub homeassistant: Option<Result<(), String>>,
    /// Those to the descriptions of the home's devices, where they were requested.
    pub home: Option<Result<(), String>>,
    /// Those to the group's topics, where they were requested.
    pub group: Option<Result<(), String>>,
}

/// What the broker's CONNACK says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BrokerInfo {
    /// It resumed the session of the device.
    pub session_present: bool,
    /// The session ends with this connection: the meaning of Clean Session in MQTT 3.1.1.
    pub is_clean_session: bool,
    /// It supports retained messages, as far as it says.
    pub has_retained_messages: bool,
    /// Maximum QoS.
    pub max_qos: u8,
    /// It supports shared subscriptions, as far as it says.
    pub has_shared_subscriptions: bool,
    /// Time to the first ping.
    pub first_ping: Duration,
    /// Limits of the messages published to it.
    pub limits: PublishLimits,
}

/// What rumqttc received or did.
pub enum RawEvent {
    /// A CONNACK was received.
    Connected(BrokerInfo),
    /// A SUBACK: for each filter whether it was granted, or the reason why not.
    SubAck(Vec<Result<(), String>>),
    /// A PUBLISH, with the Topic Alias it contained.
    Message(IncomingMessage, Option<u16>),
    /// A PUBACK for this packet identifier, or the reason why the message was refused.
    PubAck(u16, Result<(), String>),
    /// A PUBLISH was sent with this packet identifier, 0 at QoS 0.
    Published(u16),
    /// A DISCONNECT was sent.
    DisconnectSent,
    /// Anything else.
    Other,
}
