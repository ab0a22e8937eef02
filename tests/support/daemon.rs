//! The real binary: as a daemon in a folder of its own, as a command that runs to its end, and a
//! client of its socket.

use crate::support::spawn;
use crate::{Folder, PATIENCE, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// The command line of the binary, after that of the emulator where the tests run under one.
pub fn words() -> Vec<String> {
    let runner = std::env::var("BITNETD_RUNNER").unwrap_or_default();
    let emulator = runner.split_whitespace().map(str::to_owned);
    emulator.chain([env!("CARGO_BIN_EXE_bitnetd").to_owned()]).collect()
}

/// Whether the binary runs under an emulator.
pub fn is_emulated() -> bool {
    words().len() > 1
}

/// The binary under test.
pub fn bitnetd() -> Command {
    let words = words();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null());
    command
}

/// A child process, killed when the test ends.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts it.
    pub fn start(command: &mut Command) -> Self {
        Process(spawn(command).unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// Its number, and the number of the emulated process in it.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Writes to its standard input, which is piped and stays open.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.0.stdin.as_mut().expect("piped").write_all(bytes).expect("it reads");
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        until("the process ends", || self.0.try_wait().expect("our child")).await
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Sends it SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).expect("it runs");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The outcome of a command that ran to its end.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ended {
    /// Its standard output, which is one JSON value.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Its standard error, which is one line that names the program.
    pub fn error_line(&self) -> &str {
        let line = self.err.strip_suffix('\n').unwrap_or_else(|| panic!("no line: {self:?}"));
        assert!(line.starts_with("bitnetd: ") && !line.contains('\n'), "{self:?}");
        line
    }
}

/// Runs the binary with these arguments to its end.
pub async fn run(args: &[&str]) -> Ended {
    run_with_input(args, "").await
}

/// The same with something on standard input.
pub async fn run_with_input(args: &[&str], input: &str) -> Ended {
    finish(bitnetd().args(args), input).await
}

/// Runs a command to its end. Input and output are to fit a pipe, 64 KiB: nobody reads while it
/// runs.
pub async fn finish(command: &mut Command, input: &str) -> Ended {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = Process::start(command);
    let mut stdin = process.0.stdin.take().expect("piped");
    // A command that reads no input may have ended before it.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let code = process.ended().await.code();
    Ended { code, out: text(process.0.stdout.take()), err: text(process.0.stderr.take()) }
}

fn text(pipe: Option<impl Read>) -> String {
    let mut text = String::new();
    pipe.expect("piped").read_to_string(&mut text).expect("UTF-8");
    text
}

/// A running `bitnetd serve`.
#[derive(Debug)]
pub struct Daemon {
    /// Its process.
    pub process: Process,
    /// Where it listens.
    pub socket: PathBuf,
    log: PathBuf,
}

impl Daemon {
    /// A daemon with these settings, ready for requests. Its socket is `s` in the folder; without
    /// a `[budget]` it has one thread.
    pub async fn start(folder: &Folder, settings: &str) -> Self {
        let config = folder.config(settings);
        let mut daemon = Self::spawn(bitnetd().arg("serve").arg("--config").arg(config), folder);
        daemon.ready().await;
        daemon
    }

    /// A daemon by a command of the test's own.
    pub fn spawn(command: &mut Command, folder: &Folder) -> Self {
        let log = folder.path("log");
        let err = std::fs::File::create(&log).expect("a temporary folder");
        // State of one daemon of a test is for the next one of the same test.
        command.env("STATE_DIRECTORY", folder.path("state"));
        Self::of(Process::start(command.stderr(err)), folder)
    }

    /// A daemon that was started already, with its socket in the folder.
    pub fn of(process: Process, folder: &Folder) -> Self {
        Daemon { process, socket: folder.path("s"), log: folder.path("log") }
    }

    /// Waits until its model is loaded and its socket is open.
    pub async fn ready(&mut self) {
        until("the daemon is ready", || {
            let ended = self.process.0.try_wait().expect("our child");
            assert!(ended.is_none(), "{ended:?}: {}", self.log());
            self.log().contains("ready: ").then_some(())
        })
        .await;
    }

    /// A connection to it.
    pub async fn client(&self) -> Client {
        Client::connect(&self.socket).await
    }

    /// What it wrote to standard error so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until its log contains this text.
    pub async fn says(&self, text: &str) {
        if timeout(PATIENCE, self.has_said(text)).await.is_err() {
            panic!("not in time: {text:?}, but:\n{}", self.log());
        }
    }

    async fn has_said(&self, text: &str) {
        while !self.log().contains(text) {
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Asks it to stop, and waits for a clean end.
    pub async fn stop(mut self) {
        self.process.terminate();
        self.ends_well().await;
    }

    /// Waits for a clean end, after which its socket file is gone.
    pub async fn ends_well(&mut self) {
        let status = self.process.ended().await;
        assert_eq!(status.code(), Some(0), "{status}: {}", self.log());
        assert!(!self.socket.exists(), "{}", self.log());
    }

    /// Operating-system threads of its process.
    pub fn threads(&self) -> usize {
        threads(&self.process)
    }
}

/// Operating-system threads of a process.
pub fn threads(process: &Process) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", process.pid())).expect("it runs");
    tasks.count()
}

/// A client of the socket. Events are read whenever the test waits for anything, so that no request is cancelled
/// because of a slow client.
pub struct Client {
    write: OwnedWriteHalf,
    events: mpsc::UnboundedReceiver<Value>,
    _reader: JoinSet<()>,
}

impl Client {
    async fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).await.expect("somebody listens");
        let (read, write) = stream.into_split();
        let (sender, events) = mpsc::unbounded_channel();
        let mut reader = JoinSet::new();
        reader.spawn(read_events(read, sender));
        Client { write, events, _reader: reader }
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: &str) {
        let sent = timeout(PATIENCE, self.write.write_all(bytes.as_bytes())).await;
        sent.expect("the daemon reads").expect("the connection is open");
    }

    /// Sends requests in one piece.
    pub async fn request(&mut self, requests: &[Value]) {
        let lines: String = requests.iter().map(|request| format!("{request}\n")).collect();
        self.send(&lines).await;
    }

    /// The next event.
    pub async fn event(&mut self) -> Value {
        let event = timeout(PATIENCE, self.events.recv()).await.expect("an event in time");
        event.expect("an open connection")
    }

    /// The next event that ends a request.
    pub async fn end(&mut self) -> Value {
        loop {
            let event = self.event().await;
            if event["event"] != "token" {
                return event;
            }
        }
    }

    /// Asks, and waits for the end.
    pub async fn ask(&mut self, request: Value) -> Value {
        self.request(&[request]).await;
        self.end().await
    }

    /// Sends a request that never ends, see `endless`, and waits until tokens of it are computed. They are not
    /// streamed: a test that the machine leaves without a processor for half a second would not read them, and the daemon
    /// cancels requests of clients that do not read.
    pub async fn keep_busy(&mut self) {
        let before = self.decoding_steps().await;
        self.request(&[json!({"id": "busy", "prompt": "go"})]).await;
        let begun = async {
            while self.decoding_steps().await <= before {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, begun).await.expect("the request runs in time");
    }

    /// Passes over the weights that were made so far.
    pub async fn decoding_steps(&mut self) -> u64 {
        let report = self.ask(json!({"telemetry": true})).await;
        report["decoding"]["steps"].as_u64().unwrap_or_else(|| panic!("{report}"))
    }

    /// Cancels what [`Client::keep_busy`] began.
    pub async fn cancel_busy(&mut self) {
        self.send("{\"cancel\":\"busy\"}\n").await;
    }
}

async fn read_events(read: OwnedReadHalf, sender: mpsc::UnboundedSender<Value>) {
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let event = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        if sender.send(event).is_err() {
            return;
        }
    }
}
