//! The interface to systemd: socket activation, readiness and status notifications, timeout extensions, the
//! watchdog.
//!
//! Without systemd all of this does nothing. Deliberately decides nothing about the daemon.

mod sockets;
mod status_line;
mod watchdog;

pub(super) use sockets::{PassedSockets, passed_sockets};

use super::queue::Queue;
use crate::protocol::MqttLink;
use crate::telemetry::Telemetry;
use crate::transport::Heartbeat;
use log::{error, warn};
use sd_notify::NotifyState;
use status_line::StatusLine;
use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
pub(super) use watchdog::StallDetector;

/// Time between two status lines, and between two timeout extensions.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);
/// The timeout extension while a model loads: enough for a disk that stalls for a while.
const LOAD_EXTENSION: Duration = Duration::from_secs(60);
/// No card takes this long to read a model that fits a small board, so something is wrong.
const MAX_LOAD_TIME: Duration = Duration::from_secs(3600);
/// The timeout extension while the daemon stops.
const STOP_EXTENSION: Duration = Duration::from_secs(20);
/// The longest time that a stop takes after the drain: the last step of the worker, and closing all connections.
pub(super) const AFTER_DRAIN: Duration = Duration::from_secs(45);

/// The shortest interval of a loop, however short systemd's watchdog timeout is.
const MIN_LOOP_INTERVAL: Duration = Duration::from_millis(10);

/// Extends the start timeout for as long as it is polled, within [`MAX_LOAD_TIME`].
pub(super) async fn loading(what: &str) -> Infallible {
    let begun = Instant::now();
    let status = format!("loading {what}");
    while begun.elapsed() < MAX_LOAD_TIME {
        notify(&[extension(LOAD_EXTENSION), NotifyState::Status(&status)]);
        sleep(STATUS_INTERVAL).await;
    }
    warn!("the model is not loaded after {MAX_LOAD_TIME:?}; systemd is asked for no more time");
    std::future::pending().await
}

/// Extends the time of a reload while another model is loaded in the place of the running one, within [`MAX_LOAD_TIME`]. The worker
/// counts as progressing then, as it does at the start, when it has no work yet.
pub(super) async fn loading_beside(queue: &Queue) -> Infallible {
    let begun = Instant::now();
    loop {
        if begun.elapsed() < MAX_LOAD_TIME {
            notify(&[extension(LOAD_EXTENSION)]);
            count_loading(queue);
        }
        sleep(STATUS_INTERVAL).await;
    }
}

/// Loading a model is one step for the worker, which takes longer than its watchdog allows.
fn count_loading(queue: &Queue) {
    if queue.is_loading() {
        queue.worker.count_step();
    }
}

/// The model is loaded and the transports are listening.
pub(super) fn ready(model: &str, addresses: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(&format!("answering with {model}; {addresses}"))]);
}

/// A reload has begun; [`reloaded`] ends it.
pub(super) fn reloading() {
    // From version 253 on systemd distinguishes reloads by this time.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => warn!("no clock for systemd: {error}"),
    }
}

/// The reload has ended, with the new settings or with the old ones.
pub(super) fn reloaded() {
    notify(&[NotifyState::Ready]);
}

/// The daemon was asked to stop.
pub(super) fn stopping(queue: &Queue) {
    notify(&[NotifyState::Stopping, extension(STOP_EXTENSION), NotifyState::Status(&remaining(queue))]);
}

/// Reports how many requests remain, and extends the stop timeout, for as long as it is polled.
pub(super) async fn drain(queue: &Queue) -> Infallible {
    loop {
        sleep(STATUS_INTERVAL).await;
        count_loading(queue);
        notify(&[extension(STOP_EXTENSION), NotifyState::Status(&remaining(queue))]);
    }
}

fn remaining(queue: &Queue) -> String {
    let (waiting, running) = queue.level();
    format!("stopping: {running} running, {waiting} waiting")
}

/// The requests are done; connections are being closed.
pub(super) fn closing_connections() {
    notify(&[extension(AFTER_DRAIN), NotifyState::Status("stopping: closing connections")]);
}

fn extension(time: Duration) -> NotifyState<'static> {
    NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))
}

/// Sends the status line whenever it has changed.
pub(super) struct StatusReporter {
    pub queue: Arc<Queue>,
    pub telemetry: Arc<Telemetry>,
    pub link: Option<watch::Receiver<MqttLink>>,
    /// Where clients reach the daemon.
    pub addresses: String,
}

impl StatusReporter {
    /// Sends the status line every [`STATUS_INTERVAL`], if it has changed. Once the daemon is `draining` it sends
    /// nothing, since draining has status lines of its own.
    pub async fn run(self, draining: CancellationToken) {
        if notify_socket().is_none() {
            return std::future::pending().await; // not started by systemd
        }
        let mut message = String::new();
        while !draining.is_cancelled() {
            let status = self.status();
            if status != message {
                notify(&[NotifyState::Status(&status)]);
                message = status;
            }
            sleep(STATUS_INTERVAL).await;
        }
        std::future::pending().await
    }

