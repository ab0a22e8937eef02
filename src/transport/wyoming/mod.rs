//! The Wyoming front end: sentences from Home Assistant's voice assistant over TCP, and its answers.
//!
//! The caller owns the listeners. It needs no loaded model: requests that arrive earlier wait in the queue, and
//! `describe` is answered at once. Deliberately knows nothing of what happens to a request.

mod answer;
mod connection;

use super::BacklogPolicy;
use super::Inbound;
use super::tcp_accept::{self, ConnectionLimits, StopSignals, TcpClient, TcpService};
use crate::protocol::json::MAX_REQUEST;
use crate::protocol::wyoming::{self, MAX_DATA, ProgramInfo};
use crate::protocol::{Code, Refusal};
use crate::telemetry::Telemetry;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Maximum number of open connections. Home Assistant opens one for each sentence.
pub const MAX_CONNECTIONS: usize = 16;

/// Memory that one client can make a connection hold, in bytes: the data of an event, the text taken from them, and what
/// is read or written at the moment.
pub const CONNECTION_BYTES: usize = MAX_DATA + MAX_REQUEST + (16 << 10);

/// What the connections are given by the daemon.
#[derive(Debug, Clone)]
pub struct WyomingContext {
    /// What the daemon says about itself.
    pub program: watch::Receiver<ProgramInfo>,
    /// Where requests are sent.
    pub inbound: mpsc::Sender<Inbound>,
    /// Counts the requests that are refused by the transport.
    pub telemetry: Arc<Telemetry>,
    /// Once cancelled, new requests are refused.
    pub draining: CancellationToken,
    /// Once cancelled, all requests are cancelled and the connections close.
    pub close: CancellationToken,
}

/// Serves the clients of `listeners` until `close`, at most [`MAX_CONNECTIONS`] of them at once.
///
/// Once `draining` is cancelled, new requests are refused and running ones continue. Once `close` is cancelled, all
/// requests are cancelled; within two seconds their answers are written, the connections are closed, and this returns.
pub async fn run(listeners: Vec<TcpListener>, backlog: BacklogPolicy, context: WyomingContext) {
    listeners.iter().filter_map(|listener| listener.local_addr().ok()).for_each(note_address);
    let service = WyomingService { context: context.clone(), connections: AtomicU64::new(0) };
    let stop = StopSignals { draining: &context.draining, close: &context.close };
    tcp_accept::run(listeners, backlog, stop, &service).await;
}

struct WyomingService {
    context: WyomingContext,
    /// How many there were.
    connections: AtomicU64,
}

impl TcpService for WyomingService {
    const PROTOCOL: &'static str = "Wyoming";
    const LIMITS: ConnectionLimits = ConnectionLimits { all: MAX_CONNECTIONS, of_address: MAX_CONNECTIONS };

    fn serve(&self, client: TcpClient) -> impl Future<Output = ()> + Send + 'static {
        let number = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        connection::serve(client, number, self.context.clone())
    }

    fn refuse(&self, stream: &TcpStream) {
        let message =
            format!("{MAX_CONNECTIONS} clients are connected and each waits for an answer; ask again later");
        self.context.telemetry.refused(None, Code::QueueFull.name(), &message);
        // An error means that the client has already disconnected.
        let _ = stream.try_write(&wyoming::failed(&Refusal::new(Code::QueueFull, message)));
    }
}

fn note_address(address: SocketAddr) {
    log::info!("wyoming: listening on {address}");
    if !address.ip().to_canonical().is_loopback() {
        log::warn!(
            "wyoming: {address} can be reached from other machines, and the protocol has no authentication; allow \
             Home Assistant alone, with a firewall or IPAddressAllow= in bitnetd-wyoming.socket"
        );
    }
}
