//! MQTT 3.1.1 by rumqttc. It has no properties: a prompt names no Response Topic, an answer does not expire at the
//! broker, and the broker states no limits.

use super::disconnect::{self, ConnectError};
use super::event::{BrokerInfo, RawEvent};
use super::options::{ConnectOptions, INFLIGHT, Identity, KEEP_ALIVE, MAX_PACKET, REQUEST_CHANNEL_CAPACITY};
use crate::transport::mqtt::link::Connect;
use crate::transport::mqtt::message::IncomingMessage;
use crate::transport::mqtt::message::{MAX_IN_FLIGHT, OutgoingMessage, PublishLimits};
use crate::transport::mqtt::topics::TopicFilter;
use rumqttc::mqttbytes::Error as CodecError;
use rumqttc::{
    AsyncClient, ConnAck, ConnectReturnCode, ConnectionError, Event, Incoming, LastWill, MqttOptions,
    Outgoing, Publish, QoS, StateError, SubAck, SubscribeFilter, SubscribeReasonCode,
};

/// The protocol's own limit in bytes: a 3.1.1 broker does not state a lower one. If a publish ends the connection,
/// the outbox finds out which.
const MAX_OUTGOING_PACKET: usize = 256 << 20;

/// A connection with the session that the broker keeps for the device.
pub fn session_connection(
    connect: ConnectOptions,
    who: &Identity,
    how: Connect,
) -> (AsyncClient, rumqttc::EventLoop) {
    let network = connect.network.clone();
    let mut options = options(connect);
    let will = who.topics.availability();
    options
        .set_clean_session(how.clean_start)
        .set_last_will(LastWill::new(will, "offline", QoS::AtLeastOnce, who.has_retained_messages))
        .set_manual_acks(true);
    start(options, network)
}

/// A connection that leaves no session at the broker.
pub fn clean_connection(connect: ConnectOptions) -> (AsyncClient, rumqttc::EventLoop) {
    let network = connect.network.clone();
    start(options(connect), network)
}

fn start(options: MqttOptions, network: rumqttc::NetworkOptions) -> (AsyncClient, rumqttc::EventLoop) {
    let (client, mut eventloop) = AsyncClient::new(options, REQUEST_CHANNEL_CAPACITY);
    eventloop.set_network_options(network);
    (client, eventloop)
}

fn options(connect: ConnectOptions) -> MqttOptions {
    let mut options = MqttOptions::new(connect.id, connect.host, connect.port);
    options
        .set_keep_alive(KEEP_ALIVE)
        .set_max_packet_size(MAX_PACKET as usize, MAX_OUTGOING_PACKET)
        .set_transport(connect.transport)
        .set_inflight(INFLIGHT);
    if let Some((user, password)) = connect.login {
        options.set_credentials(user, password);
    }
    options
}

/// Waits for the next event.
pub async fn poll(eventloop: &mut rumqttc::EventLoop) -> Result<RawEvent, ConnectError> {
    let is_clean = eventloop.mqtt_options.clean_session();
    eventloop.poll().await.map(|event| raw_event(event, is_clean)).map_err(connect_error)
}

fn raw_event(event: Event, is_clean: bool) -> RawEvent {
    match event {
        Event::Incoming(Incoming::ConnAck(connack)) => RawEvent::Connected(broker_info(&connack, is_clean)),
        Event::Incoming(Incoming::SubAck(suback)) => RawEvent::SubAck(suback_results(&suback)),
        Event::Incoming(Incoming::Publish(publish)) => RawEvent::Message(incoming_message(publish), None),
        Event::Incoming(Incoming::PubAck(puback)) => RawEvent::PubAck(puback.pkid, Ok(())),
        Event::Outgoing(Outgoing::Publish(packet)) => RawEvent::Published(packet),
        Event::Outgoing(Outgoing::Disconnect) => RawEvent::DisconnectSent,
        _ => RawEvent::Other,
    }
}

/// The filter in rumqttc's form. The broker delivers retained prompts at every subscription, with the RETAIN flag.
pub fn subscribe_filter(wanted: TopicFilter) -> SubscribeFilter {
    SubscribeFilter::new(wanted.topic, qos(wanted.is_qos_1))
}

