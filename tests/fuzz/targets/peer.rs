//! The whole MQTT transport on one end of a connection; a target plays the broker on the other.

use bitnetd::config::{Mqtt, MqttVersion};
use bitnetd::protocol::{AnswerDetails, Done, Event, FinishReason, Input, MqttLink, Timings, Usage};
use bitnetd::telemetry::Telemetry;
use bitnetd::transport::mqtt::{MqttContext, PublishedModel, run};
use bitnetd::transport::{Heartbeat, Inbound};
use bitnetd::home::{NameTopics, NameList, SharedHome};
use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Requests that may be active at a time: few, so that most of a flood waits.
const WINDOW: u16 = 4;

struct Listening {
    runtime: Runtime,
    listener: TcpListener,
    port: u16,
}

fn listening() -> &'static Listening {
    static LISTENING: OnceLock<Listening> = OnceLock::new();
    LISTENING.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        Listening { runtime, listener, port }
    })
}

/// Lets the transport connect once, passes the connection to `broker`, and ends the transport.
pub fn play<F: Future<Output = ()>>(version: MqttVersion, broker: impl FnOnce(TcpStream) -> F) {
    let listening = listening();
    listening.runtime.block_on(async {
        let (requests, taken) = mpsc::channel(usize::from(WINDOW));
        let (commands, _received) = mpsc::channel(2);
        let (_report, reports) = watch::channel(None);
        let (status, seen) = watch::channel(MqttLink::default());
        let (_interval, report_interval) = watch::channel(Duration::from_secs(10));
        let mut tasks = JoinSet::new();
        tasks.spawn(run(MqttContext {
            config: Mqtt { version, ..Mqtt::new("127.0.0.1", listening.port) },
            device: "cellar".into(),
            state_dir: None,
            model: watch::channel(PublishedModel { name: "fuzz".into(), info: b"{}".to_vec() }).1,
            max_active: WINDOW,
            parallel: 1,
            inbox_bytes: 0,
            requests,
            commands,
            has_homeassistant: true,
            home: Some(Arc::new(SharedHome::new(
                NameList::default(),
                NameTopics { discovery_prefix: "homeassistant".into() },
            ))),
            threads: 2,
            reports,
            answering: watch::channel(false).1,
            alerts: mpsc::channel(1).1,
            report_interval,
            status,
            local_telemetry: Arc::new(Telemetry::new(0)),
            draining: CancellationToken::new(),
            close: CancellationToken::new(),
            flush_timeout: Duration::from_secs(1),
            heartbeat: Heartbeat::default(),
            max_idle: Duration::from_secs(60),
        }));
        tasks.spawn(answer(taken));
        let (stream, _) = listening.listener.accept().await.expect("the transport connects");
        broker(stream).await;
        assert!(tasks.try_join_next().is_none(), "the transport ended: {:?}", seen.borrow());
        tasks.shutdown().await;
    });
}

/// A worker that sends one token and then the whole prompt as the answer.
async fn answer(mut requests: mpsc::Receiver<Inbound>) {
    while let Some(inbound) = requests.recv().await {
        let text = match &inbound.request.input {
            Input::Prompt(text) => text.clone(),
            Input::Messages(messages) => format!("{} messages", messages.len()),
        };
        if inbound.request.stream {
            let _ = inbound.reply.token(text.clone());
        }
        let done = Done {
            id: inbound.id.clone(),
            text,
            finish_reason: FinishReason::Stop,
            usage: Usage::default(),
            timings: Timings::default(),
            energy: None,
            cached: false,
            model: "m".into(),
            details: AnswerDetails::default(),
        };
        inbound.reply.finish(Event::Done(Box::new(done)));
    }
}
