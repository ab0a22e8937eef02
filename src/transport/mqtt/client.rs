//! The only user of rumqttc: one connection, from CONNECT to its end, as values of ours.
//!
//! A [`Connection`] is thrown away when it ends and never reconnects by itself. rumqttc would
//! publish again what it had on its way, and over one packet that the broker refuses it does so
//! for ever; our outbox is the only memory. Its `poll` must not be dropped half-way (a packet
//! could be lost), so the future is kept between calls of [`Connection::next`].

use super::link::{Connect, Loss};
use super::manners::{self, Manners};
use super::outbox::{Limits, Packet, WINDOW};
use super::topics::Topics;
use crate::config::Mqtt;
use rumqttc::NetworkOptions;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnAckProperties, ConnectProperties, ConnectReturnCode, DisconnectReasonCode, Filter, LastWill,
    PubAck, PubAckReason, Publish, PublishProperties, RetainForwardRule, SubAck, SubscribeReasonCode,
};
use rumqttc::v5::mqttbytes::{Error as CodecError, QoS};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, StateError};
use rumqttc::{Outgoing, v5::Incoming};
use std::collections::{HashMap, VecDeque};
use std::net::Ipv6Addr;
use std::pin::Pin;
use std::time::{Duration, Instant};

/// Largest packet we take. Above the largest request, so that what is too long gets an answer:
/// a broker silently drops what exceeds this, and mosquitto (2.0.11 to 2.1.2) then never uses
/// that place of our Receive Maximum again.
const MAX_PACKET: u32 = 1 << 20;
/// The session outlives a long weekend without power.
const SESSION_EXPIRY: u32 = 7 * 24 * 3600;
/// A vanished broker is noticed within two of these.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// For rumqttc's table of publishes on their way, which by default takes 14 MB.
const INFLIGHT: u16 = 2 * WINDOW as u16;
/// Requests between us and rumqttc's event loop; what does not fit is offered again.
const REQUESTS: usize = 64;
/// Longest password file.
const MAX_PASSWORD: usize = 4096;

type Polled = (EventLoop, Result<Event, ConnectionError>);

/// One connection.
pub(super) struct Connection {
    client: AsyncClient,
    polling: Pin<Box<dyn Future<Output = Polled> + Send>>,
    /// Rows handed to rumqttc that have no packet id yet, in order.
    handed: VecDeque<u64>,
    /// Rows on their way, by packet id.
    on_their_way: HashMap<u16, u64>,
    manners: Manners,
}

/// What happened on a connection.
#[derive(Debug, PartialEq)]
pub(super) enum Happened {
    /// The broker accepted us.
    Connected(Broker),
    /// Granted, or refused with the reason.
    Subscribed(Result<(), String>),
    /// A message came.
    Message(Message),
    /// The broker has the row, or refused it with a reason.
    Acknowledged(u64, Result<(), String>),
    /// The goodbye is written.
    Disconnected,
    /// Only a sign of life, or room for the next request.
    Nothing,
}

/// What the broker said of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Broker {
    pub session_present: bool,
    pub retains: bool,
    pub limits: Limits,
}

/// A message on one of our topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub topic: Vec<u8>,
    pub payload: Vec<u8>,
    /// `None` at QoS 0.
    pub packet: Option<u16>,
    pub redelivered: bool,
    pub retained: bool,
    pub response_topic: Option<String>,
    pub correlation: Option<Vec<u8>>,
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
    pub retains: bool,
}

impl Connection {
    /// Begins to connect; [`Connection::next`] tells how it went.
    pub fn open(who: &Identity, how: Connect) -> Result<Self, Loss> {
        let mut options = options(who.config, format!("bitnetd-{}", who.device))?;
        let will = who.topics.availability();
        options
            .set_clean_start(how.clean_start)
            .set_last_will(LastWill::new(will, "offline", QoS::AtLeastOnce, who.retains, None))
            .set_manual_acks(true)
            .set_session_expiry_interval(Some(SESSION_EXPIRY))
            .set_receive_maximum(Some(who.receive_maximum.max(1)));
        let (client, eventloop) = AsyncClient::new(options, REQUESTS);
        let polling = Box::pin(poll(eventloop));
        Ok(Connection {
            client,
            polling,
            handed: VecDeque::new(),
            on_their_way: HashMap::new(),
            manners: Manners::default(),
        })
    }

