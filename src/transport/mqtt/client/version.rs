//! One client handle and one event loop for both protocol versions, MQTT 5 and 3.1.1.
//!
//! Deliberately only forwards to `v5` and `v311`.

use super::disconnect::ConnectError;
use super::event::RawEvent;
use super::options::{ConnectOptions, Identity};
use super::{v5, v311};
use crate::config::MqttVersion;
use crate::transport::mqtt::link::Connect;
use crate::transport::mqtt::message::OutgoingMessage;
use crate::transport::mqtt::topics::TopicFilter;
use std::time::Instant;

/// The event loop, given back for the next call of [`poll`], and what happened.
pub type PollResult = (LibraryEventLoop, Result<RawEvent, ConnectError>);

/// Hands requests to the event loop, through a bounded channel of [`super::options::REQUEST_CHANNEL_CAPACITY`]. Each
/// method returns `false` where the channel is full; the request may be made again later.
pub enum Client {
    /// MQTT 5.
    V5(rumqttc::v5::AsyncClient),
    /// MQTT 3.1.1.
    V311(rumqttc::AsyncClient),
}

/// rumqttc's event loop of one connection.
pub enum LibraryEventLoop {
    /// MQTT 5.
    V5(Box<rumqttc::v5::EventLoop>),
    /// MQTT 3.1.1.
    V311(Box<rumqttc::EventLoop>),
}

/// A connection with the session that the broker keeps for the device.
pub fn session_connection(
    options: ConnectOptions,
    who: &Identity,
    how: Connect,
) -> (Client, LibraryEventLoop) {
    match who.config.version {
        MqttVersion::V5 => of_v5(v5::session_connection(options, who, how)),
        MqttVersion::V311 => of_v311(v311::session_connection(options, who, how)),
    }
}

/// A connection that leaves no session at the broker.
pub fn clean_connection(options: ConnectOptions, version: MqttVersion) -> (Client, LibraryEventLoop) {
    match version {
        MqttVersion::V5 => of_v5(v5::clean_connection(options)),
        MqttVersion::V311 => of_v311(v311::clean_connection(options)),
    }
}

fn of_v5(
    (client, eventloop): (rumqttc::v5::AsyncClient, rumqttc::v5::EventLoop),
) -> (Client, LibraryEventLoop) {
    (Client::V5(client), LibraryEventLoop::V5(Box::new(eventloop)))
}

fn of_v311((client, eventloop): (rumqttc::AsyncClient, rumqttc::EventLoop)) -> (Client, LibraryEventLoop) {
    (Client::V311(client), LibraryEventLoop::V311(Box::new(eventloop)))
}

impl Client {
    /// Subscribes to all filters in one SUBSCRIBE packet.
    pub fn subscribe(&self, filters: impl Iterator<Item = TopicFilter>) -> bool {
        match self {
            Client::V5(client) => client.try_subscribe_many(filters.map(v5::subscribe_filter)).is_ok(),
            Client::V311(client) => client.try_subscribe_many(filters.map(v311::subscribe_filter)).is_ok(),
        }
    }

    /// Unsubscribes from one filter.
    pub fn unsubscribe(&self, filter: &str) -> bool {
        match self {
            Client::V5(client) => client.try_unsubscribe(filter).is_ok(),
            Client::V311(client) => client.try_unsubscribe(filter).is_ok(),
        }
    }

    /// Publishes at QoS 1 or 0.
    pub fn publish(&self, message: &OutgoingMessage, is_qos_1: bool, now: Instant) -> bool {
        match self {
            Client::V5(client) => v5::publish(client, message, is_qos_1, now),
            Client::V311(client) => v311::publish(client, message, is_qos_1),
        }
    }

    /// Sends the PUBACK of a received message.
    pub fn acknowledge(&self, packet: u16) -> bool {
        match self {
            Client::V5(client) => v5::acknowledge(client, packet),
            Client::V311(client) => v311::acknowledge(client, packet),
        }
    }

    /// Sends a DISCONNECT.
    pub fn disconnect(&self) -> bool {
        match self {
            Client::V5(client) => client.try_disconnect().is_ok(),
            Client::V311(client) => client.try_disconnect().is_ok(),
        }
    }
}

/// Waits for what happens next on the connection. Not to be dropped half-way: a packet could be lost.
pub async fn poll(mut eventloop: LibraryEventLoop) -> PollResult {
    let event = match &mut eventloop {
        LibraryEventLoop::V5(eventloop) => v5::poll(eventloop).await,
        LibraryEventLoop::V311(eventloop) => v311::poll(eventloop).await,
    };
    (eventloop, event)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mqtt;
    use crate::transport::mqtt::client::options::CONNECT_TIMEOUT_S;

    #[test]
    fn both_versions_give_up_connecting_at_the_same_time() {
        let plan = || ConnectOptions::new(&Mqtt::new("b", 1883), "id".into()).expect("no files to read");
        let (_, five) = clean_connection(plan(), MqttVersion::V5);
        let (_, older) = clean_connection(plan(), MqttVersion::V311);
        for eventloop in [five, older] {
            let limit = match eventloop {
                LibraryEventLoop::V5(eventloop) => eventloop.options.connection_timeout(),
                LibraryEventLoop::V311(eventloop) => eventloop.network_options().connection_timeout(),
            };
            assert_eq!(limit, CONNECT_TIMEOUT_S);
        }
    }
}
