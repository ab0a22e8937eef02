//! Takes messages that are too large for the daemon out of an MQTT 3.1.1 session.
//!
//! A 3.1.1 client cannot tell the broker what size it accepts, and the broker delivers such a message again after each
//! connect until it is acknowledged. rumqttc ends the connection at it. So the next connect is preceded by one of this
//! module, which reads past the payload, acknowledges the message and acknowledges nothing else: the broker delivers
//! everything else again on the connection after it. In MQTT 5 the CONNECT names the maximum and brokers keep to it.
//!
//! Deliberately knows no error: where something fails, the ordinary connection fails too, and reports it.

use super::options::{ConnectOptions, KEEP_ALIVE, MAX_PACKET};
use crate::protocol::json::MAX_REQUEST;
use crate::transport::mqtt::message::IncomingMessage;
use rumqttc::tokio_rustls::TlsConnector;
use rumqttc::{TlsConfiguration, Transport};
use rustls::pki_types::ServerName;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The session is at rest, and everything too large has been read, when nothing was received for so long.
const REST: Duration = Duration::from_secs(2);
/// Time for all of it. What is left then is taken out before the next connect.
const TIME_LIMIT: Duration = Duration::from_secs(120);
/// Bytes of a payload that are kept: one more than a request may have, with the request's id in them.
const KEPT_BYTES: usize = MAX_REQUEST + 1;

/// Packet types of MQTT 3.1.1, section 2.2.1, in the upper four bits of the first byte.
const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const PUBLISH: u8 = 0x30;
const PUBACK: u8 = 0x40;
const DISCONNECT: u8 = 0xe0;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Connects to the session, acknowledges what is too large in it, and disconnects. Returns those messages, with the
/// beginning of their payloads and without a packet identifier; and what arrived at QoS 0 meanwhile, which the broker
/// does not deliver again.
pub async fn take_oversized(options: ConnectOptions) -> Vec<IncomingMessage> {
    let mut taken = Vec::new();
    let work = async {
        let mut session = Session::open(&options).await?;
        session.take_all(MAX_PACKET as usize, &mut taken).await?;
        session.disconnect().await
    };
    match timeout(TIME_LIMIT, work).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            log::debug!("messages that are too large were not all taken from the session: {error}")
        }
        Err(_) => log::debug!("messages that are too large were not all taken from the session in time"),
    }
    taken
}

/// A connection of the few packets that are needed here.
struct Session<S>(BufReader<S>);