    /// Waits for what happens next. May be dropped and called again; not after an error.
    pub async fn next(&mut self) -> Result<Happened, Loss> {
        let (mut eventloop, event) = (&mut self.polling).await;
        if let Ok(Event::Incoming(Incoming::ConnAck(_))) = event {
            let wanted = eventloop.options.keep_alive();
            if wanted != manners::keep_alive(wanted, KEEP_ALIVE) {
                eventloop.options.set_keep_alive(KEEP_ALIVE);
            }
        }
        self.polling = Box::pin(poll(eventloop));
        let event = event.map_err(|error| loss(&error))?;
        self.look_at(&event)?;
        Ok(self.happened(event))
    }

    /// Asks for our topics. `false`: no room now.
    pub fn subscribe(&self, topics: &Topics) -> bool {
        // Cancellations at QoS 0: behind a window full of prompts the broker would hold them back
        // until the prompt they are to stop is answered.
        let filters = [
            filter(topics.prompt(), QoS::AtLeastOnce),
            filter(topics.prompts_of_clients(), QoS::AtLeastOnce),
            filter(topics.cancel(), QoS::AtMostOnce),
        ];
        self.client.try_subscribe_many(filters).is_ok()
    }

    /// Publishes a row at QoS 1. `false`: no room now.
    pub fn publish(&mut self, row: u64, packet: &Packet, now: Instant) -> bool {
        let (properties, payload) = (properties(packet, now), packet.payload.clone());
        let taken = self
            .client
            .try_publish_with_properties(&packet.topic, QoS::AtLeastOnce, packet.retain, payload, properties)
            .is_ok();
        if taken {
            self.handed.push_back(row);
        }
        taken
    }

    /// Publishes at QoS 0, where there is room.
    pub fn mention(&self, packet: &Packet, now: Instant) {
        let (properties, payload) = (properties(packet, now), packet.payload.clone());
        let _ = self.client.try_publish_with_properties(
            &packet.topic,
            QoS::AtMostOnce,
            false,
            payload,
            properties,
        );
    }

    /// Acknowledges a message. `false`: no room now.
    pub fn acknowledge(&mut self, packet: u16) -> bool {
        let publish = Publish { pkid: packet, qos: QoS::AtLeastOnce, ..Publish::default() };
        let taken = self.client.try_ack(&publish).is_ok();
        if taken {
            self.manners.acknowledged();
        }
        taken
    }

    /// Says goodbye, so that the broker does not publish the last will. `false`: no room now.
    pub fn disconnect(&self) -> bool {
        self.client.try_disconnect().is_ok()
    }

    /// Whether the broker may do this.
    fn look_at(&mut self, event: &Event) -> Result<(), Loss> {
        match event {
            Event::Incoming(Incoming::ConnAck(connack)) => {
                let said = connack.properties.as_ref();
                let receive_maximum = said.and_then(|p| p.receive_max);
                self.manners.connack(receive_maximum, said.and_then(|p| p.max_packet_size))
            }
            Event::Incoming(Incoming::Publish(publish)) => {
                let alias = publish.properties.as_ref().and_then(|p| p.topic_alias);
                self.manners.message(publish.qos != QoS::AtMostOnce, alias)
            }
            _ => Ok(()),
        }
    }

