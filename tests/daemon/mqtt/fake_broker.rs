//! The MQTT transport against a small fake broker that misbehaves on demand, packet by packet, as a real broker
//! does not.

use super::harness::{Harness, QUIET_PERIOD, answer, config};
use bitnetd::config::Mqtt;
use bitnetd::transport::mqtt::MqttContext;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnAckProperties, Connect, ConnectReturnCode, Disconnect, DisconnectReasonCode, LastWill,
    Packet, PubAck, Publish, SubAck, Subscribe, SubscribeReasonCode,
};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::bytes::BytesMut;

const PATIENCE: Duration = Duration::from_secs(120);

/// The fake broker's listener.
pub struct Broker(TcpListener);

impl Broker {
    pub async fn new() -> Self {
        Broker(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port"))
    }

    pub fn harness(&self) -> Harness {
        self.harness_with(|_| {})
    }

    pub fn harness_with(&self, change: impl FnOnce(&mut MqttContext)) -> Harness {
        Harness::with(self.link(), change)
    }

    fn harness_of_a_group(&self) -> Harness {
        Harness::with(Mqtt { group: Some("kitchens".into()), ..self.link() }, |_| {})
    }

    fn link(&self) -> Mqtt {
        config(self.0.local_addr().expect("its address").port())
    }

    /// The next connection, up to its CONNECT.
    async fn accept(&self) -> Session {
        let accepted = timeout(PATIENCE, self.0.accept()).await.expect("a connection in time");
        let (stream, _) = accepted.expect("a connection");
        let mut session = Session { stream, buffer: BytesMut::new(), connect: None, will: None };
        match session.read().await {
            Packet::Connect(connect, will, _) => (session.connect, session.will) = (Some(connect), will),
            other => panic!("no CONNECT but {other:?}"),
        }
        session
    }

    /// The first connection of another process, whose session was kept: it subscribes anew.
    pub async fn session_of_another(&self) -> Session {
        let mut session = self.accept().await;
        session.welcome(true, None).await;
        session.settle().await;
        session
    }

    /// Drops connections that wait here, of a daemon that is dead by now.
    pub async fn forget_callers(&self) {
        while timeout(Duration::from_millis(10), self.0.accept()).await.is_ok() {}
    }

    /// The next connection, welcomed, all it does on its own acknowledged.
    pub async fn session(&self, saved: bool) -> Session {
        let mut session = self.accept().await;
        session.welcome(saved, None).await;
        session.settle().await;
        session
    }
}

/// Topics of states, which are retained and are published at any time.
const STATES: [&str; 3] = ["bitnetd/cellar/answering", "bitnetd/cellar/health", "bitnetd/cellar/alerts"];

pub struct Session {
    stream: TcpStream,
    buffer: BytesMut,
    connect: Option<Connect>,
    will: Option<LastWill>,
}

impl Session {
    async fn write(&mut self, packet: Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, None).expect("a sound packet");
        self.stream.write_all(&bytes).await.expect("an open connection");
    }

    async fn read(&mut self) -> Packet {
        timeout(PATIENCE, self.try_read()).await.expect("a packet in time")
    }

    async fn try_read(&mut self) -> Packet {
        loop {
            match Packet::read(&mut self.buffer, None) {
                // A message of the daemon to itself, which this broker does not send back.
                Ok(Packet::Publish(own)) if own.payload.starts_with(b"{\"self_check\"") => continue,
                // A state, at QoS 0.
                Ok(Packet::Publish(own)) if STATES.iter().any(|state| own.topic == *state) => continue,
                Ok(packet) => return packet,
                Err(_) => {}
            }
            let read = self.stream.read_buf(&mut self.buffer).await;
            assert_ne!(read.expect("an open connection"), 0, "the transport closed the connection");
        }
    }

    async fn welcome(&mut self, session_present: bool, properties: Option<ConnAckProperties>) {
        let code = ConnectReturnCode::Success;
        self.write(Packet::ConnAck(ConnAck { session_present, code, properties })).await;
    }

    /// Grants the subscription and acknowledges `online` and `info`.
    async fn settle(&mut self) {
        for _ in 0..3 {
            match self.read().await {
                Packet::Subscribe(asked) => self.grant(&asked).await,
                Packet::Publish(own) => self.acknowledge(&own).await,
                other => panic!("not expected: {other:?}"),
            }
        }
    }

    async fn grant(&mut self, asked: &Subscribe) {
        let return_codes = vec![SubscribeReasonCode::Success(QoS::AtLeastOnce); asked.filters.len()];
        self.write(Packet::SubAck(SubAck { pkid: asked.pkid, return_codes, properties: None })).await;
    }

