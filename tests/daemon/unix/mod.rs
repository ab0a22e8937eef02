//! The Unix socket as its clients use it: a real socket, real clients, and a worker that stands in for the engine.
//! Its answer depends on the prompt; see [`answer`]. Deliberately no daemon around them.

mod disconnect;
mod requests;
mod socket_file;

use crate::http;
use bitnetd::config::Socket;
use bitnetd::protocol::{AnswerDetails, Done, Event, FinishReason, Input, RequestId, Timings, Usage};
use bitnetd::telemetry::Telemetry;
use bitnetd::transport::BacklogPolicy;
use bitnetd::transport::unix::{self, ConnectionContext, SocketFile};
use bitnetd::transport::{Cancel, Inbound};
use serde_json::{Value, json};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines, ReadHalf, WriteHalf};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Far more than anything here takes, also under emulation.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Maximum number of connections of these servers.
const CONNECTIONS: usize = 64;

/// A temporary folder, removed when dropped.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Folder(TempDir::with_prefix("bitnetd-").expect("a temporary folder"))
    }

    fn socket(&self) -> Socket {
        Socket { path: self.0.path().join("s"), mode: 0o660, connections: CONNECTIONS }
    }
}

/// A running socket transport and its worker.
struct SocketServer {
    path: PathBuf,
    /// The requests the worker received, oldest first.
    received: Arc<Mutex<Vec<ReceivedRequest>>>,
    loaded: CancellationToken,
    draining: CancellationToken,
    close: CancellationToken,
    tasks: JoinSet<()>,
    worker: tokio::task::AbortHandle,
    outside: ListeningSocket,
}

/// What remains when a daemon ends: its listening socket, as where systemd holds it open.
struct ListeningSocket {
    listener: UnixListener,
    _socket_file: SocketFile,
    folder: Folder,
}

#[derive(Clone)]
pub(crate) struct ReceivedRequest {
    id: String,
    client: String,
    pub(crate) cancel: Cancel,
}

impl SocketServer {
    fn open() -> Self {
        Self::with(BacklogPolicy::Refuse)
    }

    fn with(latecomers: BacklogPolicy) -> Self {
        let server = Self::loading(latecomers);
        server.loaded.cancel();
        server
    }

    /// A server whose model is not loaded yet.
    fn loading(latecomers: BacklogPolicy) -> Self {
        let folder = Folder::new();
        let (listener, address) = unix::bind(&folder.socket()).expect("a free path");
        Self::over(ListeningSocket { listener, _socket_file: address, folder }, latecomers)
    }

    fn over(outside: ListeningSocket, latecomers: BacklogPolicy) -> Self {
        let listener = outside.listener.try_clone().expect("a descriptor");
        let listener = unix::adopt(listener).expect("inside the runtime");
        let (inbound, requests) = mpsc::channel(16);
        let (draining, close) = (CancellationToken::new(), CancellationToken::new());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let (telemetry, loaded) = (Arc::new(Telemetry::new(0)), CancellationToken::new());
        let http = http::context(&inbound, &telemetry, [&loaded, &draining, &close], |_| {});
        let (loaded_too, draining_too, close_too) = (loaded.clone(), draining.clone(), close.clone());
        let context = ConnectionContext {
            max_connections: CONNECTIONS,
            inbound,
            reloads: mpsc::channel(1).0,
            telemetry,
            http,
            loaded: loaded_too,
            draining: draining_too,
            close: close_too,
        };
        tasks.spawn(unix::run(listener, latecomers, context));
        let worker = tasks.spawn(work(requests, seen.clone()));
        let path = outside.folder.socket().path;
        SocketServer { path, received: seen, loaded, draining, close, tasks, worker, outside }
    }

    async fn client(&self) -> Client {
        Client::new(UnixStream::connect(&self.path).await.expect("somebody listens"))
    }

    fn seen(&self, index: usize) -> Option<ReceivedRequest> {
        self.received.lock().expect("no panic").get(index).cloned()
    }

    /// The request that came as number `index`.
    async fn wait_for(&self, index: usize) -> ReceivedRequest {
        until(|| self.seen(index)).await
    }

    /// Ends, and another daemon begins with the same listening socket.
    async fn replaced(mut self) -> Self {
        self.end().await;
        let server = Self::over(self.outside, BacklogPolicy::LeaveQueued);
        server.loaded.cancel();
        server
    }

    /// Closes the socket and waits for `run` and the worker to return.
    async fn shut(mut self) {
        self.end().await;
    }

