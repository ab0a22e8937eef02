//! Says on a terminal what a command is doing, where that takes longer than two seconds.
//!
//! Deliberately knows nothing of how far it is: commands that know it show it themselves.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Work that takes no longer is not worth a line.
const QUIET: Duration = Duration::from_secs(2);
/// Time between two updates of the line.
const UPDATE: Duration = Duration::from_secs(1);

/// Something that a command is doing; the line is removed when this is dropped. Without a terminal nothing is written.
#[derive(Debug)]
pub(super) struct Activity(Option<(Sender<()>, JoinHandle<()>)>);

impl Activity {
    /// Begins to count; `what` is a phrase such as "loading the model".
    pub fn begin(what: impl Into<String>) -> Self {
        if !io::stderr().is_terminal() {
            return Activity(None);
        }
        let (what, (end, ended)) = (what.into(), channel());
        let thread = std::thread::Builder::new()
            .spawn(move || show(&what, &ended, [QUIET, UPDATE], &mut io::stderr()));
        // A command goes on without it where the system allows no thread.
        Activity(thread.ok().map(|thread| (end, thread)))
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.0.take() {
            drop(end);
            // Its line must be gone before the command prints something.
            let _ = thread.join();
        }
    }
}

/// Writes the line until `ended` is closed. `waits`: before the first line, and between two.
fn show(what: &str, ended: &Receiver<()>, waits: [Duration; 2], out: &mut impl Write) {
    let (began, mut is_shown) = (Instant::now(), false);
    while ended.recv_timeout(waits[usize::from(is_shown)]) == Err(RecvTimeoutError::Timeout) {
        is_shown = true;
        // A terminal that is gone needs no line.
        let _ = write!(out, "\r{what}: {} s\x1b[K", began.elapsed().as_secs());
        let _ = out.flush();
    }
    if is_shown {
        let _ = write!(out, "\r\x1b[K");
        let _ = out.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ends the activity when it has written something.
    struct EndAtFirstLine(Vec<u8>, Option<Sender<()>>);

    impl Write for EndAtFirstLine {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 = None;
            self.0.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn short_work_has_no_line_and_the_line_of_long_work_is_removed() {
        let mut shown = Vec::new();
        let (end, ended) = channel();
        drop(end);
        show("loading", &ended, [Duration::from_secs(3600); 2], &mut shown);
        assert!(shown.is_empty());
        let (end, ended) = channel();
        let mut shown = EndAtFirstLine(Vec::new(), Some(end));
        show("loading", &ended, [Duration::ZERO, Duration::from_secs(3600)], &mut shown);
        assert_eq!(shown.0, b"\rloading: 0 s\x1b[K\r\x1b[K");
    }
}
