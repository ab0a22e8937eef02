//! The logger: to journald with fields, or as text to standard error. It never blocks on either.
//!
//! A line that cannot be written is dropped and counted, and a warning says so once lines can be written again. A
//! call site that logs too often is rate-limited and counted in the same way. Deliberately knows nothing of what a
//! line says.

mod journald;
mod rate_limiter;
mod standard_error;

use crate::config;
use crate::protocol::text::{Shown, one_line};
use journald::Journald;
use log::kv::{Error, Key, Value, VisitSource};
use log::{Level, LevelFilter, Log, Metadata, Record};
use rate_limiter::RateLimiter;
use std::fmt::Write as _;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines above the level that were not written, since the process began.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// How many lines were dropped since start: because the sink was full, or because their call site was rate-limited.
pub fn dropped() -> u64 {
    DROPPED.load(Relaxed)
}

/// Whether systemd started this process and reads its standard error.
pub fn under_journald() -> bool {
    journald::is_connected()
}

/// Starts logging at `level`: to journald if `to_journald` (see [`under_journald`]) and it can be reached,
/// otherwise to standard error. Called again, it only changes the level.
pub fn init(level: config::Level, to_journald: bool) {
    set_level(level);
    let connection = to_journald.then(Journald::connect);
    let standard_error = || Sink::StandardError(standard_error::StderrWriter::standard_error());
    let (sink, failure) = match connection {
        Some(Ok(journald)) => (Sink::Journald(journald), None),
        Some(Err(error)) => (standard_error(), Some(error)),
        None => (standard_error(), None),
    };
    // The only error is that a logger is installed already.
    let first = log::set_boxed_logger(Box::new(Logger::new(sink))).is_ok();
    if let Some(error) = failure.filter(|_| first) {
        log::warn!("journald cannot be reached ({error}); logging to standard error");
    }
}

/// The target of the lines of the security record, which are JSON and written at any level.
const SECURITY_TARGET: &str = concat!(env!("CARGO_PKG_NAME"), "::security");
/// The name under which the security record is in the journal, and with which its lines begin on standard error.
const SECURITY_IDENTIFIER: &str = concat!(env!("CARGO_PKG_NAME"), "-security");

/// Writes a line of the security record, whatever the level is: JSON in one line, without characters that a terminal obeys.
pub fn write_security(json: &str) {
    let mut record = Record::builder();
    record.level(Level::Info).target(SECURITY_TARGET).module_path(Some(module_path!()));
    log::logger().log(&record.args(format_args!("{json}")).build());
}

/// Sets the lowest level that is written from now on.
pub fn set_level(level: config::Level) {
    log::set_max_level(filter(level));
}

/// Writes the reason why the process ends to standard error. It blocks for at most a second, so that a process
/// whose output nobody reads still ends and can be restarted.
pub fn last_line(text: &str) {
    const PATIENCE: Duration = Duration::from_secs(1);
    let writer = standard_error::StderrWriter::standard_error();
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
    rate_limiter: Mutex<RateLimiter>,
    /// Lines that were dropped and not reported yet.
    unreported_drops: AtomicU64,
}

#[derive(Debug)]
enum Sink {
    Journald(Journald),
    StandardError(standard_error::StderrWriter),
}

impl Sink {
    fn send(&self, record: &Record) -> io::Result<()> {
        match self {
            Sink::Journald(journald) => journald.send(record),
            Sink::StandardError(writer) => writer.write(format_line(record).as_bytes()),
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
        metadata.target() == SECURITY_TARGET
            || is_enabled(metadata.target(), metadata.level(), log::max_level())
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
        Logger { sink, rate_limiter: Mutex::default(), unreported_drops: AtomicU64::new(0) }
    }

    fn write(&self, record: &Record, now: Instant) {
        // Records without a source line are answers and reports, which are rare enough to need no limit.
        let site = record.module_path_static().zip(record.line());
        let admitted = site.map_or(Some(0), |site| {
            self.rate_limiter.lock().unwrap_or_else(PoisonError::into_inner).admit(site, now)
        });
        let Some(held_back) = admitted else {
            DROPPED.fetch_add(1, Relaxed);
            return;
        };
        let lost = self.unreported_drops.load(Relaxed);
        if lost > 0
            && self.sink.warn(&format!("log: {lost} lines were dropped, since nobody took them")).is_ok()
        {
            self.unreported_drops.fetch_sub(lost, Relaxed);
        }
        if held_back > 0 {
            // The line that follows is of the same call site.
            let _ = self.sink.warn(&format!(
                "log: {held_back} lines like the next were left out, since they came too fast"
            ));
        }
        if self.sink.send(record).is_err() {
            self.unreported_drops.fetch_add(1, Relaxed);
            DROPPED.fetch_add(1, Relaxed);
        }
    }
}

/// Lines of libraries are written from `warn` on, or all of them at `trace`: below `warn` they may contain prompts.
/// rumqttc logs packets of up to 1 MiB even at `error`, and reports its errors to the broker link anyway.
fn is_enabled(target: &str, level: Level, most: LevelFilter) -> bool {
    let least = match target.split("::").next() {
        Some(env!("CARGO_PKG_NAME")) => most,
        Some("rumqttc") => LevelFilter::Off,
        _ => LevelFilter::Warn,
    };
    level <= most && (level <= least || most == LevelFilter::Trace)
}

/// One line: level, message, then the fields as `key=value`. JSON of the security record is not cut, as a message is.
fn format_line(record: &Record) -> String {
    if record.target() == SECURITY_TARGET {
        return format!("{SECURITY_IDENTIFIER}: {}\n", record.args());
    }
    let mut line = format!("{:5} {}", record.level(), one_line(&record.args().to_string()));
    if !journald::message_repeats_fields(record) {
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
            format_line(&record.args(format_args!("slow client")).build()),
            "WARN  slow client client=\"unix:uid=1000\" tokens=12 note=\"two words\" none=\"\"\n"
        );
    }

