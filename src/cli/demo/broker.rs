//! The broker of the demo: as much of MQTT 5 as the demo needs, on a loopback port, with the packets of the client library.
//!
//! It has no sessions, no wills, no authentication, no shared subscriptions and no QoS 2, and it ends with the process; a home has
//! mosquitto. Deliberately knows nothing of the daemon: it passes messages on.

use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectReturnCode, Filter, Packet, PingResp, PubAck, Publish, RetainForwardRule, SubAck,
    Subscribe, SubscribeReasonCode, UnsubAck, UnsubAckReason, Unsubscribe,
};
use rumqttc::v5::mqttbytes::{Error as CodecError, QoS, matches};
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::bytes::{Bytes, BytesMut};

/// The longest packet that is read, in bytes.
const MAX_PACKET: u32 = 1 << 20;

/// A broker that listens.
pub(super) struct LoopbackBroker {
    listener: TcpListener,
    pub address: SocketAddr,
}

impl LoopbackBroker {
    /// Listens on a free port of the loopback address.
    pub async fn listen() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        Ok(LoopbackBroker { listener, address })
    }

    /// Serves clients until it is dropped.
    pub async fn run(self) {
        let (hub, mut clients) = (Arc::new(Mutex::new(Hub::default())), JoinSet::new());
        for number in 0.. {
            match self.listener.accept().await {
                Ok((stream, _)) => drop(clients.spawn(serve(stream, number, Arc::clone(&hub)))),
                Err(error) => log::error!("the demo's broker: {error}"),
            }
        }
    }
}

/// What all clients share.
#[derive(Default)]
struct Hub {
    retained: BTreeMap<Bytes, Publish>,
    clients: BTreeMap<u64, HubClient>,
}

/// A client that is connected.
struct HubClient {
    filters: Vec<Filter>,
    outgoing: mpsc::UnboundedSender<Packet>,
    last_packet: u16,
}

impl HubClient {
    /// Sends a message, with the lower of its own quality of service and the subscription's.
    fn send(&mut self, message: &Publish, filter_qos: QoS, retain: bool) {
        let qos = if filter_qos == QoS::AtMostOnce { QoS::AtMostOnce } else { message.qos };
        self.last_packet = self.last_packet.checked_add(1).unwrap_or(1);
        let pkid = if qos == QoS::AtMostOnce { 0 } else { self.last_packet };
        let message = Publish { dup: false, qos, retain, pkid, ..message.clone() };
        let _ = self.outgoing.send(Packet::Publish(message)); // the client may be gone
    }
}

impl Hub {
    /// Passes a message of a client on to all that have subscribed to it.
    fn publish(&mut self, sender: u64, message: &Publish) {
        if message.retain && message.payload.is_empty() {
            self.retained.remove(&message.topic);
        } else if message.retain {
            self.retained.insert(message.topic.clone(), message.clone());
        }
        for (number, client) in &mut self.clients {
            let wants =
                |filter: &&Filter| covers(filter, &message.topic) && !(filter.nolocal && *number == sender);
            if let Some(qos) = client.filters.iter().filter(wants).map(|filter| filter.qos).max_by_key(level)
            {
                client.send(message, qos, false);
            }
        }
    }

    /// Adds subscriptions and sends what is retained for them.
    fn subscribe(&mut self, number: u64, request: Subscribe) -> Option<Packet> {
        let client = self.clients.get_mut(&number)?;
        for filter in
            request.filters.iter().filter(|filter| filter.retain_forward_rule != RetainForwardRule::Never)
        {
            for message in self.retained.values().filter(|message| covers(filter, &message.topic)) {
                client.send(message, filter.qos, true);
            }
        }
        let return_codes = request
            .filters
            .iter()
            .map(|filter| match filter.qos {
                QoS::AtMostOnce => SubscribeReasonCode::Success(QoS::AtMostOnce),
                _ => SubscribeReasonCode::Success(QoS::AtLeastOnce),
            })
            .collect();
        client.filters.retain(|old| request.filters.iter().all(|new| new.path != old.path));
        client.filters.extend(request.filters);
        Some(Packet::SubAck(SubAck { pkid: request.pkid, return_codes, properties: None }))
    }

    fn unsubscribe(&mut self, number: u64, request: &Unsubscribe) -> Option<Packet> {
        let client = self.clients.get_mut(&number)?;
        client.filters.retain(|filter| !request.filters.contains(&filter.path));
        let reasons = vec![UnsubAckReason::Success; request.filters.len()];
        Some(Packet::UnsubAck(UnsubAck { pkid: request.pkid, reasons, properties: None }))
    }
}

fn covers(filter: &Filter, topic: &[u8]) -> bool {
    std::str::from_utf8(topic).is_ok_and(|topic| matches(topic, &filter.path))
}

fn level(qos: &QoS) -> u8 {
    *qos as u8
}

