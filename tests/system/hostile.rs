//! Malformed and malicious brokers: the daemon keeps running, answers on its socket, stays within its memory budget, and
//! reconnects after a second at the earliest. `tests/fuzz` covers more, with the targets `broker` and `prompts`.

use crate::daemon::{Daemon, is_emulated};
use crate::{Folder, linked};
use serde_json::json;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// A good CONNACK: no session, no limits.
const WELCOME: [u8; 5] = [0x20, 3, 0, 0, 0];
/// More than a daemon may grow by, over what it has with a good broker, in KiB.
const GROWTH: u64 = 24 << 10;

/// What a broker sends after the CONNECT.
struct Script {
    what: &'static str,
    first: Vec<u8>,
    /// Sent again and again, as long as somebody reads.
    flood: Vec<u8>,
}

impl Script {
    fn once(what: &'static str, first: &[u8]) -> Self {
        Script { what, first: first.to_vec(), flood: vec![] }
    }

    fn flood(what: &'static str, flood: Vec<u8>) -> Self {
        Script { what, first: WELCOME.to_vec(), flood }
    }
}

fn after_welcome(bytes: &[u8]) -> Vec<u8> {
    [&WELCOME, bytes].concat()
}

/// A PUBLISH on a topic of the daemon's, at QoS 1 where it has a packet id.
fn publish(topic: &str, packet: Option<u16>, properties: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut body = u16::try_from(topic.len()).expect("short").to_be_bytes().to_vec();
    body.extend(topic.as_bytes());
    body.extend(packet.iter().flat_map(|id| id.to_be_bytes()));
    body.push(u8::try_from(properties.len()).expect("short"));
    body.extend(properties);
    body.extend(payload);
    let mut bytes = vec![if packet.is_some() { 0x32 } else { 0x30 }];
    let mut left = body.len();
    while left >= 128 {
        bytes.push(left as u8 | 128);
        left >>= 7;
    }
    bytes.push(left as u8);
    bytes.extend(body);
    bytes
}

fn scripts() -> Vec<Script> {
    let prompt = "bitnetd/cellar/prompt";
    let alias = |number: u16| [&[0x23][..], &number.to_be_bytes()].concat();
    let aliases = (1..=40).flat_map(|n| publish(prompt, None, &alias(n), &[b'x'; 1 << 16]));
    let ids = (1..=u16::MAX).flat_map(|id| publish("x", Some(id), &[], b""));
    vec![
        Script::once("not MQTT", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        Script::once("a CONNACK that ends early", &[0x20, 3, 0]),
        Script::once("a PUBLISH instead of a CONNACK", &publish(prompt, None, &[], &[b'x'; 1 << 19])),
        Script::once("a broker that lets us send nothing", &[0x20, 6, 0, 0, 3, 0x21, 0, 0]),
        Script::once("a packet of 256 MB", &after_welcome(&[0x32, 0xff, 0xff, 0xff, 0x7f])),
        Script::once("a client's packet", &after_welcome(&[0x82, 5, 0, 1, 0, 0, 0])),
        Script::once("an acknowledgement of nothing", &after_welcome(&[0x40, 2, 0x12, 0x34])),
        Script::once("the goodbye without a reason", &after_welcome(&[0xe0, 0])),
        Script::flood("one welcome after the other", WELCOME.repeat(1000)),
        Script::flood("a packet behind every alias", aliases.collect()),
        Script::flood("more messages than packet ids", ids.collect()),
    ]
}

/// The broker's side of one connection: the script, until the daemon disconnects.
async fn play(mut stream: TcpStream, script: &Script) {
    let mut asked = [0; 4096];
    let _ = stream.read(&mut asked).await;
    let (mut read, mut write) = stream.split();
    let writes = async {
        write.write_all(&script.first).await?;
        while !script.flood.is_empty() {
            write.write_all(&script.flood).await?;
        }
        std::future::pending::<std::io::Result<()>>().await
    };
    let reads = async { while read.read(&mut asked).await.is_ok_and(|count| count > 0) {} };
    tokio::select! { _ = writes => {}, () = reads => {} }
}

fn resident_kib(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.process.pid())).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux says so");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// The daemon closes the connection to the script, keeps running, and connects again.
async fn survives(script: Script) {
    let what = script.what;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let folder = Folder::new();
    let port = listener.local_addr().expect("its address").port();
    let daemon = Daemon::start(&folder, &linked(port)).await;
    let before = resident_kib(&daemon);
    let call = async || timeout(crate::PATIENCE, listener.accept()).await.expect(what).expect(what).0;
    let stream = call().await;
    let played = timeout(crate::PATIENCE, play(stream, &script)).await;
    assert!(played.is_ok(), "{what}: it listens for ever");
    let hung_up = Instant::now();
    drop(call().await);
    let gap = hung_up.elapsed();
    assert!(gap >= Duration::from_millis(900), "{what}: called again after {gap:?}");
    let done = daemon.client().await.ask(json!({"prompt": "turn on the light"})).await;
    assert_eq!(done["event"], "done", "{what}: {done}");
    let grown = resident_kib(&daemon).saturating_sub(before);
    // An emulator's own memory is in the same figure.
    assert!(grown < GROWTH || is_emulated(), "{what}: {grown} KiB more");
    let log = daemon.log();
    assert!(log.contains(&format!("mqtt 127.0.0.1:{port}: ")) && log.len() < 8_000, "{what}: {log}");
    assert!(!log.contains("panicked"), "{what}: {log}");
}

#[tokio::test]
async fn whatever_a_broker_sends_the_daemon_lives_and_calls_again_a_second_later() {
    let mut all = JoinSet::new();
    // A process each is much for an emulator.
    let every = if is_emulated() { 4 } else { 1 };
    for script in scripts().into_iter().step_by(every) {
        all.spawn(survives(script));
    }
    while let Some(ended) = all.join_next().await {
        ended.expect("it survives");
    }
}
