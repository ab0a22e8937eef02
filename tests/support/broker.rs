//! A real mosquitto on a loopback port of its own, and its command-line clients.

use super::{output, spawn};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Longest wait for anything in these tests; they share slow machines.
const PATIENCE: Duration = Duration::from_secs(120);

/// A broker; killed, and its files removed, when dropped.
pub struct Mosquitto {
    /// Where it listens, on the loopback address.
    pub port: u16,
    folder: TempDir,
    child: Option<Child>,
}

impl Mosquitto {
    /// Written at once, so that a kill loses nothing that was acknowledged.
    pub const PERSISTENT: &str = "persistence true\nautosave_on_changes true\nautosave_interval 1\n";

    /// A broker without persistence.
    pub async fn start() -> Self {
        Self::with("").await
    }

    /// A broker that keeps sessions and messages on disk.
    pub async fn persistent() -> Self {
        Self::with(Self::PERSISTENT).await
    }

    /// A broker with more lines in its configuration.
    pub async fn with(lines: &str) -> Self {
        let mut broker = Mosquitto { port: free_port(), folder: folder(), child: None };
        broker.change(lines);
        broker.restart().await;
        broker
    }

    /// A broker whose configuration needs files in its folder.
    pub async fn made(lines: impl FnOnce(&Path) -> String) -> Self {
        let mut broker = Mosquitto { port: free_port(), folder: folder(), child: None };
        broker.configure(&lines(broker.folder.path()));
        broker.restart().await;
        broker
    }

    /// A broker with one user.
    pub async fn with_user(name: &str, password: &str) -> Self {
        Self::made(|folder| {
            let users = folder.join("users");
            std::fs::write(&users, format!("{name}:{password}\n")).expect("a temporary folder");
            let hashed = output(program("mosquitto_passwd").arg("-U").arg(&users));
            assert!(hashed.expect("mosquitto_passwd comes with mosquitto").status.success());
            format!("allow_anonymous false\npassword_file {}\n", users.display())
        })
        .await
    }

    fn configure(&self, lines: &str) {
        let (port, place) = (self.port, self.folder.path().display());
        // `user` matters only to root, from which mosquitto would drop to a user of its own that
        // may not write here.
        let text = format!(
            "listener {port} 127.0.0.1\nuser root\npersistence_location {place}/\n\
             log_dest file {place}/log\nlog_type all\n{lines}"
        );
        std::fs::write(self.path("mosquitto.conf"), text).expect("a temporary folder");
    }

    /// Replaces the additional lines of its configuration, from its next start on.
    pub fn change(&self, lines: &str) {
        self.configure(&format!("allow_anonymous true\n{lines}"));
    }

    /// A file beside its configuration.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts it again on its port, after [`Mosquitto::kill`].
    pub async fn restart(&mut self) {
        let mut mosquitto = broker_program();
        mosquitto.arg("-c").arg(self.folder.path().join("mosquitto.conf"));
        let child = spawn(mosquitto.stdout(Stdio::null()).stderr(Stdio::null()));
        self.child =
            Some(child.expect("mosquitto is installed (Debian: mosquitto), or named by BITNETD_MOSQUITTO"));
        let up = async {
            while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.is_err() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, up).await.expect("mosquitto listens");
    }

    /// Kills it, so that its connections are not closed in order.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// All it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// How often a client of this id was accepted, by the broker's own log.
    pub fn connects(&self, client: &str) -> usize {
        self.connect_times(client).len()
    }

    /// When, in seconds since 1970.
    pub fn connect_times(&self, client: &str) -> Vec<u64> {
        let accepted =
            |line: &&str| line.contains("New client connected") && line.contains(&format!(" as {client} "));
        let time = |line: &str| line.split(':').next().and_then(|time| time.parse().ok());
        self.log()
            .lines()
            .filter(accepted)
            .map(|line| time(line).expect("mosquitto writes the time first"))
            .collect()
    }

    /// Runs `mosquitto_pub` with these arguments to its end.
    pub async fn publish(&self, args: &[&str]) {
        let child = self.client("mosquitto_pub", args);
        assert!(finish(child).await.1, "mosquitto_pub {args:?}");
    }

    /// Begins `mosquitto_sub` with these arguments, and waits until it is subscribed.
    pub async fn subscribe(&self, args: &[&str]) -> Subscriber {
        let before = self.subscriptions();
        let child = self.client("mosquitto_sub", args);
        let subscribed = async {
            while self.subscriptions() == before {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, subscribed).await.expect("mosquitto_sub subscribes");
        Subscriber(child)
    }

    fn subscriptions(&self) -> usize {
        self.log().lines().filter(|line| line.contains("Received SUBSCRIBE from")).count()
    }

    fn client(&self, name: &str, args: &[&str]) -> Child {
        let child = spawn(&mut self.command(name, args));
        child.expect("mosquitto's clients are installed (Debian: mosquitto-clients)")
    }

    fn command(&self, name: &str, args: &[&str]) -> Command {
        let mut command = program(name);
        command.args(["-V", "5", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
        command.args(args).stdout(Stdio::piped());
        command
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A running `mosquitto_sub`; give it `-C` and `-W`, so that it ends, or end it.
pub struct Subscriber(pub Child);

impl Subscriber {
    /// What it printed, once it has ended.
    pub async fn output(self) -> String {
        finish(self.0).await.0
    }
}

/// Waits without blocking the runtime that the daemon under test runs on.
async fn finish(mut child: Child) -> (String, bool) {
    let ended = async {
        loop {
            if let Some(status) = child.try_wait().expect("our child") {
                return status.success();
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    let success = timeout(PATIENCE, ended).await.expect("the client ends");
    let output = child.wait_with_output().expect("its output");
    (String::from_utf8_lossy(&output.stdout).into_owned(), success)
}

/// The broker that `BITNETD_MOSQUITTO` names (`tests/support/mosquitto-trixie` makes one), else the installed one.
fn broker_program() -> Command {
    match std::env::var_os("BITNETD_MOSQUITTO").filter(|path| !path.is_empty()) {
        Some(path) => Command::new(path),
        None => program("mosquitto"),
    }
}

/// Debian keeps the broker in /usr/sbin, which is not in everybody's PATH.
fn program(name: &str) -> Command {
    let system = Path::new("/usr/sbin").join(name);
    Command::new(if system.exists() { system } else { name.into() })
}

/// A port that is free now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

fn folder() -> TempDir {
    TempDir::with_prefix("bitnetd-").expect("a temporary folder")
}
