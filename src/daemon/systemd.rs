//! What systemd gives and hears: the socket it holds, how it goes, how long it may take, the watchdog.
//!
//! Without systemd all of this does nothing.

use super::health::Watch;
use super::queue::Queue;
use super::status::Status;
use crate::protocol::MqttLink;
use crate::telemetry::Telemetry;
use crate::transport::Heartbeat;
use log::{error, warn};
use sd_notify::NotifyState;
use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

/// Between two lines of status, and between two requests for more time.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);
/// What is asked for at once while a model loads: enough for a disk that hangs for a while.
const LOAD_EXTENSION: Duration = Duration::from_secs(60);
/// No card takes this long to give a model that fits a small board: whatever it is, it is no loading.
const LONGEST_LOAD: Duration = Duration::from_secs(3600);
/// What is asked for at once while it stops.
const STOP_EXTENSION: Duration = Duration::from_secs(20);
/// What a stop takes after the drain: the last step of the worker, and the doors' farewells.
pub(super) const AFTER_DRAIN: Duration = Duration::from_secs(45);

/// No loop turns more often, however short systemd's watchdog is.
const SHORTEST_TURN: Duration = Duration::from_millis(10);

/// The listening socket that systemd opened for us, if it did.
pub(super) fn listener() -> io::Result<Option<UnixListener>> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut sockets = listenfd::ListenFd::from_env();
    match chosen(sockets.len(), &names).map_err(io::Error::other)? {
        Some(at) => sockets.take_unix_listener(at).map_err(|error| unusable(&error)),
        None => Ok(None),
    }
}

/// The error for a socket from systemd on which no client of ours can connect.
fn unusable(error: &io::Error) -> io::Error {
    io::Error::other(format!(
        "the socket that systemd hands over is no Unix stream socket ({error}); give bitnetd.socket ListenStream= with \
         a path, and neither a port nor ListenDatagram="
    ))
}

/// Which of so many sockets is the one of the requests; the names are as in `LISTEN_FDNAMES`.
fn chosen(count: usize, names: &str) -> Result<Option<usize>, String> {
    match count {
        0 => Ok(None),
        1 => Ok(Some(0)),
        // Nothing would listen on the others, and their clients would wait for ever.
        _ => Err(format!(
            "systemd hands over {count} sockets ({}), and the daemon serves one; leave one ListenStream= in \
             bitnetd.socket, and no other .socket unit with Service=bitnetd.service",
            names.replace(':', ", ")
        )),
    }
}

/// Asks for more time for as long as it is polled, within [`LONGEST_LOAD`].
pub(super) async fn loading(what: &str) -> Infallible {
    let begun = Instant::now();
    let status = format!("loading {what}");
    while begun.elapsed() < LONGEST_LOAD {
        tell(&[extension(LOAD_EXTENSION), NotifyState::Status(&status)]);
        sleep(STATUS_INTERVAL).await;
    }
    warn!("the model is not loaded after {LONGEST_LOAD:?}; systemd is asked for no more time");
    std::future::pending().await
}

/// The model is loaded and the doors are open.
pub(super) fn ready(model: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(&format!("answering with {model}"))]);
}

/// The configuration is being read again; [`reloaded`] ends it.
pub(super) fn reloading() {
    // From systemd 253 on the time is what tells this reload from an older one.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => warn!("no clock for systemd: {error}"),
    }
}

/// Ready again, with the new settings or with the old ones.
pub(super) fn reloaded() {
    tell(&[NotifyState::Ready]);
}

/// A stop was asked for.
pub(super) fn stopping(queue: &Queue) {
    tell(&[NotifyState::Stopping, extension(STOP_EXTENSION), NotifyState::Status(&left(queue))]);
}

/// Says how many requests are left, and asks for more time, for as long as it is polled.
pub(super) async fn drain(queue: &Queue) -> Infallible {
    loop {
        sleep(STATUS_INTERVAL).await;
        tell(&[extension(STOP_EXTENSION), NotifyState::Status(&left(queue))]);
    }
}

fn left(queue: &Queue) -> String {
    let (waiting, running) = queue.level();
    format!("stopping: {running} running, {waiting} waiting")
}

/// What is left is told; the doors close.
pub(super) fn closing() {
    tell(&[extension(AFTER_DRAIN), NotifyState::Status("stopping: closing the doors")]);
}

fn extension(time: Duration) -> NotifyState<'static> {
    NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))
}

/// What the status is made of, again and again.
pub(super) struct Observer {
    pub model: String,
    pub queue: Arc<Queue>,
    pub telemetry: Arc<Telemetry>,
    pub link: Option<watch::Receiver<MqttLink>>,
}

impl Observer {
    /// Says what changed, and no more often than anybody could read it; nothing any more once it is
    /// `draining`, which has lines of its own.
    pub async fn run(self, draining: CancellationToken) {
        if notify_socket().is_none() {
            return std::future::pending().await; // nobody to tell
        }
        let mut said = String::new();
        while !draining.is_cancelled() {
            let status = self.status();
            if status != said {
                tell(&[NotifyState::Status(&status)]);
                said = status;
            }
            sleep(STATUS_INTERVAL).await;
        }
        std::future::pending().await
    }

