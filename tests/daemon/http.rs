//! HTTP as its clients use it: real connections over TCP, and the worker of the tests of the socket. Its answer depends on
//! the prompt: `hang` waits to be cancelled, `flood` streams until it is, anything else is given back word by word.

use crate::unix::{ReceivedRequest, until, work};
use bitnetd::config::{Config, Host, Http};
use bitnetd::protocol::api::ModelCard;
use bitnetd::telemetry::Telemetry;
use bitnetd::transport::http::{self, HttpContext, HttpParts, MAX_CONNECTIONS};
use bitnetd::transport::{BacklogPolicy, Inbound};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Far more than anything here takes, also under emulation.
const TIMEOUT: Duration = Duration::from_secs(120);

/// The interface in front of this channel, with the tokens `loaded`, `draining` and `close`.
pub(crate) fn context(
    inbound: &mpsc::Sender<Inbound>,
    telemetry: &Arc<Telemetry>,
    [loaded, draining, close]: [&CancellationToken; 3],
    change: impl FnOnce(&mut Http),
) -> HttpContext {
    let host = Host {
        name: "pi".into(),
        memory_bytes: 1 << 30,
        processors: 1,
        big: vec![],
        runtime_dir: PathBuf::new(),
        cache_dir: PathBuf::new(),
        state_dir: PathBuf::new(),
        credentials_dir: None,
    };
    let mut settings = Config::defaults(&host).http;
    change(&mut settings);
    HttpContext::new(HttpParts {
        settings,
        device: "pi".into(),
        model: watch::channel(Arc::new(ModelCard {
            name: "words".into(),
            architecture: "test".into(),
            parameters: 1,
            quantization: "I2_S".into(),
            bytes: 1,
            digest: "0".repeat(64),
            modified: SystemTime::UNIX_EPOCH,
            context: 512,
            template: String::new(),
        }))
        .1,
        slots: 4,
        inbound: inbound.clone(),
        telemetry: Arc::clone(telemetry),
        loaded: loaded.clone(),
        draining: draining.clone(),
        close: close.clone(),
    })
}

struct HttpServer {
    address: SocketAddr,
    received: Arc<Mutex<Vec<ReceivedRequest>>>,
    telemetry: Arc<Telemetry>,
    loaded: CancellationToken,
    draining: CancellationToken,
    close: CancellationToken,
    tasks: JoinSet<()>,
}

impl HttpServer {
    /// With the model loaded.
    fn open(change: impl FnOnce(&mut Http)) -> Self {
        let server = Self::loading(change);
        server.loaded.cancel();
        server
    }

    /// As long as the model loads.
    fn loading(change: impl FnOnce(&mut Http)) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("ours");
        let listener = TcpListener::from_std(listener).expect("within the runtime");
        let address = listener.local_addr().expect("it listens");
        let (inbound, requests) = mpsc::channel(16);
        let [loaded, draining, close] = [(); 3].map(|()| CancellationToken::new());
        let telemetry = Arc::new(Telemetry::new(0));
        let context = context(&inbound, &telemetry, [&loaded, &draining, &close], change);
        let received = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        tasks.spawn(http::run(vec![listener], BacklogPolicy::Refuse, context));
        tasks.spawn(work(requests, received.clone()));
        HttpServer { address, received, telemetry, loaded, draining, close, tasks }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("somebody listens")
    }

    /// Sends a request, and reads to the end of the connection: the status and the body.
    async fn call(&self, request: &str, headers: &str, body: &str) -> (u16, String) {
        let mut stream = self.connect().await;
        send(&mut stream, request, headers, body).await;
        let answer = read_to_end(&mut stream).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or_else(|| panic!("no status: {answer}")), body.to_owned())
    }

    async fn ask(&self, prompt: &str, keys: &str) -> (u16, String) {
        self.call("POST /v1/chat/completions", "Host: localhost\r\n", &chat(prompt, keys)).await
    }

    /// The cancel flag of the request that came as number `index`.
    async fn wait_for(&self, index: usize) -> ReceivedRequest {
        let look = || self.received.lock().expect("no panic").get(index).cloned();
        until(look).await
    }

    async fn shut(mut self) {
        self.close.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        timeout(TIMEOUT, all).await.expect("all tasks return");
    }
}

