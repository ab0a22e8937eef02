//! The only user of rumqttc: one connection, from CONNECT to its end, as values of ours, in MQTT 5
//! or 3.1.1.
//!
//! A [`Connection`] is thrown away when it ends and never reconnects by itself. rumqttc would
//! publish again what it had on its way, and over one packet that the broker refuses it does so
//! for ever; our outbox is the only memory. Its `poll` must not be dropped half-way (a packet
//! could be lost), so the future is kept between calls of [`Connection::next`].
//!
//! Deliberately knows nothing of what a message says, nor when to connect again.

mod credentials;
mod disconnect;
mod event;
mod options;
mod probe;
mod tls;
mod v311;
mod v5;
mod version;

pub use event::{BrokerInfo, ConnectionEvent, SubAcks};
pub use options::Identity;
pub use probe::{BrokerLimits, ProbeReport, probe};

use super::link::{Connect, Disconnect};
use super::protocol_limits::ProtocolGuard;
use super::topics::TopicFilter;
use crate::transport::mqtt::message::OutgoingMessage;
use disconnect::ErrorContext;
use event::RawEvent;
use options::ConnectOptions;
use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::time::Instant;
use version::{Client, PollResult, poll};

/// One connection.
pub(super) struct Connection {
    client: Client,
    polling: Pin<Box<dyn Future<Output = PollResult> + Send>>,
    circumstances: ErrorContext,
    /// Rows handed to rumqttc that have no packet id yet, in order.
    awaiting_packet_id: VecDeque<u64>,
    /// Rows on their way, by packet id.
    in_flight: HashMap<u16, u64>,
    protocol_guard: ProtocolGuard,
    /// How many filters of each kind were asked for, in this order: our own, Home Assistant's, the group's.
    filter_counts: [usize; 3],
}

impl Connection {
    /// Begins to connect; [`Connection::next`] tells how it went.
    pub fn open(who: &Identity, how: Connect) -> Result<Self, Disconnect> {
        let options = ConnectOptions::new(who.config, format!("bitnetd-{}", who.device))?;
        let (client, eventloop) = version::session_connection(options, who, how);
        Ok(Connection {
            client,
            polling: Box::pin(poll(eventloop)),
            circumstances: ErrorContext::of(who.config),
            awaiting_packet_id: VecDeque::new(),
            in_flight: HashMap::new(),
            protocol_guard: ProtocolGuard::default(),
            filter_counts: [0; 3],
        })
    }

    /// Waits for what happens next. May be dropped and called again; not after an error.
    pub async fn next(&mut self) -> Result<ConnectionEvent, Disconnect> {
        let (eventloop, event) = (&mut self.polling).await;
        self.polling = Box::pin(poll(eventloop));
        let seen = event.map_err(|error| self.circumstances.disconnect(error))?;
        self.check_protocol(&seen)?;
        Ok(self.to_connection_event(seen))
    }

    /// Asks for our own topics, Home Assistant's and the group's, once on a connection. `false`: no room now.
    pub fn subscribe(&mut self, filters: [Vec<TopicFilter>; 3]) -> bool {
        self.filter_counts = filters.each_ref().map(Vec::len);
        self.client.subscribe(filters.into_iter().flatten())
    }

    /// Gives a subscription up. `false`: no room now.
    pub fn unsubscribe(&self, filter: &str) -> bool {
        self.client.unsubscribe(filter)
    }

    /// Publishes a row at QoS 1. `false`: no room now.
    pub fn publish(&mut self, entry: u64, packet: &OutgoingMessage, now: Instant) -> bool {
        let is_accepted = self.client.publish(packet, true, now);
        if is_accepted {
            self.awaiting_packet_id.push_back(entry);
        }
        is_accepted
    }

    /// Publishes at QoS 0, where there is room.
    pub fn publish_at_qos_0(&self, packet: &OutgoingMessage, now: Instant) {
        let _ = self.client.publish(packet, false, now);
    }

    /// Acknowledges a message. `false`: no room now.
    pub fn acknowledge(&mut self, packet: u16) -> bool {
        let is_accepted = self.client.acknowledge(packet);
        if is_accepted {
            self.protocol_guard.acknowledged();
        }
        is_accepted
    }

    /// Says goodbye, so that the broker does not publish the last will. `false`: no room now.
    pub fn disconnect(&self) -> bool {
        self.client.disconnect()
    }

    /// Whether the broker may do this.
    fn check_protocol(&mut self, seen: &RawEvent) -> Result<(), Disconnect> {
        match seen {
            RawEvent::Connected(BrokerInfo { limits, .. }) => self.protocol_guard.connack(*limits),
            RawEvent::Message(message, alias) => {
                self.protocol_guard.message(message.packet.is_some(), *alias)
            }
            _ => Ok(()),
        }
    }

    fn to_connection_event(&mut self, seen: RawEvent) -> ConnectionEvent {
        match seen {
            RawEvent::Connected(broker) => {
                self.circumstances.is_connected = true;
                ConnectionEvent::Connected(broker)
            }
            RawEvent::SubAck(reasons) => ConnectionEvent::SubAck(self.granted(reasons)),
            RawEvent::Message(message, _) => ConnectionEvent::Message(message),
            RawEvent::PubAck(packet, result) => match self.in_flight.remove(&packet) {
                Some(entry) => ConnectionEvent::PubAck(entry, result),
                None => ConnectionEvent::Other,
            },
            RawEvent::Published(packet) => self.published(packet),
            RawEvent::DisconnectSent => ConnectionEvent::DisconnectSent,
            RawEvent::Other => ConnectionEvent::Other,
        }
    }

    fn granted(&self, mut reasons: Vec<Result<(), String>>) -> SubAcks {
        let [own, home, _] = self.filter_counts;
        let group = reasons.split_off((own + home).min(reasons.len()));
        let home = reasons.split_off(own.min(reasons.len()));
        let all = |reasons: Vec<Result<(), String>>| reasons.into_iter().collect();
        let asked = |reasons: Vec<_>| (!reasons.is_empty()).then(|| all(reasons));
        SubAcks { homeassistant: asked(home), group: asked(group), own: all(reasons) }
    }

    /// rumqttc gives packet ids in the order in which it was handed the rows; QoS 0 gets 0.
    fn published(&mut self, packet: u16) -> ConnectionEvent {
        if packet != 0
            && let Some(entry) = self.awaiting_packet_id.pop_front()
        {
            self.in_flight.insert(packet, entry);
        }
        ConnectionEvent::Other
    }
}
