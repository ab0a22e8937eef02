//! One client of the socket, from its first byte to its last.
//!
//! Reading and writing are the two halves of one task. It ends when the client has disconnected, or when the client
//! has sent its last line and every answer is written. Deliberately knows nothing of other connections.

use super::context::ConnectionContext;
use super::writer::{EVENTS, EventWriter, FLUSH_TIMEOUT, OutgoingBytes, event_line};
use crate::protocol::json::{self, Incoming};
use crate::protocol::partial::id_of_truncated;
use crate::protocol::{ClientInterface, Code, Event, Metadata, Refusal, ReloadReport, Request, RequestId};
use crate::telemetry::{DaemonPhase, prometheus};
use crate::transport::http::{self, HttpPeer, is_http};
use crate::transport::in_flight::InFlight;
use crate::transport::line_framing::{Line, LineSplitter};
use crate::transport::{Cancel, Inbound, Reply, WhenFull};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Instant, SystemTime};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::ReadHalf;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Bytes read at once: most requests fit in one piece, and a few hundred connections need little memory.
const PIECE: usize = 4 * 1024;

/// Serves one client, the daemon's `number`th, to its end. `watched` is a [second handle](duplicate_handle) of its
/// stream.
pub(super) async fn serve(
    stream: UnixStream,
    watched: Arc<UnixStream>,
    number: u64,
    in_flight: Arc<InFlight>,
    shared: ConnectionContext,
) {
    log::debug!("connection {number} opened");
    match run(stream, &watched, number, &in_flight, shared).await {
        Ok(()) => log::debug!("connection {number} closed"),
        Err(error) => log::debug!("connection {number} closed: {error}"),
    }
}

/// Finds out what the client speaks, JSON lines or HTTP, and serves it.
async fn run(
    stream: UnixStream,
    watched: &UnixStream,
    number: u64,
    flight: &Arc<InFlight>,
    shared: ConnectionContext,
) -> io::Result<()> {
    let peer = Peer::of(&stream);
    let is_http = tokio::select! {
        biased;
        () = flight.dismissed() => return evict(&stream, shared.max_connections),
        gone = wait_for_hangup(watched) => return gone,
        () = shared.close.cancelled() => false,
        is_http = is_http(&stream) => is_http?,
    };
    if is_http {
        let peer = HttpPeer { client: peer.client, queue_key: peer.queue_key, address: None };
        tokio::select! {
            biased;
            gone = wait_for_hangup(watched) => return gone,
            () = http::serve(stream, peer, Arc::clone(flight), shared.http) => return Ok(()),
        }
    }
    run_halves(stream, peer, watched, number, flight, shared).await
}

async fn run_halves(
    mut stream: UnixStream,
    peer: Peer,
    watched: &UnixStream,
    number: u64,
    flight: &InFlight,
    shared: ConnectionContext,
) -> io::Result<()> {
    let (reply, events) = mpsc::channel(EVENTS);
    // One at a time: until the client has accepted an answer, its next line is not read.
    let (answer, answers) = mpsc::channel(1);
    let (input, half) = stream.split();
    let (close, most) = (shared.close.clone(), shared.max_connections);
    let writer = EventWriter { half, events, answers, in_flight: flight, out: Vec::new(), written: None };
    let reader = Reader {
        shared,
        number,
        peer,
        in_flight: flight,
        events: reply,
        outgoing: answer,
        ids_made: 0,
        watched,
        reload: None,
    };
    tokio::select! {
        biased;
        () = flight.dismissed() => {}
        gone = wait_for_hangup(watched) => return gone,
        done = async { tokio::try_join!(reader.run(input), writer.run(&close)) } => return done.map(drop),
    }
    evict(&stream, most)
}

/// Tells the client why its idle connection is closed. Nothing is half written, since the connection is idle.
fn evict(stream: &UnixStream, most: usize) -> io::Result<()> {
    // An error means that the client has already disconnected.
    let _ = stream.try_write(&event_line(&Event::error(None, eviction_notice(most))));
    Ok(())
}

fn eviction_notice(most: usize) -> Refusal {
    let text = format!(
        "closed after idling, for {most} clients are connected and another asks; connect again, or raise socket.connections"
    );
    Refusal::new(Code::Timeout, text)
}

/// A second handle of the same socket. Its readiness is tracked apart from the first handle's, so that
/// [`wait_for_hangup`] can clear it without taking it from a pending write.
pub(super) fn duplicate_handle(stream: &UnixStream) -> io::Result<UnixStream> {
    UnixStream::from_std(stream.as_fd().try_clone_to_owned()?.into())
}

