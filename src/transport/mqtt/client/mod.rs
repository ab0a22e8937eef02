//! The only user of rumqttc: one connection, from CONNECT to its end, in MQTT 5 or 3.1.1, with events and errors
//! of its own types.
//!
//! A [`Connection`] is dropped when it ends and never reconnects by itself. rumqttc would publish again what it had
//! in flight, and over one message that the broker rejects it would do so for ever; the outbox is the only memory
//! of outgoing messages. rumqttc's `poll` must not be dropped half-way (a packet could be lost), so its future is
//! kept between calls of [`Connection::next`].
//!
//! Deliberately knows nothing of what a message means, nor of when to connect again.

mod credentials;
mod disconnect;
mod event;
mod options;
mod oversized;
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
use crate::transport::mqtt::message::{IncomingMessage, OutgoingMessage};
use disconnect::ErrorContext;
use event::RawEvent;
use options::ConnectOptions;
use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::time::Instant;
use tokio::sync::mpsc;
use version::{Client, PollResult, poll};

/// One connection to the broker.
pub(super) struct Connection {
    client: Client,
    polling: Pin<Box<dyn Future<Output = PollResult> + Send>>,
    error_context: ErrorContext,
    /// Messages that were too large and are no longer in the session.
    taken: mpsc::UnboundedReceiver<IncomingMessage>,
    /// Outbox entries that rumqttc has not yet given a packet identifier, in order.
    awaiting_packet_id: VecDeque<u64>,
    /// Outbox entries in flight, by packet identifier.
    in_flight: HashMap<u16, u64>,
    protocol_guard: ProtocolGuard,
    /// What the SUBSCRIBE contained, to assign the reasons of the SUBACK.
    filter_counts: FilterCounts,
}

/// The topic filters of one SUBSCRIBE.
#[derive(Debug, Default)]
pub struct SubscriptionFilters {
    /// Of the device's own topics.
    pub own: Vec<TopicFilter>,
    /// Of Home Assistant's birth topics.
    pub homeassistant: Vec<TopicFilter>,
    /// Of the descriptions of the home's devices.
    pub home: Vec<TopicFilter>,
    /// Of the group's topics.
    pub group: Vec<TopicFilter>,
}

/// How many filters of each kind a SUBSCRIBE contained; the rest are the group's.
#[derive(Debug, Clone, Copy, Default)]
struct FilterCounts {
    own: usize,
    homeassistant: usize,
    home: usize,
}

impl Connection {
    /// Begins to connect; [`Connection::next`] returns the outcome.
    pub fn open(who: &Identity, how: Connect) -> Result<Self, Disconnect> {
        let options = || ConnectOptions::new(who.config, format!("bitnetd-{}", who.device));
        let oversized = if how.take_oversized { Some(options()?) } else { None };
        let (client, eventloop) = version::session_connection(options()?, who, how);
        let (sender, taken) = mpsc::unbounded_channel();
        let polling = async move {
            if let Some(options) = oversized {
                for message in oversized::take_oversized(options).await {
                    // The receiver is dropped with this future.
                    let _ = sender.send(message);
                }
            }
            poll(eventloop).await
        };
        Ok(Connection {
            client,
            polling: Box::pin(polling),
            taken,
            error_context: ErrorContext::of(who.config),
            awaiting_packet_id: VecDeque::new(),
            in_flight: HashMap::new(),
            protocol_guard: ProtocolGuard::default(),
            filter_counts: FilterCounts::default(),
        })
    }

    /// Waits for the next event. May be dropped and called again, but not after an error.
    pub async fn next(&mut self) -> Result<ConnectionEvent, Disconnect> {
        let (eventloop, event) = tokio::select! {
            // First, so that none is lost where the connection fails.
            biased;
            Some(message) = self.taken.recv() => return Ok(ConnectionEvent::Message(message)),
            polled = &mut self.polling => polled,
        };
        self.polling = Box::pin(poll(eventloop));
        let event = event.map_err(|error| self.error_context.disconnect(error))?;
        self.check_protocol(&event)?;
        Ok(self.handle_raw_event(event))
    }

