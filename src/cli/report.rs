//! `bitnetd report`: what a running daemon has observed in the last hours.
//!
//! It calls `GET /report` on the daemon's socket, since a report may be longer than a line of the socket: the daemon writes
//! the whole report, and this prints it. Deliberately knows no number of it.

use super::daemon_socket::{connection_lost, default_socket, no_daemon, not_bitnetd};
use super::serve::block_on;
use super::{Failure, print};
use crate::protocol::text::one_line;
use crate::telemetry::history::{MAX_HOURS, ReportForm, ReportRequest, price};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Show what a running daemon did in the last hours
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ReportArgs {
    /// The daemon's socket [default: the user's own daemon, else the system's]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The last so many hours
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_HOURS)))]
    hours: u32,
    /// Print the summary and all steps as one JSON object
    #[arg(long, conflicts_with_all = ["csv", "html"])]
    json: bool,
    /// Print all steps, one a line
    #[arg(long, conflicts_with = "html")]
    csv: bool,
    /// Write one page with plots to a file; - is standard output
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// What a kilowatt hour costs, to see the cost of the energy
    #[arg(long, value_name = "P", value_parser = parse_price)]
    price: Option<f64>,
}

/// Longest wait for the report: a daemon on a small device that computes has it in a second.
const REPORT_TIMEOUT: Duration = Duration::from_secs(60);
/// The largest report that is read in bytes, many times the usual size.
const MAX_REPORT: u64 = 16 << 20;

fn parse_price(text: &str) -> Result<f64, String> {
    price(text).ok_or_else(|| "give what a kilowatt hour costs, as 0.30".into())
}

pub(super) fn run(args: ReportArgs) -> Result<(), Failure> {
    let form = match (args.json, args.csv, &args.html) {
        (true, ..) => ReportForm::Json,
        (_, true, _) => ReportForm::Csv,
        (.., Some(_)) => ReportForm::Html,
        _ => ReportForm::Text,
    };
    let request = ReportRequest { hours: args.hours, form, price: args.price };
    let path = args.socket.unwrap_or_else(default_socket);
    let report = block_on(fetch(&path, &request))??;
    match args.html.filter(|file| file.as_os_str() != "-") {
        Some(file) => std::fs::write(&file, report)
            .map_err(|error| Failure::system(format!("{}: {error}", file.display()))),
        None => print(&report),
    }
}

/// The report of the daemon at a socket.
async fn fetch(path: &Path, request: &ReportRequest) -> Result<Vec<u8>, Failure> {
    let mut stream = UnixStream::connect(path).await.map_err(|error| no_daemon(path, &error))?;
    let call =
        format!("GET /report?{} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", request.query());
    // A daemon that refuses the connection may have closed it already; its answer can still be read.
    let _ = stream.write_all(call.as_bytes()).await;
    let mut answer = Vec::new();
    let mut stream = stream.take(MAX_REPORT);
    let reading = stream.read_to_end(&mut answer);
    let read: io::Result<usize> =
        timeout(REPORT_TIMEOUT, reading).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    if read.is_err() || answer.is_empty() {
        return Err(connection_lost(path));
    }
    let HttpAnswer { status, length, body } = HttpAnswer::read(&answer).ok_or_else(|| not_bitnetd(path))?;
    match status {
        200 if length == Some(body.len()) => Ok(body.to_vec()),
        200 => Err(connection_lost(path)),
        404 => Err(not_bitnetd(path)),
        400 => Err(Failure { code: 5, message: shown(path, body) }),
        _ => Err(Failure::system(shown(path, body))),
    }
}

/// A reason that the daemon gave, in one line.
fn shown(path: &Path, body: &[u8]) -> String {
    format!("{}: {}", path.display(), one_line(String::from_utf8_lossy(body).trim()))
}

/// A whole answer of an HTTP server whose body has a known length.
struct HttpAnswer<'a> {
    status: u16,
    length: Option<usize>,
    body: &'a [u8],
}

impl<'a> HttpAnswer<'a> {
    /// `None` where the bytes are no such answer.
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
        let mut lines = std::str::from_utf8(&bytes[..end]).ok()?.split("\r\n");
        let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
        let fields = lines.filter_map(|line| line.split_once(':'));
        let mut lengths = fields.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let length = lengths.next().and_then(|(_, value)| value.trim().parse().ok());
        Some(HttpAnswer { status, length, body: &bytes[end + 4..] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_split_into_status_and_body() {
        let answer = HttpAnswer::read(b"HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 6\r\n\r\n\r\n\r\nab");
        let answer = answer.expect("an answer");
        assert_eq!((answer.status, answer.length, answer.body), (200, Some(6), &b"\r\n\r\nab"[..]));
    }

    #[test]
    fn what_is_no_answer_is_none() {
        for bytes in [
            &b"{\"event\":\"error\"}\n"[..],
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 x\r\n\r\n",
            b"\xff\r\n\r\n",
            b"",
        ] {
            assert!(HttpAnswer::read(bytes).is_none());
        }
    }
}