/// Waits until the client has closed both directions, as it also does when it is killed.
///
/// The end of the client's stream does not show this: a client that has sent everything may shut down that
/// direction and keep reading. EPOLLHUP tells the two apart, and is signalled without a write.
async fn wait_for_hangup(watched: &UnixStream) -> io::Result<()> {
    while !watched.ready(Interest::WRITABLE).await?.is_write_closed() {
        // Clears the readiness, so that the next wait is for a change; a hangup is never cleared.
        let _ = watched.try_io(Interest::WRITABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }
    Err(io::ErrorKind::ConnectionAborted.into())
}

/// Makes the client's further writes fail, so that it knows what was not accepted. What it had written before can
/// still be read, up to the end of the stream: no request is left without an answer.
fn shut_down_reading(stream: &UnixStream) -> io::Result<()> {
    Ok(rustix::net::shutdown(stream, rustix::net::Shutdown::Read)?)
}

/// The process at the other end, as the kernel recorded it at connect (`SO_PEERCRED`).
#[derive(Debug)]
struct Peer {
    /// The user, `unix:uid=…`.
    client: String,
    /// The user and process, so that the processes of one user share the queue fairly.
    queue_key: String,
    /// Whether it is root, or the user that the daemon runs as.
    may_reload: bool,
}

impl Peer {
    fn of(stream: &UnixStream) -> Self {
        let peer = stream.peer_cred().ok();
        let client = peer.map_or("unix:uid=unknown".into(), |peer| format!("unix:uid={}", peer.uid()));
        let process = peer.and_then(|peer| peer.pid());
        let queue_key = process.map_or(client.clone(), |process| format!("{client},pid={process}"));
        let own = rustix::process::geteuid().as_raw();
        let may_reload = peer.is_some_and(|peer| peer.uid() == 0 || peer.uid() == own);
        Peer { client, queue_key, may_reload }
    }
}

/// The reading half: lines become requests, cancellations or refusals.
struct Reader<'a> {
    shared: ConnectionContext,
    /// The connection's number in the order of arrival; ids made for its requests contain it.
    number: u64,
    peer: Peer,
    in_flight: &'a InFlight,
    /// The reply channel of every request.
    events: mpsc::Sender<Event>,
    /// The channel for everything that is no event of a request.
    outgoing: mpsc::Sender<OutgoingBytes>,
    /// Ids made so far.
    ids_made: u64,
    /// The second handle of the socket, to shut down its reading side.
    watched: &'a UnixStream,
    /// The reload that this client has asked for and that has not ended.
    reload: Option<PendingReload>,
}

/// A reload that a client waits for.
struct PendingReload {
    /// The id of its line.
    id: Option<RequestId>,
    report: oneshot::Receiver<ReloadReport>,
}

/// Whether to continue reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadLoop {
    Continue,
    Stop,
}

