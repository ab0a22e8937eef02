//! Whatever bytes come from the broker: the transport does not panic, does not end, hangs up on its own
//! account or at the end of the stream, and what it writes is MQTT on topics that are its to use.

#![no_main]

mod peer;

use bitnetd::config::MqttVersion;
use libfuzzer_sys::fuzz_target;
use rumqttc::mqttbytes::v4;
use rumqttc::v5::mqttbytes::v5;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::bytes::BytesMut;

fuzz_target!(|bytes: &[u8]| {
    let Some((how, bytes)) = bytes.split_first() else { return };
    let version = if how & 4 == 0 { MqttVersion::V5 } else { MqttVersion::V311 };
    peer::play(version, async |stream| speak(stream, version, welcome(how % 8), bytes).await);
});

/// The welcomes that a broker can begin with, and none; from 4 on those of MQTT 3.1.1.
fn welcome(how: u8) -> &'static [u8] {
    match how {
        4 => &[],
        5 => &[0x20, 2, 0, 0],
        6 => &[0x20, 2, 1, 0],
        // Refused: the server is not available.
        7 => &[0x20, 2, 0, 3],
        0 => &[],
        1 => &[0x20, 3, 0, 0, 0],
        // The session is kept.
        2 => &[0x20, 3, 1, 0, 0],
        // Receive Maximum 2, Maximum Packet Size 128.
        _ => &[0x20, 11, 0, 0, 8, 0x21, 0, 2, 0x27, 0, 0, 0, 128],
    }
}

async fn speak(mut stream: TcpStream, version: MqttVersion, welcome: &[u8], bytes: &[u8]) {
    let mut said = BytesMut::new();
    let (mut read, mut write) = stream.split();
    let speak = async {
        // The transport may have closed the connection.
        let _ = write.write_all(welcome).await;
        let _ = write.write_all(bytes).await;
        let _ = write.shutdown().await;
    };
    let listen = async { while read.read_buf(&mut said).await.is_ok_and(|count| count > 0) {} };
    tokio::join!(speak, listen);
    // The connection may have ended in the middle of a packet that the transport sends.
    match version {
        MqttVersion::V5 => {
            while let Ok(packet) = v5::Packet::read(&mut said, None) {
                let v5::Packet::Publish(publish) = packet else { continue };
                check(std::str::from_utf8(&publish.topic).expect("a topic is text"));
            }
        }
        MqttVersion::V311 => {
            while let Ok(packet) = v4::Packet::read(&mut said, usize::MAX) {
                let v4::Packet::Publish(publish) = packet else { continue };
                check(&publish.topic);
            }
        }
    }
}

fn check(topic: &str) {
    assert!(!topic.is_empty() && !topic.contains(['+', '#', '\0']), "{topic}");
    let own = topic.strip_prefix("bitnetd/cellar/");
    assert!(
        own.is_none_or(|own| own != "cancel" && own != "threads/set" && own != "prompt" && !own.starts_with("prompt/")),
        "{topic}"
    );
}
