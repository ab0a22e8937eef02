//! The Unix socket as its users meet it: a real socket, real clients, and a worker that stands in
//! for the engine. What it answers depends on the prompt; see [`answer`].

use bitnetd::config::Socket;
use bitnetd::protocol::json::MAX_REQUEST;
use bitnetd::protocol::{Done, Event, FinishReason, Input, Timings, Usage};
use bitnetd::transport::unix::{self, BindError, Place};
use bitnetd::transport::{Cancel, Inbound};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{
    AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines, ReadHalf, WriteHalf,
};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Far more than anything here takes, also under emulation.
const PATIENCE: Duration = Duration::from_secs(30);

/// A folder of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("bitnetd-unix-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("a new name");
        Folder(path)
    }

    fn socket(&self) -> Socket {
        Socket { path: self.0.join("s"), mode: 0o660 }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A running socket and its worker.
struct Door {
    path: PathBuf,
    /// What the worker was given, oldest first.
    seen: Arc<Mutex<Vec<Seen>>>,
    draining: CancellationToken,
    close: CancellationToken,
    tasks: JoinSet<()>,
    worker: tokio::task::AbortHandle,
    _place: Place,
    _folder: Folder,
}

#[derive(Clone)]
struct Seen {
    id: String,
    client: String,
    cancel: Cancel,
}

impl Door {
    fn open() -> Self {
        let folder = Folder::new();
        let (listener, place) = unix::bind(&folder.socket()).expect("a free path");
        let listener = unix::adopt(listener).expect("inside the runtime");
        let (inbound, requests) = mpsc::channel(16);
        let (draining, close) = (CancellationToken::new(), CancellationToken::new());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        tasks.spawn(unix::run(listener, inbound, draining.clone(), close.clone()));
        let worker = tasks.spawn(work(requests, seen.clone()));
        let path = folder.socket().path;
        Door { path, seen, draining, close, tasks, worker, _place: place, _folder: folder }
    }

    async fn client(&self) -> Client {
        Client::new(UnixStream::connect(&self.path).await.expect("somebody listens"))
    }

    fn seen(&self, index: usize) -> Option<Seen> {
        self.seen.lock().expect("no panic").get(index).cloned()
    }

    /// The request that came as number `index`.
    async fn wait_for(&self, index: usize) -> Seen {
        until(|| self.seen(index)).await
    }

    /// Closes the socket and waits for `run` and the worker to return.
    async fn shut(mut self) {
        self.close.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        timeout(PATIENCE, all).await.expect("run returns");
    }
}

async fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            match look() {
                Some(found) => return found,
                None => sleep(Duration::from_millis(2)).await,
            }
        }
    };
    timeout(PATIENCE, found).await.expect("in time")
}

async fn work(mut requests: mpsc::Receiver<Inbound>, seen: Arc<Mutex<Vec<Seen>>>) {
    let mut running = JoinSet::new();
    while let Some(inbound) = requests.recv().await {
        let Inbound { id, client, cancel, .. } = &inbound;
        let request = Seen { id: id.clone(), client: client.clone(), cancel: cancel.clone() };
        seen.lock().expect("no panic").push(request);
        running.spawn(answer(inbound));
    }
    running.join_all().await;
}

