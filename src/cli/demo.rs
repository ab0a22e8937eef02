//! `bitnetd demo`: a broker, the daemon and the built-in model in one process, with prompts over MQTT and the
//! socket.
//!
//! Nothing is simulated: the broker speaks MQTT 5 over loopback TCP, the daemon is the one of `bitnetd serve`, and
//! the prompts go through its topics and its socket. Deliberately reads no configuration.

use super::serve::block_on;
use super::{Failure, host, print};
use crate::config::{Config, Level, Mqtt};
use crate::protocol::text::escaped_json;
use crate::{daemon, telemetry};
use mqtt5::broker::config::{StorageBackend, StorageConfig};
use mqtt5::broker::{BrokerConfig, MqttBroker};
use mqtt5::{MqttClient, PublishOptions, QoS};
use serde::Deserialize;
use std::net::{Ipv4Addr, SocketAddr};
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
    let mut broker_task = JoinSet::new();
    let address = start_broker(&mut broker_task).await?;
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

async fn start_broker(tasks: &mut JoinSet<()>) -> Result<SocketAddr, Failure> {
    let failed = |reason: String| Failure::system(format!("the demo's broker cannot be started: {reason}"));
    let memory = StorageConfig::new().with_backend(StorageBackend::Memory).with_persistence(false);
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let config =
        BrokerConfig { storage_config: memory, ..BrokerConfig::default() }.with_bind_address(any_port);
    let mut broker = MqttBroker::with_config(config).await.map_err(|error| failed(error.to_string()))?;
    let address = broker.local_addr().ok_or_else(|| failed("it has no address".into()))?;
    tasks.spawn(async move {
        if let Err(error) = broker.run().await {
            log::error!("the demo's broker ended: {error}");
        }
    });
    Ok(address)
}

async fn ask_all(config: &Config, broker: SocketAddr) -> Result<(), Failure> {
    let failed = |error: mqtt5::MqttError| Failure::system(format!("the demo's MQTT client: {error}"));
    let client = MqttClient::new("bitnetd-demo-client");
    client.connect(&format!("mqtt://{broker}")).await.map_err(failed)?;
    // A prompt that is published before the daemon has subscribed is lost.
    let mut availability = subscribe(&client, "bitnetd/demo/availability").await.map_err(failed)?;
    while next(&mut availability).await? != b"online" {}
    let mut replies = subscribe(&client, "demo/reply").await.map_err(failed)?;
    for prompt in MQTT_PROMPTS {
        write_out(&format!("MQTT    bitnetd/demo/prompt <- {prompt}\n        demo/reply          -> "))?;
        let mut options = PublishOptions { qos: QoS::AtLeastOnce, ..PublishOptions::default() };
        options.properties.response_topic = Some("demo/reply".into());
        options.properties.correlation_data = Some(prompt.as_bytes().to_vec());
        client.publish_with_options("bitnetd/demo/prompt", request(prompt), options).await.map_err(failed)?;
        while !print_event(&next(&mut replies).await?)? {}
    }
    let mut socket = Socket::connect(&config.socket.path).await?;
    for prompt in SOCKET_PROMPTS {
        write_out(&format!("socket  <- {prompt}\n        -> "))?;
        socket.write(&request(prompt)).await?;
        while !print_event(&socket.read().await?)? {}
    }
    // Subscribed after the prompts, so that the report counts them.
    let mut reports = subscribe(&client, "bitnetd/demo/telemetry").await.map_err(failed)?;
    let report = next(&mut reports).await?;
    write_out("telemetry  bitnetd/demo/telemetry\n")?;
    write_out(&pretty(&report))?;
    // The broker ends with this process, so a failure to disconnect does not matter.
    let _ = client.disconnect().await;
    Ok(())
}

async fn subscribe(client: &MqttClient, topic: &str) -> mqtt5::Result<mpsc::Receiver<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel(EVENT_BUFFER);
    let hand_on = move |message: mqtt5::Message| {
        // A dropped event would end in the timeout.
        let _ = sender.try_send(message.payload);
    };
    client.subscribe(topic, hand_on).await?;
    Ok(receiver)
}

async fn next(events: &mut mpsc::Receiver<Vec<u8>>) -> Result<Vec<u8>, Failure> {
    match timeout(EVENT_TIMEOUT, events.recv()).await {
        Ok(Some(event)) => Ok(event),
        _ => Err(Failure::system("no event came over MQTT; run with a release build, or report this")),
    }
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
