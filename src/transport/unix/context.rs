//! What every connection of the socket is given by the daemon.

use crate::telemetry::Telemetry;
use crate::transport::http::HttpContext;
use crate::transport::{Inbound, ReloadRequest};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What every connection is given by the daemon.
#[derive(Debug, Clone)]
pub struct ConnectionContext {
    /// Maximum number of open connections.
    pub max_connections: usize,
    /// Where requests are sent.
    pub inbound: mpsc::Sender<Inbound>,
    /// Where requests to read the configuration again are sent.
    pub reloads: mpsc::Sender<ReloadRequest>,
    /// Counts the requests that are refused by the transport, and renders reports.
    pub telemetry: Arc<Telemetry>,
    /// Answers the clients that speak HTTP.
    pub http: HttpContext,
    /// Cancelled once the model is loaded; requests wait until then.
    pub loaded: CancellationToken,
    /// Once cancelled, new requests are refused.
    pub draining: CancellationToken,
    /// Once cancelled, all requests are cancelled and the connections close.
    pub close: CancellationToken,
}
