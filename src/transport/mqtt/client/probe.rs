//! One short connection to the broker, for `bitnetd doctor`.
//!
//! Deliberately leaves no session and no subscription at the broker.

use super::disconnect::ErrorContext;
use super::event::{BrokerInfo, RawEvent};
use super::options::ConnectOptions;
use super::version::{clean_connection, poll};
use crate::config::{Mqtt, MqttVersion};
use std::time::{Duration, Instant};

/// What `bitnetd doctor` prints about the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeReport {
    /// Time from the first packet to the CONNACK, the DNS query and TLS included.
    pub took: Duration,
    /// What its CONNACK says of it; only in MQTT 5.
    pub limits: Option<BrokerLimits>,
}

/// What the CONNACK of an MQTT 5 broker says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerLimits {
    /// Maximum Packet Size in bytes; `None` where it names none.
    pub max_packet_size: Option<usize>,
    /// Maximum QoS; answers need 1.
    pub max_qos: u8,
    /// Whether it supports retained messages, which availability and Home Assistant discovery need.
    pub retained_messages: bool,
    /// Whether it supports shared subscriptions, which `mqtt.group` needs.
    pub shared_subscriptions: bool,
}

/// Connects once, with a client id of its own, and disconnects.
///
/// # Errors
/// One line that names the broker, the cause, and what to do.
pub async fn probe(config: &Mqtt, device: &str, limit: Duration) -> Result<ProbeReport, String> {
    let address = format!("mqtt {}:{}", config.host, config.port);
    let id = format!("bitnetd-{device}-doctor-{}", std::process::id());
    let options =
        ConnectOptions::new(config, id).map_err(|disconnect| format!("{address}: {}", disconnect.text))?;
    let (client, eventloop) = clean_connection(options, config.version);
    let start = Instant::now();
    let answer = tokio::time::timeout(limit, poll(eventloop)).await;
    let (eventloop, seen) =
        answer.map_err(|_| format!("{address}: no answer within {} s", limit.as_secs_f32()))?;
    let took = start.elapsed();
    let broker = match seen {
        Ok(RawEvent::Connected(broker)) => broker,
        Ok(_) => return Err(format!("{address}: something came before the broker's answer")),
        Err(error) => {
            return Err(format!("{address}: {}", ErrorContext::of(config).disconnect(error).text));
        }
    };
    if client.disconnect() {
        // Best effort: without a DISCONNECT the broker only logs a lost connection.
        let _ = tokio::time::timeout(limit, poll(eventloop)).await;
    }
    let limits = (config.version == MqttVersion::V5).then(|| broker_limits(&broker));
    Ok(ProbeReport { took, limits })
}

fn broker_limits(broker: &BrokerInfo) -> BrokerLimits {
    BrokerLimits {
        max_packet_size: Some(broker.limits.packet).filter(|bytes| *bytes != usize::MAX),
        max_qos: broker.max_qos,
        retained_messages: broker.has_retained_messages,
        shared_subscriptions: broker.has_shared_subscriptions,
    }
}