    fn happened(&mut self, event: Event) -> Happened {
        match event {
            Event::Incoming(Incoming::ConnAck(connack)) => Happened::Connected(broker(&connack)),
            Event::Incoming(Incoming::SubAck(suback)) => Happened::Subscribed(granted(&suback)),
            Event::Incoming(Incoming::Publish(publish)) => Happened::Message(message(publish)),
            Event::Incoming(Incoming::PubAck(puback)) => self.acknowledged(&puback),
            Event::Outgoing(Outgoing::Publish(packet)) => self.published(packet),
            Event::Outgoing(Outgoing::Disconnect) => Happened::Disconnected,
            _ => Happened::Nothing,
        }
    }

    /// rumqttc gives packet ids in the order in which it was handed the rows; QoS 0 gets 0.
    fn published(&mut self, packet: u16) -> Happened {
        if packet != 0
            && let Some(row) = self.handed.pop_front()
        {
            self.on_their_way.insert(packet, row);
        }
        Happened::Nothing
    }

    fn acknowledged(&mut self, puback: &PubAck) -> Happened {
        let Some(row) = self.on_their_way.remove(&puback.pkid) else { return Happened::Nothing };
        Happened::Acknowledged(
            row,
            match puback.reason {
                PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Ok(()),
                reason => Err(format!("{reason:?}")),
            },
        )
    }
}

/// What `bitnetd doctor` tells of the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeReport {
    /// From the first packet to the broker's answer, the look-up of its name included.
    pub took: Duration,
    /// Largest packet it takes, in bytes; `None`: it names no limit.
    pub max_packet_size: Option<u32>,
    /// Highest quality of service; answers need 1.
    pub max_qos: u8,
    /// Whether it keeps messages; availability and Home Assistant discovery need it.
    pub retains: bool,
    /// Publishes it takes before it acknowledges one.
    pub receive_maximum: u16,
    /// Whether several devices can share a topic.
    pub shared_subscriptions: bool,
}

/// Connects once, under a name of its own, and disconnects. The error is one line that names the
/// broker and the way out.
pub async fn probe(config: &Mqtt, device: &str, limit: Duration) -> Result<ProbeReport, String> {
    let place = format!("mqtt {}:{}", config.host, config.port);
    let id = format!("bitnetd-{device}-doctor-{}", std::process::id());
    let options = options(config, id).map_err(|loss| format!("{place}: {}", loss.text))?;
    let (client, mut eventloop) = AsyncClient::new(options, REQUESTS);
    let start = Instant::now();
    let answer = tokio::time::timeout(limit, eventloop.poll()).await;
    let connack = match answer {
        Err(_) => return Err(format!("{place}: no answer within {} s", limit.as_secs_f32())),
        Ok(Err(error)) => return Err(format!("{place}: {}", loss(&error).text)),
        Ok(Ok(Event::Incoming(Incoming::ConnAck(connack)))) => connack,
        Ok(Ok(other)) => {
            let other = manners::quoted(&format!("{other:?}"));
            return Err(format!("{place}: no CONNACK but {other}"));
        }
    };
    let took = start.elapsed();
    if client.try_disconnect().is_ok() {
        // Best effort: without the goodbye the broker only logs a lost connection.
        let _ = tokio::time::timeout(limit, eventloop.poll()).await;
    }
    Ok(report(took, connack.properties.as_ref()))
}

fn report(took: Duration, said: Option<&ConnAckProperties>) -> ProbeReport {
    let flag = |value: Option<u8>| value != Some(0);
    ProbeReport {
        took,
        max_packet_size: said.and_then(|p| p.max_packet_size),
        max_qos: said.and_then(|p| p.max_qos).unwrap_or(2),
        retains: flag(said.and_then(|p| p.retain_available)),
        receive_maximum: said.and_then(|p| p.receive_max).unwrap_or(u16::MAX),
        shared_subscriptions: flag(said.and_then(|p| p.shared_subscription_available)),
    }
}

async fn poll(mut eventloop: EventLoop) -> Polled {
    let event = eventloop.poll().await;
    (eventloop, event)
}

