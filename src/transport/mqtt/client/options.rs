//! The options of a connection that both protocol versions share: limits, timeouts, login and TLS.

use super::{credentials, tls};
use crate::config::{Login, Mqtt};
use crate::transport::mqtt::link::Disconnect;
use crate::transport::mqtt::message::MAX_IN_FLIGHT;
use crate::transport::mqtt::topics::Topics;
use rumqttc::{NetworkOptions, Transport};
use std::net::Ipv6Addr;
use std::path::Path;
use std::time::Duration;

/// Largest packet we take. Above the largest request, so that what is too long gets an answer:
/// a broker silently drops what exceeds this, and mosquitto (2.0.11 to 2.1.2) then never uses
/// that place of our Receive Maximum again.
pub const MAX_PACKET: u32 = 1 << 20;
/// A vanished broker is noticed within two of these.
pub const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Seconds for TCP, TLS and CONNACK together: a CONNACK of 16 bytes over a line of a byte a second.
pub const CONNECT_TIMEOUT_S: u64 = 20;
/// For rumqttc's table of publishes on their way, which by default takes 14 MB.
pub const INFLIGHT: u16 = 2 * MAX_IN_FLIGHT as u16;
/// Requests between us and rumqttc's event loop; what does not fit is offered again.
pub const REQUEST_CHANNEL_CAPACITY: usize = 64;
/// Longest password file, in bytes.
pub const MAX_PASSWORD: usize = 4096;

/// Who connects, and with what window of unacknowledged prompts.
#[derive(Debug)]
pub struct Identity<'a> {
    pub config: &'a Mqtt,
    pub device: &'a str,
    pub topics: &'a Topics,
    pub receive_maximum: u16,
    /// Whether the broker is known to keep messages.
    pub has_retained_messages: bool,
}

/// What every connection of ours has, in both versions.
pub struct ConnectOptions {
    pub id: String,
    pub host: String,
    pub port: u16,
    /// User and password.
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
        // A token event is one small packet; it must not wait for the next.
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

/// rumqttc joins host and port by a colon, and with TLS looks for the host in the certificate, where
/// an address has no brackets.
fn host(config: &Mqtt) -> String {
    match config.host.parse::<Ipv6Addr>() {
        Ok(address) if config.tls.is_none() => format!("[{address}]"),
        _ => config.host.clone(),
    }
}

/// The first line of the password file, read at each connect so that it can change.
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
