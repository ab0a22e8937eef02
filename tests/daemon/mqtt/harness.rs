//! A harness for the MQTT transport: the test is the worker and the clients.

use crate::support::broker::Mosquitto;
use bitnetd::config::Mqtt;
use bitnetd::protocol::{AnswerDetails, Done, Event, FinishReason, Input, MqttLink, Timings, Usage};
use bitnetd::telemetry::Telemetry;
use bitnetd::telemetry::alerts::Alert;
use bitnetd::transport::mqtt::{MqttContext, PublishedModel, run};
use bitnetd::transport::{Command, Heartbeat, Inbound};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish, PublishProperties};
use rumqttc::v5::{AsyncClient, Event as Happened, MqttOptions};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Longest wait for what must happen.
const TIMEOUT: Duration = Duration::from_secs(120);
/// How long to look for what must not happen.
pub const QUIET_PERIOD: Duration = Duration::from_millis(700);

/// A running MQTT transport, and the daemon's ends of its channels.
pub struct Harness {
    pub requests: mpsc::Receiver<Inbound>,
    pub controls: mpsc::Receiver<Command>,
    pub telemetry: watch::Sender<Option<Arc<Vec<u8>>>>,
    pub answering: watch::Sender<bool>,
    pub alert: mpsc::Sender<Alert>,
    pub model: watch::Sender<PublishedModel>,
    pub state: watch::Receiver<MqttLink>,
    pub draining: CancellationToken,
    close: CancellationToken,
    task: JoinSet<()>,
}

impl Harness {
    /// The transport of device `cellar` at this port, connected and subscribed.
    pub async fn open(port: u16) -> Self {
        let mut harness = Self::with(config(port), |_| {});
        harness.until(|state| state.subscribed).await;
        harness
    }

    /// A transport that may not be connected yet.
    pub fn with(config: Mqtt, change: impl FnOnce(&mut MqttContext)) -> Self {
        let (sender, requests) = mpsc::channel(4);
        let (asked, controls) = mpsc::channel(4);
        let (telemetry, reports) = watch::channel(None);
        let (answering, is_answering) = watch::channel(false);
        let (alert, alerts) = mpsc::channel(4);
        let (shown, state) = watch::channel(MqttLink::default());
        let (model, model_seen) = watch::channel(PublishedModel {
            name: "home-intents".into(),
            info: br#"{"version":"test"}"#.to_vec(),
        });
        let (draining, close) = (CancellationToken::new(), CancellationToken::new());
        let mut context = MqttContext {
            config,
            device: "cellar".into(),
            state_dir: None,
            model: model_seen,
            max_active: 4,
            parallel: 1,
            inbox_bytes: 1 << 20,
            requests: sender,
            commands: asked,
            // Home Assistant is nothing to the other tests.
            has_homeassistant: false,
            home: None,
            threads: 4,
            reports,
            answering: is_answering,
            alerts,
            report_interval: watch::channel(Duration::from_secs(10)).1,
            status: shown,
            local_telemetry: Arc::new(Telemetry::new(0)),
            draining: draining.clone(),
            close: close.clone(),
            flush_timeout: Duration::from_secs(5),
            heartbeat: Heartbeat::default(),
            max_idle: Duration::from_secs(60),
        };
        change(&mut context);
        let mut task = JoinSet::new();
        task.spawn(run(context));
        Harness { requests, controls, telemetry, answering, alert, model, state, draining, close, task }
    }

    /// Waits until the link's state is as wanted.
    pub async fn until(&mut self, wanted: impl FnMut(&MqttLink) -> bool) {
        let seen = timeout(TIMEOUT, self.state.wait_for(wanted)).await.map(|seen| seen.is_ok());
        assert_eq!(seen, Ok(true), "{:?}", self.state.borrow());
    }

    /// The next request.
    pub async fn request(&mut self) -> Inbound {
        let request = timeout(TIMEOUT, self.requests.recv()).await.expect("a request in time");
        request.expect("a running transport")
    }

    /// Answers the next request with its own prompt.
    pub async fn echo(&mut self) -> String {
        let inbound = self.request().await;
        let text = prompt(&inbound);
        answer(inbound, &text);
        text
    }

