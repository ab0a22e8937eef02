//! `bitnetd top`: a live view of a running daemon.
//!
//! It requests the report over the socket, as any client can, and draws it. Deliberately knows nothing of how the
//! report is made.

mod alerts;
mod limits;
mod render;
mod report_view;
mod terminal;

use super::daemon_socket::{connection_lost, default_socket, no_daemon, not_bitnetd};
use super::serve::block_on;
use super::{Failure, print};
use crate::protocol::text::one_line;
use render::{Trends, frame, wrap};
use serde_json::Value;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;
use terminal::AlternateScreen;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, timeout};

/// Watch a running daemon
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Top {
    /// The daemon's socket [default: the user's own daemon, else the system's]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Seconds between two updates
    #[arg(long, value_name = "S", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// Print one view and exit, as is also done when the output is no terminal
    #[arg(long)]
    once: bool,
    /// Print the report as one JSON object and exit
    #[arg(long)]
    json: bool,
}

/// Longest wait for a report.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest report that is read in bytes, many times the usual size.
const MAX_REPORT: u64 = 1 << 20;
/// Width of a view that is not written to a terminal.
const DEFAULT_WIDTH: usize = 120;

pub(super) fn run(args: Top) -> Result<(), Failure> {
    block_on(async {
        let path = args.socket.clone().unwrap_or_else(default_socket);
        let mut daemon = DaemonConnection::connect(&path).await?;
        if args.json {
            let report = daemon.request("telemetry").await?;
            return print(format!("{report}\n").as_bytes());
        }
        let report = daemon.report().await?;
        if args.once || !io::stdout().is_terminal() {
            let drawn = frame(&report, &Trends::default(), &path.display().to_string(), DEFAULT_WIDTH, false);
            return print(drawn.as_bytes());
        }
        watch(daemon, report, Duration::from_secs(args.interval)).await
    })?
}

/// Draws until a key or a signal ends it. While the daemon does not answer it is retried, since it is often being
/// restarted.
async fn watch(daemon: DaemonConnection, first: Value, interval: Duration) -> Result<(), Failure> {
    let mut signals = TopSignals::listen().map_err(|error| Failure::system(format!("signals: {error}")))?;
    let mut screen = AlternateScreen::enter().map_err(terminal)?;
    let (path, mut daemon, mut report) = (daemon.path.clone(), Some(daemon), Ok(first));
    let (mut trends, mut last) = (Trends::default(), String::new());
    let mut turn = tokio::time::interval(interval);
    turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
    turn.tick().await; // the first is at once
    loop {
        if let Ok(report) = &report {
            trends.add(report);
        }
        draw(&screen, &report, &trends, &path, &mut last)?;
        let next = async {
            turn.tick().await;
            next_report(&mut daemon, &path).await
        };
        tokio::pin!(next);
        report = loop {
            tokio::select! {
                biased; // keys and signals also work while the daemon hangs
                () = screen.ended_by_key() => return Ok(()),
                sign = signals.next() => match sign {
                    TerminalSignal::Stop => return Ok(()),
                    TerminalSignal::Resized => draw(&screen, &report, &trends, &path, &mut last)?,
                },
                asked = &mut next => break asked,
            }
        };
    }
}

/// The next report, over a new connection if the last one failed.
async fn next_report(daemon: &mut Option<DaemonConnection>, path: &Path) -> Result<Value, Failure> {
    let mut asked = match daemon.take() {
        Some(daemon) => daemon,
        None => DaemonConnection::connect(path).await?,
    };
    let report = asked.report().await?;
    *daemon = Some(asked);
    Ok(report)
}

/// Draws the report; without one, the error above the last view.
fn draw(
    screen: &AlternateScreen,
    report: &Result<Value, Failure>,
    trends: &Trends,
    path: &Path,
    last: &mut String,
) -> Result<(), Failure> {
    let (width, _) = AlternateScreen::size();
    let drawn = match report {
        Ok(report) => {
            *last = frame(report, trends, &path.display().to_string(), width, true);
            last.clone()
        }
        Err(failure) => wrap(&failure.message, width) + last,
    };
    screen.draw(&drawn).map_err(terminal)
}

fn terminal(error: io::Error) -> Failure {
    Failure::system(format!("the terminal: {error}; try --once"))
}

/// A connection to the daemon.
struct DaemonConnection {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl DaemonConnection {
    async fn connect(path: &Path) -> Result<Self, Failure> {
        let stream = UnixStream::connect(path).await.map_err(|error| no_daemon(path, &error))?;
        Ok(DaemonConnection { path: path.to_owned(), stream: BufReader::new(stream) })
    }

    /// Requests the report, and the list of alerts for it.
    async fn report(&mut self) -> Result<Value, Failure> {
        let mut report = self.request("telemetry").await?;
        match self.request("alerts").await {
            Ok(list) => report["alert_list"] = list,
            // A daemon of an earlier version knows no such list.
            Err(Failure { code: 5, .. }) => {}
            Err(failure) => return Err(failure),
        }
        Ok(report)
    }

    /// Requests what the daemon gives under this name, and waits for it.
    async fn request(&mut self, what: &str) -> Result<Value, Failure> {
        // A daemon that refuses the connection may have closed it already; its error event can still be read.
        let _ = self.stream.write_all(format!("{{\"{what}\":true}}\n").as_bytes()).await;
        let mut line = String::new();
        let mut stream = (&mut self.stream).take(MAX_REPORT);
        match timeout(REPORT_TIMEOUT, stream.read_line(&mut line)).await {
            Ok(Ok(length)) if length > 0 => {}
            _ => return Err(connection_lost(&self.path)),
        }
        let report: Value = serde_json::from_str(&line).map_err(|_| not_bitnetd(&self.path))?;
        match report["event"].as_str() {
            Some(event) if event == what => Ok(sanitized(report)),
            Some("error") => Err(refused(&report)),
            _ => Err(not_bitnetd(&self.path)),
        }
    }
}

/// The report without control characters: some of its texts are names that others chose.
fn sanitized(report: Value) -> Value {
    match report {
        Value::String(text) => Value::String(one_line(&text)),
        Value::Array(all) => all.into_iter().map(sanitized).collect(),
        Value::Object(all) => {
            Value::Object(all.into_iter().map(|(key, value)| (key, sanitized(value))).collect())
        }
        other => other,
    }
}

fn refused(report: &Value) -> Failure {
    let reason =
        report["message"].as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    Failure {
        code: 5,
        message: format!("refused ({}): {reason}", report["code"].as_str().unwrap_or_default()),
    }
}

/// What a signal means for the view.
enum TerminalSignal {
    Resized,
    Stop,
}

struct TopSignals {
    resized: Signal,
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl TopSignals {
    fn listen() -> io::Result<Self> {
        Ok(TopSignals {
            resized: signal(SignalKind::window_change())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> TerminalSignal {
        tokio::select! {
            _ = self.resized.recv() => TerminalSignal::Resized,
            _ = self.interrupt.recv() => TerminalSignal::Stop,
            _ = self.terminate.recv() => TerminalSignal::Stop,
            _ = self.hangup.recv() => TerminalSignal::Stop,
        }
    }
}
