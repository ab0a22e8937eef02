//! `bitnetd demo`: a broker, the daemon and the built-in model in one process, with prompts over MQTT and the
//! socket.
//!
//! Nothing is simulated: the broker speaks MQTT 5 over loopback TCP, the daemon is the one of `bitnetd serve`, and
//! the prompts go through its topics and its socket. Deliberately reads no configuration.

mod broker;

use super::serve::block_on;
use super::{Failure, host, print};
use crate::config::{Config, Level, Mqtt};
use crate::protocol::text::escaped_json;
use crate::{daemon, telemetry};
use broker::LoopbackBroker;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::PublishProperties;
use rumqttc::v5::{AsyncClient, Event, EventLoop, Incoming, MqttOptions};
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Show the whole thing: a broker, the daemon and the built-in model in one process
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Demo {}

const MQTT_PROMPTS: [&str; 2] = ["turn on the kitchen lights", "set the bedroom to 21 degrees"];
const SOCKET_PROMPTS: [&str; 2] = ["close the garage door", "what is the meaning of life"];
/// Longest wait for one event; a slow board answers within seconds.
const EVENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Events that may wait to be printed.
const EVENT_BUFFER: usize = 256;

/// The fields of an event that the demo prints.
#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum DemoEvent {
    Token { text: String },
    Done { usage: Usage, timings: Timings },
    Error { message: String },
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
}

#[derive(Deserialize)]
struct Timings {
    ttft_ms: f64,
    total_ms: f64,
    tokens_per_second: f64,
}

pub(super) fn run(_: Demo) -> Result<(), Failure> {
    telemetry::log::init(Level::Warn, false);
    let folder = TempDir::with_prefix("bitnetd-demo-")
        .map_err(|error| Failure::system(format!("a temporary folder cannot be created: {error}")))?;
    block_on(run_demo(folder.path()))?
}

async fn run_demo(folder: &Path) -> Result<(), Failure> {
    let broker = LoopbackBroker::listen()
        .await
        .map_err(|error| Failure::system(format!("the demo's broker cannot be started: {error}")))?;
    let address = broker.address;
    let mut broker_task = JoinSet::new();
    broker_task.spawn(broker.run());
    let config = config(folder, address);
    write_out(&format!(
        "bitnetd {} demo\n  broker  {address} (MQTT 5, this process only)\n  socket  {}\n  model   built in: home-intents\n\n",
        env!("CARGO_PKG_VERSION"),
        config.socket.path.display()
    ))?;
    let stop = CancellationToken::new();
    let (ready, is_ready) = oneshot::channel();
    let asked = async {
        let asked = match is_ready.await {
            Ok(()) => ask_all(&config, address).await,
            Err(_) => Ok(()), // the daemon's own failure says more
        };
        stop.cancel();
        asked
    };
    let reread = Box::new(|| Err("the demo has no configuration file".to_owned()));
    let (served, asked) = tokio::join!(daemon::run(config.clone(), reread, stop.clone(), ready), asked);
    served?;
    asked
}

fn config(folder: &Path, broker: SocketAddr) -> Config {
    let mut config = Config::defaults(&host::host());
    config.device.id = "demo".into();
    config.device.state_dir = Some(folder.join("state"));
    config.socket.path = folder.join("bitnetd.sock");
    config.telemetry.interval = Duration::from_secs(1);
    config.mqtt = Some(Mqtt::new(broker.ip().to_string(), broker.port()));
    config
}

async fn ask_all(config: &Config, broker: SocketAddr) -> Result<(), Failure> {
    let mut client = DemoClient::connect(broker);
    // A prompt that is published before the daemon has subscribed is lost.
    client.subscribe("bitnetd/demo/availability").await?;
    while client.next("bitnetd/demo/availability").await? != b"online" {}
    client.subscribe("demo/reply").await?;
    for prompt in MQTT_PROMPTS {
        write_out(&format!("MQTT    bitnetd/demo/prompt <- {prompt}\n        demo/reply          -> "))?;
        client.ask("bitnetd/demo/prompt", "demo/reply", prompt).await?;
        while !print_event(&client.next("demo/reply").await?)? {}
    }
    let mut socket = Socket::connect(&config.socket.path).await?;
    for prompt in SOCKET_PROMPTS {
        write_out(&format!("socket  <- {prompt}\n        -> "))?;
        socket.write(&request(prompt)).await?;
        while !print_event(&socket.read().await?)? {}
    }
    // Subscribed after the prompts, so that the report counts them.
    client.subscribe("bitnetd/demo/telemetry").await?;
    let report = client.next("bitnetd/demo/telemetry").await?;
    write_out("telemetry  bitnetd/demo/telemetry\n")?;
    write_out(&pretty(&report))
}

