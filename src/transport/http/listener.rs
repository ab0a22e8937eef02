//! The listeners on TCP: accepting clients, within a limit.
//!
//! Deliberately knows nothing of what the clients send.

use super::HttpContext;
use super::connection::{HttpPeer, serve};
use crate::config::is_loopback;
use crate::transport::in_flight::InFlight;
use crate::transport::open_connections::OpenConnections;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Most clients connected at once. The connection that has been idle longest makes room for another.
pub const MAX_CONNECTIONS: usize = 64;
/// Most of them from one address, so that one device cannot keep all others out.
const MAX_OF_ADDRESS: usize = 48;
/// Pause after a failed accept: the usual cause, too few file descriptors, lasts until a client disconnects.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The answer to a client beyond the limit.
const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 73\r\n\
Retry-After: 1\r\nConnection: close\r\n\r\n{\"error\":{\"message\":\"too many clients are connected; call again later\"}}\n";

/// Why there is no listener.
#[derive(Debug)]
pub struct ListenError {
    address: SocketAddr,
    reason: String,
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http: cannot listen on {}: {}", self.address, self.reason)
    }
}

impl std::error::Error for ListenError {}

/// Listens on the configured address, besides the listeners that systemd hands over.
///
/// Must be called within the async runtime.
///
/// # Errors
/// An address that is in use or not this device's; one that others can reach, where no token is asked for.
pub fn listen(
    address: Option<SocketAddr>,
    handed_over: Vec<std::net::TcpListener>,
    asks_for_token: bool,
) -> Result<Vec<TcpListener>, ListenError> {
    let mut listeners = Vec::new();
    for listener in handed_over {
        let address = listener.local_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
        let failed = |reason: String| ListenError { address, reason };
        if !is_loopback(address.ip()) && !asks_for_token {
            let reason = "others can reach it, so clients have to send a token: set http.token_file, or give \
                          bitnetd-http.socket an address of this device alone";
            return Err(failed(reason.into()));
        }
        listener.set_nonblocking(true).map_err(|error| failed(error.to_string()))?;
        listeners.push(TcpListener::from_std(listener).map_err(|error| failed(error.to_string()))?);
    }
    if let Some(address) = address {
        let bound = std::net::TcpListener::bind(address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        });
        let failed = |error: io::Error| ListenError {
            address,
            reason: format!("{error}; choose another address in http.listen"),
        };
        listeners.push(bound.map_err(failed)?);
    }
    Ok(listeners)
}

/// Serves the clients of the listeners until the daemon closes.
pub async fn run(listeners: Vec<TcpListener>, context: HttpContext) {
    let (draining, close) = (context.0.draining.clone(), context.0.close.clone());
    let mut connections = JoinSet::new();
    let mut clients = Clients::default();
    let mut is_failing = false;
    loop {
        tokio::select! {
            biased;
            () = close.cancelled() => break,
            // Nothing new comes once the daemon stops; what systemd holds open is served by the next daemon.
            () = draining.cancelled() => break,
            Some(ended) = connections.join_next() => note_panic(ended),
            accepted = accept(&listeners) => match accepted {
                Ok((stream, address)) => {
                    is_failing = false;
                    if let Some((watched, in_flight)) = clients.admit(&stream, address.ip()) {
                        let served = serve(stream, peer(address.ip()), in_flight, context.clone());
                        connections.spawn(async move {
                            served.await;
                            drop(watched);
                        });
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        log::warn!("a client over HTTP cannot be accepted, it waits: {error}");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listeners);
    while let Some(ended) = connections.join_next().await {
        note_panic(ended);
    }
}

/// The next client of any listener.
async fn accept(listeners: &[TcpListener]) -> io::Result<(TcpStream, SocketAddr)> {
    poll_fn(|cx| {
        let ready = listeners.iter().find_map(|listener| match listener.poll_accept(cx) {
            Poll::Ready(accepted) => Some(accepted),
            Poll::Pending => None,
        });
        ready.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

fn peer(address: IpAddr) -> HttpPeer {
    let client = format!("http:{}", address.to_canonical());
    HttpPeer { queue_key: client.clone(), client, is_tcp: true }
}

/// The clients that are connected.
#[derive(Default)]
struct Clients {
    open: OpenConnections<OwnedFd>,
    addresses: Vec<(IpAddr, Weak<InFlight>)>,
}

impl Clients {
    /// Counts a new client until both values are dropped, or sends it away.
    fn admit(&mut self, stream: &TcpStream, address: IpAddr) -> Option<(Arc<OwnedFd>, Arc<InFlight>)> {
        self.addresses.retain(|(_, in_flight)| in_flight.strong_count() > 0);
        let of_address = self.addresses.iter().filter(|(other, _)| *other == address).count();
        if of_address >= MAX_OF_ADDRESS || !self.open.make_slot(MAX_CONNECTIONS) {
            // The send buffer of a new socket is empty, and a client that has left already misses nothing.
            let _ = stream.try_write(BUSY);
            return None;
        }
        // Tokens are small, and each is sent at once.
        let _ = stream.set_nodelay(true);
        // A second handle, which tells whether the client has sent something that is not read yet.
        let watched = Arc::new(stream.as_fd().try_clone_to_owned().ok()?);
        let in_flight = Arc::new(InFlight::default());
        self.open.add(Arc::downgrade(&in_flight), Arc::downgrade(&watched));
        self.addresses.push((address, Arc::downgrade(&in_flight)));
        Some((watched, in_flight))
    }
}

fn note_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        log::error!("a connection over HTTP ended in a fault of the daemon: {error}");
    }
}
