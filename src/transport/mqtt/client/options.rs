//! The options of a connection that both protocol versions share: limits, timeouts, login and TLS.
//!
//! Deliberately knows nothing of topics and sessions but what an [`Identity`] carries.

use super::{credentials, tls};
use crate::config::{Login, Mqtt};
use crate::transport::mqtt::link::Disconnect;
use crate::transport::mqtt::message::MAX_IN_FLIGHT;
use crate::transport::mqtt::topics::Topics;
use rumqttc::{NetworkOptions, Transport};
use std::net::Ipv6Addr;
use std::path::Path;
use std::time::Duration;

/// Maximum size of a received packet in bytes. Above the largest request, so that a request that is too long is
/// answered: a broker silently drops what exceeds this, and mosquitto (2.0.11 to 2.1.2) then never uses that slot
/// of the Receive Maximum again.
pub const MAX_PACKET: u32 = 1 << 20;
/// Keep Alive: a vanished broker is noticed within two of these.
pub const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Seconds for TCP, TLS and CONNACK together: a CONNACK of 16 bytes over a line of one byte per second.
pub const CONNECT_TIMEOUT_S: u64 = 20;
/// Size of rumqttc's table of publishes in flight, which takes 14 MB by default.
pub const INFLIGHT: u16 = 2 * MAX_IN_FLIGHT as u16;
/// Capacity of the channel to rumqttc's event loop; a request that does not fit is made again later.
pub const REQUEST_CHANNEL_CAPACITY: usize = 64;
/// Maximum length of the password in bytes.
pub const MAX_PASSWORD: usize = 4096;

/// Who connects, and with how many unacknowledged prompts.
#[derive(Debug)]
pub struct Identity<'a> {
    /// The broker.
    pub config: &'a Mqtt,
    /// The device id, part of the client id.
    pub device: &'a str,
    /// For the topic of the last will.
    pub topics: &'a Topics,
    /// The Receive Maximum of the CONNECT.
    pub receive_maximum: u16,
    /// Whether the broker is known to support retained messages.
    pub has_retained_messages: bool,
}

/// The options of a connection, in both versions.
pub struct ConnectOptions {
    /// The client id.
    pub id: String,
    pub host: String,
    pub port: u16,
    /// User name and password.
    pub login: Option<(String, String)>,
    pub transport: Transport,
    pub network: NetworkOptions,
}

impl ConnectOptions {
    pub fn new(config: &Mqtt, id: String) -> Result<Self, Disconnect> {
        let login = config.login.as_ref();
        let credentials = config.credentials.as_deref();
        let secret = |login: &Login| {
            Ok((login.username.clone(), password(login.password_file.as_deref(), credentials)?))
        };
        let mut network = NetworkOptions::new();
        // A token event is one small packet, which must not wait for the next one (Nagle's algorithm).
        network.set_tcp_nodelay(true);
        network.set_connection_timeout(CONNECT_TIMEOUT_S);
        Ok(ConnectOptions {
            id,
            host: host(config),
            port: config.port,
            login: login.map(secret).transpose()?,
            transport: match &config.tls {
                Some(tls) => Transport::Tls(tls::configuration(tls, credentials)?),
                None => Transport::Tcp,
            },
            network,
        })
    }
}

/// rumqttc joins host and port with a colon; with TLS it looks for the host in the certificate, where an address
/// has no brackets.
fn host(config: &Mqtt) -> String {
    match config.host.parse::<Ipv6Addr>() {
        Ok(address) if config.tls.is_none() => format!("[{address}]"),
        _ => config.host.clone(),
    }
}

/// The first line of the password file, read at each connect so that it can be changed.
fn password(path: Option<&Path>, credentials: Option<&Path>) -> Result<String, Disconnect> {
    const KEY: &str = "mqtt.password_file";
    let Some(path) = path else { return Ok(String::new()) };
    let bytes = credentials::read_secret(path, KEY, credentials)?;
    let text = String::from_utf8(bytes).map_err(|_| credentials::file_error(path, KEY, "it is not UTF-8"))?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() || line.len() > MAX_PASSWORD {
        return Err(credentials::file_error(path, KEY, "its first line holds no password"));
    }
    Ok(line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_password_file_names_itself_and_its_key() {
        let text = password(Some("/nowhere/secret".as_ref()), None).expect_err("missing").text;
        assert!(text.contains("/nowhere/secret") && text.contains("mqtt.password_file"), "{text}");
        assert_eq!(password(None, None), Ok(String::new()));
    }

    #[test]
    fn an_ipv6_address_is_written_so_that_it_is_found_and_certified() {
        let plain = Mqtt::new("::1", 1883);
        assert_eq!(host(&plain), "[::1]");
        assert_eq!(host(&Mqtt { tls: Some(Default::default()), ..plain }), "::1");
    }
}
