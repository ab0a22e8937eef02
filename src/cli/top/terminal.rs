//! The terminal during `top`: alternate screen, single key presses, and the previous state restored at the end.
//! Deliberately knows no report.

use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};
use std::io::{self, IsTerminal, Read, Write};
use tokio::sync::mpsc;

/// Switch to the alternate screen and hide the cursor.
const ENTER_SCREEN: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE_SCREEN: &str = "\x1b[?25h\x1b[?1049l";
/// Move to the upper left; clear the rest of a line, and everything below.
const CURSOR_HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K\r\n";
const CLEAR_BELOW: &str = "\x1b[J";
/// Columns and rows where the terminal does not report its size.
const DEFAULT_SIZE: (usize, usize) = (80, 24);

/// The alternate screen.
pub(super) struct AlternateScreen {
    /// The saved terminal settings; `None` where no keys are read.
    saved_termios: Option<Termios>,
    /// Receives when a key ends the view.
    ended: mpsc::Receiver<()>,
}

impl AlternateScreen {
    /// Switches to the alternate screen. Keys are read where standard input is a terminal too.
    pub fn enter() -> io::Result<Self> {
        let before = if io::stdin().is_terminal() { tcgetattr(io::stdin()).ok() } else { None };
        if let Some(before) = &before {
            let mut each_key = before.clone();
            // Ctrl-C stays a signal. Ctrl-Z does not: it would leave the shell on this screen.
            each_key.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            each_key.special_codes[SpecialCodeIndex::VSUSP] = 0;
            tcsetattr(io::stdin(), OptionalActions::Now, &each_key)?;
        }
        let (end, ended) = mpsc::channel(1);
        if before.is_some() {
            // A read of a terminal cannot be cancelled, so it has a thread of its own, which ends with the process.
            std::thread::spawn(move || watch_keys(&end));
        }
        let screen = AlternateScreen { saved_termios: before, ended };
        write_terminal(ENTER_SCREEN)?;
        Ok(screen)
    }

    /// Columns and rows.
    pub fn size() -> (usize, usize) {
        let size = tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_col > 0 && size.ws_row > 0);
        size.map_or(DEFAULT_SIZE, |size| (size.ws_col.into(), size.ws_row.into()))
    }

    /// Draws over the previous view without clearing it first, which would flicker.
    pub fn draw(&self, frame: &str) -> io::Result<()> {
        let (_, rows) = Self::size();
        // The line break after the last row would scroll.
        let lines: Vec<&str> = frame.lines().take(rows.saturating_sub(1)).collect();
        write_terminal(&format!("{CURSOR_HOME}{}{CLEAR_LINE}{CLEAR_BELOW}", lines.join(CLEAR_LINE)))
    }

    /// Waits for a key that ends the view: q, Escape, Ctrl-D.
    pub async fn ended_by_key(&mut self) {
        if self.ended.recv().await.is_none() {
            std::future::pending().await
        }
    }
}

/// Reads keys until one ends the view. When the terminal is closed it sends nothing, and a signal ends the view.
fn watch_keys(end: &mpsc::Sender<()>) {
    let mut typed = [0; 32];
    while let Ok(count @ 1..) = io::stdin().read(&mut typed) {
        if is_end_key(&typed[..count]) {
            let _ = end.blocking_send(()); // the view may have ended already
            return;
        }
    }
}

/// An arrow begins with an Escape too, but is more than that.
fn is_end_key(typed: &[u8]) -> bool {
    typed == b"\x1b" || typed.iter().any(|key| matches!(key, b'q' | b'Q' | 4))
}

fn write_terminal(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

impl Drop for AlternateScreen {
    fn drop(&mut self) {
        // A terminal that is closed cannot be restored.
        let _ = write_terminal(LEAVE_SCREEN);
        if let Some(before) = &self.saved_termios {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q_escape_and_the_end_of_input_end_the_view_and_arrows_do_not() {
        for typed in [&b"q"[..], b"Q", b"\x1b", b"\x04", b"abcq"] {
            assert!(is_end_key(typed), "{typed:?}");
        }
        assert!(!is_end_key(b"\x1b[A") && !is_end_key(b"x"));
    }
}
