//! The interfaces that clients connect to: the Unix socket, and HTTP and the Wyoming protocol on TCP. They are open before the
//! model is loaded, so that a client learns that it loads; requests wait until it is.
//!
//! Deliberately knows nothing of the broker link, which connects once there is something to answer with.

use super::INTAKE;
use super::listeners::Listeners;
use super::served_model::ServedModel;
use crate::config::{self, Config};
use crate::protocol::Refusal;
use crate::telemetry::Telemetry;
use crate::transport::http::{self, HttpContext, HttpParts};
use crate::transport::mqtt::Topics;
use crate::transport::unix::{self, ConnectionContext, SocketFile};
use crate::transport::wyoming::{self, WyomingContext};
use crate::transport::{BacklogPolicy, Inbound, ReloadRequest};
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The running interfaces.
pub(super) struct LocalInterfaces {
    /// Their tasks, which end after `close`.
    pub tasks: JoinSet<()>,
    /// Their requests; those of Wyoming may come before `loaded`.
    pub requests: mpsc::Receiver<Inbound>,
    /// Requests to read the configuration again.
    pub reload_requests: mpsc::Receiver<ReloadRequest>,
    /// To be cancelled once the model is loaded.
    pub loaded: CancellationToken,
    /// Where clients connect, for the log.
    pub addresses: String,
    /// The socket file, where this process created it: it is removed when this is dropped.
    pub socket_file: Option<Arc<Mutex<SocketFile>>>,
}

/// The tokens by which the daemon stops.
#[derive(Clone)]
pub(super) struct StopTokens {
    /// No new requests.
    pub draining: CancellationToken,
    /// No requests at all.
    pub close: CancellationToken,
}

impl LocalInterfaces {
    /// Starts to serve the listeners. `body_bytes`: the longest body of a call that the memory plan allows.
    pub fn start(
        listeners: Listeners,
        config: &Config,
        body_bytes: usize,
        model: &ServedModel,
        telemetry: &Arc<Telemetry>,
        stop: &StopTokens,
    ) -> Self {
        let Listeners { unix: listener, socket_file, http: tcp, wyoming } = listeners;
        let mut addresses = format!("socket {}", local_path(&listener, config));
        for address in tcp.listeners.iter().filter_map(|listener| listener.local_addr().ok()) {
            addresses.push_str(&format!(", http://{address}"));
        }
        for address in wyoming.listeners.iter().filter_map(|listener| listener.local_addr().ok()) {
            addresses.push_str(&format!(", Wyoming {address}"));
        }
        if let Some(mqtt) = &config.mqtt {
            let topic = Topics::configured(mqtt, &config.device.id).prompt();
            addresses.push_str(&format!(", topic {topic} at {}:{}", mqtt.host, mqtt.port));
        }
        let (inbound, requests) = mpsc::channel(INTAKE);
        let (reloads, reload_requests) = mpsc::channel(1);
        let loaded = CancellationToken::new();
        let http = HttpContext::new(HttpParts {
            settings: config::Http { body_bytes, ..config.http.clone() },
            device: config.device.id.clone(),
            model: model.card.subscribe(),
            slots: config.queue.depth,
            inbound: inbound.clone(),
            telemetry: Arc::clone(telemetry),
            loaded: loaded.clone(),
            draining: stop.draining.clone(),
            close: stop.close.clone(),
        });
        // A socket of systemd outlives this process, and so do the clients in its backlog.
        let backlog = if socket_file.is_some() { BacklogPolicy::Refuse } else { BacklogPolicy::LeaveQueued };
        let socket_file = socket_file.map(|file| Arc::new(Mutex::new(file)));
        let listening = match &socket_file {
            Some(file) => unix::Listening::from(listener).owning(Arc::clone(file), config.socket.mode),
            None => listener.into(),
        };
        let context = ConnectionContext {
            max_connections: config.socket.connections,
            inbound,
            reloads,
            telemetry: Arc::clone(telemetry),
            http: http.clone(),
            loaded: loaded.clone(),
            draining: stop.draining.clone(),
            close: stop.close.clone(),
        };
        let wyoming_context = WyomingContext {
            program: model.program.subscribe(),
            inbound: context.inbound.clone(),
            telemetry: Arc::clone(telemetry),
            draining: stop.draining.clone(),
            close: stop.close.clone(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(unix::run(listening, backlog, context));
        if !tcp.listeners.is_empty() {
            tasks.spawn(http::run(tcp.listeners, tcp.backlog, http));
        }
        if !wyoming.listeners.is_empty() {
            tasks.spawn(wyoming::run(wyoming.listeners, wyoming.backlog, wyoming_context));
        }
        LocalInterfaces { tasks, requests, reload_requests, loaded, addresses, socket_file }
    }

    /// Ends them before the model was loaded: clients that wait are refused with `shutting_down`.
    pub async fn close(mut self, stop: &StopTokens) {
        stop.draining.cancel();
        // Those who wait for a reload learn that the daemon stops.
        self.reload_requests.close();
        while self.reload_requests.try_recv().is_ok() {}
        self.requests.close();
        while let Ok(inbound) = self.requests.try_recv() {
            inbound.reply.refuse(Refusal::shutting_down());
        }
        stop.close.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// The path of the socket; under systemd it is that of the .socket unit, not the configured one.
fn local_path(listener: &tokio::net::UnixListener, config: &Config) -> String {
    let address = listener.local_addr().ok();
    let path = address.as_ref().and_then(|address| address.as_pathname()).unwrap_or(&config.socket.path);
    path.display().to_string()
}
