//! The clients over TCP.
//!
//! Deliberately knows nothing of what the clients send.

use super::HttpContext;
use super::call::HttpPeer;
use super::connection::serve;
use crate::protocol::Code;
use crate::transport::BacklogPolicy;
use crate::transport::tcp_accept::{self, ConnectionLimits, StopSignals, TcpClient, TcpService};
use std::future::Future;
use std::net::IpAddr;
use tokio::net::{TcpListener, TcpStream};

/// Most clients connected at once.
pub const MAX_CONNECTIONS: usize = 64;
/// Most of them from one address.
const MAX_OF_ADDRESS: usize = 48;

/// The answer to a client beyond the limit.
const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 73\r\n\
Retry-After: 1\r\nConnection: close\r\n\r\n{\"error\":{\"message\":\"too many clients are connected; call again later\"}}\n";

/// Serves the clients of the listeners until the daemon closes.
pub async fn run(listeners: Vec<TcpListener>, backlog: BacklogPolicy, context: HttpContext) {
    let stop = StopSignals { draining: &context.0.draining, close: &context.0.close };
    tcp_accept::run(listeners, backlog, stop, &context).await;
}

impl TcpService for HttpContext {
    const PROTOCOL: &'static str = "HTTP";
    const LIMITS: ConnectionLimits = ConnectionLimits { all: MAX_CONNECTIONS, of_address: MAX_OF_ADDRESS };

    fn serve(&self, client: TcpClient) -> impl Future<Output = ()> + Send + 'static {
        serve(client.stream, peer(client.address.ip()), client.in_flight, self.clone())
    }

    fn refuse(&self, stream: &TcpStream) {
        self.0.telemetry.refused(None, Code::QueueFull.name(), "too many connections over HTTP");
        // An error means that the client has already disconnected.
        let _ = stream.try_write(BUSY);
    }
}

fn peer(address: IpAddr) -> HttpPeer {
    let address = address.to_canonical();
    let client = format!("http:{address}");
    HttpPeer { queue_key: client.clone(), client, address: Some(address) }
}