    pub async fn deliver(&mut self, pkid: u16, dup: bool, text: &str) {
        self.deliver_on("bitnetd/cellar/prompt", pkid, dup, text).await;
    }

    pub async fn deliver_on(&mut self, topic: &str, pkid: u16, dup: bool, text: &str) {
        let publish = Publish::new(topic, QoS::AtLeastOnce, text.to_owned(), None);
        self.write(Packet::Publish(Publish { pkid, dup, ..publish })).await;
    }

    pub async fn reply(&mut self) -> Publish {
        match self.read().await {
            Packet::Publish(publish) => publish,
            other => panic!("no reply but {other:?}"),
        }
    }

    pub async fn acknowledge(&mut self, publish: &Publish) {
        self.write(Packet::PubAck(PubAck::new(publish.pkid, None))).await;
    }

    /// The next packet is the acknowledgement of this prompt.
    pub async fn is_acknowledged(&mut self, packet: u16) {
        assert_eq!(self.read().await, Packet::PubAck(PubAck::new(packet, None)));
    }

    pub async fn is_quiet(&mut self) {
        let more = timeout(QUIET_PERIOD, self.try_read()).await;
        assert!(more.is_err(), "{more:?}");
    }
}

#[tokio::test]
async fn the_connect_has_a_session_a_will_and_limits() {
    let broker = Broker::new().await;
    let _bench = broker.harness();
    let session = broker.accept().await;
    let connect = session.connect.expect("read");
    assert_eq!((connect.client_id.as_str(), connect.clean_start), ("bitnetd-cellar", false));
    let text = connect.properties.expect("some");
    assert_eq!(text.session_expiry_interval, Some(7 * 24 * 3600));
    assert_eq!((text.receive_maximum, text.max_packet_size), (Some(64), Some(1 << 20)));
    let will = session.will.expect("a last will");
    assert_eq!((&will.topic[..], &will.message[..]), (&b"bitnetd/cellar/availability"[..], &b"offline"[..]));
    assert_eq!((will.qos, will.retain), (QoS::AtLeastOnce, true));
}

#[tokio::test]
async fn a_prompt_is_acknowledged_only_after_the_broker_has_its_answer() {
    let broker = Broker::new().await;
    let mut harness = broker.harness();
    let mut session = broker.session(false).await;
    session.deliver(7, false, "hi").await;
    let inbound = harness.request().await;
    session.is_quiet().await;
    answer(inbound, "hello");
    let reply = session.reply().await;
    session.is_quiet().await;
    session.acknowledge(&reply).await;
    session.is_acknowledged(7).await;
}

#[tokio::test]
async fn acknowledgements_go_out_in_the_order_of_arrival() {
    let broker = Broker::new().await;
    let mut harness = broker.harness();
    let mut session = broker.session(false).await;
    session.deliver(7, false, "one").await;
    session.deliver(8, false, "two").await;
    let (one, two) = (harness.request().await, harness.request().await);
    answer(two, "2");
    let reply = session.reply().await;
    session.acknowledge(&reply).await;
    session.is_quiet().await;
    answer(one, "1");
    let reply = session.reply().await;
    session.acknowledge(&reply).await;
    session.is_acknowledged(7).await;
    session.is_acknowledged(8).await;
}

#[tokio::test]
async fn a_redelivery_of_a_running_prompt_takes_over_its_acknowledgement() {
    let broker = Broker::new().await;
    let mut harness = broker.harness();
    let mut session = broker.session(false).await;
    session.deliver(7, false, "hi").await;
    let inbound = harness.request().await;
    drop(session);
    let mut session = broker.session(true).await;
    session.deliver(7, true, "hi").await;
    harness.is_quiet().await;
    answer(inbound, "hello");
    let reply = session.reply().await;
    session.acknowledge(&reply).await;
    session.is_acknowledged(7).await;
    session.is_quiet().await;
}

#[tokio::test]
async fn a_redelivery_of_an_answered_prompt_gets_the_same_answer_again() {
    let broker = Broker::new().await;
    let mut harness = broker.harness();
    let mut session = broker.session(false).await;
    session.deliver(7, false, "hi").await;
    harness.echo().await;
    let reply = session.reply().await;
    session.acknowledge(&reply).await;
    session.is_acknowledged(7).await;
    // The acknowledgement was lost with the connection.
    drop(session);
    let mut session = broker.session(true).await;
    session.deliver(7, true, "hi").await;
    // The broker may have lost what it had, too.
    let again = session.reply().await;
    assert_eq!((again.topic, again.payload), (reply.topic, reply.payload));
    session.is_quiet().await;
    session.acknowledge(&Publish { pkid: again.pkid, ..Publish::default() }).await;
    session.is_acknowledged(7).await;
    harness.is_quiet().await;
    assert_eq!((harness.state.borrow().duplicates, harness.state.borrow().resent), (1, 1));
}

