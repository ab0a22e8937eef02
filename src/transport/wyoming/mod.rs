//! The Wyoming front end: sentences from Home Assistant's voice assistant over TCP, and its answers.
//!
//! The caller owns the listeners. It needs no loaded model: requests that arrive earlier wait in the queue, and
//! `describe` is answered at once. Deliberately knows nothing of what happens to a request.

mod answer;
mod connection;
mod open_connections;

use super::BacklogPolicy;
use super::Inbound;
use crate::protocol::json::MAX_REQUEST;
use crate::protocol::wyoming::{self, MAX_DATA, ProgramInfo};
use crate::protocol::{Code, Refusal};
use crate::telemetry::Telemetry;
use open_connections::OpenConnections;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Maximum number of open connections. Home Assistant opens one for each sentence.
pub const MAX_CONNECTIONS: usize = 16;

/// Memory that one client can make a connection hold, in bytes: the data of an event, the text taken from them, and what
/// is read or written at the moment.
pub const CONNECTION_BYTES: usize = MAX_DATA + MAX_REQUEST + (16 << 10);

/// Pause after a failed accept. The usual cause, too few file descriptors, lasts until a client disconnects;
/// meanwhile the new connection waits in the listen backlog.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the connections are given by the daemon.
#[derive(Debug, Clone)]
pub struct WyomingContext {
    /// What the daemon says about itself.
    pub program: Arc<ProgramInfo>,
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
pub async fn run(listeners: Vec<TcpListener>, latecomers: BacklogPolicy, context: WyomingContext) {
    let last_call = match latecomers {
        BacklogPolicy::Refuse => context.close.clone(),
        BacklogPolicy::LeaveQueued => context.draining.clone(),
    };
    listeners.iter().filter_map(|listener| listener.local_addr().ok()).for_each(note_address);
    let mut tasks = JoinSet::new();
    let mut open = OpenConnections::default();
    let (mut number, mut is_failing) = (0, false);
    loop {
        tokio::select! {
            // Ended connections are removed before new ones are counted against the limit.
            biased;
            () = last_call.cancelled() => break,
            Some(ended) = tasks.join_next() => note_panic(ended),
            accepted = accept_any(&listeners) => match accepted {
                Ok((stream, peer)) => {
                    is_failing = false;
                    number += 1;
                    match open.open(Instant::now()) {
                        Some(activity) => {
                            tasks.spawn(connection::serve(stream, peer, number, activity, context.clone()));
                        }
                        None => refuse_connection(&stream, &context),
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        log::warn!("a Wyoming client cannot be accepted, it waits: {error}");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listeners);
    while let Some(ended) = tasks.join_next().await {
        note_panic(ended);
    }
}

/// Accepts the next connection of any of the listeners.
async fn accept_any(listeners: &[TcpListener]) -> io::Result<(TcpStream, SocketAddr)> {
    poll_fn(|context| {
        for listener in listeners {
            if let Poll::Ready(accepted) = listener.poll_accept(context) {
                return Poll::Ready(accepted);
            }
        }
        Poll::Pending
    })
    .await
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

fn note_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        log::error!("a Wyoming connection ended in a fault of the daemon: {error}");
    }
}

/// Refuses a client beyond the limit without waiting for it: the send buffer of a new socket is empty.
fn refuse_connection(stream: &TcpStream, context: &WyomingContext) {
    context.telemetry.refused();
    let message =
        format!("{MAX_CONNECTIONS} clients are connected and each waits for an answer; ask again later");
    // An error means that the client has already disconnected.
    let _ = stream.try_write(&wyoming::failed(&Refusal::new(Code::QueueFull, message)));
}
