//! The Unix socket: newline-delimited JSON both ways.
//!
//! The caller owns the listener and the signals: a path of ours from [`bind`], systemd's socket, or
//! a test's. Deliberately knows nothing of what becomes of a request: it goes in through one
//! channel, and its events come back through its connection's own.

mod connection;
mod context;
mod http;
mod in_flight;
mod socket_file;
mod writer;

pub use socket_file::{BindError, SocketFile, bind};

use super::Inbound;
use crate::protocol::{Code, Event, Refusal, json};
use crate::telemetry::Telemetry;
use context::ConnectionContext;
use in_flight::InFlight;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use writer::event_line;

/// Memory that one client can make a connection hold: a request that never ends its line, the piece read last, and
/// what waits to be written. A report or Prometheus' text is no longer than a request may be, and nothing is read while
/// it is written. `tests/system` measures it with all connections full.
pub const CONNECTION_BYTES: usize = json::MAX_REQUEST + (16 << 10);

/// File descriptors of one connection: its stream, and a second handle that hears when it is closed.
pub const CONNECTION_FILES: usize = 2;

/// Files besides those of the connections: the model, the broker, the journal, sensors while they are read.
const OTHER_FILES: usize = 64;

/// When a client that found no free connection may come back.
const BUSY_RETRY_MS: u64 = 1_000;

/// Pause after a failed accept. Its usual reason, too few file descriptors, lasts until a client
/// leaves; the connection waits in the backlog meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listens through a socket that is already open: [`bind`]'s, or the one systemd handed over.
///
/// Must be called within the async runtime.
pub fn adopt(listener: std::os::unix::net::UnixListener) -> io::Result<UnixListener> {
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Allows this process the file descriptors that so many connections need. Where it may not have them, clients beyond
/// wait until others leave; that is said.
pub fn allow_files(connections: usize) {
    let wanted = (connections * CONNECTION_FILES + OTHER_FILES) as u64;
    let now = getrlimit(Resource::Nofile);
    if now.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let current = Some(now.maximum.map_or(wanted, |most| most.min(wanted)));
    let is_set = setrlimit(Resource::Nofile, Rlimit { current, ..now }).is_ok();
    if !is_set || current < Some(wanted) {
        log::warn!(
            "socket.connections: {connections} take {wanted} files, more than allowed; set LimitNOFILE={wanted}"
        );
    }
}

/// What becomes of clients that connect while the daemon is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BacklogPolicy {
    /// They are told so: nobody listens at this socket afterwards.
    Refuse,
    /// They wait in the backlog of a socket that another process holds, for the next daemon to serve them.
    LeaveQueued,
}

/// Between two looks whether the socket's file is still there.
const SOCKET_CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// A listening socket, and its file where that is ours to keep.
#[derive(Debug)]
pub struct Listening {
    listener: UnixListener,
    owned_file: Option<OwnedFile>,
    is_error_reported: bool,
}

#[derive(Debug)]
struct OwnedFile {
    socket_file: Arc<Mutex<SocketFile>>,
    mode: u32,
}

impl From<UnixListener> for Listening {
    fn from(listener: UnixListener) -> Self {
        Listening { listener, owned_file: None, is_error_reported: false }
    }
}

impl Listening {
    /// Makes the file again, with this mode, where somebody removes it.
    #[must_use]
    pub fn owning(mut self, address: Arc<Mutex<SocketFile>>, mode: u32) -> Self {
        self.owned_file = Some(OwnedFile { socket_file: address, mode });
        self
    }

    /// Looks whether the file is still there. What could not be mended is said once.
    fn check_file(&mut self) {
        let Some(OwnedFile { socket_file: address, mode }) = &self.owned_file else { return };
        let mut address = address.lock().unwrap_or_else(PoisonError::into_inner);
        match address.restore(*mode) {
            Ok(None) => self.is_error_reported = false,
            Ok(Some(made)) => match adopt(made) {
                Ok(listener) => {
                    self.listener = listener;
                    self.is_error_reported = false;
                    let path = address.path().display();
                    log::warn!(
                        "{path}: the socket's file was gone, so nobody could connect; it is made again"
                    );
                }
                Err(error) => {
                    log::error!("{}: cannot be listened on again: {error}", address.path().display())
                }
            },
            Err(error) if !std::mem::replace(&mut self.is_error_reported, true) => {
                log::error!(
                    "the socket's file is gone, so nobody can connect, and cannot be made again: {error}"
                );
            }
            Err(_) => {}
        }
    }
}