#[tokio::test]
async fn a_reply_without_acknowledgement_is_published_again_on_the_next_connection() {
    let broker = Broker::new().await;
    let mut harness = broker.harness();
    let mut session = broker.session(false).await;
    session.deliver(7, false, "hi").await;
    harness.echo().await;
    let first = session.reply().await;
    drop(session);
    let mut session = broker.session(true).await;
    let again = session.reply().await;
    assert_eq!(again.payload, first.payload);
    session.acknowledge(&again).await;
    // The prompt belongs to the lost connection until the broker delivers it again.
    session.is_quiet().await;
    session.deliver(7, true, "hi").await;
    session.is_acknowledged(7).await;
}

#[tokio::test]
async fn the_broker_s_receive_maximum_bounds_what_is_on_its_way() {
    let broker = Broker::new().await;
    let mut harness = broker.harness();
    let mut session = broker.accept().await;
    let mut text = none();
    text.receive_max = Some(1);
    session.welcome(false, Some(text)).await;
    session.settle().await;
    session.deliver(7, false, "one").await;
    session.deliver(8, false, "two").await;
    harness.echo().await;
    harness.echo().await;
    let first = session.reply().await;
    session.is_quiet().await;
    session.acknowledge(&first).await;
    // rumqttc keeps acknowledgements behind a full window as well.
    let second = session.reply().await;
    session.is_quiet().await;
    session.acknowledge(&second).await;
    session.is_acknowledged(7).await;
    session.is_acknowledged(8).await;
}

#[tokio::test]
async fn a_topic_that_is_not_text_is_acknowledged_and_forgotten() {
    let broker = Broker::new().await;
    let mut harness = broker.harness();
    let mut session = broker.session(false).await;
    let publish = Publish::new("x", QoS::AtLeastOnce, "hi", None);
    let topic = b"bitnetd/cellar/prompt/\xff".as_slice().into();
    session.write(Packet::Publish(Publish { pkid: 7, topic, ..publish })).await;
    session.is_acknowledged(7).await;
    harness.is_quiet().await;
}

