//! The report as one line of the journal: a message for people, fields for programs. Deliberately knows no sink:
//! the `log` crate writes the line.

use super::alerts::{Alert, State};
use crate::protocol::{Done, Method, Reading, Report};
use log::kv::Value;
use log::{Level, Record};

/// The log target of reports. Their fields repeat the message, so only journald gets them.
pub(super) const TARGET: &str = "bitnetd::telemetry::report";

const MIB: f64 = (1u64 << 20) as f64;

/// Writes the report to the journal at `info`, with its numbers as fields (`TEMP_MC`, `POWER_W` …).
pub fn write_journal(report: &Report) {
    if Level::Info > log::max_level() {
        return;
    }
    let (line, fields) = (journal_line(report), fields(report));
    let mut record = Record::builder();
    record.level(Level::Info).target(TARGET).module_path(Some(module_path!()));
    log::logger().log(&record.key_values(&fields).args(format_args!("{line}")).build());
}

/// Writes to the journal at `info` that an answer was computed, with its numbers as fields.
pub fn write_answered(client: &str, done: &Done) {
    if Level::Info > log::max_level() {
        return;
    }
    let fields = answer_fields(client, done);
    let mut record = Record::builder();
    record.level(Level::Info).target(module_path!()).module_path(Some(module_path!()));
    log::logger().log(&record.key_values(&fields).args(format_args!("answered")).build());
}

/// Writes a change of an alert to the journal: at `warn` when it is raised, at `info` when it is cleared.
pub fn write_alert(alert: &Alert) {
    let Alert { kind, message, value, threshold, state, .. } = alert;
    let level = if *state == State::Raised { Level::Warn } else { Level::Info };
    log::log!(
        level, ALERT = kind.name(), STATE = state.name(), VALUE = value, THRESHOLD = threshold; "alert: {message}"
    );
}

/// The fields of an answer; the energy only where it is known.
fn answer_fields<'a>(client: &'a str, done: &'a Done) -> Vec<(&'static str, Value<'a>)> {
    let Done { id, usage, timings, energy, .. } = done;
    let fields = [
        ("CLIENT", Value::from(client)),
        ("REQUEST_ID", Value::from(id.as_str())),
        ("TOKENS_IN", Value::from(usage.prompt_tokens)),
        ("TOKENS_OUT", Value::from(usage.completion_tokens)),
        ("TTFT_MS", Value::from(timings.ttft_ms)),
        ("TOTAL_MS", Value::from(timings.total_ms)),
    ];
    let joules = energy.as_ref().map(|energy| ("JOULES", Value::from(energy.joules)));
    fields.into_iter().chain(joules).collect()
}

/// The report as text; unknown values are left out.
pub fn journal_line(report: &Report) -> String {
    let memory = &report.memory;
    let parts = [
        report.thermal.cpu.as_ref().map(|cpu| format!("{:.1} °C", cpu.value)),
        report.power.as_ref().map(watts),
        report.cpu.host_percent.map(|percent| format!("processor {percent:.0} %")),
        memory.process_bytes.map(|bytes| {
            format!("memory {:.0} of {:.0} MiB", bytes as f64 / MIB, memory.budget_bytes as f64 / MIB)
        }),
        report.throughput.tokens_per_second.map(|speed| format!("{speed:.1} tokens/s")),
        report.latency.ttft_ms.all.p95.map(|ms| format!("first token in {ms:.0} ms (p95)")),
        report.energy.as_ref().map(|energy| format!("{:.0} J", energy.joules)),
        report.mqtt.as_ref().filter(|link| !link.connected).map(|_| "broker away".into()),
        Some(requests(report)),
    ];
    parts.into_iter().flatten().collect::<Vec<String>>().join(", ")
}

fn watts(power: &Reading) -> String {
    let guess = if power.method == Method::Estimated { ", estimated" } else { "" };
    format!("{:.2} W ({}{guess})", power.value, power.scope)
}

fn requests(report: &Report) -> String {
    let requests = &report.requests;
    let (answered, refused) = (requests.completed, requests.refused);
    let (waiting, running) = (requests.queued, requests.running);
    format!("{answered} answered, {refused} refused, {waiting} waiting, {running} running")
}

