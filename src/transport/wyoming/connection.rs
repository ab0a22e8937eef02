//! One client, from its first byte to its last: its events are answered one after the other.
//!
//! Deliberately knows nothing of other connections.

use super::WyomingContext;
use super::answer::{self, SentenceAnswer};
use crate::protocol::wyoming::{
    self, AnswerKind, EventReader, MAX_DATA, Transcript, WyomingCall, WyomingEvent,
};
use crate::protocol::{ClientInterface, Code, Event, Refusal, Request, RequestId};
use crate::transport::in_flight::{InFlight, InFlightRequest};
use crate::transport::tcp_accept::TcpClient;
use crate::transport::{Inbound, Reply, WhenFull};
use jiff::ZonedDateTime;
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep_until, timeout};

/// Bytes read at once.
const PIECE: usize = 4 << 10;

/// Time from the first byte of an event to its last.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

/// Time for a client to accept an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

/// Time from `close` to the end of the connection.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// How long bytes are read and ignored before a connection is closed, so that the client reads the last event and not a
/// connection reset.
const LINGER: Duration = Duration::from_secs(1);

/// Whether the connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Continue,
    Close,
}

/// Serves one client, the daemon's `number`th, to its end.
pub(super) async fn serve(client: TcpClient, number: u64, context: WyomingContext) {
    let TcpClient { stream, address: peer, in_flight } = client;
    log::debug!("wyoming connection {number} opened by {peer}");
    let close = context.close.clone();
    let client = format!("wyoming:{}", peer.ip().to_canonical());
    let reader = EventReader::default();
    let mut connection = Connection { stream, reader, client, number, asked: 0, in_flight, context };
    let flushed = async {
        close.cancelled().await;
        tokio::time::sleep(FLUSH_TIMEOUT).await;
    };
    let ended = tokio::select! {
        ended = connection.run() => ended,
        () = flushed => Err(io::ErrorKind::TimedOut.into()),
    };
    match ended {
        Ok(()) => log::debug!("wyoming connection {number} closed"),
        Err(error) => log::debug!("wyoming connection {number} closed: {error}"),
    }
}

struct Connection {
    stream: TcpStream,
    reader: EventReader,
    /// The client, as the log shows it: `wyoming:192.168.1.10`.
    client: String,
    number: u64,
    /// Sentences so far; ids contain it.
    asked: u64,
    in_flight: Arc<InFlight>,
    context: WyomingContext,
}

impl Connection {
    async fn run(&mut self) -> io::Result<()> {
        let mut begun = None;
        loop {
            match self.reader.next_event() {
                Ok(Some(event)) => {
                    begun = None;
                    if self.handle(&event).await? == Next::Close {
                        return self.linger().await;
                    }
                }
                Ok(None) => {
                    if self.reader.is_inside_event() {
                        begun.get_or_insert_with(Instant::now);
                    }
                    if self.read(begun).await? == Next::Close {
                        return Ok(());
                    }
                }
                Err(refusal) => {
                    self.refuse(&refusal).await?;
                    return self.linger().await;
                }
            }
        }
    }

    /// Reads the next bytes. `begun`: when the first byte of an unfinished event was read.
    async fn read(&mut self, begun: Option<Instant>) -> io::Result<Next> {
        let mut piece = [0; PIECE];
        let is_late = async {
            match begun {
                Some(begun) => sleep_until((begun + READ_TIMEOUT).into()).await,
                None => pending().await,
            }
        };
        let length = tokio::select! {
            biased;
            () = self.context.close.cancelled() => return Ok(Next::Close),
            () = self.in_flight.dismissed() => return Ok(Next::Close),
            length = self.stream.read(&mut piece) => length?,
            () = is_late => {
                let message = format!("the end of the event did not arrive within {READ_TIMEOUT:?}; send it as a whole");
                self.refuse(&Refusal::new(Code::Timeout, message)).await?;
                self.linger().await?;
                return Ok(Next::Close);
            }
        };
        self.reader.push(&piece[..length]);
        // A connection that is being closed in favour of another client accepts nothing more. The bytes may be the beginning
        // of an event.
        let is_open = self.in_flight.record_activity(false);
        Ok(if length == 0 || !is_open { Next::Close } else { Next::Continue })
    }

