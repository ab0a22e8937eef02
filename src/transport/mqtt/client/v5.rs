//! MQTT 5 by rumqttc: its options, packets and errors, translated to and from the types of `event`, `options` and
//! `disconnect`.

use super::disconnect::{self, ConnectError};
use super::event::{BrokerInfo, RawEvent};
use super::options::{ConnectOptions, INFLIGHT, Identity, KEEP_ALIVE, MAX_PACKET, REQUEST_CHANNEL_CAPACITY};
use crate::transport::mqtt::link::Connect;
use crate::transport::mqtt::message::IncomingMessage;
use crate::transport::mqtt::message::{MAX_IN_FLIGHT, OutgoingMessage, PublishLimits};
use crate::transport::mqtt::protocol_limits;
use crate::transport::mqtt::topics::TopicFilter;
use rumqttc::Outgoing;
use rumqttc::v5::mqttbytes::v5::{
    self, ConnAck, ConnectProperties, ConnectReturnCode, DisconnectReasonCode, LastWill, PubAck,
    PubAckReason, Publish, PublishProperties, RetainForwardRule, SubAck, SubscribeReasonCode,
};
use rumqttc::v5::mqttbytes::{Error as CodecError, QoS};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, Incoming, MqttOptions, StateError};
use std::time::{Duration, Instant};

/// Session Expiry Interval in seconds: the session survives a week without power.
const SESSION_EXPIRY: u32 = 7 * 24 * 3600;

/// A connection with the session that the broker keeps for the device.
pub fn session_connection(
    connect: ConnectOptions,
    who: &Identity,
    how: Connect,
) -> (AsyncClient, rumqttc::v5::EventLoop) {
    let mut options = options(connect);
    let will = who.topics.availability();
    options
        .set_clean_start(how.clean_start)
        .set_last_will(LastWill::new(will, "offline", QoS::AtLeastOnce, who.has_retained_messages, None))
        .set_manual_acks(true)
        .set_session_expiry_interval(Some(SESSION_EXPIRY))
        .set_receive_maximum(Some(who.receive_maximum.max(1)));
    start(options)
}

/// A connection that leaves no session at the broker.
pub fn clean_connection(connect: ConnectOptions) -> (AsyncClient, rumqttc::v5::EventLoop) {
    start(options(connect))
}

fn start(options: MqttOptions) -> (AsyncClient, rumqttc::v5::EventLoop) {
    AsyncClient::new(options, REQUEST_CHANNEL_CAPACITY)
}

fn options(connect: ConnectOptions) -> MqttOptions {
    let mut options = MqttOptions::new(connect.id, connect.host, connect.port);
    options
        .set_keep_alive(KEEP_ALIVE)
        .set_connection_timeout(connect.network.connection_timeout())
        .set_connect_properties(ConnectProperties::new())
        .set_max_packet_size(Some(MAX_PACKET))
        .set_network_options(connect.network)
        .set_transport(connect.transport)
        .set_outgoing_inflight_upper_limit(INFLIGHT);
    if let Some((user, password)) = connect.login {
        options.set_credentials(user, password);
    }
    options
}

/// Waits for the next event.
pub async fn poll(eventloop: &mut rumqttc::v5::EventLoop) -> Result<RawEvent, ConnectError> {
    let event = eventloop.poll().await.map_err(connect_error)?;
    // The Server Keep Alive: rumqttc adopts it even where it is 0, and would then ping without a pause.
    let wanted = eventloop.options.keep_alive();
    if wanted != protocol_limits::keep_alive(wanted, KEEP_ALIVE) {
        eventloop.options.set_keep_alive(KEEP_ALIVE);
    }
    Ok(raw_event(event))
}

