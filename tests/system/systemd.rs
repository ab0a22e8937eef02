//! The interface to systemd, tested without systemd: its socket, its notifications, its watchdog.

use crate::daemon::{Daemon, bitnetd, is_emulated, words};
use crate::support::broker::Mosquitto;
use crate::{Folder, endless, linked, text, until};
use serde_json::json;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::Command;

/// The other end of `NOTIFY_SOCKET`.
pub struct Manager(UnixDatagram);

impl Manager {
    pub fn new(folder: &Folder) -> Self {
        let socket = UnixDatagram::bind(folder.path("notify")).expect("a free path");
        socket.set_nonblocking(true).expect("a socket");
        Manager(socket)
    }

    /// A daemon that this manager starts.
    pub fn starts(&self, folder: &Folder, settings: &str) -> Command {
        let mut command = bitnetd();
        command.env("NOTIFY_SOCKET", folder.path("notify"));
        command.arg("serve").arg("--config").arg(folder.config(settings));
        command
    }

    /// Waits for a message with this in it.
    pub async fn hears(&self, wanted: &str) -> String {
        until(wanted, || self.next().filter(|said| said.contains(wanted))).await
    }

    /// The oldest message that was sent and not yet read.
    pub fn next(&self) -> Option<String> {
        let mut bytes = [0; 4096];
        let length = self.0.recv(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }
}

/// A daemon that is given a listening socket, as systemd gives it.
pub fn activated(listener: &impl AsFd, folder: &Folder, arguments: &[&str]) -> Daemon {
    activated_by_name(listener, "unix", folder, arguments)
}

/// The same with a name, as `FileDescriptorName=` gives it.
pub fn activated_by_name(listener: &impl AsFd, name: &str, folder: &Folder, arguments: &[&str]) -> Daemon {
    // The first passed socket is descriptor 3, and LISTEN_PID the number the program itself has.
    let script = r#"exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@""#;
    let passed: OwnedFd = listener.as_fd().try_clone_to_owned().expect("a descriptor");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "sh"]).args(words()).args(arguments).env("LISTEN_FDNAMES", name);
    Daemon::spawn(command.stdin(passed), folder)
}

#[tokio::test]
async fn systemd_is_notified_from_loading_to_stopping() {
    let folder = Folder::new();
    let manager = Manager::new(&folder);
    let settings = format!("{}[queue]\ndrain_ms = 600000\n", endless());
    let mut daemon = Daemon::spawn(&mut manager.starts(&folder, &settings), &folder);
    let loading = manager.hears("STATUS=loading ").await;
    assert!(loading.contains("EXTEND_TIMEOUT_USEC=") && loading.contains("b158-tiny"), "{loading}");
    let ready = manager.hears("READY=1").await;
    assert!(ready.contains("STATUS=answering with "), "{ready}");
    // Nothing more to wait for.
    let mut client = daemon.client().await;
    client.keep_busy().await;
    manager.hears(": 1 running, 0 waiting").await;
    daemon.process.terminate();
    let stopping = manager.hears("STOPPING=1").await;
    assert!(stopping.contains("STATUS=stopping: 1 running, 0 waiting"), "{stopping}");
    assert!(stopping.contains("EXTEND_TIMEOUT_USEC="), "{stopping}");
    client.cancel_busy().await;
    manager.hears("STATUS=stopping: closing connections").await;
    daemon.ends_well().await;
}

#[tokio::test]
async fn the_watchdog_is_fed_while_the_worker_is_idle_and_while_it_works() {
    let folder = Folder::new();
    let manager = Manager::new(&folder);
    let mut command = manager.starts(&folder, &endless());
    let mut daemon = Daemon::spawn(command.env("WATCHDOG_USEC", "2000000"), &folder);
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
async fn the_watchdog_is_fed_while_the_broker_has_nothing_to_say() {
    if is_emulated() {
        return println!("skipped: how long an emulated daemon takes for a turn says nothing");
    }
    let (folder, broker) = (Folder::new(), Mosquitto::start().await);
    let manager = Manager::new(&folder);
    // No report wakes the link up either.
    let quiet = linked(broker.port).replace("interval_s = 1\n", "interval_s = 86400\n");
    let mut daemon = Daemon::spawn(manager.starts(&folder, &quiet).env("WATCHDOG_USEC", "2000000"), &folder);
    daemon.ready().await;
    daemon.says("connected (connection 1").await;
    while manager.next().is_some() {}
    // Every half second: four times as long as the link may stand still.
    for _ in 0..8 {
        manager.hears("WATCHDOG=1").await;
    }
    assert!(!daemon.log().contains("has not moved"), "{}", daemon.log());
}

#[tokio::test]
async fn the_socket_that_systemd_opened_is_used_and_left_alone() {
    let folder = Folder::new();
    let passed = UnixListener::bind(folder.path("s")).expect("a free path");
    let elsewhere = folder.path("elsewhere");
    let config = folder.config("");
    let arguments = ["serve", "--config", text(&config), "--socket", text(&elsewhere)];
    let mut daemon = activated(&passed, &folder, &arguments);
    daemon.ready().await;
    assert_eq!(daemon.client().await.ask(json!({"prompt": "go"})).await["event"], "done");
    assert!(!elsewhere.exists());
    daemon.process.terminate();
    assert_eq!(daemon.process.ended().await.code(), Some(0), "{}", daemon.log());
    assert!(daemon.socket.exists(), "it is systemd's to remove");
}

#[tokio::test]
async fn a_socket_of_the_wrong_kind_ends_the_start_with_the_key_to_write() {
    let folder = Folder::new();
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let path = UnixListener::bind(folder.path("s")).expect("a free path");
    let config = folder.config("");
    let arguments = ["serve", "--config", text(&config)];
    for (name, unit) in [("unix", "bitnetd"), ("http", "bitnetd-http"), ("wyoming", "bitnetd-wyoming")] {
        let mut daemon = match name {
            "unix" => activated_by_name(&tcp, name, &folder, &arguments),
            _ => activated_by_name(&path, name, &folder, &arguments),
        };
        assert_eq!(daemon.process.ended().await.code(), Some(2), "{}", daemon.log());
        let wanted = format!("give {unit}.socket ListenStream=");
        assert!(daemon.log().contains(&wanted), "{name}: {}", daemon.log());
    }
}