/// Publishes, at QoS 1 or 0. `false` where the request channel is full.
pub fn publish(client: &AsyncClient, packet: &OutgoingMessage, assured: bool) -> bool {
    client.try_publish(&packet.topic, qos(assured), packet.retain, packet.payload.clone()).is_ok()
}

/// Sends the PUBACK of a received message. `false` where the request channel is full.
pub fn acknowledge(client: &AsyncClient, packet: u16) -> bool {
    let publish = Publish { pkid: packet, ..Publish::new("", QoS::AtLeastOnce, "") };
    client.try_ack(&publish).is_ok()
}

fn qos(assured: bool) -> QoS {
    if assured { QoS::AtLeastOnce } else { QoS::AtMostOnce }
}

fn broker_info(connack: &ConnAck, is_passing: bool) -> BrokerInfo {
    let limits = PublishLimits { packet: usize::MAX, window: MAX_IN_FLIGHT };
    let session_present = connack.session_present;
    BrokerInfo {
        session_present,
        is_clean_session: is_passing,
        has_retained_messages: true,
        max_qos: 2,
        has_shared_subscriptions: true,
        first_ping: KEEP_ALIVE,
        limits,
    }
}

fn incoming_message(publish: Publish) -> IncomingMessage {
    IncomingMessage {
        packet: (publish.qos != QoS::AtMostOnce).then_some(publish.pkid),
        redelivered: publish.dup,
        retained: publish.retain,
        ..IncomingMessage::new(publish.topic.into_bytes(), publish.payload.to_vec())
    }
}

fn suback_results(suback: &SubAck) -> Vec<Result<(), String>> {
    let reason = |code: &SubscribeReasonCode| match code {
        SubscribeReasonCode::Success(_) => Ok(()),
        SubscribeReasonCode::Failure => Err("Failure".to_owned()),
    };
    suback.return_codes.iter().map(reason).collect()
}

fn connect_error(error: ConnectionError) -> ConnectError {
    match error {
        ConnectionError::NetworkTimeout => ConnectError::Timeout,
        ConnectionError::FlushTimeout => ConnectError::Silence,
        ConnectionError::Io(error) => ConnectError::Io(error),
        ConnectionError::Tls(error) => disconnect::from_tls(error),
        ConnectionError::ConnectionRefused(code) => {
            ConnectError::Refused(format!("{code:?}"), refusal_text(code))
        }
        ConnectionError::NotConnAck(_) => ConnectError::Unreadable("it is no CONNACK".into()),
        ConnectionError::MqttState(StateError::AwaitPingResp) => ConnectError::Silence,
        ConnectionError::MqttState(StateError::ConnectionAborted) => ConnectError::Closed,
        ConnectionError::MqttState(StateError::Deserialization(CodecError::Io(e))) => ConnectError::Io(e),
        ConnectionError::MqttState(StateError::Deserialization(CodecError::PayloadSizeLimitExceeded(
            bytes,
        ))) => ConnectError::Oversized(bytes),
        ConnectionError::MqttState(StateError::Deserialization(e)) => ConnectError::Unreadable(e.to_string()),
        other => ConnectError::Other(other.to_string()),
    }
}

fn refusal_text(code: ConnectReturnCode) -> String {
    use ConnectReturnCode::{BadUserNamePassword, NotAuthorized, RefusedProtocolVersion};
    let hint = match code {
        BadUserNamePassword | NotAuthorized => "; see mqtt.username and mqtt.password_file",
        RefusedProtocolVersion => "; the broker speaks no MQTT 3.1.1: set mqtt.version = 5",
        _ => "",
    };
    format!("refused with {code:?}{hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_session_is_known_to_end_with_its_connection() {
        let connack = ConnAck::new(ConnectReturnCode::Success, false);
        assert!(broker_info(&connack, true).is_clean_session);
        assert!(!broker_info(&connack, false).is_clean_session);
    }

    #[test]
    fn an_oversized_packet_and_a_lost_connection_are_distinguished() {
        let state = |e| connect_error(ConnectionError::MqttState(StateError::Deserialization(e)));
        let oversize = state(CodecError::PayloadSizeLimitExceeded(9));
        assert!(matches!(oversize, ConnectError::Oversized(9)), "{oversize:?}");
        let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert!(matches!(state(CodecError::Io(reset)), ConnectError::Io(_)));
    }
}
