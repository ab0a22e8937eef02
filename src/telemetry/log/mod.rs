//! Where log lines go: to journald with their fields, or as readable lines to standard error. Never waits for either.
//!
//! A line that nobody takes is dropped and counted, and a line says so when they are taken again. What one place in the
//! code says too often is held back and counted in the same way.

mod journald;
mod repetition;
mod standard_error;

use crate::config;
use crate::protocol::text::{Shown, one_line};
use journald::Journald;
use log::kv::{Error, Key, Value, VisitSource};
use log::{Level, LevelFilter, Log, Metadata, Record};
use repetition::Repetition;
use std::fmt::Write as _;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines that were wanted and not written, since the process began.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// How many lines were wanted and not written: nobody took them, or one place said too many.
pub fn dropped() -> u64 {
    DROPPED.load(Relaxed)
}

/// Whether systemd started this process and reads its standard error.
pub fn under_journald() -> bool {
    journald::is_connected()
}

/// Starts logging at `level`: to journald if `to_journald` (see [`under_journald`]) and it can be
/// reached, to standard error otherwise. Called again, it only changes the level.
pub fn init(level: config::Level, to_journald: bool) {
    set_level(level);
    let connection = to_journald.then(Journald::connect);
    let standard_error = || Sink::StandardError(standard_error::Writer::standard_error());
    let (sink, failure) = match connection {
        Some(Ok(journald)) => (Sink::Journald(journald), None),
        Some(Err(error)) => (standard_error(), Some(error)),
        None => (standard_error(), None),
    };
    // An error only says that a logger is there already.
    let first = log::set_boxed_logger(Box::new(Logger::new(sink))).is_ok();
    if let Some(error) = failure.filter(|_| first) {
        log::warn!("journald cannot be reached ({error}); logging to standard error");
    }
}

/// Least level that is written from now on.
pub fn set_level(level: config::Level) {
    log::set_max_level(filter(level));
}

/// Writes why the process ends to standard error. Waits for its reader, but no more than a second: a process that cannot
/// say why it ends still has to end, so that it can be started again.
pub fn last_line(text: &str) {
    const PATIENCE: Duration = Duration::from_secs(1);
    let writer = standard_error::Writer::standard_error();
    let began = Instant::now();
    while writer.write(format!("{text}\n").as_bytes()).is_err() && began.elapsed() < PATIENCE {
        std::thread::park_timeout(Duration::from_millis(20));
    }
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

#[derive(Debug)]
struct Logger {
    sink: Sink,
    repetition: Mutex<Repetition>,
    /// Lines that nobody took, and nobody was told of yet.
    lost: AtomicU64,
}

#[derive(Debug)]
enum Sink {
    Journald(Journald),
    StandardError(standard_error::Writer),
}

impl Sink {
    fn send(&self, record: &Record) -> io::Result<()> {
        match self {
            Sink::Journald(journald) => journald.send(record),
            Sink::StandardError(writer) => writer.write(line(record).as_bytes()),
        }
    }

    /// A warning of the logger itself.
    fn warn(&self, text: &str) -> io::Result<()> {
        let mut record = Record::builder();
        record.level(Level::Warn).target(module_path!()).module_path(Some(module_path!()));
        self.send(&record.args(format_args!("{text}")).build())
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        wanted(metadata.target(), metadata.level(), log::max_level())
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            self.write(record, Instant::now());
        }
    }

    fn flush(&self) {}
}

impl Logger {
    fn new(sink: Sink) -> Self {
        Logger { sink, repetition: Mutex::default(), lost: AtomicU64::new(0) }
    }

    fn write(&self, record: &Record, now: Instant) {
        // What has no line of code is one line for one answer or report, which cost more than their line.
        let site = record.module_path_static().zip(record.line());
        let admitted = site.map_or(Some(0), |site| {
            self.repetition.lock().unwrap_or_else(PoisonError::into_inner).admit(site, now)
        });
        let Some(held_back) = admitted else {
            DROPPED.fetch_add(1, Relaxed);
            return;
        };
        let lost = self.lost.load(Relaxed);
        if lost > 0
            && self.sink.warn(&format!("log: {lost} lines were dropped, since nobody took them")).is_ok()
        {
            self.lost.fetch_sub(lost, Relaxed);
        }
        if held_back > 0 {
            // The line that follows is one of them.
            let _ = self.sink.warn(&format!(
                "log: {held_back} lines like the next were left out, since they came too fast"
            ));
        }
        if self.sink.send(record).is_err() {
            self.lost.fetch_add(1, Relaxed);
            DROPPED.fetch_add(1, Relaxed);
        }
    }
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
    if !journald::repeats_its_fields(record) {
        let _never_fails = record.key_values().visit(&mut Fields(&mut line));
    }
    line.push('\n');
    line
}

struct Fields<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for Fields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        let value = Shown(&value.to_string()).to_string();
        let odd = value.is_empty() || value.contains([' ', '"', '=']);
        if odd { write!(self.0, " {key}={value:?}") } else { write!(self.0, " {key}={value}") }?;
        Ok(())
    }
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
        let record = record.level(Level::Info).target(super::super::journal::TARGET).key_values(&fields);
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
        super::super::journal::write_journal(&super::super::Telemetry::new(0).report(std::time::UNIX_EPOCH));
    }

    #[test]
    fn lines_that_nobody_takes_are_counted_and_that_is_said_once_they_are_taken() {
        let logger = Logger::new(Sink::StandardError(standard_error::Writer::standard_error()));
        logger.lost.store(3, Relaxed);
        let mut record = Record::builder();
        let record = record
            .level(Level::Error)
            .target("bitnetd::daemon")
            .module_path_static(Some("here"))
            .line(Some(1));
        let record = record.args(format_args!("a test writes this line")).build();
        logger.write(&record, Instant::now());
        assert_eq!(logger.lost.load(Relaxed), 0, "it was said");
        let (before, now) = (dropped(), Instant::now());
        let quiet = Logger::new(Sink::Journald(Journald::unconnected().expect("a socket")));
        logger.repetition.lock().expect("one thread").admit(("here", 1), now);
        quiet.write(&record, now);
        assert_eq!(quiet.lost.load(Relaxed), 1);
        assert!(dropped() > before);
    }
}