/// The numbers of the line as fields, with names that are valid in journald.
fn fields(report: &Report) -> Vec<(&'static str, f64)> {
    let requests = &report.requests;
    let bytes = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64);
    let fields = [
        ("TEMP_MC", report.thermal.cpu.as_ref().map(|cpu| (cpu.value * 1000.0).round())),
        ("POWER_W", report.power.as_ref().map(|power| power.value)),
        ("CPU_PERCENT", report.cpu.host_percent.map(f64::from)),
        ("MEMORY_BYTES", bytes(report.memory.process_bytes)),
        ("TOKENS_PER_SECOND", report.throughput.tokens_per_second),
        ("TTFT_MS_P95", report.latency.ttft_ms.all.p95),
        ("JOULES", report.energy.as_ref().map(|energy| energy.joules)),
        ("COMPLETED", Some(requests.completed as f64)),
        ("REFUSED", Some(requests.refused as f64)),
        ("QUEUE", Some(requests.queued as f64)),
        ("UPTIME_S", Some(report.uptime_s as f64)),
    ];
    fields.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::request_stats::tests::done;
    use super::super::{Snapshot, Telemetry};
    use super::*;
    use crate::protocol::{MqttLink, RequestEnergy, Timings};
    use std::time::{Instant, SystemTime};

    fn reading(value: f64, unit: &'static str, scope: &str) -> Option<Reading> {
        let (source, scope) = ("/sys/x".into(), scope.into());
        Some(Reading { value, unit, method: Method::Measured, source, scope })
    }

    fn report() -> Report {
        let (telemetry, now) = (Telemetry::new(768 << 20), Instant::now());
        let mut host = Snapshot { power: reading(4.86, "W", "as wired"), ..Snapshot::default() };
        host.thermal.cpu = reading(56.2, "°C", "cpu");
        host.cpu.host_percent = Some(98.4);
        host.memory.process_bytes = Some(512 << 20);
        telemetry.record_power(now, host.power.as_ref());
        telemetry.observe(now + std::time::Duration::from_secs(10), host);
        telemetry.set_link(MqttLink::default());
        let timings = Timings { ttft_ms: 400.0, total_ms: 1400.0, ..Timings::default() };
        telemetry.completed(&Done { timings, ..done(5, 9) });
        ["a", "b"].into_iter().for_each(|client| telemetry.waiting.joined(client));
        telemetry.set_running(1);
        telemetry.report(SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn the_line_has_the_report_as_text() {
        assert_eq!(
            journal_line(&report()),
            "56.2 °C, 4.86 W (as wired), processor 98 %, memory 512 of 768 MiB, 8.0 tokens/s, \
             first token in 397 ms (p95), 49 J, broker away, \
             1 answered, 0 refused, 2 waiting, 1 running"
        );
    }

    #[test]
    fn an_estimated_power_is_marked_in_the_line() {
        let mut report = report();
        let power = report.power.as_mut().expect("a power");
        (power.method, power.scope) = (Method::Estimated, "board".into());
        assert!(journal_line(&report).contains("4.86 W (board, estimated)"), "{}", journal_line(&report));
    }

    #[test]
    fn the_fields_carry_the_same_numbers_under_names_journald_keeps() {
        let fields = fields(&report());
        for expected in [("TEMP_MC", 56_200.0), ("POWER_W", 4.86), ("QUEUE", 2.0)] {
            assert!(fields.contains(&expected), "{fields:?}");
        }
        let kept =
            |name: &str| name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
        assert!(fields.iter().all(|(name, _)| kept(name) && name.len() <= 64));
    }

    #[test]
    fn what_is_not_known_is_neither_in_the_line_nor_in_the_fields() {
        let report = Telemetry::new(0).report(SystemTime::UNIX_EPOCH);
        assert_eq!(journal_line(&report), "0 answered, 0 refused, 0 waiting, 0 running");
        assert!(fields(&report).iter().all(|(name, _)| !["TEMP_MC", "POWER_W"].contains(name)));
    }

    #[test]
    fn an_answer_is_written_with_its_joules_where_they_are_known() {
        let names = |done: &Done| answer_fields("unix:uid=0", done).iter().map(|(name, _)| *name).collect();
        let unknown: Vec<_> = names(&done(3, 4));
        assert!(unknown.contains(&"TOKENS_OUT") && !unknown.contains(&"JOULES"), "{unknown:?}");
        let method = Method::Measured;
        let cost = RequestEnergy { joules: 2.5, joules_above_idle: None, joules_per_token: None, method };
        let known = Done { energy: Some(cost), ..done(3, 4) };
        let fields = answer_fields("unix:uid=0", &known);
        let joules = fields.iter().find(|(name, _)| *name == "JOULES").and_then(|(_, value)| value.to_f64());
        assert_eq!(joules, Some(2.5));
    }
}