/// `hang` waits to be cancelled, `deaf` does not even hear that, `lost` drops the request, `flood`
/// streams until it is told to stop; anything else is streamed back word by word.
async fn answer(inbound: Inbound) {
    let Input::Prompt(prompt) = &inbound.request.input else { return };
    let mut reason = FinishReason::Stop;
    match prompt.as_str() {
        "lost" => return,
        "deaf" => sleep(PATIENCE).await,
        "hang" => {
            reason = until(|| inbound.cancel.is_raised().then_some(FinishReason::Cancelled)).await
        }
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

async fn flood(inbound: &Inbound) -> FinishReason {
    while !inbound.cancel.is_raised() {
        if inbound.reply.token("x".repeat(1000)).is_err() {
            inbound.cancel.raise();
        }
        tokio::task::yield_now().await;
    }
    FinishReason::Cancelled
}

fn done(id: &str, text: &str, finish_reason: FinishReason) -> Event {
    Event::Done(Box::new(Done {
        id: id.to_owned(),
        text: text.to_owned(),
        finish_reason,
        usage: Usage::default(),
        timings: Timings::default(),
        energy: None,
        cached: false,
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
        let sent = timeout(PATIENCE, self.write.write_all(bytes.as_ref())).await;
        sent.expect("the daemon reads").expect("the connection is open");
    }

    async fn ask(&mut self, id: &str, prompt: &str) {
        self.send(format!("{}\n", json!({"id": id, "prompt": prompt, "stream": true}))).await;
    }

    /// The next event; `None` at the end of the stream.
    async fn event(&mut self) -> Option<Value> {
        let line = timeout(PATIENCE, self.lines.next_line()).await.expect("the daemon answers");
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

    /// Asks something and hears the answer: the connection works.
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

#[tokio::test]
async fn a_request_line_gives_tokens_and_one_done() {
    let door = Door::open();
    let mut client = door.client().await;
    client.ask("a", "hello there").await;
    let token = client.event().await.expect("a token");
    assert_eq!(token, json!({"event": "token", "id": "a", "text": "hello "}));
    assert_eq!(client.event().await.expect("a token")["text"], "there");
    let done = client.event().await.expect("the end");
    assert_eq!((&done["event"], &done["text"]), (&json!("done"), &json!("hello there")));
    let uid = fs::metadata(&door.path).expect("it is there").uid();
    assert_eq!(door.seen(0).expect("one request").client, format!("unix:uid={uid}"));
    door.shut().await;
}

#[tokio::test]
async fn several_requests_in_flight_are_told_apart_by_id() {
    let door = Door::open();
    let mut client = door.client().await;
    client.ask("slow", "hang").await;
    for id in ["a", "b", "c"] {
        client.ask(id, "one two three").await;
    }
    let mut texts = std::collections::HashMap::<String, String>::new();
    for _ in 0..12 {
        let event = client.event().await.expect("nine tokens, three ends");
        let text = texts.entry(event["id"].as_str().expect("an id").into()).or_default();
        match event["event"].as_str() {
            Some("token") => text.push_str(event["text"].as_str().expect("text")),
            _ => assert_eq!(event["text"], text.as_str()),
        }
    }
    assert_eq!(texts.len(), 3);
    client.send("{\"cancel\":\"slow\"}\n").await;
    assert_eq!(client.end().await["finish_reason"], "cancelled");
}

#[tokio::test]
async fn ids_are_made_where_none_came_and_none_is_made_twice() {
    let door = Door::open();
    let mut client = door.client().await;
    // The first id that would be made, taken by the client beforehand.
    client.ask("u1-1", "hang").await;
    client.send("{\"prompt\":\"x\"}\n{\"prompt\":\"y\"}\n").await;
    let (first, second) = (client.end().await, client.end().await);
    assert_ne!(first["id"], second["id"]);
    assert_ne!(first["id"], "u1-1");
    assert!(first["id"].as_str().is_some_and(|id| id.starts_with("u1-")), "{first}");
}

#[tokio::test]
async fn an_id_that_is_in_flight_is_refused_and_free_after_its_end() {
    let door = Door::open();
    let mut client = door.client().await;
    client.ask("a", "hang").await;
    client.ask("a", "again").await;
    client.assert_error(json!("a"), "invalid_request").await;
    client.send("{\"cancel\":\"a\"}\n").await;
    assert_eq!(client.end().await["finish_reason"], "cancelled");
    client.ask("a", "again").await;
    assert_eq!(client.end().await["text"], "again");
    let mut other = door.client().await;
    client.ask("b", "hang").await;
    other.ask("b", "another connection").await;
    assert_eq!(other.end().await["text"], "another connection");
}

#[tokio::test]
async fn what_is_no_request_gets_an_error_and_the_connection_stays_open() {
    let door = Door::open();
    let mut client = door.client().await;
    let bad: [&[u8]; 7] =
        [b"hello", b"{", b"[]", b"\xff\xfe{}", b"\0", b"{\"prompt\":\"a\0b\"}", b"{\"prompt\":1}"];
    for line in bad {
        client.send(line).await;
        client.send("\n").await;
        client.assert_error(Value::Null, "invalid_request").await;
    }
    client.send("{\"id\":\"k\",\"prompt\":\"x\",\"temprature\":1}\n").await;
    client.assert_error(json!("k"), "invalid_request").await;
    client.send("\n\r\n\n").await;
    client.assert_serves().await;
}

#[tokio::test]
async fn cancelling_what_is_not_there_is_an_error_with_its_id() {
    let door = Door::open();
    let mut client = door.client().await;
    let mut other = door.client().await;
    other.ask("a", "hang").await;
    door.wait_for(0).await;
    client.send("{\"cancel\":\"a\"}\n").await;
    client.assert_error(json!("a"), "invalid_request").await;
    assert!(!door.seen(0).expect("seen").cancel.is_raised());
}

#[tokio::test]
async fn a_request_may_come_byte_by_byte() {
    let door = Door::open();
    let mut client = door.client().await;
    for byte in b"{\"id\":\"a\",\"prompt\":\"gr\xc3\xbc\xc3\x9f dich\"}\r\n" {
        client.send([*byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(client.end().await["text"], "grüß dich");
}

#[tokio::test]
async fn a_line_of_one_megabyte_is_too_large_and_the_next_is_served() {
    let door = Door::open();
    let mut client = door.client().await;
    client.send(vec![b'x'; 1 << 20]).await;
    client.assert_error(Value::Null, "too_large").await;
    client.send("x\n").await;
    client.assert_serves().await;
    let longest = format!("{{\"id\":\"a\",\"prompt\":\"{}\"}}\n", "y".repeat(MAX_REQUEST - 22));
    assert_eq!(longest.len(), MAX_REQUEST + 1);
    client.send(longest).await;
    assert_eq!(client.end().await["event"], "done");
}

#[tokio::test]
async fn closing_the_connection_cancels_its_requests_and_no_others() {
    let door = Door::open();
    let (mut leaver, mut stayer) = (door.client().await, door.client().await);
    leaver.ask("a", "hang").await;
    leaver.ask("b", "hang").await;
    door.wait_for(1).await;
    stayer.ask("c", "hang").await;
    let stays = door.wait_for(2).await;
    drop(leaver);
    let (a, b) = (door.wait_for(0).await, door.wait_for(1).await);
    until(|| (a.cancel.is_raised() && b.cancel.is_raised()).then_some(())).await;
    assert_eq!((stays.id.as_str(), stays.cancel.is_raised()), ("c", false));
    stayer.assert_serves().await;
}

#[tokio::test]
async fn a_client_that_ends_its_sending_still_gets_its_answers() {
    let door = Door::open();
    let mut client = door.client().await;
    // The last line has no end of its own.
    client
        .send("{\"id\":\"a\",\"prompt\":\"hang\"}\n{\"id\":\"b\",\"prompt\":\"last words\"}")
        .await;
    client.shut_write().await;
    assert_eq!(client.end().await["text"], "last words");
    // Nothing was cancelled by the end of the stream, nor while the daemon could have noticed it.
    sleep(Duration::from_millis(50)).await;
    let hanging = door.wait_for(0).await;
    assert!(!hanging.cancel.is_raised());
    hanging.cancel.raise();
    assert_eq!(client.end().await["id"], "a");
    assert_eq!(client.event().await, None, "the connection ends with the last answer");
}

#[tokio::test]
async fn a_client_that_vanishes_after_ending_its_sending_is_noticed() {
    let door = Door::open();
    let mut client = door.client().await;
    client.ask("a", "hang").await;
    client.shut_write().await;
    let hanging = door.wait_for(0).await;
    sleep(Duration::from_millis(50)).await;
    assert!(!hanging.cancel.is_raised());
    drop(client);
    until(|| hanging.cancel.is_raised().then_some(())).await;
}

#[tokio::test]
async fn a_killed_client_is_noticed_although_nothing_is_written_to_it() {
    let door = Door::open();
    let mut client = door.client().await;
    // More than may be in flight, so that its last lines are never read and its end is not either.
    for number in 0..100 {
        client.ask(&number.to_string(), "hang").await;
    }
    let last = door.wait_for(63).await;
    assert!(door.seen(64).is_none(), "the rest waits unread");
    drop(client);
    until(|| last.cancel.is_raised().then_some(())).await;
}

#[tokio::test]
async fn more_requests_than_may_be_in_flight_wait_and_are_all_answered() {
    let door = Door::open();
    let mut client = door.client().await;
    let (count, mut ended) = (1000, 0);
    let lines: String = (0..count).map(|n| format!("{{\"prompt\":\"number {n}\"}}\n")).collect();
    let Client { lines: mut answers, mut write } = client;
    let send = async { write.write_all(lines.as_bytes()).await.expect("open") };
    let read = async {
        while ended < count {
            let line = answers.next_line().await.expect("sound").expect("not the end");
            ended += usize::from(line.contains("\"done\""));
        }
    };
    timeout(PATIENCE, async { tokio::join!(send, read) }).await.expect("all answered");
    client = Client { lines: answers, write };
    client.assert_serves().await;
}

#[tokio::test]
async fn a_slow_reader_loses_its_request_and_disturbs_nobody() {
    let door = Door::open();
    let mut slow = door.client().await;
    slow.ask("flood", "flood").await;
    let flood = door.wait_for(0).await;
    let mut other = door.client().await;
    for _ in 0..20 {
        other.assert_serves().await;
    }
    until(|| flood.cancel.is_raised().then_some(())).await;
    other.assert_serves().await;
    // Once it reads again it hears how its request ended, and can ask on.
    assert_eq!(slow.end().await["finish_reason"], "cancelled");
    slow.assert_serves().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_reads_again_is_dropped() {
    let door = Door::open();
    let mut slow = door.client().await;
    slow.ask("flood", "flood").await;
    slow.ask("hang", "hang").await;
    // The clock stands still but for the daemon's own waits.
    let hang = door.wait_for(1).await;
    until(|| hang.cancel.is_raised().then_some(())).await;
}

#[tokio::test]
async fn a_request_that_the_daemon_loses_says_so() {
    let door = Door::open();
    let mut client = door.client().await;
    client.ask("a", "lost").await;
    client.assert_error(json!("a"), "internal").await;
}

#[tokio::test]
async fn a_daemon_without_a_worker_says_shutting_down() {
    let door = Door::open();
    let mut client = door.client().await;
    door.worker.abort();
    client.ask("a", "x").await;
    client.assert_error(json!("a"), "shutting_down").await;
}

#[tokio::test]
async fn draining_refuses_new_requests_and_lets_running_ones_end() {
    let door = Door::open();
    let mut client = door.client().await;
    client.ask("old", "hang").await;
    let old = door.wait_for(0).await;
    door.draining.cancel();
    client.ask("new", "x").await;
    client.assert_error(json!("new"), "shutting_down").await;
    assert!(!old.cancel.is_raised());
    client.send("{\"cancel\":\"old\"}\n").await;
    assert_eq!(client.end().await["id"], "old");
    let mut late = door.client().await;
    late.ask("late", "x").await;
    late.assert_error(json!("late"), "shutting_down").await;
}

#[tokio::test]
async fn closing_ends_every_request_writes_its_end_and_returns() {
    let door = Door::open();
    let (mut client, mut idle) = (door.client().await, door.client().await);
    client.ask("a", "hang").await;
    client.ask("b", "deaf").await;
    door.wait_for(1).await;
    idle.assert_serves().await;
    door.close.cancel();
    let cancelled = client.end().await;
    assert_eq!((&cancelled["id"], &cancelled["finish_reason"]), (&json!("a"), &json!("cancelled")));
    client.assert_error(json!("b"), "shutting_down").await;
    assert_eq!(client.event().await, None);
    assert_eq!(idle.event().await, None);
    door.worker.abort();
    door.shut().await;
}

#[tokio::test(start_paused = true)]
async fn closing_does_not_wait_for_a_client_that_does_not_read() {
    let door = Door::open();
    let mut slow = door.client().await;
    slow.ask("a", "flood").await;
    let flood = door.wait_for(0).await;
    until(|| flood.cancel.is_raised().then_some(())).await;
    let before = tokio::time::Instant::now();
    door.shut().await;
    assert!(before.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_thousand_connections_are_served_or_told_to_come_back() {
    let door = Door::open();
    let mut clients = Vec::new();
    for _ in 0..1000 {
        clients.push(door.client().await);
    }
    let (mut served, mut refused) = (0, 0);
    for mut client in clients.drain(..).rev() {
        let _ = client.write.write_all(b"{\"prompt\":\"x\"}\n").await;
        let event = client.end().await;
        match event["event"].as_str() {
            Some("done") => served += 1,
            _ => {
                assert_eq!((&event["code"], &event["id"]), (&json!("queue_full"), &Value::Null));
                assert!(event["retry_after_ms"].is_u64());
                refused += 1;
            }
        }
    }
    assert!(served >= unix::MAX_CONNECTIONS && served + refused == 1000, "{served} {refused}");
    door.client().await.assert_serves().await;
}

#[tokio::test]
async fn connections_that_come_and_go_leave_nothing_behind() {
    let door = Door::open();
    for number in 0..2 * unix::MAX_CONNECTIONS {
        let mut client = door.client().await;
        client.send("{\"prompt\":\"hang\"}\n{\"pro").await;
        door.wait_for(number).await;
    }
    door.client().await.assert_serves().await;
    let last = door.wait_for(2 * unix::MAX_CONNECTIONS - 1).await;
    until(|| last.cancel.is_raised().then_some(())).await;
    door.shut().await;
}

#[tokio::test]
async fn a_client_that_speaks_http_gets_an_http_answer() {
    let door = Door::open();
    let mut stream = UnixStream::connect(&door.path).await.expect("somebody listens");
    let request =
        format!("POST /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n{}", "y".repeat(100_000));
    stream.write_all(request.as_bytes()).await.expect("read to its end");
    let mut answer = String::new();
    let read = timeout(PATIENCE, stream.read_to_string(&mut answer)).await;
    read.expect("in time").expect("closed, not reset");
    assert!(answer.starts_with("HTTP/1.1 501 "), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{answer}");
    assert_eq!(body.matches('\n').count(), 1, "{answer}");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").permissions().mode() & 0o777
}

#[test]
fn the_socket_has_the_configured_mode_and_is_gone_at_the_end() {
    let folder = Folder::new();
    for bits in [0o660, 0o600, 0o666] {
        let settings = Socket { mode: bits, ..folder.socket() };
        let (listener, place) = unix::bind(&settings).expect("a free path");
        assert_eq!(mode(&settings.path), bits);
        drop((listener, place));
        assert_eq!(fs::read_dir(&folder.0).expect("it is there").count(), 0);
    }
}

#[test]
fn a_stale_socket_file_is_replaced() {
    let folder = Folder::new();
    let settings = folder.socket();
    drop(std::os::unix::net::UnixListener::bind(&settings.path).expect("a free path"));
    // Left behind by a daemon that was killed, as its lock file is.
    fs::write(folder.0.join("s.lock"), "").expect("a free path");
    let bound = unix::bind(&settings).expect("stale");
    std::os::unix::net::UnixStream::connect(&settings.path).expect("ours now");
    drop(bound);
}

#[test]
fn a_live_socket_is_refused_and_left_alone() {
    let folder = Folder::new();
    let settings = folder.socket();
    let foreign = std::os::unix::net::UnixListener::bind(&settings.path).expect("a free path");
    assert!(matches!(unix::bind(&settings), Err(BindError::Taken(_))));
    drop(foreign);
    let ours = unix::bind(&settings).expect("stale by now");
    let error = unix::bind(&settings).expect_err("taken").to_string();
    assert!(error.contains(settings.path.to_str().expect("UTF-8")), "{error}");
    assert!(error.contains("listening"), "{error}");
    std::os::unix::net::UnixStream::connect(&settings.path).expect("still there");
    drop(ours);
}

#[test]
fn of_daemons_that_start_at_once_one_wins() {
    let folder = Folder::new();
    let settings = folder.socket();
    for _ in 0..50 {
        drop(std::os::unix::net::UnixListener::bind(&settings.path).expect("a free path"));
        let start = std::sync::Barrier::new(4);
        let bind = || {
            start.wait();
            let bound = unix::bind(&settings);
            start.wait();
            bound.is_ok()
        };
        let winners: usize = std::thread::scope(|scope| {
            let all = [(); 4].map(|()| scope.spawn(bind));
            all.into_iter().map(|one| usize::from(one.join().expect("no panic"))).sum()
        });
        assert_eq!(winners, 1);
    }
}

#[test]
fn what_is_no_socket_is_never_removed() {
    let folder = Folder::new();
    let settings = folder.socket();
    fs::write(&settings.path, "precious").expect("a free path");
    assert!(matches!(unix::bind(&settings), Err(BindError::NotASocket(_))));
    assert_eq!(fs::read_to_string(&settings.path).expect("still there"), "precious");
    fs::remove_file(&settings.path).expect("ours");
    std::os::unix::fs::symlink("elsewhere", &settings.path).expect("a free path");
    assert!(matches!(unix::bind(&settings), Err(BindError::NotASocket(_))));
}

#[test]
fn a_successors_socket_is_not_removed() {
    let folder = Folder::new();
    let settings = folder.socket();
    let bound = unix::bind(&settings).expect("a free path");
    fs::remove_file(&settings.path).expect("removed by somebody");
    let successor = std::os::unix::net::UnixListener::bind(&settings.path).expect("a free path");
    drop(bound);
    assert!(settings.path.exists());
    drop(successor);
}

#[test]
fn a_missing_folder_is_named() {
    let settings = Socket { path: "/nonexistent/bitnetd/s".into(), mode: 0o660 };
    let error = unix::bind(&settings).expect_err("no folder").to_string();
    assert!(error.starts_with("/nonexistent/bitnetd: no such directory"), "{error}");
}
