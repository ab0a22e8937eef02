//! A network between daemon and broker that misbehaves on demand.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// How bytes travel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// At once.
    Free,
    /// So much later.
    Late(Duration),
    /// One byte each time, from the broker to the daemon.
    Drip(Duration),
}

#[derive(Debug, Clone)]
struct State {
    pace: Pace,
    /// Connections with a lower number carry nothing any more, and are not closed either.
    dead_below: usize,
    /// When each connection came.
    calls: Vec<Instant>,
}

/// What carries the bytes; everything ends with it.
pub struct Proxy {
    /// Where to connect instead.
    pub port: u16,
    state: watch::Sender<State>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// A proxy to this port of the loopback address.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let own = listener.local_addr().expect("its address").port();
        let state = State { pace: Pace::Free, dead_below: 0, calls: Vec::new() };
        let state = watch::Sender::new(state);
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, port, state.clone()));
        Proxy { port: own, state, _tasks: tasks }
    }

    /// From now on bytes travel like this.
    pub fn pace(&self, pace: Pace) {
        self.state.send_modify(|state| state.pace = pace);
    }

    /// The peer of every connection there is has vanished: nothing is carried, nothing is closed.
    pub fn vanish(&self) {
        self.state.send_modify(|state| state.dead_below = state.calls.len());
    }

    /// Connections so far.
    pub fn calls(&self) -> usize {
        self.state.borrow().calls.len()
    }

    /// The shortest time between two connections.
    pub fn shortest_gap(&self) -> Option<Duration> {
        let state = self.state.borrow();
        state.calls.windows(2).map(|pair| pair[1] - pair[0]).min()
    }
}

async fn accept(listener: TcpListener, port: u16, state: watch::Sender<State>) {
    let mut pumps = JoinSet::new();
    while let Ok((daemon, _)) = listener.accept().await {
        let number = state.borrow().calls.len();
        state.send_modify(|state| state.calls.push(Instant::now()));
        // Without a broker the connection is closed at once.
        let Ok(broker) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { continue };
        let _ = (daemon.set_nodelay(true), broker.set_nodelay(true));
        let ((from_daemon, to_daemon), (from_broker, to_broker)) = (daemon.into_split(), broker.into_split());
        pumps.spawn(pump(from_daemon, to_broker, number, false, state.subscribe()));
        pumps.spawn(pump(from_broker, to_daemon, number, true, state.subscribe()));
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    number: usize,
    to_daemon: bool,
    mut state: watch::Receiver<State>,
) {
    let mut buffer = [0; 4096];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        if state.borrow().dead_below > number {
            // Holds both ends open.
            let _ = state.wait_for(|_| false).await;
        }
        if read == 0 || carry(&buffer[..read], &mut to, to_daemon, &mut state).await.is_err() {
            return;
        }
    }
}

async fn carry(
    mut bytes: &[u8],
    to: &mut OwnedWriteHalf,
    to_daemon: bool,
    state: &mut watch::Receiver<State>,
) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let pace = state.borrow_and_update().pace;
        let count = match pace {
            Pace::Drip(pause) if to_daemon => {
                // A change of pace ends the drip at once.
                let _ = tokio::time::timeout(pause, state.changed()).await;
                1
            }
            Pace::Late(time) => {
                sleep(time).await;
                bytes.len()
            }
            _ => bytes.len(),
        };
        to.write_all(&bytes[..count]).await?;
        bytes = &bytes[count..];
    }
    Ok(())
}
