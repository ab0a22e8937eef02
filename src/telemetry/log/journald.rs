//! Journald's native protocol: one datagram for each line with its fields. It never blocks.
//!
//! Source: <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>. Deliberately knows nothing of which lines are wanted.

use super::super::journal;
use super::{SECURITY_IDENTIFIER, SECURITY_TARGET};
use crate::protocol::text::{Shown, one_line};
use log::kv::{Error, Key, Value, VisitSource};
use log::{Level, Record};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;

const SOCKET: &str = "/run/systemd/journal/socket";
/// The longest field name that journald accepts.
const MAX_KEY: usize = 64;

/// Whether standard error is connected to the journal (`JOURNAL_STREAM`).
pub fn is_connected() -> bool {
    let Ok(found) = std::fs::metadata("/proc/self/fd/2") else { return false };
    let ours = format!("{}:{}", found.dev(), found.ino());
    std::env::var_os("JOURNAL_STREAM").is_some_and(|stream| stream.to_string_lossy() == ours)
}

/// A separate datagram socket: one that is shared with other processes must not be made non-blocking.
#[derive(Debug)]
pub struct Journald(UnixDatagram);

impl Journald {
    /// Connects to journald; an error where nothing listens. A full journal is no error: it may accept lines later.
    pub fn connect() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        match socket.send_to(&[], SOCKET) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(Journald(socket)),
        }
    }

    /// A sink whose lines reach nobody, for tests.
    #[cfg(test)]
    pub fn unconnected() -> io::Result<Self> {
        let (socket, other) = UnixDatagram::pair()?;
        drop(other);
        Ok(Journald(socket))
    }

    /// Sends a line, or fails at once instead of blocking.
    pub fn send(&self, record: &Record) -> io::Result<()> {
        self.0.send_to(&payload(record), SOCKET).map(drop)
    }
}

/// The fields, one a line; values contain no line break.
fn payload(record: &Record) -> Vec<u8> {
    let mut fields = Fields(String::with_capacity(1024));
    let priority = match record.level() {
        Level::Error => "3",
        Level::Warn => "4",
        Level::Info => "5",
        Level::Debug => "6",
        Level::Trace => "7",
    };
    fields.add("PRIORITY", priority);
    let is_security = record.target() == SECURITY_TARGET;
    let message = record.args().to_string();
    // JSON that is cut would be none; that of the security record is one line as it is.
    fields.add("MESSAGE", &if is_security { message } else { one_line(&message) });
    fields.add("SYSLOG_PID", &std::process::id().to_string());
    let identifier = if is_security { SECURITY_IDENTIFIER } else { env!("CARGO_PKG_NAME") };
    fields.add("SYSLOG_IDENTIFIER", identifier);
    fields.add("TARGET", record.target());
    for (key, value) in [("CODE_FILE", record.file()), ("CODE_MODULE", record.module_path())] {
        value.iter().for_each(|value| fields.add(key, value));
    }
    record.line().iter().for_each(|line| fields.add("CODE_LINE", &line.to_string()));
    let _never_fails = record.key_values().visit(&mut fields);
    fields.0.into_bytes()
}

struct Fields(String);

impl Fields {
    fn add(&mut self, key: &str, value: &str) {
        self.0.extend([key, "=", value, "\n"]);
    }
}

impl<'kvs> VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
        let mut name: String = key.as_str().chars().map(plain).take(MAX_KEY).collect();
        if !name.starts_with(|c: char| c.is_ascii_uppercase()) {
            // Journald reserves names that begin with an underscore.
            name.insert_str(0, "FIELD_");
            name.truncate(MAX_KEY);
        }
        self.add(&name, &Shown(&value.to_string()).to_string());
        Ok(())
    }
}

/// Whether the message of this record already contains its fields.
pub fn message_repeats_fields(record: &Record) -> bool {
    record.target() == journal::TARGET
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_security_record_has_an_identifier_of_its_own_and_is_not_cut() {
        let json = format!("{{\"client\":\"{}\"}}", "x".repeat(3000));
        let mut record = Record::builder();
        let record = record.level(Level::Info).target(SECURITY_TARGET);
        let sent = payload(&record.args(format_args!("{json}")).build());
        let sent = String::from_utf8(sent).expect("text");
        assert!(sent.contains(&format!("\nMESSAGE={json}\n")), "{sent}");
        assert!(sent.contains("\nSYSLOG_IDENTIFIER=bitnetd-security\n"), "{sent}");
    }

    #[test]
    fn each_field_is_one_line_with_a_name_that_journald_keeps() {
        let fields = [("CLIENT", "a\nPRIORITY=0"), ("_odd key", "x"), ("9", "y")];
        let mut record = Record::builder();
        let record = record.level(Level::Warn).target("bitnetd::daemon").line(Some(7)).key_values(&fields);
        let sent = payload(&record.args(format_args!("slow\nclient")).build());
        let sent = String::from_utf8(sent).expect("text");
        let lines: Vec<_> = sent.lines().collect();
        for expected in [
            "PRIORITY=4",
            "MESSAGE=slow\\nclient",
            "CODE_LINE=7",
            "CLIENT=a\\nPRIORITY=0",
            "FIELD__ODD_KEY=x",
            "FIELD_9=y",
        ] {
            assert!(lines.contains(&expected), "{sent}");
        }
        assert!(!lines.contains(&"PRIORITY=0"), "{sent}");
    }
}
