//! What every connection of the socket is given by the daemon.

use crate::telemetry::Telemetry;
use crate::transport::Inbound;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What every connection needs of the daemon.
#[derive(Debug, Clone)]
pub struct ConnectionContext {
    /// Connections at once.
    pub max_connections: usize,
    /// Where requests go.
    pub inbound: mpsc::Sender<Inbound>,
    /// Counts what is refused here already.
    pub telemetry: Arc<Telemetry>,
    /// New requests are refused.
    pub draining: CancellationToken,
    /// The end.
    pub close: CancellationToken,
}
