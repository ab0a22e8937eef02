//! `bitnetd top`: a live view of a running daemon.
//!
//! It asks for the report over the socket as any client can, and draws it. Deliberately knows nothing of how the
//! report comes about.

mod render;
mod terminal;

use super::daemon_socket::{default_socket, lost, no_bitnetd, no_daemon};
use super::serve::block_on;
use super::{Failure, print};
use crate::protocol::text::one_line;
use render::{Trends, frame, wrap};
use serde_json::Value;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;
use terminal::Screen;
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
    /// Seconds between two looks
    #[arg(long, value_name = "S", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// Print one picture and end, as also when the output is no terminal
    #[arg(long)]
    once: bool,
    /// Print the report as one JSON object and end
    #[arg(long)]
    json: bool,
}

/// Longest wait for a report: the daemon has it at hand.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest report that is read: many times one.
const LONGEST: u64 = 1 << 20;
/// How wide a picture is that goes to no terminal.
const WIDE: usize = 120;

pub(super) fn run(args: Top) -> Result<(), Failure> {
    block_on(async {
        let path = args.socket.clone().unwrap_or_else(default_socket);
        let mut daemon = Daemon::connect(&path).await?;
        let report = daemon.report().await?;
        if args.json {
            return print(format!("{report}\n").as_bytes());
        }
        if args.once || !io::stdout().is_terminal() {
            let drawn = frame(&report, &Trends::default(), &path.display().to_string(), WIDE, false);
            return print(drawn.as_bytes());
        }
        watch(daemon, report, Duration::from_secs(args.interval)).await
    })?
}

/// Draws until a key or a signal ends it. A daemon that goes away is waited for: it is often being restarted.
async fn watch(daemon: Daemon, first: Value, interval: Duration) -> Result<(), Failure> {
    let mut signals = Signals::listen().map_err(|error| Failure::system(format!("signals: {error}")))?;
    let mut screen = Screen::enter().map_err(terminal)?;
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
            ask(&mut daemon, &path).await
        };
        tokio::pin!(next);
        report = loop {
            tokio::select! {
                biased; // a daemon that hangs is watched too, and who watches it is heard at once
                () = screen.end() => return Ok(()),
                sign = signals.next() => match sign {
                    Sign::Stop => return Ok(()),
                    Sign::Resized => draw(&screen, &report, &trends, &path, &mut last)?,
                },
                asked = &mut next => break asked,
            }
        };
    }
}

/// The next report, over a new connection where the last one failed.
async fn ask(daemon: &mut Option<Daemon>, path: &Path) -> Result<Value, Failure> {
    let mut asked = match daemon.take() {
        Some(daemon) => daemon,
        None => Daemon::connect(path).await?,
    };
    let report = asked.report().await?;
    *daemon = Some(asked);
    Ok(report)
}

/// Draws the report; without one, the last picture under a line that says why.
fn draw(
    screen: &Screen,
    report: &Result<Value, Failure>,
    trends: &Trends,
    path: &Path,
    last: &mut String,
) -> Result<(), Failure> {
    let (width, _) = Screen::size();
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
struct Daemon {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Daemon {
    async fn connect(path: &Path) -> Result<Self, Failure> {
        let stream = UnixStream::connect(path).await.map_err(|error| no_daemon(path, &error))?;
        Ok(Daemon { path: path.to_owned(), stream: BufReader::new(stream) })
    }

    /// Asks for the report and waits for it.
    async fn report(&mut self) -> Result<Value, Failure> {
        // A daemon that turns us away may have closed already; what it said is still there to read.
        let _ = self.stream.write_all(b"{\"telemetry\":true}\n").await;
        let mut line = String::new();
        let mut stream = (&mut self.stream).take(LONGEST);
        match timeout(PATIENCE, stream.read_line(&mut line)).await {
            Ok(Ok(length)) if length > 0 => {}
            _ => return Err(lost(&self.path)),
        }
        let report: Value = serde_json::from_str(&line).map_err(|_| no_bitnetd(&self.path))?;
        match report["event"].as_str() {
            Some("telemetry") => Ok(shown(report)),
            Some("error") => Err(refused(&report)),
            _ => Err(no_bitnetd(&self.path)),
        }
    }
}

/// The report without anything that a terminal obeys: some of its texts are names that others chose.
fn shown(report: Value) -> Value {
    match report {
        Value::String(text) => Value::String(one_line(&text)),
        Value::Array(all) => all.into_iter().map(shown).collect(),
        Value::Object(all) => {
            Value::Object(all.into_iter().map(|(key, value)| (key, shown(value))).collect())
        }
        other => other,
    }
}

fn refused(report: &Value) -> Failure {
    let said =
        report["message"].as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    Failure { code: 5, message: format!("refused ({}): {said}", report["code"].as_str().unwrap_or_default()) }
}

/// What a signal says to a view.
enum Sign {
    Resized,
    Stop,
}

struct Signals {
    resized: Signal,
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Signals {
            resized: signal(SignalKind::window_change())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Sign {
        tokio::select! {
            _ = self.resized.recv() => Sign::Resized,
            _ = self.interrupt.recv() => Sign::Stop,
            _ = self.terminate.recv() => Sign::Stop,
            _ = self.hangup.recv() => Sign::Stop,
        }
    }
}