/// What every connection of ours has.
fn options(config: &Mqtt, id: String) -> Result<MqttOptions, Loss> {
    // rumqttc joins host and port by a colon.
    let host = match config.host.parse::<Ipv6Addr>() {
        Ok(address) => format!("[{address}]"),
        Err(_) => config.host.clone(),
    };
    let mut options = MqttOptions::new(id, host, config.port);
    let mut network = NetworkOptions::new();
    // A token event is one small packet; it must not wait for the next.
    network.set_tcp_nodelay(true);
    options
        .set_keep_alive(KEEP_ALIVE)
        .set_connect_properties(ConnectProperties::new())
        .set_max_packet_size(Some(MAX_PACKET))
        .set_network_options(network)
        .set_outgoing_inflight_upper_limit(INFLIGHT);
    if let Some(login) = &config.login {
        options.set_credentials(&login.username, password(login.password_file.as_deref())?);
    }
    Ok(options)
}

/// The first line of the password file, read at each connect so that it can change.
fn password(file: Option<&std::path::Path>) -> Result<String, Loss> {
    let Some(path) = file else { return Ok(String::new()) };
    let wrong = |what: String| Loss {
        kind: "password file".into(),
        text: format!("{}: {what}; mqtt.password_file names it", path.display()),
        unreadable: false,
    };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() || line.len() > MAX_PASSWORD {
        return Err(wrong("its first line holds no password".into()));
    }
    Ok(line.to_owned())
}

/// Retain-as-published, so that a prompt sent as retained is seen as such and refused; none of
/// those the broker keeps, which would come again at every subscription.
fn filter(topic: String, qos: QoS) -> Filter {
    Filter { preserve_retain: true, retain_forward_rule: RetainForwardRule::Never, ..Filter::new(topic, qos) }
}

fn properties(packet: &Packet, now: Instant) -> PublishProperties {
    PublishProperties {
        payload_format_indicator: Some(1),
        content_type: packet.json.then(|| "application/json".to_owned()),
        correlation_data: packet.correlation.clone().map(Into::into),
        message_expiry_interval: packet.expiry(now),
        ..PublishProperties::default()
    }
}

fn broker(connack: &ConnAck) -> Broker {
    let said = connack.properties.as_ref();
    let packet = said.and_then(|p| p.max_packet_size).map_or(usize::MAX, |n| n as usize);
    let window = said.and_then(|p| p.receive_max).map_or(WINDOW, usize::from);
    Broker {
        session_present: connack.session_present,
        retains: said.and_then(|p| p.retain_available) != Some(0),
        limits: Limits { packet, window },
    }
}

fn message(publish: Publish) -> Message {
    let said = publish.properties.unwrap_or_default();
    Message {
        topic: publish.topic.to_vec(),
        payload: publish.payload.to_vec(),
        packet: (publish.qos != QoS::AtMostOnce).then_some(publish.pkid),
        redelivered: publish.dup,
        retained: publish.retain,
        response_topic: said.response_topic,
        correlation: said.correlation_data.map(|data| data.to_vec()),
        expiry: said.message_expiry_interval.map(|s| Duration::from_secs(s.into())),
    }
}

fn granted(suback: &SubAck) -> Result<(), String> {
    let refused = |code: &&SubscribeReasonCode| !matches!(code, SubscribeReasonCode::Success(_));
    match suback.return_codes.iter().find(refused) {
        Some(code) => Err(format!("{code:?}")),
        None => Ok(()),
    }
}

