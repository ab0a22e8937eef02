//! The terminal, borrowed for a while: a screen of its own, keys one by one, and all as before at the end.

use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};
use std::io::{self, IsTerminal, Read, Write};
use tokio::sync::mpsc;

/// Another screen, no cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// To the upper left; and what is right of a line or below the last one goes.
const HOME: &str = "\x1b[H";
const REST_OF_LINE: &str = "\x1b[K\r\n";
const REST_OF_SCREEN: &str = "\x1b[J";
/// Where the terminal does not say how large it is.
const USUAL: (usize, usize) = (80, 24);

/// The terminal as it is ours.
pub(super) struct Screen {
    /// How it was; `None` where no keys are read.
    before: Option<Termios>,
    /// Hears of the key that ends the view.
    ended: mpsc::Receiver<()>,
}

impl Screen {
    /// Takes the terminal over. Keys are read where standard input is one too.
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
            // A read of a terminal cannot be given up, so it has a thread of its own, which ends with the process.
            std::thread::spawn(move || hear(&end));
        }
        let screen = Screen { before, ended };
        put(ENTER)?;
        Ok(screen)
    }

    /// Columns and rows.
    pub fn size() -> (usize, usize) {
        let size = tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_col > 0 && size.ws_row > 0);
        size.map_or(USUAL, |size| (size.ws_col.into(), size.ws_row.into()))
    }

    /// Draws over what was there, without clearing it first: that would flicker.
    pub fn draw(&self, frame: &str) -> io::Result<()> {
        let (_, rows) = Self::size();
        // The line break after the last row would scroll.
        let lines: Vec<&str> = frame.lines().take(rows.saturating_sub(1)).collect();
        put(&format!("{HOME}{}{REST_OF_LINE}{REST_OF_SCREEN}", lines.join(REST_OF_LINE)))
    }

    /// Waits for a key that ends the view: q, Escape, Ctrl-D.
    pub async fn end(&mut self) {
        if self.ended.recv().await.is_none() {
            std::future::pending().await
        }
    }
}

/// Reads keys until one ends the view. Without the terminal it says nothing: then a signal ends it.
fn hear(end: &mpsc::Sender<()>) {
    let mut typed = [0; 32];
    while let Ok(count @ 1..) = io::stdin().read(&mut typed) {
        if ends(&typed[..count]) {
            let _ = end.blocking_send(()); // a view that has ended needs no telling
            return;
        }
    }
}

/// An arrow begins with an Escape too, but is more than that.
fn ends(typed: &[u8]) -> bool {
    typed == b"\x1b" || typed.iter().any(|key| matches!(key, b'q' | b'Q' | 4))
}

fn put(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing back.
        let _ = put(LEAVE);
        if let Some(before) = &self.before {
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
            assert!(ends(typed), "{typed:?}");
        }
        assert!(!ends(b"\x1b[A") && !ends(b"x"));
    }
}
