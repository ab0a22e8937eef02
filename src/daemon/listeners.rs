//! The listening sockets of the transports: those that systemd passed, else those that the configuration names.
//!
//! Deliberately serves nothing.

use super::DaemonError;
use super::systemd::PassedSockets;
use crate::config::{Config, is_loopback};
use crate::transport::BacklogPolicy;
use crate::transport::unix;
use std::fmt;
use std::net::SocketAddr;
use tokio::net::{TcpListener, UnixListener};

/// The sockets that the daemon accepts clients on.
#[derive(Debug)]
pub(super) struct Listeners {
    /// The Unix socket.
    pub unix: UnixListener,
    /// Its file, where this process created it.
    pub socket_file: Option<unix::SocketFile>,
    /// For HTTP; none where nobody asks for it.
    pub http: TcpListeners,
    /// For the Wyoming protocol; none where nobody asks for it.
    pub wyoming: TcpListeners,
}

/// The listeners of one protocol over TCP.
#[derive(Debug)]
pub(super) struct TcpListeners {
    pub listeners: Vec<TcpListener>,
    /// What happens to clients that connect while the daemon is stopping.
    pub backlog: BacklogPolicy,
}

impl Listeners {
    /// Opens what systemd did not pass. Must be called within the async runtime.
    pub fn open(passed: PassedSockets, config: &Config) -> Result<Self, DaemonError> {
        let (listener, socket_file) = match passed.unix {
            Some(listener) => (listener, None),
            None => {
                let (listener, socket_file) = unix::bind(&config.socket).map_err(|error| refused(&error))?;
                (listener, Some(socket_file))
            }
        };
        let unix = unix::adopt(listener)
            .map_err(|error| refused(&format!("{}: {error}", config.socket.path.display())))?;
        let http = TcpListeners::open(passed.http, config.http.listen, "http.listen")?;
        check_http(&http, config)?;
        let wyoming = TcpListeners::open(passed.wyoming, config.wyoming.listen, "wyoming.listen")?;
        Ok(Listeners { unix, socket_file, http, wyoming })
    }
}

impl TcpListeners {
    /// `passed` by systemd, else one at `address`, which `key` gives.
    fn open(
        passed: Vec<std::net::TcpListener>,
        address: Option<SocketAddr>,
        key: &str,
    ) -> Result<Self, DaemonError> {
        // A socket of systemd outlives this process, and so do the clients in its backlog.
        let backlog = if passed.is_empty() { BacklogPolicy::Refuse } else { BacklogPolicy::LeaveQueued };
        let mut listeners = passed;
        if let Some(address) = address.filter(|_| listeners.is_empty()) {
            listeners.push(std::net::TcpListener::bind(address).map_err(|error| {
                let message = format!("{key}: {address} cannot be listened on: {error}; choose another");
                // Not wrong in itself: the address may come with the network, so that another start is worth it.
                DaemonError::Setup(message)
            })?);
        }
        let adopt = |listener: std::net::TcpListener| {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        };
        let listeners = listeners.into_iter().map(adopt).collect::<Result<Vec<_>, _>>();
        let listeners = listeners.map_err(|error| refused(&format!("{key}: {error}")))?;
        Ok(TcpListeners { listeners, backlog })
    }
}

/// The configuration has been checked for this; a socket of systemd has not.
fn check_http(http: &TcpListeners, config: &Config) -> Result<(), DaemonError> {
    let addresses = http.listeners.iter().filter_map(|listener| listener.local_addr().ok());
    let open = addresses.filter(|address| !is_loopback(address.ip())).collect::<Vec<_>>();
    match open.first().filter(|_| config.http.token_file.is_none()) {
        None => Ok(()),
        Some(address) => Err(refused(&format!(
            "bitnetd-http.socket: others can reach {address}, so clients have to send a token; set http.token_file, or give \
             the unit an address of this device alone"
        ))),
    }
}

fn refused(error: &dyn fmt::Display) -> DaemonError {
    DaemonError::Socket(error.to_string())
}