    #[test]
    fn a_line_of_the_security_record_is_whole_at_any_level_and_can_be_distinguished() {
        let json = format!("{{\"client\":\"{}\"}}", "x".repeat(3000));
        let mut record = Record::builder();
        record.level(Level::Info).target(SECURITY_TARGET);
        assert_eq!(
            format_line(&record.args(format_args!("{json}")).build()),
            format!("bitnetd-security: {json}\n")
        );
        let logger = Logger::new(Sink::StandardError(standard_error::StderrWriter::standard_error()));
        let metadata = Metadata::builder().level(Level::Trace).target(SECURITY_TARGET).build();
        assert!(logger.enabled(&metadata));
    }

    #[test]
    fn the_report_line_does_not_repeat_its_numbers() {
        let fields = [("TEMP_MC", 56_200)];
        let mut record = Record::builder();
        let record = record.level(Level::Info).target(super::super::journal::TARGET).key_values(&fields);
        assert_eq!(format_line(&record.args(format_args!("56.2 °C")).build()), "INFO  56.2 °C\n");
    }

    #[test]
    fn a_client_cannot_write_a_line_of_its_own() {
        let fields = [("client", "mqtt:a\nERROR fire\u{1b}[2J")];
        let mut record = Record::builder();
        let record = record.level(Level::Info).key_values(&fields);
        let message = format_line(&record.args(format_args!("hello\r\nWARN  b")).build());
        assert_eq!(message.matches('\n').count(), 1, "{message}");
        assert!(!message.contains('\u{1b}') && !message.contains('\r'), "{message}");
    }

    #[test]
    fn libraries_are_not_logged_below_warn_unless_everything_is() {
        assert!(is_enabled("bitnetd::daemon", Level::Debug, LevelFilter::Debug));
        assert!(!is_enabled("bitnetd::daemon", Level::Debug, LevelFilter::Info));
        assert!(!is_enabled("hyper::proto", Level::Debug, LevelFilter::Debug));
        assert!(!is_enabled("bitnetd_not_ours", Level::Info, LevelFilter::Info));
        assert!(is_enabled("hyper::proto", Level::Warn, LevelFilter::Info));
        assert!(is_enabled("hyper::proto", Level::Trace, LevelFilter::Trace));
    }

    #[test]
    fn a_library_that_logs_whole_packets_is_logged_only_at_trace() {
        assert!(!is_enabled("rumqttc::v5::state", Level::Error, LevelFilter::Debug));
        assert!(is_enabled("rumqttc::v5::state", Level::Error, LevelFilter::Trace));
    }

    #[test]
    fn a_second_start_changes_the_level_and_is_no_panic() {
        init(config::Level::Error, false);
        init(config::Level::Error, true);
        assert_eq!(log::max_level(), LevelFilter::Error);
        super::super::journal::write_journal(&super::super::Telemetry::new(0).report(std::time::UNIX_EPOCH));
    }

    #[test]
    fn dropped_lines_are_counted_and_reported_once_lines_can_be_written() {
        let logger = Logger::new(Sink::StandardError(standard_error::StderrWriter::standard_error()));
        logger.unreported_drops.store(3, Relaxed);
        let mut record = Record::builder();
        let record = record
            .level(Level::Error)
            .target("bitnetd::daemon")
            .module_path_static(Some("here"))
            .line(Some(1));
        let record = record.args(format_args!("a test writes this line")).build();
        logger.write(&record, Instant::now());
        assert_eq!(logger.unreported_drops.load(Relaxed), 0, "it was reported");
        let (before, now) = (dropped(), Instant::now());
        let quiet = Logger::new(Sink::Journald(Journald::unconnected().expect("a socket")));
        logger.rate_limiter.lock().expect("one thread").admit(("here", 1), now);
        quiet.write(&record, now);
        assert_eq!(quiet.unreported_drops.load(Relaxed), 1);
        assert!(dropped() > before);
    }
}
