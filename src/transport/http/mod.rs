//! HTTP/1.1 for software that speaks the forms of OpenAI or Ollama, and for `curl`, scrapers and health checks: on the Unix
//! socket, and on TCP where the owner asks for it.
//!
//! hyper does the protocol; `protocol::openai` and `protocol::ollama` translate. Here are the limits: who may call, how long a
//! body may be, how many calls are on their way, how long a client may take. Deliberately knows nothing of the engine and of
//! the queue: a call becomes an [`Inbound`], and its events become the response.

mod access;
mod answer_body;
mod call;
mod connection;
mod listener;
mod request_body;
mod response;
mod routes;
mod slots;
mod write_deadline;

pub use call::HttpPeer;
pub use connection::{is_http, serve};
pub use listener::{MAX_CONNECTIONS, run};

use super::Inbound;
use super::named_file;
use crate::config;
use crate::protocol::api::ModelCard;
use crate::telemetry::Telemetry;
use access::{AccessDenied, AccessToken};
use request_body::BodyMemory;
use slots::Slots;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Memory that one connection can hold, in bytes: the head of a request, the beginning of its body, and what waits to be
/// written.
pub const CONNECTION_BYTES: usize = 64 << 10;

/// Memory that the bodies of calls can take together while they are read and translated, for each byte that one may have: two
/// bodies, and the values of the one that is translated twice, once as they were parsed and once as our own. How many values a
/// body may have depends on its limit.
pub const BODY_FACTOR: usize = 6;

/// What the daemon gives the interface.
pub struct HttpParts {
    /// The settings.
    pub settings: config::Http,
    /// The host name, by which clients may address the device.
    pub device: String,
    /// The model that is loaded, or will be.
    pub model: watch::Receiver<Arc<ModelCard>>,
    /// Most calls that are on their way to the model at once.
    pub slots: usize,
    /// Where requests are sent.
    pub inbound: mpsc::Sender<Inbound>,
    /// Counts the requests that are refused here, and renders the metrics.
    pub telemetry: Arc<Telemetry>,
    /// Cancelled once the model is loaded.
    pub loaded: CancellationToken,
    /// Once cancelled, new requests are refused.
    pub draining: CancellationToken,
    /// Once cancelled, all requests are cancelled and the connections close.
    pub close: CancellationToken,
}

/// What every connection shares; clones share it.
#[derive(Clone)]
pub struct HttpContext(Arc<Shared>);

struct Shared {
    settings: config::Http,
    /// Names by which clients may address this device.
    hosts: Vec<String>,
    model: watch::Receiver<Arc<ModelCard>>,
    slots: Slots,
    bodies: BodyMemory,
    /// The device id.
    device: String,
    /// The one report that may be in memory.
    report_place: Arc<Semaphore>,
    inbound: mpsc::Sender<Inbound>,
    telemetry: Arc<Telemetry>,
    loaded: CancellationToken,
    draining: CancellationToken,
    close: CancellationToken,
    /// Begins every id, so that no two daemons' ids are the same.
    id_prefix: String,
    calls: AtomicU64,
    /// An error of the file of tokens was logged, and it has not been read since.
    is_token_error_logged: AtomicBool,
}

impl HttpContext {
    /// The interface with these parts.
    pub fn new(parts: HttpParts) -> Self {
        let HttpParts { settings, device, model, slots, inbound, telemetry, loaded, draining, close } = parts;
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        HttpContext(Arc::new(Shared {
            hosts: access::own_hosts(&device, &settings),
            model,
            slots: Slots::new(slots),
            bodies: BodyMemory::new(settings.body_bytes),
            report_place: Arc::new(Semaphore::new(1)),
            device,
            inbound,
            telemetry,
            loaded,
            draining,
            close,
            id_prefix: format!("h{started:x}"),
            calls: AtomicU64::new(0),
            is_token_error_logged: AtomicBool::new(false),
            settings,
        }))
    }

    /// The tokens, one of which a call over TCP has to have; `None` where it needs none. Their file is read anew for each
    /// call, so that a token that is removed is worth nothing from then on. Where it cannot be read, nobody may call.
    fn tokens(&self) -> Result<Option<Vec<AccessToken>>, AccessDenied> {
        let settings = &self.0.settings;
        let Some(path) = &settings.token_file else { return Ok(None) };
        let bytes = named_file::read_secret(path, settings.credentials.as_deref());
        let text = bytes.and_then(|bytes| String::from_utf8(bytes).map_err(|_| "it is not UTF-8".into()));
        let tokens = text.and_then(|text| match access::tokens(&text) {
            tokens if tokens.is_empty() => Err("there is no token in it".into()),
            tokens => Ok(tokens),
        });
        let was_logged = self.0.is_token_error_logged.swap(tokens.is_err(), Ordering::Relaxed);
        tokens.map(Some).map_err(|reason: String| {
            if !was_logged {
                log::error!("http.token_file: {}: {reason}; nobody can call over TCP", path.display());
            }
            AccessDenied::new(503, "the daemon cannot read its tokens; its log says why")
        })
    }

    /// The model that answers now.
    fn model(&self) -> Arc<ModelCard> {
        self.0.model.borrow().clone()
    }

    /// An id for a call.
    fn new_id(&self) -> String {
        let number = self.0.calls.fetch_add(1, Ordering::Relaxed) + 1;
        format!("{}-{number}", self.0.id_prefix)
    }
}

impl fmt::Debug for HttpContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpContext").finish_non_exhaustive()
    }
}