fn chat(prompt: &str, keys: &str) -> String {
    format!("{{\"model\":\"words\",\"messages\":[{{\"role\":\"user\",\"content\":\"{prompt}\"}}]{keys}}}")
}

async fn send(stream: &mut TcpStream, request: &str, headers: &str, body: &str) {
    let length = body.len();
    let bytes =
        format!("{request} HTTP/1.1\r\n{headers}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}");
    // A server that has refused the head need not read the rest.
    let _ = stream.write_all(bytes.as_bytes()).await;
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = timeout(TIMEOUT, stream.read_to_end(&mut answer)).await;
    read.expect("in time").expect("closed, not reset");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_completion_and_a_stream_are_answered() {
    let server = HttpServer::open(|_| {});
    let (status, body) = server.ask("two words", "").await;
    let answer: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((status, &answer["choices"][0]["message"]["content"]), (200, &json!("two words")), "{body}");
    let (status, body) = server.ask("two words", ",\"stream\":true").await;
    assert_eq!(status, 200);
    let chunks: Vec<&str> = body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let text: String = chunks
        .iter()
        .filter_map(|chunk| serde_json::from_str::<Value>(chunk).ok())
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect();
    assert_eq!((text.as_str(), chunks.last()), ("two words", Some(&"[DONE]")), "{body}");
    let (status, body) = server
        .call(
            "POST /api/chat",
            "Host: 127.0.0.1\r\n",
            r#"{"model":"words","messages":[{"role":"user","content":"a b"}]}"#,
        )
        .await;
    assert!(status == 200 && body.contains("\"done\":true"), "{body}");
    server.shut().await;
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_request() {
    let server = HttpServer::open(|_| {});
    for (index, (prompt, keys)) in
        [("hang", ""), ("hang", ",\"stream\":true"), ("flood", ",\"stream\":true")].into_iter().enumerate()
    {
        let mut stream = server.connect().await;
        send(&mut stream, "POST /v1/chat/completions", "Host: localhost\r\n", &chat(prompt, keys)).await;
        let request = server.wait_for(index).await;
        assert!(!request.cancel.is_raised());
        drop(stream);
        until(|| request.cancel.is_raised().then_some(())).await;
    }
    assert_eq!(server.ask("still here", "").await.0, 200, "its slots are free again");
    server.shut().await;
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_while_more_of_it_waits_unread_or_it_waits_for_its_turn() {
    let server = HttpServer::open(|_| {});
    let body = chat("hang", "");
    let call = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut running = Vec::new();
    // One address may have two calls on their way to the model; the others wait.
    for _ in 0..2 {
        let mut stream = server.connect().await;
        stream.write_all(call.repeat(2).as_bytes()).await.expect("read");
        running.push(stream);
    }
    let requests = [server.wait_for(0).await, server.wait_for(1).await];
    let mut waiting = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut stream = server.connect().await;
        let _ = stream.write_all(call.as_bytes()).await; // it may be refused already
        waiting.push(stream);
    }
    drop(waiting);
    until_ok(&server).await;
    drop(running);
    for request in requests {
        until(|| request.cancel.is_raised().then_some(())).await;
    }
    server.shut().await;
}

#[tokio::test]
async fn slow_bodies_of_one_client_do_not_keep_another_out() {
    let server = HttpServer::open(|_| {});
    let mut slow = Vec::new();
    for _ in 0..8 {
        let mut stream = server.connect().await;
        let head = "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1048576\r\n\r\n{";
        stream.write_all(head.as_bytes()).await.expect("read");
        slow.push(stream);
    }
    sleep(Duration::from_millis(100)).await;
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.2:0".parse().expect("an address")).expect("of this device");
    let mut other = socket.connect(server.address).await.expect("somebody listens");
    send(&mut other, "POST /v1/chat/completions", "Host: localhost\r\n", &chat("a", "")).await;
    let answer =
        timeout(Duration::from_secs(8), read_to_end(&mut other)).await.expect("not after the others");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    server.shut().await;
}

#[tokio::test]
async fn slow_bodies_do_not_keep_out_other_calls_of_the_same_client() {
    let server = HttpServer::open(|_| {});
    let mut slow = Vec::new();
    let length = "Content-Length: 1048576\r\n\r\n{".to_owned();
    // More than is read before memory is set aside for it.
    let part = format!("Transfer-Encoding: chunked\r\n\r\n8000\r\n{{{}\r\n", " ".repeat(0x7fff));
    for begun in [[length.clone(), length.clone(), part.clone()], [length.clone(), length, part]].concat() {
        let mut stream = server.connect().await;
        let head = format!("POST /api/chat HTTP/1.1\r\nHost: localhost\r\n{begun}");
        stream.write_all(head.as_bytes()).await.expect("read");
        slow.push(stream);
    }
    sleep(Duration::from_millis(100)).await;
    let small = timeout(Duration::from_secs(1), server.ask("small", "")).await.expect("at once");
    assert_eq!(small.0, 200, "{}", small.1);
    let spaces = format!(",\"user\":\"{}\"", "u".repeat(100 << 10));
    let large = timeout(Duration::from_secs(15), server.ask("large", &spaces)).await;
    assert_eq!(large.expect("long before the slow ones end").0, 200);
    let answer = read_to_end(&mut slow[2]).await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("slowly"), "{answer}");
    server.shut().await;
}

#[tokio::test]
async fn a_client_that_asks_before_it_sends_is_refused_before_it_sends() {
    let server = HttpServer::open(|settings| settings.body_bytes = 64 << 10);
    let head = |length: usize| {
        format!(
            "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nExpect: 100-continue\r\n\
             Content-Length: {length}\r\n\r\n"
        )
    };
    let mut stream = server.connect().await;
    stream.write_all(head((64 << 10) + 1).as_bytes()).await.expect("read");
    let answer = read_to_end(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let mut stream = server.connect().await;
    let body = chat("a", ",\"stream\":false");
    stream.write_all(head(body.len()).as_bytes()).await.expect("read");
    let mut asked = [0; 25];
    stream.read_exact(&mut asked).await.expect("an answer");
    assert_eq!(asked, *b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(body.as_bytes()).await.expect("read");
    let answer = read_to_end(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    server.shut().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cancelled_and_others_are_served() {
    let server = HttpServer::open(|_| {});
    let mut stream = server.connect().await;
    send(&mut stream, "POST /v1/chat/completions", "Host: localhost\r\n", &chat("flood", ",\"stream\":true"))
        .await;
    let request = server.wait_for(0).await;
    until(|| request.cancel.is_raised().then_some(())).await;
    assert_eq!(server.ask("others", "").await.0, 200);
    server.shut().await;
}

#[tokio::test]
async fn more_calls_than_slots_wait_and_all_are_answered() {
    let server = Arc::new(HttpServer::open(|_| {}));
    let mut calls = JoinSet::new();
    for number in 0..32 {
        let server = Arc::clone(&server);
        calls.spawn(async move { server.ask(&format!("number {number}"), "").await });
    }
    let statuses: Vec<u16> = calls.join_all().await.into_iter().map(|(status, _)| status).collect();
    assert_eq!(statuses, vec![200; 32]);
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused_and_its_sender_reads_why() {
    let server = HttpServer::open(|settings| settings.body_bytes = 64 << 10);
    let (status, body) = server.ask(&"x".repeat(65 << 10), "").await;
    assert!(status == 413 && body.contains("65536"), "{status} {body}");
    let mut stream = server.connect().await;
    let head = "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("read");
    let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
    for _ in 0..20 {
        let _ = stream.write_all(chunk.as_bytes()).await; // it may be refused meanwhile
    }
    let _ = stream.write_all(b"0\r\n\r\n").await;
    let answer = read_to_end(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let many = format!(",\"x\":[{}]", vec!["1"; 20_000].join(","));
    let (status, body) = server.ask("a", &many).await;
    assert!(status == 413 && body.contains("values"), "{status} {body}");
    assert_eq!(server.ask("still here", "").await.0, 200);
    server.shut().await;
}

#[tokio::test]
async fn what_is_no_http_is_refused_without_harm() {
    let server = HttpServer::open(|_| {});
    for bytes in [
        "{\"prompt\":\"a\"}\n",
        "GET\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
    ] {
        let mut stream = server.connect().await;
        stream.write_all(bytes.as_bytes()).await.expect("read");
        stream.shutdown().await.expect("open");
        let answer = read_to_end(&mut stream).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{bytes:?}: {answer}");
    }
    let long = format!("X: {}\r\nHost: localhost\r\n", "y".repeat(20_000));
    let (status, _) = server.call("GET /health", &long, "").await;
    assert_eq!(status, 431);
    assert_eq!(server.call("GET /health", "Host: localhost\r\n", "").await.0, 200);
    server.shut().await;
}

#[tokio::test]
async fn names_and_pages_of_others_are_refused() {
    let server = HttpServer::open(|settings| settings.origins = vec!["https://ui.example".into()]);
    for (headers, expected) in [
        ("Host: localhost\r\n", 200),
        ("Host: pi.local:8080\r\n", 200),
        ("Host: evil.example\r\n", 403),
        ("", 403),
        ("Host: pi\r\nOrigin: https://evil.example\r\n", 403),
        ("Host: pi\r\nOrigin: https://ui.example\r\n", 200),
        ("Host: pi\r\nSec-Fetch-Site: cross-site\r\n", 403),
    ] {
        let (status, body) = server.call("GET /v1/models", headers, "").await;
        assert_eq!(status, expected, "{headers}: {body}");
    }
    let preflight = "Host: pi\r\nOrigin: https://ui.example\r\nAccess-Control-Request-Method: POST\r\n";
    assert_eq!(server.call("OPTIONS /v1/chat/completions", preflight, "").await.0, 204);
    assert_eq!(server.telemetry.http.counts().denied, 4);
    server.shut().await;
}

#[tokio::test]
async fn a_token_is_asked_for_and_may_change() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::TempDir::with_prefix("bitnetd-").expect("a temporary folder");
    let path = folder.path().join("tokens");
    let write = |text: &str, mode: u32| {
        std::fs::write(&path, text).expect("a temporary folder");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("ours");
    };
    write("# tablet\nfirst\n", 0o600);
    let server = HttpServer::open(|settings| settings.token_file = Some(path.clone()));
    let with = async |token: &str| {
        let headers = format!("Host: any.example\r\nAuthorization: Bearer {token}\r\n");
        server.call("GET /v1/models", &headers, "").await.0
    };
    assert_eq!((with("first").await, with("second").await), (200, 401));
    assert_eq!(server.call("GET /v1/models", "Host: pi\r\n", "").await.0, 401);
    assert_eq!(server.call("GET /health", "Host: pi\r\n", "").await.0, 200);
    let mut open = server.connect().await;
    let call = "GET /v1/models HTTP/1.1\r\nHost: pi\r\nAuthorization: Bearer first\r\n";
    open.write_all(format!("{call}\r\n").as_bytes()).await.expect("read");
    let mut status = [0; 12];
    open.read_exact(&mut status).await.expect("an answer");
    assert_eq!(&status, b"HTTP/1.1 200");
    write("second\n", 0o600);
    open.write_all(format!("{call}Connection: close\r\n\r\n").as_bytes()).await.expect("read");
    let rest = read_to_end(&mut open).await;
    assert!(rest.contains("HTTP/1.1 401 "), "a removed token is worth nothing on an open connection: {rest}");
    assert_eq!((with("first").await, with("second").await), (401, 200));
    write("second\n", 0o644);
    assert_eq!(with("second").await, 503, "others can read it");
    write("\n", 0o600);
    assert_eq!(with("").await, 503, "no token is no permission");
    assert_eq!(server.call("GET /health", "Host: pi\r\n", "").await.0, 200);
    server.shut().await;
}

#[tokio::test]
async fn while_the_model_loads_the_state_is_shown_and_calls_wait() {
    let server = Arc::new(HttpServer::loading(|_| {}));
    let health = async || server.call("GET /health", "Host: pi\r\n", "").await;
    let (status, body) = health().await;
    assert!(status == 503 && body.contains("\"state\":\"loading\""), "{status} {body}");
    assert_eq!(server.call("GET /v1/models", "Host: pi\r\n", "").await.0, 200);
    let early = Arc::clone(&server);
    let mut waiting = JoinSet::new();
    waiting.spawn(async move { early.ask("patience", "").await });
    sleep(Duration::from_millis(100)).await;
    assert!(waiting.try_join_next().is_none() && server.received.lock().expect("no panic").is_empty());
    server.loaded.cancel();
    let (status, body) = timeout(TIMEOUT, waiting.join_all()).await.expect("in time").remove(0);
    assert!(status == 200 && body.contains("patience"), "{status} {body}");
    let (status, body) = health().await;
    assert!(status == 200 && body.contains("\"state\":\"ready\""), "{status} {body}");
}

#[tokio::test]
async fn a_daemon_that_stops_answers_connections_that_exist_with_the_reason() {
    let server = HttpServer::open(|_| {});
    let mut stream = server.connect().await;
    assert_eq!(server.call("GET /health", "Host: pi\r\n", "").await.0, 200, "both are accepted now");
    server.draining.cancel();
    let chat = r#"{"model":"words","messages":[{"role":"user","content":"a"}]}"#;
    send(&mut stream, "POST /api/chat", "Host: pi\r\n", chat).await;
    let answer = read_to_end(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("stopping"), "{answer}");
    let (status, body) = server.call("GET /health", "Host: pi\r\n", "").await;
    assert!(status == 503 && body.contains("\"state\":\"draining\""), "{status} {body}");
    server.shut().await;
}

#[tokio::test]
async fn idle_connections_make_room_and_one_address_leaves_some() {
    let server = HttpServer::open(|_| {});
    let mut open = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        open.push(server.connect().await);
        let call = "GET /v1/models HTTP/1.1\r\nHost: pi\r\n\r\n";
        let last = open.last_mut().expect("there is one");
        last.write_all(call.as_bytes()).await.expect("read");
        let mut status = [0; 12];
        last.read_exact(&mut status).await.expect("an answer");
        assert_eq!(&status, b"HTTP/1.1 200", "an idle connection makes room");
    }
    open.clear();
    for _ in 0..MAX_CONNECTIONS {
        open.push(server.connect().await);
    }
    // One address may have three quarters of them.
    let last = open.last_mut().expect("there are some");
    let answer = read_to_end(last).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let body = answer.split_once("\r\n\r\n").expect("a body").1;
    assert!(answer.contains(&format!("Content-Length: {}\r\n", body.len())), "{answer}");
    drop(open);
    until_ok(&server).await;
    server.shut().await;
}

/// Calls until a connection is free. Until then a call is refused, or reset where many others were refused just before.
async fn until_ok(server: &HttpServer) {
    let called = async {
        loop {
            let (mut stream, mut answer) = (server.connect().await, Vec::new());
            send(&mut stream, "GET /health", "Host: pi\r\n", "").await;
            let read = stream.read_to_end(&mut answer).await;
            if read.is_ok() && answer.starts_with(b"HTTP/1.1 200 ") {
                return;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(TIMEOUT, called).await.expect("the others are gone");
}

#[tokio::test]
async fn the_report_is_a_page_or_data_and_its_query_is_checked() {
    let server = HttpServer::open(|_| {});
    let report = async |query: &str| server.call(&format!("GET /report{query}"), "Host: pi\r\n", "").await;
    let (status, body) = report("").await;
    assert!(status == 503 && body.contains("history.enabled"), "{status} {body}");
    server.telemetry.begin_history(Default::default());
    server.telemetry.record_history(std::time::Instant::now(), SystemTime::now());
    let (status, page) = report("").await;
    assert!(
        status == 200 && page.starts_with("<!doctype html>") && page.contains("words"),
        "{status} {page}"
    );
    let (status, body) = report("?hours=720&format=json&price=0.3").await;
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((status, &body["summary"]["hours"]), (200, &json!(720)));
    assert_eq!(body["columns"].as_array().map(Vec::len), body["steps"][0].as_array().map(Vec::len));
    for (query, key) in [("?hours=0", "hours"), ("?format=%3Cb%3E", "format"), ("?x=1", "a key is not known")]
    {
        let (status, body) = report(query).await;
        assert!(status == 400 && body.starts_with(key), "{status} {body}");
    }
    assert_eq!(server.call("POST /report", "Host: pi\r\n", "").await.0, 405);
    assert_eq!(server.call("GET /report", "Host: evil.example\r\n", "").await.0, 403);
    server.shut().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_its_report_delays_no_other_for_ever() {
    let server = HttpServer::open(|_| {});
    server.telemetry.begin_history(Default::default());
    let mut idle = server.connect().await;
    send(&mut idle, "GET /report?format=json", "Host: pi\r\n", "").await;
    drop(idle);
    assert_eq!(server.call("GET /report", "Host: pi\r\n", "").await.0, 200);
    server.shut().await;
}
