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
mod probe;
mod tls;
mod v311;
mod v5;

pub use probe::{BrokerLimits, ProbeReport, probe};

use super::link::{Connect, Disconnect};
use super::protocol_limits::ProtocolGuard;
use super::topics::{TopicFilter, Topics};
use crate::config::{Mqtt, MqttVersion};
use crate::transport::mqtt::delivery::outbox::{MAX_IN_FLIGHT, OutgoingMessage, PublishLimits};
use disconnect::{ConnectError, ErrorContext};
use rumqttc::{NetworkOptions, Transport};
use std::collections::{HashMap, VecDeque};
use std::net::Ipv6Addr;
use std::pin::Pin;
use std::time::{Duration, Instant};

/// Largest packet we take. Above the largest request, so that what is too long gets an answer:
/// a broker silently drops what exceeds this, and mosquitto (2.0.11 to 2.1.2) then never uses
/// that place of our Receive Maximum again.
const MAX_PACKET: u32 = 1 << 20;
/// A vanished broker is noticed within two of these.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Seconds for TCP, TLS and CONNACK together: a CONNACK of 16 bytes over a line of a byte a second.
const CONNECT_TIMEOUT_S: u64 = 20;
/// For rumqttc's table of publishes on their way, which by default takes 14 MB.
const INFLIGHT: u16 = 2 * MAX_IN_FLIGHT as u16;
/// Requests between us and rumqttc's event loop; what does not fit is offered again.
const REQUEST_CHANNEL_CAPACITY: usize = 64;
/// Longest password file, in bytes.
const MAX_PASSWORD: usize = 4096;

type PollResult = (LibraryEventLoop, Result<RawEvent, ConnectError>);

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

/// What happened on a connection.
#[derive(Debug, PartialEq)]
pub(super) enum ConnectionEvent {
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
pub(super) struct SubAcks {
    /// To our own topics.
    pub own: Result<(), String>,
    /// To Home Assistant's birth, where that was asked for.
    pub homeassistant: Option<Result<(), String>>,
    /// To the group's, where they were asked for.
    pub group: Option<Result<(), String>>,
}

/// What the broker said of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BrokerInfo {
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

/// A message on one of our topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IncomingMessage {
    pub topic: Vec<u8>,
    pub payload: Vec<u8>,
    /// `None` at QoS 0.
    pub packet: Option<u16>,
    pub redelivered: bool,
    pub retained: bool,
    pub response_topic: Option<String>,
    pub correlation: Option<Vec<u8>>,
    /// The user property `client`, as it came.
    pub client: Option<String>,
    pub expiry: Option<Duration>,
}

/// Who connects, and with what window of unacknowledged prompts.
#[derive(Debug)]
pub(super) struct Identity<'a> {
    pub config: &'a Mqtt,
    pub device: &'a str,
    pub topics: &'a Topics,
    pub receive_maximum: u16,
    /// Whether the broker is known to keep messages.
    pub has_retained_messages: bool,
}

/// What rumqttc saw or did, the same in both versions.
enum RawEvent {
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

/// How requests reach the event loop.
enum Client {
    V5(rumqttc::v5::AsyncClient),
    V311(rumqttc::AsyncClient),
}

/// rumqttc's own loop over one connection.
enum LibraryEventLoop {
    V5(Box<rumqttc::v5::EventLoop>),
    V311(Box<rumqttc::EventLoop>),
}

impl Client {
    fn disconnect(&self) -> bool {
        match self {
            Client::V5(client) => client.try_disconnect().is_ok(),
            Client::V311(client) => client.try_disconnect().is_ok(),
        }
    }
}

impl Connection {
    /// Begins to connect; [`Connection::next`] tells how it went.
    pub fn open(who: &Identity, how: Connect) -> Result<Self, Disconnect> {
        let plan = ConnectOptions::new(who.config, format!("bitnetd-{}", who.device))?;
        let (client, eventloop) = match who.config.version {
            MqttVersion::V5 => v5::session_connection(plan, who, how),
            MqttVersion::V311 => v311::session_connection(plan, who, how),
        };
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
        let all = filters.into_iter().flatten();
        match &self.client {
            Client::V5(client) => client.try_subscribe_many(all.map(v5::subscribe_filter)).is_ok(),
            Client::V311(client) => client.try_subscribe_many(all.map(v311::subscribe_filter)).is_ok(),
        }
    }

    /// Gives a subscription up. `false`: no room now.
    pub fn unsubscribe(&self, filter: &str) -> bool {
        match &self.client {
            Client::V5(client) => client.try_unsubscribe(filter).is_ok(),
            Client::V311(client) => client.try_unsubscribe(filter).is_ok(),
        }
    }

