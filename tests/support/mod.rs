//! Shared by several test binaries: processes, a broker, and certificates for it. Deliberately knows neither the
//! library nor the daemon.

pub mod broker;
pub mod certificates;

use std::io;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Starts a program. A child that forks under emulation may wait for ever for a lock of the emulator before it
/// executes the program; such a child is killed and started again.
pub fn spawn(command: &mut Command) -> io::Result<Child> {
    let mut child = command.spawn()?;
    for _ in 0..3 {
        if has_begun(child.id()) {
            break;
        }
        child.kill()?;
        child.wait()?;
        child = command.spawn()?;
    }
    Ok(child)
}

/// Runs a program without input to its end, started by [`spawn`] as everything here must be.
pub fn output(command: &mut Command) -> io::Result<Output> {
    spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?.wait_with_output()
}

/// Waits until the process is no longer a copy of this one.
fn has_begun(process: u32) -> bool {
    if std::env::var_os("BITNETD_RUNNER").is_none_or(|runner| runner.is_empty()) {
        return true;
    }
    let this = std::env::current_exe().expect("it runs");
    let this = this.file_name().expect("a file").to_string_lossy().into_owned();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(10) {
        let line = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        if !String::from_utf8_lossy(&line).contains(&this) {
            return true;
        }
        std::thread::park_timeout(Duration::from_millis(2));
    }
    false
}