#[tokio::test]
async fn an_unreadable_packet_ends_in_a_new_session_not_in_a_loop() {
    let broker = Broker::new().await;
    let mut harness = broker.harness();
    let start = Instant::now();
    for saved in [false, true, true] {
        let mut session = broker.session(saved).await;
        assert!(!session.connect.as_ref().expect("read").clean_start);
        // A PUBLISH at QoS 1 that claims to have 2 MiB.
        session.stream.write_all(&[0x32, 0x80, 0x80, 0x80, 0x01]).await.expect("open");
        harness.until(|state| !state.connected).await;
    }
    let session = broker.session(false).await;
    assert!(session.connect.expect("read").clean_start);
    // 1 + 2 + 4 seconds of waiting at least.
    assert!(start.elapsed() >= Duration::from_secs(7), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_broker_that_closes_the_connection_is_tried_at_most_once_a_second() {
    let broker = Broker::new().await;
    let _bench = broker.harness();
    let mut before = None;
    for _ in 0..3 {
        drop(broker.accept().await);
        let now = Instant::now();
        let gap = before.replace(now).map_or(Duration::MAX, |then| now - then);
        assert!(gap >= Duration::from_millis(950), "{gap:?}");
    }
}

#[tokio::test]
async fn a_stop_without_a_broker_does_not_wait() {
    let broker = Broker::new().await;
    let harness = broker.harness();
    drop(broker);
    timeout(Duration::from_secs(3), harness.close()).await.expect("nothing to wait for");
}

#[tokio::test]
async fn a_stop_waits_for_a_silent_broker_only_so_long() {
    let broker = Broker::new().await;
    let mut harness = broker.harness();
    let mut session = broker.session(false).await;
    session.deliver(7, false, "hi").await;
    harness.echo().await;
    session.reply().await;
    // Five seconds for the reply, two for the DISCONNECT, neither acknowledged.
    timeout(Duration::from_secs(15), harness.close()).await.expect("it gives up");
}

#[tokio::test]
async fn a_broker_that_speaks_only_3_1_1_is_told_of_with_the_way_out() {
    let broker = Broker::new().await;
    let mut harness = broker.harness();
    // A CONNACK of 3.1.1: unacceptable protocol version.
    let mut session = broker.accept().await;
    session.stream.write_all(&[0x20, 0x02, 0x00, 0x01]).await.expect("open");
    drop(session);
    harness.until(|state| state.problem.as_ref().is_some_and(|text| text.contains("\"3.1.1\""))).await;
}

#[tokio::test]
async fn a_server_of_another_protocol_is_named_in_the_log() {
    let broker = Broker::new().await;
    let mut harness = broker.harness();
    let mut session = broker.accept().await;
    session.stream.write_all(&[0, 0]).await.expect("open");
    harness.until(|state| state.problem.as_ref().is_some_and(|text| text.contains("no MQTT broker"))).await;
}

#[tokio::test]
async fn a_broker_without_shared_subscriptions_is_not_asked_for_them_and_the_rest_works() {
    let broker = Broker::new().await;
    let mut harness = broker.harness_of_a_group();
    let mut session = broker.accept().await;
    let text = ConnAckProperties { shared_subscription_available: Some(0), ..none() };
    session.welcome(false, Some(text)).await;
    match session.read().await {
        Packet::Subscribe(asked) => {
            assert!(asked.filters.iter().all(|filter| !filter.path.starts_with("$share")), "{asked:?}");
            session.grant(&asked).await;
        }
        other => panic!("no SUBSCRIBE but {other:?}"),
    }
    harness.until(|state| state.subscribed).await;
    assert!(harness.state.borrow().problem.as_ref().is_some_and(|text| text.contains("mqtt.group")));
}

#[tokio::test]
async fn a_broker_that_closes_the_connection_over_a_shared_subscription_is_asked_twice() {
    let broker = Broker::new().await;
    let mut harness = broker.harness_of_a_group();
    for filters in [7, 7, 4] {
        let mut session = broker.accept().await;
        session.welcome(false, None).await;
        match session.read().await {
            Packet::Subscribe(asked) => {
                assert_eq!(asked.filters.len(), filters);
                if filters == 4 {
                    session.grant(&asked).await;
                    harness.until(|state| state.subscribed).await;
                }
            }
            other => panic!("no SUBSCRIBE but {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_broker_that_dismisses_us_over_home_assistant_s_birth_is_asked_for_prompts_alone() {
    let broker = Broker::new().await;
    let mut harness = Harness::with(Mqtt { group: Some("kitchens".into()), ..broker.link() }, |context| {
        context.has_homeassistant = true
    });
    // Four of our own, a birth and the description, three of the group: what is allowed must not be given up with the birth.
    for (number, filters) in [9, 9, 7].into_iter().enumerate() {
        let mut session = broker.accept().await;
        session.welcome(number > 0, None).await;
        let Packet::Subscribe(asked) = session.read().await else { panic!("no SUBSCRIBE") };
        assert_eq!(asked.filters.len(), filters, "{asked:?}");
        if asked.filters.iter().any(|filter| filter.path == "homeassistant/status") {
            let refusal = Disconnect::new(DisconnectReasonCode::NotAuthorized);
            session.write(Packet::Disconnect(refusal)).await;
            continue;
        }
        session.grant(&asked).await;
        harness.until(|state| state.subscribed).await;
        // `online`, `info` and the description, none of which is the cause.
        for _ in 0..3 {
            let own = session.reply().await;
            session.acknowledge(&own).await;
        }
        session.deliver(7, false, "hi").await;
        assert_eq!(harness.echo().await, "hi");
    }
}

#[tokio::test]
async fn a_broker_that_wants_no_pings_keeps_its_connection() {
    let broker = Broker::new().await;
    let mut harness = broker.harness();
    let mut session = broker.accept().await;
    let text = ConnAckProperties { server_keep_alive: Some(0), ..none() };
    session.welcome(false, Some(text)).await;
    let mut pings = 0;
    for _ in 0..4 {
        match session.read().await {
            Packet::Subscribe(asked) => session.grant(&asked).await,
            Packet::Publish(own) => session.acknowledge(&own).await,
            Packet::PingReq(_) => pings += 1,
            other => panic!("not expected: {other:?}"),
        }
    }
    assert_eq!(pings, 1);
    session.is_quiet().await;
    session.deliver(7, false, "hi").await;
    assert_eq!(harness.echo().await, "hi");
}

fn none() -> ConnAckProperties {
    ConnAckProperties {
        session_expiry_interval: None,
        receive_max: None,
        max_qos: None,
        retain_available: None,
        max_packet_size: None,
        assigned_client_identifier: None,
        topic_alias_max: None,
        reason_string: None,
        user_properties: Vec::new(),
        wildcard_subscription_available: None,
        subscription_identifiers_available: None,
        shared_subscription_available: None,
        server_keep_alive: None,
        response_information: None,
        server_reference: None,
        authentication_method: None,
        authentication_data: None,
    }
}