    fn status(&self) -> String {
        let (waiting, running) = self.queue.level();
        let link = self.link.as_ref().map(watch::Receiver::borrow);
        let tokens_per_second = self.telemetry.tokens_per_second();
        let (model, alerts) = (&self.model, self.telemetry.raised_alerts());
        Status { model, waiting, running, tokens_per_second, alerts, link: link.as_deref() }.to_string()
    }
}

/// How long systemd waits for a sign of life, if it does. 0 is no watchdog.
pub(super) fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero())
}

/// How often a loop has to turn so that nobody takes it for stuck.
pub(super) fn turn() -> Duration {
    watchdog().map_or(Duration::from_secs(3600), |limit| (limit / 8).max(SHORTEST_TURN))
}

/// Feeds systemd's watchdog, if it set one, as long as nothing is stuck. It runs on the thread of the
/// doors: where that one is stuck, nobody feeds.
pub(super) async fn feed_watchdog(queue: Arc<Queue>, link: Option<Heartbeat>) {
    let Some(limit) = watchdog() else { return std::future::pending().await };
    // Fed every quarter, a part is found stuck after two, and the last feed lasts for one more:
    // systemd acts within its own limit.
    let mut watch = Watch::new(limit / 2, link, Instant::now());
    let mut interval = interval((limit / 4).max(SHORTEST_TURN));
    let mut told = None;
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        // After a pause of the whole process the loops have their turn before they are judged.
        tokio::task::yield_now().await;
        let (waiting, running) = queue.level();
        match watch.stuck(queue.steps(), waiting + running > 0, Instant::now()) {
            None => {
                told = None;
                tell(&[NotifyState::Watchdog]);
            }
            Some(part) if told != Some(part) => {
                told = Some(part);
                tell_stuck(part, limit / 2);
            }
            Some(_) => {}
        }
    }
}

fn tell_stuck(part: &str, time: Duration) {
    error!("{part} has not moved for {time:?}; systemd will start the daemon anew");
    tell(&[NotifyState::Status(&format!("stuck: {part} has not moved for {time:?}"))]);
}

/// Where systemd reads what it is told, if it wants to know. An empty variable is one that is not set.
fn notify_socket() -> Option<OsString> {
    std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty())
}

/// Tells systemd, if it wants to know. That it cannot be told is said once, and stops nothing.
fn tell(state: &[NotifyState<'_>]) {
    static IS_SAID: AtomicBool = AtomicBool::new(false);
    let Some(socket) = notify_socket() else { return };
    if let Err(error) = send(&socket, state)
        && is_worth_a_warning(&error)
        && !IS_SAID.swap(true, Ordering::Relaxed)
    {
        let socket = socket.to_string_lossy();
        warn!("NOTIFY_SOCKET {socket}: systemd cannot be told: {error}; it is not said again");
    }
}

/// Whether nothing will be read there. A reader that is slow for a moment is none: it is told the next state.
fn is_worth_a_warning(error: &io::Error) -> bool {
    error.kind() != io::ErrorKind::WouldBlock
}

/// One datagram with a state a line. Waits for nobody.
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
    fn an_abstract_socket_is_told_like_one_with_a_path() {
        let name = format!("bitnetd-test-notify-{}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        let address = SocketAddr::from_abstract_name(&name).expect("short");
        let by_name = UnixDatagram::bind_addr(&address).expect("free");
        let by_path = UnixDatagram::bind(&path).expect("free");
        for (told, reader) in [(OsStr::new(&format!("@{name}")), by_name), (path.as_os_str(), by_path)] {
            send(told, &[NotifyState::Ready, NotifyState::Status("a")]).expect("somebody listens");
            let mut heard = [0; 64];
            let length = reader.recv(&mut heard).expect("it was sent");
            assert_eq!(&heard[..length], b"READY=1\nSTATUS=a\n");
        }
        let _ = std::fs::remove_file(&path);
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

    #[test]
    fn a_socket_of_another_kind_is_refused_by_the_key_to_write() {
        let said = unusable(&io::Error::other("a datagram socket")).to_string();
        assert!(said.contains("ListenStream=") && said.contains("a datagram socket"), "{said}");
    }

    #[test]
    fn of_several_sockets_none_is_left_unserved() {
        assert_eq!(chosen(0, ""), Ok(None));
        assert_eq!(chosen(1, ""), Ok(Some(0)));
        assert_eq!(chosen(1, "requests"), Ok(Some(0)));
        let said = chosen(2, "bitnetd.socket:bitnetd-http.socket").expect_err("one is not served");
        assert!(said.contains("bitnetd-http.socket") && said.contains("2 sockets"), "{said}");
    }
}