/// The demo's own client of the broker. It ends with the process.
struct DemoClient {
    client: AsyncClient,
    /// The topics and payloads of all messages that it has subscribed to.
    messages: mpsc::Receiver<(Vec<u8>, Vec<u8>)>,
    _connection: JoinSet<()>,
}

impl DemoClient {
    fn connect(broker: SocketAddr) -> Self {
        let options = MqttOptions::new("bitnetd-demo-client", broker.ip().to_string(), broker.port());
        let (client, eventloop) = AsyncClient::new(options, EVENT_BUFFER);
        let (sender, messages) = mpsc::channel(EVENT_BUFFER);
        let mut connection = JoinSet::new();
        connection.spawn(receive(eventloop, sender));
        DemoClient { client, messages, _connection: connection }
    }

    async fn subscribe(&self, topic: &str) -> Result<(), Failure> {
        self.client.subscribe(topic, QoS::AtLeastOnce).await.map_err(client_failed)
    }

    async fn ask(&self, topic: &str, reply: &str, prompt: &str) -> Result<(), Failure> {
        let properties = PublishProperties {
            response_topic: Some(reply.into()),
            correlation_data: Some(prompt.as_bytes().to_vec().into()),
            ..PublishProperties::default()
        };
        let published =
            self.client.publish_with_properties(topic, QoS::AtLeastOnce, false, request(prompt), properties);
        published.await.map_err(client_failed)
    }

    /// The next message on a topic; those on others are skipped.
    async fn next(&mut self, wanted: &str) -> Result<Vec<u8>, Failure> {
        let wanted = async {
            while let Some((topic, payload)) = self.messages.recv().await {
                if topic == wanted.as_bytes() {
                    return Some(payload);
                }
            }
            None
        };
        match timeout(EVENT_TIMEOUT, wanted).await {
            Ok(Some(payload)) => Ok(payload),
            _ => Err(Failure::system("no event came over MQTT; run with a release build, or report this")),
        }
    }
}

/// Passes messages on until the connection ends.
async fn receive(mut eventloop: EventLoop, sender: mpsc::Sender<(Vec<u8>, Vec<u8>)>) {
    while let Ok(event) = eventloop.poll().await {
        if let Event::Incoming(Incoming::Publish(message)) = event
            && sender.send((message.topic.to_vec(), message.payload.to_vec())).await.is_err()
        {
            return;
        }
    }
}

fn client_failed(error: rumqttc::v5::ClientError) -> Failure {
    Failure::system(format!("the demo's MQTT client: {error}"))
}

struct Socket {
    lines: BufReader<UnixStream>,
}

impl Socket {
    async fn connect(path: &Path) -> Result<Self, Failure> {
        let stream = UnixStream::connect(path).await.map_err(socket_failed)?;
        Ok(Socket { lines: BufReader::new(stream) })
    }

    async fn write(&mut self, line: &[u8]) -> Result<(), Failure> {
        let line = [line, b"\n"].concat();
        self.lines.get_mut().write_all(&line).await.map_err(socket_failed)
    }

    async fn read(&mut self) -> Result<Vec<u8>, Failure> {
        let mut line = Vec::new();
        let read = timeout(EVENT_TIMEOUT, self.lines.read_until(b'\n', &mut line)).await;
        match read.map_err(|_| Failure::system("no event came over the socket"))?.map_err(socket_failed)? {
            0 => Err(Failure::system("the daemon closed the socket")),
            _ => Ok(line),
        }
    }
}

fn socket_failed(error: std::io::Error) -> Failure {
    Failure::system(format!("the demo's socket: {error}"))
}

fn request(prompt: &str) -> Vec<u8> {
    serde_json::to_vec(&serde_json::json!({ "prompt": prompt, "stream": true })).expect("plain text")
}

/// Prints an event; `true` after the last one.
fn print_event(event: &[u8]) -> Result<bool, Failure> {
    let reason = serde_json::from_slice(event)
        .map_err(|error| Failure::system(format!("an event that is no event: {error}")))?;
    match reason {
        DemoEvent::Token { text } => write_out(&text).map(|()| false),
        DemoEvent::Error { message } => Err(Failure { code: 5, message }),
        DemoEvent::Done { usage, timings } => write_out(&format!(
            "\n        {} + {} tokens, first after {:.1} ms, {:.0} tokens/s, {:.1} ms in all\n\n",
            usage.prompt_tokens,
            usage.completion_tokens,
            timings.ttft_ms,
            timings.tokens_per_second,
            timings.total_ms
        ))
        .map(|()| true),
    }
}

fn pretty(json: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(json).unwrap_or_default();
    let text = serde_json::to_string_pretty(&value).expect("was JSON");
    escaped_json(&text).lines().map(|line| format!("  {line}\n")).collect()
}

fn write_out(text: &str) -> Result<(), Failure> {
    print(text.as_bytes())
}
