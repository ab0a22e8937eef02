//! What the daemon adds to the engine's own time until the first token: a measurement, see docs/performance.md.

use crate::daemon::Daemon;
use crate::support::broker::Mosquitto;
use crate::{Folder, cases, linked};
use bitnetd::engine::session::{GenerateOptions, Session, Step};
use bitnetd::engine::tokenizer::{ChatRole, Turn};
use bitnetd::engine::{EngineOptions, ModelFile, Source};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use serde_json::json;
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Prompts that are measured on each way.
const PROMPTS: usize = 1_000;
/// Prompts that go the same way one after another.
const BLOCK: usize = 50;
/// Without this line mosquitto holds a small packet back until the one before it is acknowledged, which the receiver's kernel
/// may put off for 40 ms: see docs/mqtt.md.
const BROKER: &str = "set_tcp_nodelay true\n";

/// The time from a prompt's text to its first token, with nothing but the engine.
fn engine_alone(session: &mut Session<'_>, tokens: &[u32]) -> Duration {
    let (began, mut first) = (Instant::now(), None);
    let answer = session.generate(tokens, &GenerateOptions::default(), |step| match step {
        Step::Token(_) => {
            first = Some(began.elapsed());
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    });
    answer.expect("a sound prompt");
    first.expect("a token")
}

/// A request that ends with its first token, and is not answered from the cache.
fn request(prompt: &str) -> String {
    json!({"prompt": prompt, "max_tokens": 1, "cache": false, "stream": true}).to_string()
}

/// The time from the last byte of a request on the socket to the first byte of its first token.
fn over_socket(stream: &mut UnixStream, prompt: &str) -> Duration {
    let line = request(prompt) + "\n";
    stream.write_all(line.as_bytes()).expect("the daemon reads");
    let (began, mut byte) = (Instant::now(), [0]);
    stream.read_exact(&mut byte).expect("an event");
    let took = began.elapsed();
    let (mut events, mut piece) = (byte.to_vec(), [0; 4096]);
    while events.iter().filter(|byte| **byte == b'\n').count() < 2 {
        let count = stream.read(&mut piece).expect("the rest");
        events.extend_from_slice(&piece[..count]);
    }
    let text = String::from_utf8_lossy(&events);
    assert!(text.starts_with("{\"event\":\"token\"") && text.contains("\"done\""), "{text}");
    took
}

/// A client of the broker that has subscribed to its replies.
struct MqttClient {
    client: AsyncClient,
    events: EventLoop,
}

impl MqttClient {
    async fn connect(port: u16) -> Self {
        let (client, events) = AsyncClient::new(MqttOptions::new("overhead", "127.0.0.1", port), 8);
        let mut connected = MqttClient { client, events };
        connected.client.subscribe("bitnetd/cellar/reply/#", QoS::AtMostOnce).await.expect("a free slot");
        while !matches!(connected.packet().await, Packet::SubAck(_)) {}
        connected
    }

    async fn packet(&mut self) -> Packet {
        loop {
            if let Event::Incoming(packet) = self.events.poll().await.expect("the broker is there") {
                return packet;
            }
        }
    }

    /// The next message.
    async fn message(&mut self) -> String {
        loop {
            if let Packet::Publish(message) = self.packet().await {
                return String::from_utf8_lossy(&message.payload).into_owned();
            }
        }
    }

    /// The time from when a prompt is published to when its first token arrives.
    async fn ask(&mut self, prompt: &str) -> Duration {
        let topic = "bitnetd/cellar/prompt/overhead";
        let began = Instant::now();
        self.client.publish(topic, QoS::AtMostOnce, false, request(prompt)).await.expect("a free slot");
        let first = self.message().await;
        let took = began.elapsed();
        assert!(first.contains("\"token\""), "{first}");
        while !self.message().await.contains("\"done\"") {}
        took
    }
}

/// In microseconds: the median, and what 99 of 100 do not exceed.
fn spread(mut times: Vec<Duration>) -> (u128, u128) {
    times.sort();
    (times[times.len() / 2].as_micros(), times[times.len() * 99 / 100].as_micros())
}

#[tokio::test]
#[ignore = "a measurement"]
async fn the_daemon_adds_little_to_the_time_until_the_first_token() {
    let (broker, folder) = (Mosquitto::with(BROKER).await, Folder::new());
    let daemon = Daemon::start(&folder, &linked(broker.port)).await;
    let options = EngineOptions { threads: 1, ..EngineOptions::default() };
    let engine = ModelFile::open(&Source::BuiltIn, None).and_then(|file| file.load(&options)).expect("sound");
    let mut session = engine.session(512);
    let mut stream = UnixStream::connect(&daemon.socket).expect("it listens");
    let mut client = MqttClient::connect(broker.port).await;
    let prompts: Vec<String> = cases().into_iter().map(|case| case.prompt).collect();
    let tokenizer = engine.tokenizer();
    let tokens = prompts.iter().map(|text| tokenizer.prompt_chat(&[Turn { role: ChatRole::User, text }]));
    let tokens: Vec<Vec<u32>> = tokens.collect::<Result<_, _>>().expect("they fit");
    let (mut alone, mut socket, mut mqtt) = (Vec::new(), Vec::new(), Vec::new());
    // In turn, a block of each at a time, so that no way finds the caches of the processor filled by another. The first
    // block does not count.
    for block in 0..=PROMPTS / BLOCK {
        let (mut times, asked) =
            ([const { Vec::new() }; 3], (0..BLOCK).map(|at| (block * BLOCK + at) % prompts.len()));
        for at in asked.clone() {
            times[0].push(engine_alone(&mut session, &tokens[at]));
        }
        for at in asked.clone() {
            times[1].push(over_socket(&mut stream, &prompts[at]));
        }
        for at in asked {
            times[2].push(client.ask(&prompts[at]).await);
        }
        if block > 0 {
            let [of_engine, of_socket, of_mqtt] = times;
            alone.extend(of_engine);
            socket.extend(of_socket);
            mqtt.extend(of_mqtt);
        }
    }
    let [alone, socket, mqtt] = [alone, socket, mqtt].map(spread);
    println!("microseconds until the first token, {PROMPTS} prompts in turn: median, 99th percentile");
    for (name, (median, most)) in [("engine alone", alone), ("over the socket", socket), ("over MQTT", mqtt)]
    {
        let more = (median as i128 - alone.0 as i128, most as i128 - alone.1 as i128);
        println!("{name:<16} {median:>6} {most:>6}   more: {:>6} {:>6}", more.0, more.1);
    }
    daemon.stop().await;
}
