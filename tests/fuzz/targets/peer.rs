//! The whole MQTT door on one end of a connection; a target plays the broker on the other.

use bitnetd::config::{Mqtt, MqttVersion};
use bitnetd::protocol::{Done, Event, FinishReason, Input, Timings, Usage};
use bitnetd::telemetry::Telemetry;
use bitnetd::transport::mqtt::{Door, Home, MqttLink, run};
use bitnetd::transport::{Inbound, Pulse};
use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Prompts that may be on their way to the worker: few, so that most of a flood waits.
const WINDOW: u16 = 4;

struct Place {
    runtime: Runtime,
    listener: TcpListener,
    port: u16,
}

fn place() -> &'static Place {
    static PLACE: OnceLock<Place> = OnceLock::new();
    PLACE.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        Place { runtime, listener, port }
    })
}

/// Lets the door connect once, hands `broker` its connection, and ends the door.
pub fn play<F: Future<Output = ()>>(version: MqttVersion, broker: impl FnOnce(TcpStream) -> F) {
    let place = place();
    place.runtime.block_on(async {
        let (requests, taken) = mpsc::channel(usize::from(WINDOW));
        let (controls, _asked) = mpsc::channel(2);
        let (_reports, telemetry) = watch::channel(None);
        let (state, seen) = watch::channel(MqttLink::default());
        let (_interval, interval) = watch::channel(Duration::from_secs(10));
        let mut tasks = JoinSet::new();
        tasks.spawn(run(Door {
            config: Mqtt { version, ..Mqtt::new("127.0.0.1", place.port) },
            device: "cellar".into(),
            state_in: None,
            info: b"{}".to_vec(),
            window: WINDOW,
            inbox_bytes: 0,
            requests,
            controls,
            home: Some(Home { model: "fuzz".into() }),
            threads: 2,
            telemetry,
            alerts: mpsc::channel(1).1,
            interval,
            state,
            counters: Arc::new(Telemetry::new(0)),
            draining: CancellationToken::new(),
            close: CancellationToken::new(),
            flush: Duration::from_secs(1),
            pulse: Pulse::default(),
            turn: Duration::from_secs(60),
        }));
        tasks.spawn(answer(taken));
        let (stream, _) = place.listener.accept().await.expect("the door connects");
        broker(stream).await;
        assert!(tasks.try_join_next().is_none(), "the door ended: {:?}", seen.borrow());
        tasks.shutdown().await;
    });
}

/// A worker that says a piece and then the whole prompt.
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
        };
        inbound.reply.finish(Event::Done(Box::new(done)));
    }
}