    async fn handle(&mut self, event: &WyomingEvent) -> io::Result<Next> {
        let program = self.context.program.borrow().clone();
        match WyomingCall::of(event, program.answers) {
            Ok(WyomingCall::Describe) => self.write(&program.event()).await,
            Ok(WyomingCall::Ping(text)) => self.write(&wyoming::pong(text.as_deref())).await,
            Ok(WyomingCall::Transcript(transcript)) => self.ask(*transcript, program.answers).await,
            Ok(WyomingCall::Ignored) => Ok(Next::Continue),
            Err(refusal) => self.refuse(&refusal).await,
        }
    }

    /// `answers`: what the answer is, as the request was made; a reload may load a model of another kind meanwhile.
    async fn ask(
        &mut self,
        Transcript { request, context }: Transcript,
        answers: AnswerKind,
    ) -> io::Result<Next> {
        if self.context.draining.is_cancelled() {
            return self.refuse(&Refusal::shutting_down()).await;
        }
        let Some(event) = self.answer_to(request).await? else {
            return self.refuse(&Refusal::shutting_down()).await;
        };
        match answer::of(&event, answers, &context, &ZonedDateTime::now()) {
            SentenceAnswer::Reply(bytes) => self.write(&bytes).await,
            SentenceAnswer::Failed(refusal) => {
                self.write(&wyoming::failed(&refusal)).await?;
                Ok(Next::Close)
            }
        }
    }

    /// The event that ends a request; `None` where the daemon takes none any more. A client that leaves meanwhile, or that
    /// sends without end, cancels it.
    async fn answer_to(&mut self, request: Request) -> io::Result<Option<Event>> {
        self.asked += 1;
        let id = RequestId::from(format!("w{}-{}", self.number, self.asked));
        // The request is not streamed, so that its last event is the only one.
        let (events, mut event) = mpsc::channel(1);
        let Some(reply) = Reply::new(&id, &events) else { return Ok(None) };
        drop(events);
        let running = InFlightRequest::begin(id.clone(), &self.in_flight);
        let inbound = Inbound {
            request,
            id: id.clone(),
            interface: ClientInterface::Wyoming,
            client: self.client.clone(),
            cache_key: self.client.clone(),
            queue_key: self.client.clone(),
            limit_key: self.client.clone(),
            when_full: WhenFull::Refuse,
            received: Instant::now(),
            reply,
            cancel: running.cancel.clone(),
        };
        let queue = self.context.inbound.clone();
        let answered = async {
            // Where nobody receives requests any more, the reply ends with the request.
            queue.send(inbound).await.ok()?;
            event.recv().await
        };
        tokio::pin!(answered);
        let mut piece = [0; PIECE];
        let mut is_closing = false;
        loop {
            tokio::select! {
                biased;
                event = &mut answered => return Ok(event),
                () = self.context.close.cancelled(), if !is_closing => {
                    is_closing = true;
                    running.cancel.raise();
                }
                length = self.stream.read(&mut piece) => match length? {
                    0 => return Err(io::ErrorKind::ConnectionAborted.into()),
                    // Unread bytes would hide that the client has left, and nobody sends so many before it has an answer.
                    _ if !self.reader.has_space() => return Ok(Some(too_much(id))),
                    length => self.reader.push(&piece[..length]),
                },
            }
        }
    }

    /// Sends why an event is not answered. Nothing more is read after it, since the client may be an older one, see
    /// [`wyoming::failed`].
    async fn refuse(&mut self, refusal: &Refusal) -> io::Result<Next> {
        let Refusal { code, message, .. } = refusal;
        self.context.telemetry.refused(Some(&self.client), code.name(), message);
        self.write(&wyoming::failed(refusal)).await?;
        Ok(Next::Close)
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<Next> {
        self.in_flight.set_writing(true);
        timeout(WRITE_TIMEOUT, self.stream.write_all(bytes)).await??;
        self.in_flight.set_writing(false);
        Ok(Next::Continue)
    }

    async fn linger(&mut self) -> io::Result<()> {
        self.stream.shutdown().await?;
        let mut piece = [0; PIECE];
        let rest = async {
            while self.stream.read(&mut piece).await? > 0 {}
            Ok(())
        };
        timeout(LINGER, rest).await.unwrap_or(Ok(()))
    }
}

/// The end of a request whose client sends on and on instead of reading the answer.
fn too_much(id: RequestId) -> Event {
    let message = format!("more than {} KiB came before the answer; wait for it", MAX_DATA >> 10);
    Event::error(Some(id), Refusal::new(Code::TooLarge, message))
}
