//! Journald's native protocol: one datagram a line, with its fields. Never waits.
//!
//! Source: <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>. Deliberately knows nothing of which lines are wanted.

use super::super::journal;
use crate::protocol::text::{Shown, one_line};
use log::kv::{Error, Key, Value, VisitSource};
use log::{Level, Record};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;

const SOCKET: &str = "/run/systemd/journal/socket";
/// Longest name of a field that journald keeps.
const LONGEST_KEY: usize = 64;

/// Whether standard error is the journal's.
pub fn is_connected() -> bool {
    let Ok(found) = std::fs::metadata("/proc/self/fd/2") else { return false };
    let ours = format!("{}:{}", found.dev(), found.ino());
    std::env::var_os("JOURNAL_STREAM").is_some_and(|stream| stream.to_string_lossy() == ours)
}

/// A socket of our own, so that not waiting is a property of it alone.
#[derive(Debug)]
pub struct Journald(UnixDatagram);

impl Journald {
    /// Fails where nobody listens. A journal that is full now may have room later.
    pub fn connect() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        match socket.send_to(&[], SOCKET) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(Journald(socket)),
        }
    }

    /// One that reaches nobody, since it is told no address.
    #[cfg(test)]
    pub fn unconnected() -> io::Result<Self> {
        let (socket, other) = UnixDatagram::pair()?;
        drop(other);
        Ok(Journald(socket))
    }

    /// Sends a line, or fails at once.
    pub fn send(&self, record: &Record) -> io::Result<()> {
        self.0.send_to(&payload(record), SOCKET).map(drop)
    }
}

/// The fields, each on a line: nothing of them contains a line break.
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
    fields.add("MESSAGE", &one_line(&record.args().to_string()));
    fields.add("SYSLOG_PID", &std::process::id().to_string());
    fields.add("SYSLOG_IDENTIFIER", env!("CARGO_PKG_NAME"));
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
        let mut name: String = key.as_str().chars().map(plain).take(LONGEST_KEY).collect();
        if !name.starts_with(|c: char| c.is_ascii_uppercase()) {
            // Journald keeps names with an underscore in front for itself.
            name.insert_str(0, "FIELD_");
            name.truncate(LONGEST_KEY);
        }
        self.add(&name, &Shown(&value.to_string()).to_string());
        Ok(())
    }
}

/// Whether the record's words say its fields as well.
pub fn repeats_its_fields(record: &Record) -> bool {
    record.target() == journal::TARGET
}

#[cfg(test)]
mod tests {
    use super::*;

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
