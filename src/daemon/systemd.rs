//! What systemd gives and hears: the socket it holds, READY and STOPPING, the watchdog.
//!
//! Without systemd all of this does nothing.

use super::health::Progress;
use super::queue::Queue;
use log::{error, warn};
use sd_notify::NotifyState;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The listening socket that systemd opened for us, if it did.
pub(super) fn listener() -> io::Result<Option<UnixListener>> {
    listenfd::ListenFd::from_env().take_unix_listener(0)
}

/// The model is loaded and the doors are open.
pub(super) fn ready(model: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(&format!("answering with {model}"))]);
}

/// What a stop takes beyond the drain: the last batch of a prompt, and the doors' farewells.
const AFTER_DRAIN: Duration = Duration::from_secs(15);

/// A stop was asked for; it may take the drain and a little more, whatever the unit's own limit is.
pub(super) fn stopping(drain: Duration) {
    let wanted = u32::try_from((drain + AFTER_DRAIN).as_micros()).unwrap_or(u32::MAX);
    tell(&[
        NotifyState::Stopping,
        NotifyState::ExtendTimeoutUsec(wanted),
        NotifyState::Status("answering what is left"),
    ]);
}

/// Feeds systemd's watchdog, if it set one, as long as the worker makes progress.
pub(super) async fn feed_watchdog(queue: Arc<Queue>) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    // Fed every quarter, a worker is found stuck after two, and the last feed lasts for one more:
    // systemd acts within its own limit.
    let mut progress = Progress::new(limit / 2, Instant::now());
    let mut interval = tokio::time::interval(limit / 4);
    loop {
        interval.tick().await;
        let (waiting, running) = queue.level();
        if progress.is_well(queue.steps(), waiting + running > 0, Instant::now()) {
            tell(&[NotifyState::Watchdog]);
        } else {
            error!("the worker has not moved for {:?}; systemd will start the daemon anew", limit / 2);
        }
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!("systemd cannot be told: {error}");
    }
}