/// Serves one client until it disconnects or sends what is no packet.
async fn serve(mut stream: TcpStream, number: u64, hub: Arc<Mutex<Hub>>) {
    let (outgoing, mut packets) = mpsc::unbounded_channel();
    locked(&hub).clients.insert(number, HubClient { filters: Vec::new(), outgoing, last_packet: 0 });
    let (mut reader, mut writer) = stream.split();
    let answer = locked(&hub).clients[&number].outgoing.clone();
    let reading = async {
        let mut buffer = BytesMut::new();
        loop {
            match Packet::read(&mut buffer, Some(MAX_PACKET)) {
                Ok(packet) => {
                    if let Some(packet) = handle(&hub, number, packet) {
                        let _ = answer.send(packet); // written below, unless the client is gone
                    }
                }
                Err(CodecError::InsufficientBytes(_)) => match reader.read_buf(&mut buffer).await {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return,
                },
                Err(_) => return,
            }
        }
    };
    let writing = async {
        while let Some(packet) = packets.recv().await {
            let mut bytes = BytesMut::new();
            if packet.write(&mut bytes, None).is_err() || writer.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
    locked(&hub).clients.remove(&number);
}

/// Does what a packet asks for; the answer, where it has one.
fn handle(hub: &Mutex<Hub>, number: u64, packet: Packet) -> Option<Packet> {
    match packet {
        Packet::Connect(..) => {
            let code = ConnectReturnCode::Success;
            Some(Packet::ConnAck(ConnAck { session_present: false, code, properties: None }))
        }
        Packet::Publish(message) => {
            locked(hub).publish(number, &message);
            (message.qos != QoS::AtMostOnce).then(|| Packet::PubAck(PubAck::new(message.pkid, None)))
        }
        Packet::Subscribe(request) => locked(hub).subscribe(number, request),
        Packet::Unsubscribe(request) => locked(hub).unsubscribe(number, &request),
        Packet::PingReq(_) => Some(Packet::PingResp(PingResp)),
        _ => None,
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hub with so many clients, and what they are sent.
    fn hub(clients: u64) -> (Mutex<Hub>, Vec<mpsc::UnboundedReceiver<Packet>>) {
        let hub = Mutex::new(Hub::default());
        let received = (0..clients).map(|number| {
            let (outgoing, packets) = mpsc::unbounded_channel();
            locked(&hub).clients.insert(number, HubClient { filters: Vec::new(), outgoing, last_packet: 0 });
            packets
        });
        let received = received.collect();
        (hub, received)
    }

    fn subscribe(hub: &Mutex<Hub>, client: u64, filter: Filter) {
        let answer = handle(hub, client, Packet::Subscribe(Subscribe::new(filter, None)));
        assert!(matches!(answer, Some(Packet::SubAck(_))), "{answer:?}");
    }

    fn publish(hub: &Mutex<Hub>, client: u64, topic: &str, payload: &str, retain: bool) {
        let message = Publish::new(topic, QoS::AtLeastOnce, payload.to_owned(), None);
        let answer = handle(hub, client, Packet::Publish(Publish { pkid: 7, retain, ..message }));
        assert_eq!(answer, Some(Packet::PubAck(PubAck::new(7, None))));
    }

    /// The messages that a client was sent: payload, quality of service, packet, and whether it was retained.
    fn received(packets: &mut mpsc::UnboundedReceiver<Packet>) -> Vec<(String, QoS, u16, bool)> {
        let packets = std::iter::from_fn(|| packets.try_recv().ok());
        packets
            .map(|packet| match packet {
                Packet::Publish(message) => {
                    let payload = String::from_utf8_lossy(&message.payload).into_owned();
                    (payload, message.qos, message.pkid, message.retain)
                }
                other => panic!("no message: {other:?}"),
            })
            .collect()
    }

    #[test]
    fn messages_reach_those_who_subscribed_once_each() {
        let (hub, mut clients) = hub(3);
        subscribe(&hub, 0, Filter::new("a/#", QoS::AtMostOnce));
        subscribe(&hub, 0, Filter::new("a/+", QoS::AtLeastOnce));
        subscribe(&hub, 1, Filter { nolocal: true, ..Filter::new("a/b", QoS::AtMostOnce) });
        publish(&hub, 1, "a/b", "1", false);
        publish(&hub, 0, "a/b", "2", false);
        publish(&hub, 0, "c", "3", false);
        let (once, lossy) = (QoS::AtLeastOnce, QoS::AtMostOnce);
        assert_eq!(received(&mut clients[0]), [("1".into(), once, 1, false), ("2".into(), once, 2, false)]);
        assert_eq!(received(&mut clients[1]), [("2".into(), lossy, 0, false)]);
        assert_eq!(received(&mut clients[2]), []);
        let request = Unsubscribe::new("a/+", None);
        assert!(matches!(handle(&hub, 0, Packet::Unsubscribe(request)), Some(Packet::UnsubAck(_))));
        publish(&hub, 1, "a/b", "4", false);
        assert_eq!(received(&mut clients[0]), [("4".into(), lossy, 0, false)]);
    }

    #[test]
    fn the_last_retained_message_is_kept_for_later_subscribers_until_an_empty_one() {
        let (hub, mut clients) = hub(2);
        publish(&hub, 0, "a", "old", true);
        publish(&hub, 0, "a", "new", true);
        subscribe(&hub, 1, Filter::new("a", QoS::AtMostOnce));
        assert_eq!(received(&mut clients[1]), [("new".into(), QoS::AtMostOnce, 0, true)]);
        publish(&hub, 0, "a", "", true);
        received(&mut clients[1]);
        subscribe(&hub, 1, Filter::new("a", QoS::AtMostOnce));
        assert_eq!(received(&mut clients[1]), []);
    }
}