impl Reader<'_> {
    /// Reads to the end of the client's stream, which `close` brings about. Dropping the reader closes its ends of
    /// both channels, which lets the writer end after the last answer.
    async fn run(mut self, mut half: ReadHalf<'_>) -> io::Result<()> {
        let (close, watched) = (self.shared.close.clone(), self.watched);
        let shutdown_deadline = async {
            close.cancelled().await;
            shut_down_reading(watched)?;
            tokio::time::sleep(FLUSH_TIMEOUT).await;
            Ok(())
        };
        tokio::select! {
            read = self.read(&mut half) => read,
            ended = shutdown_deadline => ended,
        }
    }

    async fn read(&mut self, half: &mut ReadHalf<'_>) -> io::Result<()> {
        let mut lines = LineSplitter::new(json::MAX_REQUEST);
        let mut piece = [0; PIECE];
        loop {
            let length = tokio::select! {
                report = reloaded(&mut self.reload, &self.shared.draining) => {
                    if self.finish_reload(report).await == ReadLoop::Stop {
                        return Ok(());
                    }
                    continue;
                }
                length = half.read(&mut piece) => length?,
            };
            if !self.in_flight.record_activity(piece[..length].ends_with(b"\n")) {
                // The connection is being closed in favour of another client.
                return std::future::pending().await;
            }
            lines.push(&piece[..length]);
            while let Some(line) = lines.next_line() {
                if self.handle_line(line).await == ReadLoop::Stop {
                    return Ok(());
                }
            }
            if length == 0 {
                if let Some(line) = lines.finish() {
                    self.handle_line(line).await;
                }
                // A client that has sent all of its lines may still wait for the answer to one.
                if self.reload.is_some() {
                    let report = reloaded(&mut self.reload, &self.shared.draining).await;
                    self.finish_reload(report).await;
                }
                return Ok(());
            }
        }
    }

    async fn handle_line(&mut self, line: Line<'_>) -> ReadLoop {
        match line {
            Line::TooLong(beginning) => {
                let id = id_of_truncated(beginning).filter(|id| !self.in_flight.is_running(id));
                self.refuse(id, too_long()).await
            }
            Line::Whole(bytes) => match self.read_line(bytes).await {
                Ok(Incoming::Request(request)) => self.request(*request, Instant::now()).await,
                Ok(Incoming::Cancel(id)) => self.cancel(id).await,
                Ok(Incoming::Telemetry(id)) => self.send_report(id.as_ref()).await,
                Ok(Incoming::Metrics(id)) => {
                    self.send_and_wait(json::metrics(&self.metrics(), id.as_ref())).await
                }
                Ok(Incoming::Health(id)) => self.send_health(id.as_ref()).await,
                Ok(Incoming::Alerts(id)) => self.send_alerts(id.as_ref()).await,
                Ok(Incoming::Reload(id)) => self.reload(id).await,
                Err(refusal) => {
                    // Without the id where a valid request in flight has the same one: that request must not seem to end here.
                    let id = json::id_of(bytes).filter(|id| !self.in_flight.is_running(id));
                    let metadata = json::metadata_of(bytes);
                    self.refuse_with(id, metadata, refusal).await
                }
            },
        }
    }

    /// Reads a line. All but questions about the state wait until the model is loaded, and whatever comes behind them waits
    /// unread.
    async fn read_line(&self, bytes: &[u8]) -> Result<Incoming, Refusal> {
        let incoming = json::incoming(bytes);
        if !matches!(incoming, Ok(Incoming::Health(_) | Incoming::Alerts(_))) {
            let ConnectionContext { loaded, draining, close, .. } = &self.shared;
            tokio::select! {
                biased;
                () = loaded.cancelled() => {}
                () = draining.cancelled() => {}
                () = close.cancelled() => {}
            }
        }
        incoming
    }

    async fn cancel(&self, id: RequestId) -> ReadLoop {
        if self.in_flight.cancel(&id) {
            return ReadLoop::Continue;
        }
        // Without the id: a request that has just ended must not receive a second last event.
        let text = format!("cancel: no request {id:?} is in flight on this connection");
        self.refuse(None, Refusal::new(Code::InvalidRequest, text)).await
    }

    async fn send_report(&self, id: Option<&RequestId>) -> ReadLoop {
        self.send_and_wait(json::telemetry(&self.shared.telemetry.report(SystemTime::now()), id)).await
    }

    async fn send_health(&self, id: Option<&RequestId>) -> ReadLoop {
        let ConnectionContext { loaded, draining, telemetry, .. } = &self.shared;
        let phase = DaemonPhase::of(loaded.is_cancelled(), draining.is_cancelled());
        self.send_and_wait(json::health(&telemetry.health(phase, SystemTime::now()), id)).await
    }

    async fn send_alerts(&self, id: Option<&RequestId>) -> ReadLoop {
        self.send_and_wait(json::alerts(&self.shared.telemetry.alert_list(Instant::now()), id)).await
    }

    /// Asks for the configuration to be read again, for those who could also send the signal for it. What became of it is known
    /// once a model that it names is loaded; further lines are read meanwhile.
    async fn reload(&mut self, id: Option<RequestId>) -> ReadLoop {
        let why = match &self.reload {
            _ if !self.peer.may_reload => "only root and the daemon's own user may ask for it",
            Some(_) => "one is under way on this connection already; wait for its answer",
            None => {
                let (done, report) = oneshot::channel();
                // The receiver is gone once the daemon stops, and then so is what the report would come from.
                let _ = self.shared.reloads.send(done).await;
                self.reload = Some(PendingReload { id, report });
                return ReadLoop::Continue;
            }
        };
        self.refuse(id, Refusal::new(Code::InvalidRequest, format!("reload: {why}"))).await
    }

    /// Sends what became of a reload.
    async fn finish_reload(&mut self, report: Option<ReloadReport>) -> ReadLoop {
        let Some(PendingReload { id, .. }) = self.reload.take() else { return ReadLoop::Continue };
        match report {
            Some(report) => self.send_and_wait(json::reload(&report, id.as_ref())).await,
            None => self.refuse(id, Refusal::shutting_down()).await,
        }
    }

    fn metrics(&self) -> String {
        prometheus::render(&self.shared.telemetry, SystemTime::now())
    }

    /// Sends a line that is nearly as long as a request may be, and waits until it is written: the memory of a
    /// connection is planned for one of the two at a time. The data it was made from is already freed.
    async fn send_and_wait(&self, mut line: Vec<u8>) -> ReadLoop {
        line.push(b'\n');
        line.shrink_to_fit();
        let (written, is_written) = oneshot::channel();
        let sent = self.outgoing.send(OutgoingBytes { bytes: line, written: Some(written) }).await;
        if sent.is_ok() && is_written.await.is_ok() { ReadLoop::Continue } else { ReadLoop::Stop }
    }

    async fn request(&mut self, request: Request, received: Instant) -> ReadLoop {
        if self.wait_for_slot().await == ReadLoop::Stop {
            return self.refuse_with(request.id, request.metadata, Refusal::shutting_down()).await;
        }
        let Some((id, cancel)) = self.register(request.id.clone()) else {
            // Without the id: the first request of that id must not seem to end here.
            let id = request.id.unwrap_or_else(|| "".into());
            let text = format!("id: {id:?} is in flight on this connection already; choose another");
            let refusal = Refusal::new(Code::InvalidRequest, text);
            return self.refuse_with(None, request.metadata, refusal).await;
        };
        let Some(reply) = self.reply(&id).await else { return ReadLoop::Stop };
        let reply = reply.with_metadata(request.metadata.as_ref());
        let Peer { client, queue_key, .. } = &self.peer;
        let inbound = Inbound {
            request,
            id,
            interface: ClientInterface::Unix,
            client: client.clone(),
            cache_key: client.clone(),
            queue_key: queue_key.clone(),
            limit_key: client.clone(),
            when_full: WhenFull::Refuse,
            received,
            reply,
            cancel,
        };
        self.submit(inbound).await;
        ReadLoop::Continue
    }

    /// Waits until one more request may start, or none may because the daemon is stopping.
    async fn wait_for_slot(&self) -> ReadLoop {
        let ConnectionContext { draining, close, .. } = &self.shared;
        tokio::select! {
            biased;
            () = draining.cancelled() => ReadLoop::Stop,
            () = close.cancelled() => ReadLoop::Stop,
            () = self.in_flight.wait_for_slot() => ReadLoop::Continue,
        }
    }

    /// Registers the request under the client's id, or under one made for it.
    fn register(&mut self, id: Option<RequestId>) -> Option<(RequestId, Cancel)> {
        if let Some(id) = id {
            return self.in_flight.start(&id).map(|cancel| (id, cancel));
        }
        loop {
            self.ids_made += 1;
            let id = RequestId::from(format!("u{}-{}", self.number, self.ids_made));
            // A client may have chosen the same one.
            if let Some(cancel) = self.in_flight.start(&id) {
                return Some((id, cancel));
            }
        }
    }

    /// A reply for a new request, once the client has read enough of what waits for it. `None` when the connection
    /// is ending.
    async fn reply(&self, id: &RequestId) -> Option<Reply> {
        loop {
            if let Some(reply) = Reply::new(id, &self.events) {
                return Some(reply);
            }
            // If a token takes the free slot first, wait again.
            drop(self.events.reserve().await.ok()?);
        }
    }

    async fn submit(&self, inbound: Inbound) {
        if let Err(mpsc::error::SendError(inbound)) = self.shared.inbound.send(inbound).await {
            inbound.reply.refuse(Refusal::shutting_down());
        }
    }

    async fn refuse(&self, id: Option<RequestId>, refusal: Refusal) -> ReadLoop {
        self.refuse_with(id, None, refusal).await
    }

    async fn refuse_with(
        &self,
        id: Option<RequestId>,
        metadata: Option<Metadata>,
        refusal: Refusal,
    ) -> ReadLoop {
        let Refusal { code, message, .. } = &refusal;
        self.shared.telemetry.refused(Some(&self.peer.client), code.name(), message);
        self.send(event_line(&Event::Error { id, refusal, metadata })).await
    }

    async fn send(&self, bytes: Vec<u8>) -> ReadLoop {
        let answer = OutgoingBytes { bytes, written: None };
        if self.outgoing.send(answer).await.is_ok() { ReadLoop::Continue } else { ReadLoop::Stop }
    }
}

/// Waits for what becomes of a reload, for ever where none is under way; `None` where the daemon stops.
async fn reloaded(reload: &mut Option<PendingReload>, draining: &CancellationToken) -> Option<ReloadReport> {
    let Some(PendingReload { report, .. }) = reload else { return std::future::pending().await };
    tokio::select! {
        biased;
        report = report => report.ok(),
        () = draining.cancelled() => None,
    }
}

fn too_long() -> Refusal {
    let text = format!("the line is longer than {} bytes; send less", json::MAX_REQUEST);
    Refusal::new(Code::TooLarge, text)
}
