//! The clients of TCP listeners: accepted within a limit, served until they leave.
//!
//! Deliberately knows nothing of what the clients send.

use super::BacklogPolicy;
use super::in_flight::InFlight;
use super::open_connections::OpenConnections;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// Pause after a failed accept. The usual cause, too few file descriptors, lasts until a client disconnects;
/// meanwhile the new connection waits in the listen backlog.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a refused client's bytes are read and ignored.
const LINGER: Duration = Duration::from_secs(1);

/// Most refused clients whose bytes are read; further ones are closed at once.
const MAX_LINGERING: usize = 16;

/// How many clients may be connected at once. The connection that has been idle longest is closed for another.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// All of them.
    pub all: usize,
    /// Those from one address, so that one device cannot keep all others out.
    pub of_address: usize,
}

/// The tokens by which the daemon stops.
#[derive(Debug)]
pub struct StopSignals<'a> {
    /// Once cancelled, clients are accepted only to be refused.
    pub draining: &'a CancellationToken,
    /// Once cancelled, none is accepted.
    pub close: &'a CancellationToken,
}

/// A client that was accepted.
#[derive(Debug)]
pub struct TcpClient {
    /// Its connection.
    pub stream: TcpStream,
    /// Its address.
    pub address: SocketAddr,
    /// Shows whether the connection is idle.
    pub in_flight: Arc<InFlight>,
}

/// What a protocol does with its clients.
pub trait TcpService {
    /// The protocol, as the log names it.
    const PROTOCOL: &'static str;
    /// How many clients may be connected.
    const LIMITS: ConnectionLimits;

    /// Serves a client to its end. It is dropped when the client leaves: when it closes the connection, or its direction
    /// of it.
    fn serve(&self, client: TcpClient) -> impl Future<Output = ()> + Send + 'static;

    /// Refuses a client beyond the limit without waiting for it: the send buffer of a new socket is empty.
    fn refuse(&self, stream: &TcpStream);
}

/// Serves the clients of the listeners until the daemon closes, and returns when all of them are served.
pub async fn run<S: TcpService>(
    listeners: Vec<TcpListener>,
    backlog: BacklogPolicy,
    stop: StopSignals<'_>,
    service: &S,
) {
    let end_of_accepting = backlog.end_of_accepting(stop.draining, stop.close);
    let mut tasks = JoinSet::new();
    let mut clients = Clients {
        refused: Arc::new(Semaphore::new(MAX_LINGERING)),
        all: OpenConnections::default(),
        of_address: HashMap::new(),
    };
    let mut is_failing = false;
    loop {
        tokio::select! {
            // Ended connections are removed before new ones are counted against the limit.
            biased;
            () = end_of_accepting.cancelled() => break,
            Some(ended) = tasks.join_next() => note_panic::<S>(ended),
            accepted = accept(&listeners) => match accepted {
                Ok((stream, address)) => {
                    is_failing = false;
                    clients.admit(&mut tasks, stream, address, service);
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        log::warn!("a client of {} cannot be accepted, it waits: {error}", S::PROTOCOL);
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listeners);
    while let Some(ended) = tasks.join_next().await {
        note_panic::<S>(ended);
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

/// Reads and ignores what a refused client sends, so that it reads the refusal and not a connection reset.
async fn linger(mut stream: TcpStream) {
    let rest = async {
        // An error means that the client has left.
        let _ = stream.shutdown().await;
        let mut piece = [0; 1024];
        while stream.read(&mut piece).await.is_ok_and(|length| length > 0) {}
    };
    let _ = tokio::time::timeout(LINGER, rest).await; // whoever sends for longer meets a closed connection
}

/// The clients that are connected.
struct Clients {
    /// How many more refused clients may be waited for.
    refused: Arc<Semaphore>,
    all: OpenConnections<TcpStream>,
    of_address: HashMap<IpAddr, OpenConnections<TcpStream>>,
}

impl Clients {
    /// Serves a new client in a task of its own, or refuses it.
    fn admit<S: TcpService>(
        &mut self,
        tasks: &mut JoinSet<()>,
        stream: TcpStream,
        address: SocketAddr,
        service: &S,
    ) {
        self.of_address.retain(|_, open| open.count() > 0);
        let of_address = self.of_address.entry(address.ip().to_canonical()).or_default();
        if !of_address.make_slot(S::LIMITS.of_address) || !self.all.make_slot(S::LIMITS.all) {
            service.refuse(&stream);
            if let Ok(place) = Arc::clone(&self.refused).try_acquire_owned() {
                tasks.spawn(async move {
                    linger(stream).await;
                    drop(place);
                });
            }
            return;
        }
        // Answers are short, and each is sent at once. An error means that the client has already disconnected.
        let _ = stream.set_nodelay(true);
        let watched = match duplicate_handle(&stream) {
            Ok(watched) => Arc::new(watched),
            Err(error) => return log::debug!("a connection of {} closed: {error}", S::PROTOCOL),
        };
        let in_flight = Arc::new(InFlight::default());
        for open in [of_address, &mut self.all] {
            open.add(Arc::downgrade(&in_flight), Arc::downgrade(&watched));
        }
        let served = service.serve(TcpClient { stream, address, in_flight });
        tasks.spawn(async move {
            tokio::select! {
                // What the client sent before it left is read first.
                biased;
                () = served => {}
                () = wait_for_end(&watched) => {}
            }
        });
    }
}

/// A second handle of the same socket, whose readiness is tracked apart from the first handle's.
fn duplicate_handle(stream: &TcpStream) -> io::Result<TcpStream> {
    TcpStream::from_std(stream.as_fd().try_clone_to_owned()?.into())
}

/// Waits until the client has ended its direction of the connection, also while nothing is read from it. Over TCP that is
/// all that shows that a client has left.
async fn wait_for_end(watched: &TcpStream) {
    while watched.ready(Interest::READABLE).await.is_ok_and(|ready| !ready.is_read_closed()) {
        // Clears the readiness, so that the next wait is for a change; the end is never cleared.
        let _ = watched.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }
}

fn note_panic<S: TcpService>(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        log::error!("a connection of {} ended in a fault of the daemon: {error}", S::PROTOCOL);
    }
}
