//! systemd's watchdog and a stalled daemon: one thread of a running daemon is really stopped.

use crate::daemon::{Daemon, Process, is_emulated};
use crate::systemd::Manager;
use crate::{Folder, endless};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::time::Duration;
use tokio::time::sleep;

/// What systemd would allow between two signs of life.
const LIMIT: Duration = Duration::from_secs(1);

/// A thread of another process that stands still until this is dropped, as the debugger's does. To be
/// dropped before its process is ended: whoever traces a thread is asked to bury it.
struct Stopped(Pid);

impl Stopped {
    /// Stops the thread of this name.
    fn thread(process: &Process, name: &str) -> Self {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", process.pid())).expect("it runs");
        let named = |task: &std::fs::DirEntry| {
            std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
        };
        let task = tasks.map(|task| task.expect("it runs")).find(named).expect("a thread of this name");
        let number = task.file_name().into_string().expect("a number").parse().expect("a number");
        let thread = Pid::from_raw(number);
        ptrace::seize(thread, ptrace::Options::empty()).expect("a child of ours can be traced");
        let stopped = Stopped(thread);
        ptrace::interrupt(thread).expect("it is traced");
        waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it stops");
        stopped
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        ptrace::detach(self.0, None).expect("it stands still");
    }
}

/// A busy daemon under a watchdog, with one thread stopped; whether it fed the watchdog in the time that
/// systemd waits, and what it logged by then. Let go, it feeds again.
async fn with_stopped(thread: &str, said: Option<&str>) {
    if is_emulated() {
        // The emulator has no ptrace.
        eprintln!("skipped: threads of an emulated daemon cannot be stopped one by one");
        return;
    }
    let folder = Folder::new();
    let manager = Manager::new(&folder);
    let mut command = manager.starts(&folder, &endless());
    command.env("WATCHDOG_USEC", LIMIT.as_micros().to_string());
    let mut daemon = Daemon::spawn(&mut command, &folder);
    daemon.ready().await;
    let mut client = daemon.client().await;
    client.keep_busy().await;
    manager.hears("WATCHDOG=1").await;
    let stopped = Stopped::thread(&daemon.process, thread);
    if let Some(said) = said {
        daemon.says(said).await;
    }
    while manager.next().is_some() {}
    sleep(LIMIT).await;
    while let Some(said) = manager.next() {
        assert!(!said.contains("WATCHDOG=1"), "{said}");
    }
    drop(stopped);
    manager.hears("WATCHDOG=1").await;
}

#[tokio::test]
async fn a_stuck_worker_is_named_and_starves_the_watchdog() {
    with_stopped("compute-0", Some("the worker has not moved for 500ms; systemd will start the daemon anew"))
        .await;
}

#[tokio::test]
async fn a_stalled_transport_thread_starves_the_watchdog() {
    // The broker link and the socket share the first thread, which has the program's name.
    with_stopped("bitnetd", None).await;
}
