//! The listeners on TCP: accepting clients, within a limit.
//!
//! Deliberately knows nothing of what the clients send.

use super::HttpContext;
use super::call::HttpPeer;
use super::connection::serve;
use crate::transport::BacklogPolicy;
use crate::transport::in_flight::InFlight;
use crate::transport::open_connections::OpenConnections;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Most clients connected at once. The connection that has been idle longest is closed for another.
pub const MAX_CONNECTIONS: usize = 64;
/// Most of them from one address, so that one device cannot keep all others out.
const MAX_OF_ADDRESS: usize = 48;
/// Pause after a failed accept: the usual cause, too few file descriptors, lasts until a client disconnects.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The answer to a client beyond the limit.
const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 73\r\n\
Retry-After: 1\r\nConnection: close\r\n\r\n{\"error\":{\"message\":\"too many clients are connected; call again later\"}}\n";

/// Serves the clients of the listeners until the daemon closes.
pub async fn run(listeners: Vec<TcpListener>, latecomers: BacklogPolicy, context: HttpContext) {
    let last_call = match latecomers {
        BacklogPolicy::Refuse => context.0.close.clone(),
        BacklogPolicy::LeaveQueued => context.0.draining.clone(),
    };
    let mut connections = JoinSet::new();
    let mut clients = Clients::default();
    let mut is_failing = false;
    loop {
        tokio::select! {
            biased;
            () = last_call.cancelled() => break,
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