    fn status(&self) -> String {
        let (waiting, running) = self.queue.level();
        if let Some(what) = self.queue.loading() {
            return format!("loading {what}: {waiting} waiting");
        }
        let link = self.link.as_ref().map(watch::Receiver::borrow);
        let tokens_per_second = self.telemetry.tokens_per_second();
        let (about, alerts) = (self.telemetry.about(), self.telemetry.raised_alerts());
        let model = about.as_ref().map_or("no model", |about| &about.model);
        let (link, addresses) = (link.as_deref(), self.addresses.as_str());
        StatusLine { model, waiting, running, tokens_per_second, alerts, link, addresses }.to_string()
    }
}

/// systemd's watchdog timeout, if it set one. 0 is no watchdog.
pub(super) fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero())
}

/// The longest interval of a loop that is not to be taken for stalled.
pub(super) fn max_loop_interval() -> Duration {
    watchdog().map_or(Duration::from_secs(3600), |limit| (limit / 8).max(MIN_LOOP_INTERVAL))
}

/// Notifies systemd's watchdog, if it set one, as long as nothing has stalled. It runs on the thread of the
/// transports, so that a stall of that thread is noticed as well.
pub(super) async fn feed_watchdog(queue: Arc<Queue>, link: Option<Heartbeat>) {
    let Some(limit) = watchdog() else { return std::future::pending().await };
    // Notified every quarter of the timeout, a part counts as stalled after two quarters, and the last notification
    // is valid for one more, so systemd acts within its own timeout.
    let mut watch = StallDetector::new(limit / 2, link, Instant::now());
    let mut interval = interval((limit / 4).max(MIN_LOOP_INTERVAL));
    let mut reported = None;
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        // After a pause of the whole process the loops run first, before they are checked.
        tokio::task::yield_now().await;
        let (waiting, running) = queue.level();
        match watch.stuck(queue.worker.steps(), waiting + running > 0, Instant::now()) {
            None => {
                reported = None;
                notify(&[NotifyState::Watchdog]);
            }
            Some(part) if reported != Some(part) => {
                reported = Some(part);
                notify_stuck(part, limit / 2);
            }
            Some(_) => {}
        }
    }
}

fn notify_stuck(part: &str, time: Duration) {
    error!("{part} has not moved for {time:?}; systemd will start the daemon anew");
    notify(&[NotifyState::Status(&format!("stuck: {part} has not moved for {time:?}"))]);
}

/// The socket on which systemd reads notifications, if any. An empty variable counts as unset.
fn notify_socket() -> Option<OsString> {
    std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty())
}

/// Notifies systemd, where NOTIFY_SOCKET is set. A failure is logged once and has no other effect.
fn notify(state: &[NotifyState<'_>]) {
    static IS_LOGGED: AtomicBool = AtomicBool::new(false);
    let Some(socket) = notify_socket() else { return };
    if let Err(error) = send(&socket, state)
        && is_worth_a_warning(&error)
        && !IS_LOGGED.swap(true, Ordering::Relaxed)
    {
        let socket = socket.to_string_lossy();
        warn!("NOTIFY_SOCKET {socket}: systemd cannot be notified: {error}; this is logged once only");
    }
}

/// Whether the notification socket is of no use. A reader that is slow for a moment gets the next state.
fn is_worth_a_warning(error: &io::Error) -> bool {
    error.kind() != io::ErrorKind::WouldBlock
}

/// Sends one datagram with a state a line, without blocking.
fn send(socket: &OsStr, state: &[NotifyState<'_>]) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(socket)?,
        _ => return Err(io::Error::other("neither a path nor an abstract name (@…)")),
    };
    let lines: String = state.iter().map(|state| format!("{state}\n")).collect();
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    sender.send_to_addr(lines.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_abstract_socket_is_notified_like_one_with_a_path() {
        let name = format!("bitnetd-test-notify-{}", std::process::id());
        let folder = tempfile::TempDir::with_prefix("bitnetd-").expect("a temporary folder");
        let path = folder.path().join("notify");
        let address = SocketAddr::from_abstract_name(&name).expect("short");
        let by_name = UnixDatagram::bind_addr(&address).expect("free");
        let by_path = UnixDatagram::bind(&path).expect("free");
        for (reported, reader) in [(OsStr::new(&format!("@{name}")), by_name), (path.as_os_str(), by_path)] {
            send(reported, &[NotifyState::Ready, NotifyState::Status("a")]).expect("somebody listens");
            let mut received = [0; 64];
            let length = reader.recv(&mut received).expect("it was sent");
            assert_eq!(&received[..length], b"READY=1\nSTATUS=a\n");
        }
        for unusable in ["vsock:2:1234", "", "/nonexistent/notify"] {
            send(OsStr::new(unusable), &[NotifyState::Ready]).expect_err("nobody can listen there");
        }
    }

    #[test]
    fn a_reader_that_is_slow_is_worth_no_warning() {
        let name = format!("bitnetd-test-slow-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("short");
        let _reader = UnixDatagram::bind_addr(&address).expect("free");
        let name = format!("@{name}");
        let full = (0..100_000).find_map(|_| send(OsStr::new(&name), &[NotifyState::Watchdog]).err());
        let error = full.expect("the reader's queue is bounded");
        assert!(!is_worth_a_warning(&error), "{error}");
        let gone = send(OsStr::new("/nonexistent/notify"), &[NotifyState::Ready]).expect_err("nobody");
        assert!(is_worth_a_warning(&gone), "{gone}");
    }
}