fn raw_event(event: Event) -> RawEvent {
    match event {
        Event::Incoming(Incoming::ConnAck(connack)) => RawEvent::Connected(broker_info(&connack)),
        Event::Incoming(Incoming::SubAck(suback)) => RawEvent::SubAck(suback_results(&suback)),
        Event::Incoming(Incoming::Publish(publish)) => {
            let alias = publish.properties.as_ref().and_then(|p| p.topic_alias);
            RawEvent::Message(incoming_message(publish), alias)
        }
        Event::Incoming(Incoming::PubAck(puback)) => RawEvent::PubAck(puback.pkid, puback_result(&puback)),
        Event::Outgoing(Outgoing::Publish(packet)) => RawEvent::Published(packet),
        Event::Outgoing(Outgoing::Disconnect) => RawEvent::DisconnectSent,
        _ => RawEvent::Other,
    }
}

/// With Retain As Published, so that a prompt published as retained is recognised and refused; and, where they are not
/// wanted, without the retained messages that the broker would deliver at every subscription (Retain Handling 2).
pub fn subscribe_filter(wanted: TopicFilter) -> v5::Filter {
    v5::Filter {
        preserve_retain: true,
        retain_forward_rule: match wanted.wants_retained {
            true => RetainForwardRule::OnEverySubscribe,
            false => RetainForwardRule::Never,
        },
        ..v5::Filter::new(wanted.topic, qos(wanted.is_qos_1))
    }
}

/// Publishes, at QoS 1 or 0. `false` where the request channel is full.
pub fn publish(client: &AsyncClient, packet: &OutgoingMessage, assured: bool, now: Instant) -> bool {
    let (properties, payload) = (properties(packet, now), packet.payload.clone());
    let qos = qos(assured);
    client.try_publish_with_properties(&packet.topic, qos, packet.retain, payload, properties).is_ok()
}

/// Sends the PUBACK of a received message. `false` where the request channel is full.
pub fn acknowledge(client: &AsyncClient, packet: u16) -> bool {
    let publish = Publish { pkid: packet, qos: QoS::AtLeastOnce, ..Publish::default() };
    client.try_ack(&publish).is_ok()
}

fn qos(assured: bool) -> QoS {
    if assured { QoS::AtLeastOnce } else { QoS::AtMostOnce }
}

fn properties(packet: &OutgoingMessage, now: Instant) -> PublishProperties {
    PublishProperties {
        payload_format_indicator: Some(1),
        content_type: packet.json.then(|| "application/json".to_owned()),
        correlation_data: packet.correlation.clone().map(Into::into),
        message_expiry_interval: packet.expiry(now),
        ..PublishProperties::default()
    }
}

fn broker_info(connack: &ConnAck) -> BrokerInfo {
    let text = connack.properties.as_ref();
    let packet = text.and_then(|p| p.max_packet_size).map_or(usize::MAX, |n| n as usize);
    let window = text.and_then(|p| p.receive_max).map_or(MAX_IN_FLIGHT, usize::from);
    BrokerInfo {
        session_present: connack.session_present,
        is_clean_session: false,
        has_retained_messages: text.and_then(|p| p.retain_available) != Some(0),
        max_qos: text.and_then(|p| p.max_qos).unwrap_or(2),
        has_shared_subscriptions: text.and_then(|p| p.shared_subscription_available) != Some(0),
        // rumqttc has adopted the Server Keep Alive by the time it schedules the first ping.
        first_ping: text
            .and_then(|p| p.server_keep_alive)
            .map_or(KEEP_ALIVE, |seconds| Duration::from_secs(seconds.into()))
            .max(KEEP_ALIVE),
        limits: PublishLimits { packet, window },
    }
}

fn incoming_message(publish: Publish) -> IncomingMessage {
    let text = publish.properties.unwrap_or_default();
    IncomingMessage {
        packet: (publish.qos != QoS::AtMostOnce).then_some(publish.pkid),
        redelivered: publish.dup,
        retained: publish.retain,
        response_topic: text.response_topic,
        correlation: text.correlation_data.map(|data| data.to_vec()),
        client: text.user_properties.into_iter().find(|(name, _)| name == "client").map(|(_, value)| value),
        expiry: text.message_expiry_interval.map(|s| Duration::from_secs(s.into())),
        ..IncomingMessage::new(publish.topic.to_vec(), publish.payload.to_vec())
    }
}

