//! Where log lines go: to journald with their fields, or as readable lines to standard error.

use super::journal;
use crate::config;
use log::kv::{Error, Key, Value, VisitSource};
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::fmt::Write as _;
use std::io::Write as _;
use systemd_journal_logger::JournalLog;

/// Whether systemd started this process and reads its standard error.
pub fn under_journald() -> bool {
    systemd_journal_logger::connected_to_journal()
}

/// Starts logging at `level`: to journald if `to_journald` (see [`under_journald`]) and it can be
/// reached, to standard error otherwise. Called again, it only changes the level.
pub fn init(level: config::Level, to_journald: bool) {
    set_level(level);
    let connection = to_journald.then(JournalLog::new);
    let (sink, failure) = match connection {
        Some(Ok(journald)) => (Sink::Journald(journald), None),
        Some(Err(error)) => (Sink::StandardError, Some(error)),
        None => (Sink::StandardError, None),
    };
    // An error only says that a logger is there already.
    let first = log::set_boxed_logger(Box::new(Logger { sink })).is_ok();
    if let Some(error) = failure.filter(|_| first) {
        log::warn!("journald cannot be reached ({error}); logging to standard error");
    }
}

/// Least level that is written from now on.
pub fn set_level(level: config::Level) {
    log::set_max_level(filter(level));
}

fn filter(level: config::Level) -> LevelFilter {
    match level {
        config::Level::Error => LevelFilter::Error,
        config::Level::Warn => LevelFilter::Warn,
        config::Level::Info => LevelFilter::Info,
        config::Level::Debug => LevelFilter::Debug,
        config::Level::Trace => LevelFilter::Trace,
    }
}

struct Logger {
    sink: Sink,
}

enum Sink {
    Journald(JournalLog),
    StandardError,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        wanted(metadata.target(), metadata.level(), log::max_level())
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // A lost line is no reason to stop answering.
        let _ = match &self.sink {
            Sink::Journald(journald) => journald.journal_send(record),
            Sink::StandardError => std::io::stderr().lock().write_all(line(record).as_bytes()),
        };
    }

    fn flush(&self) {}
}

/// Libraries are heard from `warn` on, or all of them at `trace`: below that they may log what
/// passes through them, which is people's prompts. rumqttc does so at `error` too, with packets of
/// up to 1 MiB, and what it knows comes to the broker link as an error.
fn wanted(target: &str, level: Level, most: LevelFilter) -> bool {
    let least = match target.split("::").next() {
        Some(env!("CARGO_PKG_NAME")) => most,
        Some("rumqttc") => LevelFilter::Off,
        _ => LevelFilter::Warn,
    };
    level <= most && (level <= least || most == LevelFilter::Trace)
}

/// One line: level, message, then the fields as `key=value`.
fn line(record: &Record) -> String {
    let mut line = format!("{:5} {}", record.level(), one_line(&record.args().to_string()));
    if record.target() != journal::TARGET {
        let _never_fails = record.key_values().visit(&mut Fields(&mut line));
    }
    line.push('\n');
    line
}

struct Fields<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for Fields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        let value = one_line(&value.to_string());
        let odd = value.is_empty() || value.contains([' ', '"', '=']);
        if odd { write!(self.0, " {key}={value:?}") } else { write!(self.0, " {key}={value}") }?;
        Ok(())
    }
}

/// Clients choose some of what is logged, such as their names: without control characters they
/// cannot write a line of their own, or to a terminal.
fn one_line(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { clean.extend(c.escape_default()) } else { clean.push(c) }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_level_message_and_fields() {
        let fields = [("client", "unix:uid=1000"), ("tokens", "12"), ("note", "two words"), ("none", "")];
        let mut record = Record::builder();
        let record = record.level(Level::Warn).target("bitnetd::daemon").key_values(&fields);
        assert_eq!(
            line(&record.args(format_args!("slow client")).build()),
            "WARN  slow client client=\"unix:uid=1000\" tokens=12 note=\"two words\" none=\"\"\n"
        );
    }

    #[test]
    fn the_report_line_does_not_repeat_its_numbers() {
        let fields = [("TEMP_MC", 56_200)];
        let mut record = Record::builder();
        let record = record.level(Level::Info).target(journal::TARGET).key_values(&fields);
        assert_eq!(line(&record.args(format_args!("56.2 °C")).build()), "INFO  56.2 °C\n");
    }

    #[test]
    fn a_client_cannot_write_a_line_of_its_own() {
        let fields = [("client", "mqtt:a\nERROR fire\u{1b}[2J")];
        let mut record = Record::builder();
        let record = record.level(Level::Info).key_values(&fields);
        let said = line(&record.args(format_args!("hello\r\nWARN  b")).build());
        assert_eq!(said.matches('\n').count(), 1, "{said}");
        assert!(!said.contains('\u{1b}') && !said.contains('\r'), "{said}");
    }

    #[test]
    fn libraries_are_not_heard_below_warn_unless_everything_is() {
        assert!(wanted("bitnetd::daemon", Level::Debug, LevelFilter::Debug));
        assert!(!wanted("bitnetd::daemon", Level::Debug, LevelFilter::Info));
        assert!(!wanted("mqtt5::broker", Level::Debug, LevelFilter::Debug));
        assert!(!wanted("bitnetd_not_ours", Level::Info, LevelFilter::Info));
        assert!(wanted("mqtt5::broker", Level::Warn, LevelFilter::Info));
        assert!(wanted("mqtt5::broker", Level::Trace, LevelFilter::Trace));
    }

    #[test]
    fn a_library_that_logs_whole_packets_is_heard_only_with_everything() {
        assert!(!wanted("rumqttc::v5::state", Level::Error, LevelFilter::Debug));
        assert!(wanted("rumqttc::v5::state", Level::Error, LevelFilter::Trace));
    }

    #[test]
    fn a_second_start_changes_the_level_and_is_no_panic() {
        init(config::Level::Error, false);
        init(config::Level::Error, true);
        assert_eq!(log::max_level(), LevelFilter::Error);
        super::journal::write_journal(&super::super::Telemetry::new(0).report(std::time::UNIX_EPOCH));
    }
}
