//! Sound packets with any topic, flags, properties and payload, from a broker that acknowledges in
//! any order or not at all: each prompt at QoS 1 is acknowledged at most once, in the order of
//! arrival, and not before its last event.

#![no_main]

mod peer;

use bitnetd::config::MqttVersion;
use libfuzzer_sys::fuzz_target;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectReturnCode, Packet, PubAck, PubAckReason, Publish, PublishProperties, SubAck,
    SubscribeReasonCode,
};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::WriteHalf;
use tokio::time::timeout;
use tokio_util::bytes::BytesMut;

/// Silence after which the transport sends nothing more; what it sends comes within microseconds.
const QUIET: Duration = Duration::from_millis(1);

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let (habit, session_present) = (input.byte(), input.byte() & 1 == 1);
    let mut prompts: Vec<Publish> = Vec::new();
    while !input.0.is_empty() && prompts.len() < 64 {
        prompts.push(input.publish());
    }
    peer::play(MqttVersion::V5, async |stream| {
        let mut broker = Broker { stream, buffer: BytesMut::new(), habit, awaited: VecDeque::new() };
        broker.play(session_present, prompts).await;
    });
});

/// Reads choices out of bytes.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// Up to the next byte 255, which is in no UTF-8.
    fn chunk(&mut self) -> Vec<u8> {
        let end = self.0.iter().position(|byte| *byte == 0xff).unwrap_or(self.0.len());
        let chunk = self.0[..end].to_vec();
        self.0 = self.0.get(end + 1..).unwrap_or_default();
        chunk
    }

    fn text(&mut self) -> String {
        String::from_utf8_lossy(&self.chunk()).into_owned()
    }

    fn publish(&mut self) -> Publish {
        let (flags, packet, asked) = (self.byte(), self.byte(), self.byte());
        let topic = match flags >> 5 {
            0 => ["bitnetd/cellar/cancel", "bitnetd/cellar/threads/set", "homeassistant/status"]
                [usize::from(packet) % 3]
                .into(),
            1 => format!("bitnetd/cellar/prompt/{}", self.text()),
            2 => self.text(),
            _ => "bitnetd/cellar/prompt".into(),
        };
        let properties = PublishProperties {
            response_topic: (asked & 1 != 0).then(|| self.text()),
            correlation_data: (asked & 2 != 0).then(|| self.chunk().into()),
            message_expiry_interval: (asked & 4 != 0).then(|| u32::from(self.byte())),
            content_type: (asked & 8 != 0).then(|| self.text()),
            user_properties: (asked & 16 != 0).then(|| ("client".to_owned(), self.text())).into_iter().collect(),
            ..PublishProperties::default()
        };
        let qos = if flags & 1 == 0 { QoS::AtLeastOnce } else { QoS::AtMostOnce };
        let publish = Publish::new(topic, qos, self.chunk(), Some(properties));
        // At QoS 0 there is no packet id.
        let pkid = if flags & 1 == 0 { u16::from(packet).max(1) } else { 0 };
        Publish { dup: flags & 2 != 0, retain: flags & 4 != 0, pkid, ..publish }
    }
}

struct Broker {
    stream: TcpStream,
    buffer: BytesMut,
    /// How it acknowledges: one bit for each answer in turn.
    habit: u8,
    /// Packet identifiers that the transport has to acknowledge, in this order.
    awaited: VecDeque<u16>,
}

impl Broker {
    async fn play(&mut self, session_present: bool, prompts: Vec<Publish>) {
        self.hear().await;
        let connack = ConnAck { session_present, code: ConnectReturnCode::Success, properties: None };
        self.say(&Packet::ConnAck(connack)).await;
        for prompt in prompts {
            if prompt.pkid != 0 {
                self.awaited.push_back(prompt.pkid);
            }
            self.say(&Packet::Publish(prompt)).await;
            self.hear().await;
        }
    }

    async fn say(&mut self, packet: &Packet) {
        let (_, mut write) = self.stream.split();
        say(&mut write, packet).await;
    }

    /// Reads until nothing comes, and answers.
    async fn hear(&mut self) {
        let (mut read, mut write) = self.stream.split();
        while let Ok(Ok(1..)) = timeout(QUIET, read.read_buf(&mut self.buffer)).await {
            while let Ok(packet) = Packet::read(&mut self.buffer, None) {
                let answer = reply(packet, &mut self.habit, &mut self.awaited);
                if let Some(answer) = answer {
                    say(&mut write, &answer).await;
                }
            }
        }
    }
}

async fn say(write: &mut WriteHalf<'_>, packet: &Packet) {
    let mut bytes = BytesMut::new();
    // Not every topic can be written; the transport may have closed the connection.
    if packet.write(&mut bytes, None).is_ok() {
        let _ = write.write_all(&bytes).await;
    }
}

fn reply(packet: Packet, habit: &mut u8, awaited: &mut VecDeque<u16>) -> Option<Packet> {
    match packet {
        Packet::Subscribe(asked) => {
            let return_codes = vec![SubscribeReasonCode::Success(QoS::AtLeastOnce); asked.filters.len()];
            Some(Packet::SubAck(SubAck { pkid: asked.pkid, return_codes, properties: None }))
        }
        Packet::Publish(publish) if publish.qos == QoS::AtLeastOnce => {
            *habit = habit.rotate_left(1);
            let reason = if *habit & 2 == 0 { PubAckReason::Success } else { PubAckReason::NotAuthorized };
            let ack = PubAck { reason, ..PubAck::new(publish.pkid, None) };
            (*habit & 1 == 0).then_some(Packet::PubAck(ack))
        }
        Packet::PubAck(ack) => {
            assert_eq!(awaited.pop_front(), Some(ack.pkid), "acknowledged in the order of arrival");
            None
        }
        _ => None,
    }
}