impl Session<Box<dyn Stream>> {
    async fn open(options: &ConnectOptions) -> io::Result<Self> {
        let host = options.host.trim_matches(['[', ']']);
        let tcp = TcpStream::connect((host, options.port)).await?;
        let stream: Box<dyn Stream> = match &options.transport {
            Transport::Tls(TlsConfiguration::Rustls(config)) => {
                let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
                Box::new(TlsConnector::from(config.clone()).connect(name, tcp).await?)
            }
            _ => Box::new(tcp),
        };
        let mut session = Session(BufReader::new(stream));
        session.0.write_all(&connect_packet(options)).await?;
        Ok(session)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    /// Reads packets until none was received for [`REST`]. A message is too large with more than `limit` bytes after its
    /// fixed header, as rumqttc counts.
    async fn take_all(&mut self, limit: usize, taken: &mut Vec<IncomingMessage>) -> io::Result<()> {
        while let Ok(header) = timeout(REST, self.0.read_u8()).await {
            let header = header?;
            let length = self.remaining_length().await?;
            match header & 0xf0 {
                CONNACK => self.check_connack(length).await?,
                PUBLISH => taken.extend(self.publish(header, length, limit).await?),
                _ => self.skip(length).await?,
            }
        }
        Ok(())
    }

    /// The length of the packet after its fixed header, in bytes (section 2.2.3): 7 bits in each of up to four bytes.
    async fn remaining_length(&mut self) -> io::Result<usize> {
        let mut length = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.0.read_u8().await?;
            length |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(length);
            }
        }
        Err(invalid("a length of more than four bytes"))
    }

    async fn check_connack(&mut self, length: usize) -> io::Result<()> {
        let answer = self.read(2).await?;
        self.skip(less(length, 2)?).await?;
        if answer[1] == 0 { Ok(()) } else { Err(invalid("the broker refuses the connection")) }
    }

    /// Section 3.3. Only what is too large is acknowledged, and only what is not delivered again is returned.
    async fn publish(
        &mut self,
        header: u8,
        length: usize,
        limit: usize,
    ) -> io::Result<Option<IncomingMessage>> {
        let is_qos_0 = header & 0x06 == 0;
        let is_oversized = length > limit;
        if !is_oversized && !is_qos_0 {
            self.skip(length).await?;
            return Ok(None);
        }
        let topic_bytes = usize::from(self.0.read_u16().await?);
        let mut left = less(length, 2 + topic_bytes)?;
        let topic = self.read(topic_bytes).await?;
        let mut packet = None;
        if !is_qos_0 {
            left = less(left, 2)?;
            packet = Some(self.0.read_u16().await?);
        }
        let payload = self.read(if is_oversized { left.min(KEPT_BYTES) } else { left }).await?;
        let skipped_bytes = left - payload.len();
        self.skip(skipped_bytes).await?;
        if let Some(packet) = packet {
            let [high, low] = packet.to_be_bytes();
            self.0.write_all(&[PUBACK, 2, high, low]).await?;
            self.0.flush().await?;
        }
        let retained = header & 0x01 != 0;
        Ok(Some(IncomingMessage { retained, skipped_bytes, ..IncomingMessage::new(topic, payload) }))
    }

    async fn read(&mut self, bytes: usize) -> io::Result<Vec<u8>> {
        let mut read = vec![0; bytes];
        self.0.read_exact(&mut read).await?;
        Ok(read)
    }

    async fn skip(&mut self, bytes: usize) -> io::Result<()> {
        let mut part = (&mut self.0).take(bytes as u64);
        let skipped = tokio::io::copy(&mut part, &mut tokio::io::sink()).await?;
        if skipped == bytes as u64 { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    async fn disconnect(&mut self) -> io::Result<()> {
        self.0.write_all(&[DISCONNECT, 0]).await?;
        self.0.shutdown().await
    }
}

/// Section 3.1: protocol level 4, the session is kept, no will.
fn connect_packet(options: &ConnectOptions) -> Vec<u8> {
    let mut flags = 0;
    let mut body = Vec::new();
    push_string(&mut body, &options.id);
    if let Some((user, password)) = &options.login {
        flags |= 0xc0;
        push_string(&mut body, user);
        push_string(&mut body, password);
    }
    let seconds = KEEP_ALIVE.as_secs() as u16;
    let mut variable = vec![0, 4, b'M', b'Q', b'T', b'T', 4, flags];
    variable.extend(seconds.to_be_bytes());
    variable.extend(body);
    let mut packet = vec![CONNECT];
    let mut length = variable.len();
    while length >= 0x80 {
        packet.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    packet.push(length as u8);
    packet.extend(variable);
    packet
}

/// A string with its length before it. No name or password is longer than 64 KiB.
fn push_string(packet: &mut Vec<u8>, text: &str) {
    packet.extend((text.len() as u16).to_be_bytes());
    packet.extend(text.as_bytes());
}

fn less(length: usize, bytes: usize) -> io::Result<usize> {
    length.checked_sub(bytes).ok_or_else(|| invalid("a packet shorter than what it holds"))
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    const LIMIT: usize = 200_000;

    fn publish(flags: u8, topic: &str, packet: Option<u16>, payload: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        push_string(&mut body, topic);
        body.extend(packet.into_iter().flat_map(u16::to_be_bytes));
        body.extend(payload);
        let mut bytes = vec![PUBLISH | flags];
        bytes.extend([body.len() as u8 | 0x80, (body.len() >> 7) as u8 | 0x80, (body.len() >> 14) as u8]);
        [bytes, body].concat()
    }

    /// What is taken when the broker sends these bytes, and what it receives.
    async fn taken(bytes: &[u8]) -> (io::Result<()>, Vec<IncomingMessage>, Vec<u8>) {
        let (ours, mut theirs) = duplex(1 << 20);
        theirs.write_all(bytes).await.expect("it fits");
        let mut session = Session(BufReader::new(ours));
        let mut taken = Vec::new();
        let result = session.take_all(LIMIT, &mut taken).await;
        drop(session);
        let mut received = Vec::new();
        theirs.read_to_end(&mut received).await.expect("open");
        (result, taken, received)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_large_is_acknowledged_and_nothing_else() {
        let large = [br#"{"id":"big","prompt":""#.to_vec(), vec![b'x'; LIMIT]].concat();
        let packets = [
            vec![CONNACK, 2, 1, 0],
            publish(0x02, "d/prompt", Some(1), b"small"),
            publish(0x0a, "d/prompt", Some(258), &large),
            publish(0x00, "d/cancel", None, b"now"),
            vec![0xd0, 0],
        ];
        let (result, taken, received) = taken(&packets.concat()).await;
        assert!(result.is_ok(), "{result:?}");
        assert_eq!(received, [PUBACK, 2, 1, 2]);
        let topics: Vec<_> = taken.iter().map(|message| message.topic.as_slice()).collect();
        assert_eq!(topics, [&b"d/prompt"[..], b"d/cancel"]);
        assert_eq!(taken[0].payload, large[..KEPT_BYTES]);
        assert_eq!(taken[0].payload.len() + taken[0].skipped_bytes, large.len());
        assert_eq!((taken[1].payload.as_slice(), taken[1].skipped_bytes), (&b"now"[..], 0));
        assert!(taken.iter().all(|message| message.packet.is_none()));
    }

    #[tokio::test(start_paused = true)]
    async fn packets_that_are_cut_or_contradict_themselves_are_errors() {
        let whole = publish(0x02, "t", Some(1), &vec![b'x'; LIMIT]);
        for bytes in
            [&whole[..3], &whole[..whole.len() - 1], &[PUBLISH, 3, 0, 9, b'a'], &[0x30, 255, 255, 255, 255]]
        {
            // The connection is closed after them.
            let (ours, mut theirs) = duplex(1 << 20);
            theirs.write_all(bytes).await.expect("it fits");
            drop(theirs);
            let result = Session(BufReader::new(ours)).take_all(LIMIT, &mut Vec::new()).await;
            assert!(result.is_err(), "{}", bytes.len());
        }
        let (result, ..) = taken(&[CONNACK, 2, 0, 5]).await;
        assert!(result.is_err(), "refused");
    }

    #[test]
    fn the_connect_packet_has_the_login_and_keeps_the_session() {
        let options = |login| ConnectOptions {
            id: "bitnetd-a".into(),
            host: "h".into(),
            port: 1,
            login,
            transport: Transport::Tcp,
            network: rumqttc::NetworkOptions::new(),
        };
        assert_eq!(connect_packet(&options(None)), b"\x10\x15\0\x04MQTT\x04\0\0\x1e\0\x09bitnetd-a");
        let login = Some(("u".to_owned(), "p".repeat(200)));
        let packet = connect_packet(&options(login));
        assert_eq!(packet[..4], [0x10, 0xe2, 0x01, 0]);
        assert_eq!(packet.len(), 3 + 0xe2);
        assert_eq!(packet[10], 0xc0);
    }
}
