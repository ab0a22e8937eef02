//! One short visit to the broker, for `bitnetd doctor`.

use super::disconnect::ErrorContext;
use super::event::{BrokerInfo, RawEvent};
use super::options::ConnectOptions;
use super::version::{clean_connection, poll};
use crate::config::{Mqtt, MqttVersion};
use std::time::{Duration, Instant};

/// What `bitnetd doctor` tells of the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeReport {
    /// From the first packet to the broker's answer, the look-up of its name and TLS included.
    pub took: Duration,
    /// What it says of itself, which only MQTT 5 has words for.
    pub limits: Option<BrokerLimits>,
}

/// What an MQTT 5 broker says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerLimits {
    /// Largest packet it takes, in bytes; `None`: it names no limit.
    pub max_packet_size: Option<usize>,
    /// Highest quality of service; answers need 1.
    pub max_qos: u8,
    /// Whether it keeps messages; availability and Home Assistant discovery need it.
    pub retained_messages: bool,
    /// Whether several devices can share a topic, as `mqtt.group` has them do.
    pub shared_subscriptions: bool,
}

/// Connects once, under a name of its own, and disconnects. The error is one line that names the
/// broker and the way out.
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
        // Best effort: without the goodbye the broker only logs a lost connection.
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