    /// Subscribes to the device's own topics, Home Assistant's, the home's and the group's, in one SUBSCRIBE. `false`
    /// where the request channel is full.
    pub fn subscribe(&mut self, filters: SubscriptionFilters) -> bool {
        let SubscriptionFilters { own, homeassistant, home, group } = filters;
        self.filter_counts =
            FilterCounts { own: own.len(), homeassistant: homeassistant.len(), home: home.len() };
        self.client.subscribe([own, homeassistant, home, group].into_iter().flatten())
    }

    /// Unsubscribes from one filter. `false` where the request channel is full.
    pub fn unsubscribe(&self, filter: &str) -> bool {
        self.client.unsubscribe(filter)
    }

    /// Publishes an outbox entry at QoS 1. `false` where the request channel is full.
    pub fn publish(&mut self, entry: u64, packet: &OutgoingMessage, now: Instant) -> bool {
        let is_accepted = self.client.publish(packet, true, now);
        if is_accepted {
            self.awaiting_packet_id.push_back(entry);
        }
        is_accepted
    }

    /// Publishes at QoS 0; the message is dropped where the request channel is full.
    pub fn publish_at_qos_0(&self, packet: &OutgoingMessage, now: Instant) {
        let _ = self.try_publish_at_qos_0(packet, now);
    }

    /// Publishes at QoS 0. `false` where the request channel is full.
    pub fn try_publish_at_qos_0(&self, packet: &OutgoingMessage, now: Instant) -> bool {
        self.client.publish(packet, false, now)
    }

    /// Sends the PUBACK of a received message. `false` where the request channel is full.
    pub fn acknowledge(&mut self, packet: u16) -> bool {
        let is_accepted = self.client.acknowledge(packet);
        if is_accepted {
            self.protocol_guard.acknowledged();
        }
        is_accepted
    }

    /// Sends a DISCONNECT, so that the broker does not publish the last will. `false` where the request channel is
    /// full.
    pub fn disconnect(&self) -> bool {
        self.client.disconnect()
    }

    /// Checks whether the protocol allows the broker to send this.
    fn check_protocol(&mut self, event: &RawEvent) -> Result<(), Disconnect> {
        match event {
            RawEvent::Connected(BrokerInfo { limits, .. }) => self.protocol_guard.connack(*limits),
            RawEvent::Message(message, alias) => {
                self.protocol_guard.message(message.packet.is_some(), *alias)
            }
            _ => Ok(()),
        }
    }

    fn handle_raw_event(&mut self, event: RawEvent) -> ConnectionEvent {
        match event {
            RawEvent::Connected(broker) => {
                self.error_context.is_connected = true;
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
        let FilterCounts { own, homeassistant, home } = self.filter_counts;
        let group = reasons.split_off((own + homeassistant + home).min(reasons.len()));
        let home = reasons.split_off((own + homeassistant).min(reasons.len()));
        let homeassistant = reasons.split_off(own.min(reasons.len()));
        let all = |reasons: Vec<Result<(), String>>| reasons.into_iter().collect();
        let asked = |reasons: Vec<_>| (!reasons.is_empty()).then(|| all(reasons));
        SubAcks {
            homeassistant: asked(homeassistant),
            home: asked(home),
            group: asked(group),
            own: all(reasons),
        }
    }

    /// rumqttc assigns packet identifiers in the order in which it receives the messages; at QoS 0 the identifier
    /// is 0.
    fn published(&mut self, packet: u16) -> ConnectionEvent {
        if packet != 0
            && let Some(entry) = self.awaiting_packet_id.pop_front()
        {
            self.in_flight.insert(packet, entry);
        }
        ConnectionEvent::Other
    }
}
