//! MQTT 3.1.1 in rumqttc's words. It has no properties: a prompt names no Response Topic, an answer does not
//! expire at the broker, and the broker says nothing of its limits.

use super::disconnect::{self, Trouble};
use super::{
    Broker, Client, EventLoop, INFLIGHT, Identity, KEEP_ALIVE, MAX_PACKET, Message, Plan, REQUESTS, Seen,
};
use crate::transport::mqtt::delivery::outbox::{Limits, Packet, WINDOW};
use crate::transport::mqtt::link::Connect;
use crate::transport::mqtt::topics::Filter;
use rumqttc::mqttbytes::Error as CodecError;
use rumqttc::{
    AsyncClient, ConnAck, ConnectReturnCode, ConnectionError, Event, Incoming, LastWill, MqttOptions,
    Outgoing, Publish, QoS, StateError, SubAck, SubscribeFilter, SubscribeReasonCode,
};

/// The protocol's own limit: what the broker's is, it does not tell. A publish that ends the
/// connection is found out by the outbox.
const LARGEST: usize = 256 << 20;

/// A connection with the session that the broker keeps for us.
pub fn session(plan: Plan, who: &Identity, how: Connect) -> (Client, EventLoop) {
    let network = plan.network.clone();
    let mut options = options(plan);
    let will = who.topics.availability();
    options
        .set_clean_session(how.clean_start)
        .set_last_will(LastWill::new(will, "offline", QoS::AtLeastOnce, who.retains))
        .set_manual_acks(true);
    begin(options, network)
}

/// A connection that leaves nothing behind.
pub fn visit(plan: Plan) -> (Client, EventLoop) {
    let network = plan.network.clone();
    begin(options(plan), network)
}

fn begin(options: MqttOptions, network: rumqttc::NetworkOptions) -> (Client, EventLoop) {
    let (client, mut eventloop) = AsyncClient::new(options, REQUESTS);
    eventloop.set_network_options(network);
    (Client::V311(client), EventLoop::V311(Box::new(eventloop)))
}

fn options(plan: Plan) -> MqttOptions {
    let mut options = MqttOptions::new(plan.id, plan.host, plan.port);
    options
        .set_keep_alive(KEEP_ALIVE)
        .set_max_packet_size(MAX_PACKET as usize, LARGEST)
        .set_transport(plan.transport)
        .set_inflight(INFLIGHT);
    if let Some((user, password)) = plan.login {
        options.set_credentials(user, password);
    }
    options
}

/// The next event.
pub async fn poll(eventloop: &mut rumqttc::EventLoop) -> Result<Seen, Trouble> {
    let is_clean = eventloop.mqtt_options.clean_session();
    eventloop.poll().await.map(|event| seen(event, is_clean)).map_err(trouble)
}

fn seen(event: Event, is_clean: bool) -> Seen {
    match event {
        Event::Incoming(Incoming::ConnAck(connack)) => Seen::Connected(broker(&connack, is_clean)),
        Event::Incoming(Incoming::SubAck(suback)) => Seen::Granted(granted(&suback)),
        Event::Incoming(Incoming::Publish(publish)) => Seen::Message(message(publish), None),
        Event::Incoming(Incoming::PubAck(puback)) => Seen::Acknowledged(puback.pkid, Ok(())),
        Event::Outgoing(Outgoing::Publish(packet)) => Seen::Published(packet),
        Event::Outgoing(Outgoing::Disconnect) => Seen::Goodbye,
        _ => Seen::Nothing,
    }
}

/// What to subscribe to. Prompts that the broker keeps come at every subscription, marked as such.
pub fn filter(wanted: Filter) -> SubscribeFilter {
    SubscribeFilter::new(wanted.topic, qos(wanted.assured))
}

/// Publishes, `assured` at QoS 1. `false`: no room now.
pub fn publish(client: &AsyncClient, packet: &Packet, assured: bool) -> bool {
    // At QoS 0 nothing of ours is to be kept.
    let retain = assured && packet.retain;
    client.try_publish(&packet.topic, qos(assured), retain, packet.payload.clone()).is_ok()
}

/// Acknowledges a message. `false`: no room now.
pub fn acknowledge(client: &AsyncClient, packet: u16) -> bool {
    let publish = Publish { pkid: packet, ..Publish::new("", QoS::AtLeastOnce, "") };
    client.try_ack(&publish).is_ok()
}

fn qos(assured: bool) -> QoS {
    if assured { QoS::AtLeastOnce } else { QoS::AtMostOnce }
}

fn broker(connack: &ConnAck, is_passing: bool) -> Broker {
    let limits = Limits { packet: usize::MAX, window: WINDOW };
    let session_present = connack.session_present;
    Broker {
        session_present,
        is_passing,
        retains: true,
        max_qos: 2,
        shares: true,
        first_ping: KEEP_ALIVE,
        limits,
    }
}

fn message(publish: Publish) -> Message {
    Message {
        topic: publish.topic.into_bytes(),
        payload: publish.payload.to_vec(),
        packet: (publish.qos != QoS::AtMostOnce).then_some(publish.pkid),
        redelivered: publish.dup,
        retained: publish.retain,
        response_topic: None,
        correlation: None,
        client: None,
        expiry: None,
    }
}

fn granted(suback: &SubAck) -> Vec<Result<(), String>> {
    let reason = |code: &SubscribeReasonCode| match code {
        SubscribeReasonCode::Success(_) => Ok(()),
        SubscribeReasonCode::Failure => Err("Failure".to_owned()),
    };
    suback.return_codes.iter().map(reason).collect()
}

fn trouble(error: ConnectionError) -> Trouble {
    match error {
        ConnectionError::NetworkTimeout => Trouble::Timeout,
        ConnectionError::FlushTimeout => Trouble::Silence,
        ConnectionError::Io(error) => Trouble::Io(error),
        ConnectionError::Tls(error) => disconnect::in_tls(error),
        ConnectionError::ConnectionRefused(code) => Trouble::Refused(format!("{code:?}"), refused(code)),
        ConnectionError::NotConnAck(_) => Trouble::Unreadable("it is no CONNACK".into()),
        ConnectionError::MqttState(StateError::AwaitPingResp) => Trouble::Silence,
        ConnectionError::MqttState(StateError::ConnectionAborted) => Trouble::Closed,
        ConnectionError::MqttState(StateError::Deserialization(CodecError::Io(e))) => Trouble::Io(e),
        ConnectionError::MqttState(StateError::Deserialization(e)) => Trouble::Unreadable(e.to_string()),
        other => Trouble::Other(other.to_string()),
    }
}

fn refused(code: ConnectReturnCode) -> String {
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
        assert!(broker(&connack, true).is_passing);
        assert!(!broker(&connack, false).is_passing);
    }

    #[test]
    fn an_oversized_packet_counts_as_unreadable_and_a_lost_connection_does_not() {
        let state = |e| trouble(ConnectionError::MqttState(StateError::Deserialization(e)));
        let oversize = state(CodecError::PayloadSizeLimitExceeded(9));
        assert!(matches!(oversize, Trouble::Unreadable(_)), "{oversize:?}");
        let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert!(matches!(state(CodecError::Io(reset)), Trouble::Io(_)));
    }
}
