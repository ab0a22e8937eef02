//! What systemd passes to the daemon and hears of it, without a systemd.

use crate::daemon::{Daemon, bitnetd, words};
use crate::{Folder, text, until};
use serde_json::json;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::Command;

/// The other end of `NOTIFY_SOCKET`.
struct Manager(UnixDatagram);

impl Manager {
    fn new(folder: &Folder) -> Self {
        let socket = UnixDatagram::bind(folder.path("notify")).expect("a free path");
        socket.set_nonblocking(true).expect("a socket");
        Manager(socket)
    }

    /// Waits for a message with this in it.
    async fn hears(&self, wanted: &str) -> String {
        until(wanted, || self.next().filter(|said| said.contains(wanted))).await
    }

    fn next(&self) -> Option<String> {
        let mut bytes = [0; 4096];
        let length = self.0.recv(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }
}

#[tokio::test]
async fn systemd_hears_when_it_is_ready_and_when_it_stops() {
    let folder = Folder::new();
    let manager = Manager::new(&folder);
    let mut command = bitnetd();
    command.env("NOTIFY_SOCKET", folder.path("notify")).arg("serve").arg("--config").arg(folder.config(""));
    let mut daemon = Daemon::spawn(&mut command, &folder);
    let ready = manager.hears("READY=1").await;
    assert!(ready.contains("STATUS=") && ready.contains("home-intents"), "{ready}");
    // Nothing more to wait for.
    assert_eq!(daemon.client().await.ask(json!({"prompt": "go"})).await["event"], "done");
    daemon.process.terminate();
    let stopping = manager.hears("STOPPING=1").await;
    assert!(stopping.contains("STATUS="), "{stopping}");
    daemon.ends_well().await;
}

#[tokio::test]
async fn the_watchdog_is_fed_while_the_worker_is_idle_and_while_it_works() {
    let folder = Folder::new();
    let manager = Manager::new(&folder);
    let mut command = bitnetd();
    command.env("NOTIFY_SOCKET", folder.path("notify")).env("WATCHDOG_USEC", "2000000");
    command.arg("serve").arg("--config").arg(folder.config(&crate::endless()));
    let mut daemon = Daemon::spawn(&mut command, &folder);
    daemon.ready().await;
    for _ in 0..2 {
        manager.hears("WATCHDOG=1").await;
    }
    let mut client = daemon.client().await;
    client.keep_busy().await;
    while manager.next().is_some() {}
    for _ in 0..3 {
        manager.hears("WATCHDOG=1").await;
    }
    client.cancel_busy().await;
    assert_eq!(client.end().await["finish_reason"], "cancelled", "it was busy all the while");
}

#[tokio::test]
async fn the_socket_that_systemd_opened_is_used_and_left_alone() {
    let folder = Folder::new();
    let passed = UnixListener::bind(folder.path("s")).expect("a free path");
    // The first passed socket is descriptor 3, and LISTEN_PID the number the program itself has.
    let script = r#"exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@""#;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "sh"]).args(words());
    let elsewhere = folder.path("elsewhere");
    command.args(["serve", "--config", text(&folder.config("")), "--socket", text(&elsewhere)]);
    let mut daemon = Daemon::spawn(command.stdin(OwnedFd::from(passed)), &folder);
    daemon.ready().await;
    assert_eq!(daemon.client().await.ask(json!({"prompt": "go"})).await["event"], "done");
    assert!(!elsewhere.exists());
    daemon.process.terminate();
    assert_eq!(daemon.process.ended().await.code(), Some(0), "{}", daemon.log());
    assert!(daemon.socket.exists(), "it is systemd's to remove");
}