/// Sorts the library's errors: what it is, and the way out.
fn loss(error: &ConnectionError) -> Loss {
    let mut unreadable = false;
    let (kind, text) = match error {
        ConnectionError::Timeout(_) => ("timeout".into(), "no answer; is the host right?".into()),
        ConnectionError::Io(e) => (format!("{:?}", e.kind()), e.to_string()),
        ConnectionError::ConnectionRefused(code) => (format!("{code:?}"), refused(*code)),
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => {
            (format!("{reason_code:?}"), dismissed(*reason_code))
        }
        ConnectionError::MqttState(StateError::AwaitPingResp) => {
            ("silence".into(), "no answer to a ping".into())
        }
        ConnectionError::MqttState(StateError::ConnectionAborted) => {
            ("closed".into(), "the broker closed the connection".into())
        }
        ConnectionError::MqttState(StateError::Deserialization(CodecError::Io(e))) => {
            (format!("{:?}", e.kind()), e.to_string())
        }
        // A DISCONNECT without a reason, which is the shortest way to write it; no message is so short.
        ConnectionError::MqttState(StateError::Deserialization(CodecError::PayloadRequired)) => {
            ("closed".into(), "the broker ended the connection".into())
        }
        ConnectionError::MqttState(StateError::Deserialization(e)) => {
            unreadable = true;
            ("unreadable".into(), poisoned(e))
        }
        other => ("other".into(), manners::quoted(&other.to_string())),
    };
    Loss { kind, text, unreadable }
}

fn refused(code: ConnectReturnCode) -> String {
    use ConnectReturnCode::{BadUserNamePassword, NotAuthorized, UnsupportedProtocolVersion};
    let hint = match code {
        BadUserNamePassword | NotAuthorized => "; see mqtt.username and mqtt.password_file",
        UnsupportedProtocolVersion => "; MQTT 5 is needed",
        _ => "",
    };
    format!("refused with {code:?}{hint}")
}

fn dismissed(code: DisconnectReasonCode) -> String {
    let hint = match code {
        DisconnectReasonCode::SessionTakenOver => "; another daemon uses this device.id at this broker",
        _ => "",
    };
    format!("the broker ended the connection with {code:?}{hint}")
}

fn poisoned(error: &CodecError) -> String {
    format!(
        "a packet cannot be read ({error}); if it comes thrice in a row the session is begun anew, \
         without the prompts that wait in it; limit message sizes at the broker to {MAX_PACKET} bytes"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_publish_is_larger_than_the_outbox_reckons() {
        let packet = Packet {
            topic: "a/b".into(),
            payload: vec![0; 70_000],
            json: true,
            retain: true,
            correlation: Some(vec![7; 300]),
            expires: Some(Instant::now()),
        };
        let properties = properties(&packet, Instant::now());
        let mut publish = Publish::new("a/b", QoS::AtLeastOnce, packet.payload.clone(), Some(properties));
        publish.pkid = 1;
        assert!(publish.size() <= packet.size(), "{} > {}", publish.size(), packet.size());
    }

    #[test]
    fn a_missing_password_file_names_itself_and_its_key() {
        let said = password(Some("/nowhere/secret".as_ref())).expect_err("missing").text;
        assert!(said.contains("/nowhere/secret") && said.contains("mqtt.password_file"), "{said}");
        assert_eq!(password(None), Ok(String::new()));
    }

    #[test]
    fn an_oversized_packet_counts_as_unreadable_and_a_lost_connection_does_not() {
        let oversize = CodecError::PayloadSizeLimitExceeded { pkt_size: 9, max: 1 };
        let state = |e| ConnectionError::MqttState(StateError::Deserialization(e));
        assert!(loss(&state(oversize)).unreadable);
        let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert!(!loss(&state(CodecError::Io(reset))).unreadable);
    }

    #[test]
    fn a_disconnect_without_a_reason_is_no_poison() {
        let bare = rumqttc::v5::mqttbytes::v5::Packet::read(&mut [0xe0, 0x00].as_slice().into(), None)
            .expect_err("rumqttc wants more");
        let told = loss(&ConnectionError::MqttState(StateError::Deserialization(bare)));
        assert_eq!((told.kind.as_str(), told.unreadable), ("closed", false));
    }

    #[test]
    fn a_broker_that_names_no_limits_has_none_but_ours() {
        let connack = ConnAck { session_present: true, code: ConnectReturnCode::Success, properties: None };
        let limits = Limits { packet: usize::MAX, window: WINDOW };
        assert_eq!(broker(&connack), Broker { session_present: true, retains: true, limits });
    }
}