fn suback_results(suback: &SubAck) -> Vec<Result<(), String>> {
    let reason = |code: &SubscribeReasonCode| match code {
        SubscribeReasonCode::Success(_) => Ok(()),
        code => Err(format!("{code:?}")),
    };
    suback.return_codes.iter().map(reason).collect()
}

fn puback_result(puback: &PubAck) -> Result<(), String> {
    match puback.reason {
        PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Ok(()),
        reason => Err(format!("{reason:?}")),
    }
}

fn connect_error(error: ConnectionError) -> ConnectError {
    match error {
        ConnectionError::Timeout(_) => ConnectError::Timeout,
        ConnectionError::Io(error) => ConnectError::Io(error),
        ConnectionError::Tls(error) => disconnect::from_tls(error),
        ConnectionError::ConnectionRefused(code) => {
            ConnectError::Refused(format!("{code:?}"), refusal_text(code))
        }
        ConnectionError::NotConnAck(_) => ConnectError::Unreadable("it is no CONNACK".into()),
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => {
            ConnectError::Refused(format!("{reason_code:?}"), disconnect_text(reason_code))
        }
        ConnectionError::MqttState(StateError::AwaitPingResp) => ConnectError::Silence,
        ConnectionError::MqttState(StateError::ConnectionAborted) => ConnectError::Closed,
        ConnectionError::MqttState(StateError::Deserialization(CodecError::Io(e))) => ConnectError::Io(e),
        // A DISCONNECT in its shortest form, without a reason code; no PUBLISH is so short.
        ConnectionError::MqttState(StateError::Deserialization(CodecError::PayloadRequired)) => {
            ConnectError::Closed
        }
        ConnectionError::MqttState(StateError::Deserialization(e)) => ConnectError::Unreadable(e.to_string()),
        other => ConnectError::Other(other.to_string()),
    }
}

fn refusal_text(code: ConnectReturnCode) -> String {
    use ConnectReturnCode::{BadUserNamePassword, NotAuthorized, UnsupportedProtocolVersion};
    let hint = match code {
        BadUserNamePassword | NotAuthorized => "; see mqtt.username and mqtt.password_file",
        UnsupportedProtocolVersion => "; the broker speaks no MQTT 5: set mqtt.version = \"3.1.1\"",
        _ => "",
    };
    format!("refused with {code:?}{hint}")
}

fn disconnect_text(code: DisconnectReasonCode) -> String {
    let hint = match code {
        DisconnectReasonCode::SessionTakenOver => "; another client uses our client id",
        DisconnectReasonCode::SharedSubscriptionNotSupported => "; take mqtt.group out",
        _ => "",
    };
    format!("the broker ended the connection with {code:?}{hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_publish_is_larger_than_the_outbox_assumes() {
        let packet = OutgoingMessage {
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
    fn an_oversized_packet_counts_as_unreadable_and_a_lost_connection_does_not() {
        let state = |e| connect_error(ConnectionError::MqttState(StateError::Deserialization(e)));
        let oversize = state(CodecError::PayloadSizeLimitExceeded { pkt_size: 9, max: 1 });
        assert!(matches!(oversize, ConnectError::Unreadable(_)), "{oversize:?}");
        let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert!(matches!(state(CodecError::Io(reset)), ConnectError::Io(_)));
    }

    #[test]
    fn a_disconnect_without_a_reason_is_not_an_unreadable_packet() {
        let bare =
            v5::Packet::read(&mut [0xe0, 0x00].as_slice().into(), None).expect_err("rumqttc wants more");
        let reported = connect_error(ConnectionError::MqttState(StateError::Deserialization(bare)));
        assert!(matches!(reported, ConnectError::Closed), "{reported:?}");
    }

    #[test]
    fn a_broker_that_names_no_limits_has_none_but_ours() {
        let connack = ConnAck { session_present: true, code: ConnectReturnCode::Success, properties: None };
        let limits = PublishLimits { packet: usize::MAX, window: MAX_IN_FLIGHT };
        let text = broker_info(&connack);
        assert_eq!(
            (text.limits, text.has_retained_messages, text.has_shared_subscriptions, text.max_qos),
            (limits, true, true, 2)
        );
    }
}
