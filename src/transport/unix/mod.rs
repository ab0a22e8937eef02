//! The Unix-socket front end: newline-delimited JSON in both directions, and HTTP for clients whose first word is a
//! method of it.
//!
//! The caller owns the listener and the signals: the listener is created by [`bind`], inherited from systemd
//! (socket activation), or a test's. Deliberately knows nothing of what happens to a request: it is sent into one
//! channel, and its events are received from the connection's own channel.

mod connection;
mod context;
mod socket_file;
mod writer;

pub use socket_file::{BindError, SocketFile, bind};

use super::BacklogPolicy;
use super::in_flight::InFlight;
use super::open_connections::OpenConnections;
use crate::protocol::{Code, Event, Refusal, json};
pub use context::ConnectionContext;
use rustix::net::{SocketFlags, accept_with};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use writer::event_line;

/// Memory that one client can make a connection hold, in bytes: a request line without an end, the piece read last,
/// and what waits to be written. A report and the Prometheus text are no longer than a request may be, and nothing
/// is read while they are written. `tests/system` measures it with all connections in use.
pub const CONNECTION_BYTES: usize = json::MAX_REQUEST + (16 << 10);

/// File descriptors of one connection: its stream, and a duplicate on which the hangup is awaited.
pub const CONNECTION_FILES: usize = 2;

/// File descriptors besides those of the connections: the model, the broker, the journal, sensors while they are
/// read.
const OTHER_FILES: usize = 64;

/// Milliseconds after which a client that was refused for want of a free connection may retry.
const BUSY_RETRY_MS: u64 = 1_000;

/// Pause after a failed accept. The usual cause, too few file descriptors, lasts until a client disconnects;
/// meanwhile the new connection waits in the listen backlog.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Wraps a socket that is already listening: [`bind`]'s, or the one inherited from systemd.
///
/// Must be called within the async runtime.
pub fn adopt(listener: std::os::unix::net::UnixListener) -> io::Result<UnixListener> {
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Raises this process's limit of open files (`RLIMIT_NOFILE`) to what so many connections need, those over TCP among them. Where the hard
/// limit does not allow it, a warning is logged, and clients beyond the limit wait until others disconnect.
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

/// Time between two checks whether the socket file still exists.
const SOCKET_CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// A listening socket, and its file where this process created it.
#[derive(Debug)]
pub struct Listening {
    listener: UnixListener,
    owned_file: Option<OwnedFile>,
    /// An error of restoring the file was logged, and it has not been restored since.
    is_error_reported: bool,
}

/// A socket file that this process created, and its mode.
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
    /// Creates the file again, with this mode, whenever somebody removes it.
    #[must_use]
    pub fn owning(mut self, socket_file: Arc<Mutex<SocketFile>>, mode: u32) -> Self {
        self.owned_file = Some(OwnedFile { socket_file, mode });
        self
    }

    /// Checks whether the socket file still exists, and creates it again if not. Returns the connections that had been
    /// made to the removed file and were not accepted yet. A failure is logged once.
    fn check_file(&mut self) -> Vec<UnixStream> {
        let Some(OwnedFile { socket_file, mode }) = &self.owned_file else { return Vec::new() };
        let mut socket_file = socket_file.lock().unwrap_or_else(PoisonError::into_inner);
        let path = socket_file.path().display().to_string();
        match socket_file.restore(*mode).map(|created| created.map(adopt)) {
            Ok(None) => self.is_error_reported = false,
            Ok(Some(Ok(created))) => {
                self.is_error_reported = false;
                log::warn!(
                    "{path}: the socket file was removed, so nobody could connect; it has been created again"
                );
                return pending_connections(&std::mem::replace(&mut self.listener, created));
            }
            Ok(Some(Err(error))) => log::error!("{path}: cannot be listened on again: {error}"),
            Err(error) if !std::mem::replace(&mut self.is_error_reported, true) => {
                log::error!(
                    "the socket file was removed, so nobody can connect, and it cannot be created again: {error}"
                );
            }
            Err(_) => {}
        }
        Vec::new()
    }
}