/// Serves the clients of `listener` until `close`, at most `most` of them at once.
///
/// Once `draining` is cancelled, new requests are refused as `shutting_down` and running ones go
/// on. Once `close` is cancelled, all requests are, and within two seconds their last events
/// have been written, the connections are closed and this returns.
pub async fn run(
    listener: impl Into<Listening>,
    latecomers: BacklogPolicy,
    most: usize,
    inbound: mpsc::Sender<Inbound>,
    telemetry: Arc<Telemetry>,
    draining: CancellationToken,
    close: CancellationToken,
) {
    let last_call = match latecomers {
        BacklogPolicy::Refuse => close.clone(),
        BacklogPolicy::LeaveQueued => draining.clone(),
    };
    let shared = ConnectionContext { max_connections: most, inbound, telemetry, draining, close };
    let mut tasks = JoinSet::new();
    let (mut number, mut failing) = (0, false);
    let mut open = OpenConnections::default();
    let mut listening = listener.into();
    let mut look = tokio::time::interval(SOCKET_CHECK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // Ended connections leave before new ones are counted against the cap.
            biased;
            () = last_call.cancelled() => break,
            Some(ended) = tasks.join_next() => note_panic(ended),
            _ = look.tick(), if listening.owned_file.is_some() => listening.check_file(),
            accepted = listening.listener.accept() => match accepted {
                Ok((stream, _)) => {
                    failing = false;
                    number += 1;
                    admit(&mut tasks, &mut open, stream, number, &shared);
                }
                Err(error) => pause_after_error(&error, std::mem::replace(&mut failing, true)).await,
            },
        }
    }
    drop(listening);
    while let Some(ended) = tasks.join_next().await {
        note_panic(ended);
    }
}

/// The connections that count against the cap.
#[derive(Debug, Default)]
struct OpenConnections(Vec<Weak<InFlight>>);

impl OpenConnections {
    /// Forgets those that have ended; whether there is a free place, or one is made by letting go the connection that
    /// has been idle longest.
    fn make_slot(&mut self, most: usize) -> bool {
        self.0.retain(|in_flight| in_flight.upgrade().is_some_and(|in_flight| in_flight.is_open()));
        if self.0.len() < most {
            return true;
        }
        let flights = self.0.iter().filter_map(Weak::upgrade);
        let idle = flights.filter_map(|in_flight| Some((in_flight.idle_since()?, in_flight)));
        let longest = idle.min_by_key(|(since, _)| *since);
        longest.is_some_and(|(_, in_flight)| in_flight.evict())
    }
}

fn admit(
    tasks: &mut JoinSet<()>,
    open: &mut OpenConnections,
    stream: UnixStream,
    number: u64,
    shared: &ConnectionContext,
) {
    if !open.make_slot(shared.max_connections) {
        return refuse_connection(&stream, shared);
    }
    let in_flight = Arc::new(InFlight::default());
    open.0.push(Arc::downgrade(&in_flight));
    tasks.spawn(connection::serve(stream, number, in_flight, shared.clone()));
}

/// Waits before the next accept; says so once in a row of failures.
async fn pause_after_error(error: &io::Error, text: bool) {
    if !text {
        log::warn!("a client of the socket cannot be accepted, it waits: {error}");
    }
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

fn note_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        log::error!("a connection of the socket ended in a fault of ours: {error}");
    }
}

/// Tells a client beyond the cap so, without waiting for it: the buffer of a new socket has room.
fn refuse_connection(stream: &UnixStream, shared: &ConnectionContext) {
    shared.telemetry.refused();
    let most = shared.max_connections;
    let text = format!(
        "{most} clients are connected and none is idle; ask again later, or raise socket.connections"
    );
    let refusal = Refusal { retry_after_ms: Some(BUSY_RETRY_MS), ..Refusal::new(Code::QueueFull, text) };
    // A failure means that the client has left already.
    let _ = stream.try_write(&event_line(&Event::Error { id: None, refusal }));
}
