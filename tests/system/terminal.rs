//! A terminal with a command on it, as a person sees it.

use crate::daemon::{Process, bitnetd};
use crate::until;
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::termios::{LocalFlags, tcgetattr};
use rustix::fs::{OFlags, fcntl_setfl};
use std::fs::File;
use std::io::{Read, Write};

/// A terminal of 200 columns and 24 rows, and the command on it.
pub struct Terminal {
    ours: File,
    theirs: File,
    pub command: Process,
    shown: String,
}

impl Terminal {
    pub fn start(args: &[&str]) -> Self {
        let size = Winsize { ws_row: 24, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None).expect("a terminal");
        let (ours, theirs) = (File::from(master), File::from(slave));
        fcntl_setfl(&ours, OFlags::NONBLOCK).expect("ours");
        let end = || theirs.try_clone().expect("a descriptor");
        let mut command = bitnetd();
        command.env("TERM", "xterm").args(args).stdin(end()).stdout(end()).stderr(end());
        Terminal { command: Process::start(&mut command), ours, theirs, shown: String::new() }
    }

    pub fn press(&mut self, keys: &str) {
        self.ours.write_all(keys.as_bytes()).expect("a terminal");
    }

    /// Waits until this text was written since the last wait, and forgets it and what came before it.
    pub async fn shows(&mut self, text: &str) {
        let Terminal { ours, shown, .. } = self;
        until(&format!("{text:?} on the terminal"), || {
            let mut piece = [0; 4096];
            // Nothing there yet is an error of the descriptor.
            while let Ok(count @ 1..) = ours.read(&mut piece) {
                shown.push_str(&String::from_utf8_lossy(&piece[..count]));
            }
            let end = shown.find(text)? + text.len();
            *shown = shown.split_off(end);
            Some(())
        })
        .await;
    }

    /// Whether it shows what is typed.
    pub fn echoes(&self) -> bool {
        tcgetattr(&self.theirs).expect("a terminal").local_flags.contains(LocalFlags::ECHO)
    }
}