    /// Publishes a row at QoS 1. `false`: no room now.
    pub fn publish(&mut self, entry: u64, packet: &OutgoingMessage, now: Instant) -> bool {
        let result = match &self.client {
            Client::V5(client) => v5::publish(client, packet, true, now),
            Client::V311(client) => v311::publish(client, packet, true),
        };
        if result {
            self.awaiting_packet_id.push_back(entry);
        }
        result
    }

    /// Publishes at QoS 0, where there is room.
    pub fn publish_at_qos_0(&self, packet: &OutgoingMessage, now: Instant) {
        let _ = match &self.client {
            Client::V5(client) => v5::publish(client, packet, false, now),
            Client::V311(client) => v311::publish(client, packet, false),
        };
    }

    /// Acknowledges a message. `false`: no room now.
    pub fn acknowledge(&mut self, packet: u16) -> bool {
        let result = match &self.client {
            Client::V5(client) => v5::acknowledge(client, packet),
            Client::V311(client) => v311::acknowledge(client, packet),
        };
        if result {
            self.protocol_guard.acknowledged();
        }
        result
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

async fn poll(mut eventloop: LibraryEventLoop) -> PollResult {
    let event = match &mut eventloop {
        LibraryEventLoop::V5(eventloop) => v5::poll(eventloop).await,
        LibraryEventLoop::V311(eventloop) => v311::poll(eventloop).await,
    };
    (eventloop, event)
}

/// What every connection of ours has, in both versions.
struct ConnectOptions {
    id: String,
    host: String,
    port: u16,
    /// User and password.
    login: Option<(String, String)>,
    transport: Transport,
    network: NetworkOptions,
}

impl ConnectOptions {
    fn new(config: &Mqtt, id: String) -> Result<Self, Disconnect> {
        let login = config.login.as_ref();
        let credentials = config.credentials.as_deref();
        let secret = |login: &crate::config::Login| {
            Ok((login.username.clone(), password(login.password_file.as_deref(), credentials)?))
        };
        let mut network = NetworkOptions::new();
        // A token event is one small packet; it must not wait for the next.
        network.set_tcp_nodelay(true);
        network.set_connection_timeout(CONNECT_TIMEOUT_S);
        Ok(ConnectOptions {
            id,
            host: host(config),
            port: config.port,
            login: login.map(secret).transpose()?,
            transport: match &config.tls {
                Some(tls) => Transport::Tls(tls::configuration(tls, credentials)?),
                None => Transport::Tcp,
            },
            network,
        })
    }
}

/// rumqttc joins host and port by a colon, and with TLS looks for the host in the certificate, where
/// an address has no brackets.
fn host(config: &Mqtt) -> String {
    match config.host.parse::<Ipv6Addr>() {
        Ok(address) if config.tls.is_none() => format!("[{address}]"),
        _ => config.host.clone(),
    }
}

/// The first line of the password file, read at each connect so that it can change.
fn password(
    path: Option<&std::path::Path>,
    credentials: Option<&std::path::Path>,
) -> Result<String, Disconnect> {
    const KEY: &str = "mqtt.password_file";
    let Some(path) = path else { return Ok(String::new()) };
    let bytes = credentials::read_secret(path, KEY, credentials)?;
    let text = String::from_utf8(bytes).map_err(|_| credentials::file_error(path, KEY, "it is not UTF-8"))?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() || line.len() > MAX_PASSWORD {
        return Err(credentials::file_error(path, KEY, "its first line holds no password"));
    }
    Ok(line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_password_file_names_itself_and_its_key() {
        let text = password(Some("/nowhere/secret".as_ref()), None).expect_err("missing").text;
        assert!(text.contains("/nowhere/secret") && text.contains("mqtt.password_file"), "{text}");
        assert_eq!(password(None, None), Ok(String::new()));
    }

    #[test]
    fn both_versions_give_up_connecting_at_the_same_time() {
        let plan = || ConnectOptions::new(&Mqtt::new("b", 1883), "id".into()).expect("no files to read");
        let (_, five) = v5::clean_connection(plan());
        let (_, older) = v311::clean_connection(plan());
        for eventloop in [five, older] {
            let limit = match eventloop {
                LibraryEventLoop::V5(eventloop) => eventloop.options.connection_timeout(),
                LibraryEventLoop::V311(eventloop) => eventloop.network_options().connection_timeout(),
            };
            assert_eq!(limit, CONNECT_TIMEOUT_S);
        }
    }

    #[test]
    fn an_ipv6_address_is_written_so_that_it_is_found_and_certified() {
        let plain = Mqtt::new("::1", 1883);
        assert_eq!(host(&plain), "[::1]");
        assert_eq!(host(&Mqtt { tls: Some(Default::default()), ..plain }), "::1");
    }
}
