//! One connection, from its first byte to its last.
//!
//! Deliberately does not know whether it is a Unix or a TCP connection, except for who the client is.

use super::HttpContext;
use super::access::AccessRules;
use super::call::{Caller, HttpPeer};
use super::write_deadline::WriteDeadline;
use crate::transport::in_flight::InFlight;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::{RecvFlags, recv};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::UnixStream;

/// Maximum length of a request's head in bytes; a browser's has 2 KiB with its cookies.
const MAX_HEAD: usize = 16 << 10;
/// Maximum number of header fields.
const MAX_HEADERS: usize = 64;
/// How long a client may take for a request's head, and how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may accept no bytes at all before its connection is closed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// Time from `close` to the end of the connection.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The methods of HTTP (RFC 9110, section 9, and RFC 5789), with the space that follows.
const METHODS: [&[u8]; 9] =
    [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"CONNECT ", b"OPTIONS ", b"TRACE ", b"PATCH "];

/// Whether the client of a new connection speaks HTTP: its first word is a method. The bytes stay unread. No line of JSON
/// begins with a capital letter.
pub async fn is_http(stream: &UnixStream) -> io::Result<bool> {
    let mut seen_before = 0;
    loop {
        stream.readable().await?;
        let mut first = [0; 8];
        let length = recv(stream, &mut first[..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        let length = match length.map(|(length, _)| length) {
            Ok(length) => length,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => seen_before,
            Err(error) => return Err(error.into()),
        };
        let first = &first[..length];
        if METHODS.iter().any(|method| first.starts_with(method)) {
            return Ok(true);
        }
        // What may still become a method is waited for; nothing more will come after the end.
        let is_beginning = METHODS.iter().any(|method| method.starts_with(first));
        let is_ended = length == seen_before && stream.ready(Interest::READABLE).await?.is_read_closed();
        if !is_beginning || (length > 0 && is_ended) || (length == 0 && is_ended) {
            return Ok(false);
        }
        seen_before = length;
        // Clears the readiness, so that the next wait is for more bytes.
        let _ = stream.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }
}

/// Serves one client until it disconnects, until it is evicted for being idle, or until shortly after the daemon closes.
pub async fn serve<S>(stream: S, peer: HttpPeer, in_flight: Arc<InFlight>, context: HttpContext)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let close = context.0.close.clone();
    let may_half_close = !peer.is_tcp();
    let hosts = peer.is_tcp().then(|| context.0.hosts.clone());
    let rules = AccessRules { hosts, origins: context.0.settings.origins.clone() };
    let caller = Arc::new(Caller { peer, rules, in_flight: Arc::clone(&in_flight), context });
    let service = service_fn(move |request| {
        let caller = Arc::clone(&caller);
        async move { caller.answer(request).await }
    });
    let stream = TokioIo::new(WriteDeadline::new(stream, WRITE_TIMEOUT, Arc::clone(&in_flight)));
    // A client on TCP that ends its direction has left, as far as anybody can tell; on a Unix socket the caller of this
    // function sees the difference.
    let connection = http1::Builder::new()
        .half_close(may_half_close)
        // What shell scripts search for is written as it was before.
        .title_case_headers(true)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(stream, service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => Some(ended),
        // Idle connections have nothing half written.
        () = in_flight.dismissed() => None,
        () = close.cancelled() => {
            in_flight.cancel_all();
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(FLUSH_TIMEOUT, connection).await.ok()
        }
    };
    if let Some(Err(error)) = ended {
        log::debug!("a connection over HTTP ended: {error}");
    }
}