    /// No further request is submitted.
    pub async fn is_quiet(&mut self) {
        let more = timeout(QUIET_PERIOD, self.requests.recv()).await;
        assert!(more.is_err(), "{more:?}");
    }

    /// A clean stop.
    pub async fn close(self) {
        self.close_after(async {}).await;
    }

    /// A clean stop during which something else still happens.
    pub async fn close_after(mut self, last: impl Future<Output = ()>) {
        self.close.cancel();
        tokio::task::yield_now().await;
        last.await;
        let ended = timeout(TIMEOUT, self.task.join_next()).await.expect("the transport closes");
        ended.expect("it ran").expect("without a panic");
    }

    /// The daemon is killed.
    pub async fn kill(mut self) {
        self.task.shutdown().await;
    }
}

/// The broker at this port.
pub fn config(port: u16) -> Mqtt {
    Mqtt::new("127.0.0.1", port)
}

/// What was asked.
pub fn prompt(inbound: &Inbound) -> String {
    match &inbound.request.input {
        Input::Prompt(text) => text.clone(),
        Input::Messages(messages) => panic!("a prompt was sent, not {messages:?}"),
    }
}

/// Ends a request with a text.
pub fn answer(inbound: Inbound, text: &str) {
    end(inbound, text, FinishReason::Stop);
}

/// Ends a request with a text, for this reason.
pub fn end(inbound: Inbound, text: &str, finish_reason: FinishReason) {
    let done = Done {
        id: inbound.id.clone(),
        text: text.into(),
        finish_reason,
        usage: Usage::default(),
        timings: Timings::default(),
        energy: None,
        cached: false,
        model: "m".into(),
        details: AnswerDetails::default(),
    };
    inbound.reply.finish(Event::Done(Box::new(done)));
}

/// A client that sees every property.
pub struct Client {
    client: AsyncClient,
    messages: mpsc::Receiver<Publish>,
    _task: JoinSet<()>,
}

impl Client {
    /// A client of this broker that listens on `filter`.
    pub async fn listening(broker: &Mosquitto, filter: &str) -> Self {
        Self::at(broker.port, filter).await
    }

    /// The same of the broker at this port.
    pub async fn at(port: u16, filter: &str) -> Self {
        let id = format!("client-{}", filter.len());
        let mut options = MqttOptions::new(id, "127.0.0.1", port);
        options.set_max_packet_size(Some(16 << 20));
        let (client, mut eventloop) = AsyncClient::new(options, 16);
        client.subscribe(filter, QoS::AtLeastOnce).await.expect("room");
        let (sender, messages) = mpsc::channel(64);
        let (ready, mut subscribed) = mpsc::channel(1);
        let mut task = JoinSet::new();
        task.spawn(async move {
            while let Ok(event) = eventloop.poll().await {
                match event {
                    Happened::Incoming(Packet::Publish(message)) => {
                        let _ = sender.send(message).await;
                    }
                    Happened::Incoming(Packet::SubAck(_)) => {
                        let _ = ready.send(()).await;
                    }
                    _ => {}
                }
            }
        });
        timeout(TIMEOUT, subscribed.recv()).await.expect("subscribed").expect("connected");
        Client { client, messages, _task: task }
    }

    /// Publishes at QoS 1.
    pub async fn publish(&self, topic: &str, payload: &[u8], properties: PublishProperties) {
        let qos = QoS::AtLeastOnce;
        let sent = self.client.publish_with_properties(topic, qos, false, payload.to_vec(), properties);
        sent.await.expect("room");
    }

    /// The next message.
    pub async fn next(&mut self) -> Publish {
        let message = timeout(TIMEOUT, self.messages.recv()).await.expect("a message in time");
        message.expect("a connection")
    }

    /// The next message's payload.
    pub async fn text(&mut self) -> String {
        String::from_utf8_lossy(&self.next().await.payload).into_owned()
    }

    /// No message comes.
    pub async fn is_quiet(&mut self) {
        let more = timeout(QUIET_PERIOD, self.messages.recv()).await;
        assert!(more.is_err(), "{more:?}");
    }
}