/// The connections in the listen backlog. Closing the listener would reset them. The kernel is asked itself, since the
/// runtime may not have noticed them yet.
fn pending_connections(listener: &UnixListener) -> Vec<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    std::iter::from_fn(|| accept_with(listener, flags).ok())
        .filter_map(|stream| UnixStream::from_std(stream.into()).ok())
        .collect()
}

/// Serves the clients of `listener` until `close`.
///
/// Once `draining` is cancelled, new requests are refused with `shutting_down` and running ones continue. Once
/// `close` is cancelled, all requests are cancelled; within two seconds their last events are written, the
/// connections are closed, and this returns.
pub async fn run(listener: impl Into<Listening>, backlog: BacklogPolicy, shared: ConnectionContext) {
    let end_of_accepting = backlog.end_of_accepting(&shared.draining, &shared.close).clone();
    let mut tasks = JoinSet::new();
    let (mut number, mut failing) = (0, false);
    let mut open = OpenConnections::default();
    let mut listening = listener.into();
    let mut check_timer = tokio::time::interval(SOCKET_CHECK_INTERVAL);
    check_timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // Ended connections are removed before new ones are counted against the limit.
            biased;
            () = end_of_accepting.cancelled() => break,
            Some(ended) = tasks.join_next() => note_panic(ended),
            _ = check_timer.tick(), if listening.owned_file.is_some() => {
                for stream in listening.check_file() {
                    number += 1;
                    admit(&mut tasks, &mut open, stream, number, &shared);
                }
            }
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

fn admit(
    tasks: &mut JoinSet<()>,
    open: &mut OpenConnections<UnixStream>,
    stream: UnixStream,
    number: u64,
    shared: &ConnectionContext,
) {
    if !open.make_slot(shared.max_connections) {
        return refuse_connection(&stream, shared);
    }
    let watched = match connection::duplicate_handle(&stream) {
        Ok(watched) => Arc::new(watched),
        Err(error) => return log::debug!("connection {number} closed: {error}"),
    };
    let in_flight = Arc::new(InFlight::default());
    open.add(Arc::downgrade(&in_flight), Arc::downgrade(&watched));
    tasks.spawn(connection::serve(stream, watched, number, in_flight, shared.clone()));
}

/// Waits before the next accept. Logs the error once in a series of failures.
async fn pause_after_error(error: &io::Error, is_repeated: bool) {
    if !is_repeated {
        log::warn!("a client of the socket cannot be accepted, it waits: {error}");
    }
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

fn note_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        log::error!("a connection of the socket ended in a fault of the daemon: {error}");
    }
}

/// Refuses a client beyond the limit without waiting for it: the send buffer of a new socket is empty.
fn refuse_connection(stream: &UnixStream, shared: &ConnectionContext) {
    let most = shared.max_connections;
    let text = format!(
        "{most} clients are connected and none is idle; ask again later, or raise socket.connections"
    );
    shared.telemetry.refused(None, Code::QueueFull.name(), &text);
    let refusal = Refusal { retry_after_ms: Some(BUSY_RETRY_MS), ..Refusal::new(Code::QueueFull, text) };
    // An error means that the client has already disconnected.
    let _ = stream.try_write(&event_line(&Event::error(None, refusal)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Socket;

    #[tokio::test]
    async fn connections_to_a_removed_socket_file_are_kept() {
        let folder = tempfile::TempDir::with_prefix("bitnetd-").expect("a temporary folder");
        let settings = Socket { path: folder.path().join("s"), mode: 0o600, connections: 1 };
        let (listener, socket_file) = bind(&settings).expect("a free path");
        let socket_file = Arc::new(Mutex::new(socket_file));
        let mut listening =
            Listening::from(adopt(listener).expect("in the runtime")).owning(socket_file, settings.mode);
        let connect = || std::os::unix::net::UnixStream::connect(&settings.path).expect("it is listened on");
        let clients = [connect(), connect()];
        assert_eq!(listening.check_file().len(), 0, "they are left to the accept loop");
        std::fs::remove_file(&settings.path).expect("it was created");
        assert_eq!(listening.check_file().len(), clients.len());
        drop(connect());
    }
}