    async fn end(&mut self) {
        self.close.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        timeout(TIMEOUT, all).await.expect("run returns");
    }
}

pub(crate) async fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            match look() {
                Some(found) => return found,
                None => sleep(Duration::from_millis(2)).await,
            }
        }
    };
    timeout(TIMEOUT, found).await.expect("in time")
}

pub(crate) async fn work(mut requests: mpsc::Receiver<Inbound>, seen: Arc<Mutex<Vec<ReceivedRequest>>>) {
    let mut running = JoinSet::new();
    while let Some(inbound) = requests.recv().await {
        let Inbound { id, client, cancel, .. } = &inbound;
        let request = ReceivedRequest { id: id.to_string(), client: client.clone(), cancel: cancel.clone() };
        seen.lock().expect("no panic").push(request);
        running.spawn(answer(inbound));
    }
    running.join_all().await;
}

/// `hang` waits to be cancelled, `deaf` ignores even that, `lost` drops the request, `flood` streams until it is
/// cancelled; anything else is streamed back word by word.
async fn answer(inbound: Inbound) {
    let prompt = match &inbound.request.input {
        Input::Prompt(prompt) => prompt,
        Input::Messages(messages) => &messages.last().expect("there is one").content,
    };
    let mut reason = FinishReason::Stop;
    match prompt.as_str() {
        "lost" => return,
        "deaf" => sleep(Duration::from_secs(30)).await,
        "hang" => reason = hang(&inbound.cancel).await,
        "flood" => reason = flood(&inbound).await,
        words => {
            for word in words.split_inclusive(' ') {
                let _ = inbound.reply.token(word.to_owned());
                tokio::task::yield_now().await;
            }
        }
    }
    let done = done(&inbound.id, prompt, reason);
    inbound.reply.finish(done);
}

/// Without an end of its own: a request that ends would show the daemon that its client is gone.
async fn hang(cancel: &Cancel) -> FinishReason {
    while !cancel.is_raised() {
        sleep(Duration::from_millis(2)).await;
    }
    FinishReason::Cancelled
}

async fn flood(inbound: &Inbound) -> FinishReason {
    while !inbound.cancel.is_raised() {
        if inbound.reply.token("x".repeat(1000)).is_err() {
            inbound.cancel.raise();
        }
        tokio::task::yield_now().await;
    }
    FinishReason::Cancelled
}

fn done(id: &RequestId, text: &str, finish_reason: FinishReason) -> Event {
    Event::Done(Box::new(Done {
        id: id.clone(),
        text: text.to_owned(),
        finish_reason,
        usage: Usage::default(),
        timings: Timings::default(),
        energy: None,
        cached: false,
        model: "m".into(),
        details: AnswerDetails::default(),
    }))
}

/// One user of the socket.
struct Client {
    lines: Lines<BufReader<ReadHalf<UnixStream>>>,
    write: WriteHalf<UnixStream>,
}

impl Client {
    fn new(stream: UnixStream) -> Self {
        let (read, write) = tokio::io::split(stream);
        Client { lines: BufReader::new(read).lines(), write }
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = timeout(TIMEOUT, self.write.write_all(bytes.as_ref())).await;
        sent.expect("the daemon reads").expect("the connection is open");
    }

    async fn ask(&mut self, id: &str, prompt: &str) {
        self.send(format!("{}\n", json!({"id": id, "prompt": prompt, "stream": true}))).await;
    }

    /// The next event; `None` at the end of the stream.
    async fn event(&mut self) -> Option<Value> {
        let line = timeout(TIMEOUT, self.lines.next_line()).await.expect("the daemon answers");
        line.expect("a sound stream").map(|line| serde_json::from_str(&line).expect("JSON"))
    }

    /// The next event that is no token.
    async fn end(&mut self) -> Value {
        loop {
            let event = self.event().await.expect("an event before the end");
            if event["event"] != "token" {
                return event;
            }
        }
    }

    /// Sends a request and receives its answer: the connection works.
    async fn assert_serves(&mut self) {
        self.ask("still", "here").await;
        let event = self.end().await;
        assert_eq!((&event["id"], &event["text"]), (&json!("still"), &json!("here")));
    }

    /// Waits for an `error` event with this id and code.
    async fn assert_error(&mut self, id: Value, code: &str) {
        let event = self.end().await;
        assert_eq!((&event["event"], &event["id"]), (&json!("error"), &id), "{event}");
        assert_eq!(event["code"], code, "{event}");
    }

    async fn shut_write(&mut self) {
        self.write.shutdown().await.expect("open until now");
    }
}
