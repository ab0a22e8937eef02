//! A report as text for people, and how numbers are shown to them.
//!
//! Deliberately computes nothing.

use super::summary::{HistoryReport, HistorySummary, LatencySummary, ReadingSpread};
use super::time_of;
use jiff::tz::TimeZone;
use std::fmt::Write;
use std::time::SystemTime;

/// The report; times are those of `zone`.
pub fn text(report: &HistoryReport, zone: &TimeZone) -> String {
    let summary = &report.summary;
    let mut text = format!(
        "bitnetd report: {}, {}, {}\n\n",
        one_line(&summary.device),
        one_line(&summary.model),
        period(report, zone)
    );
    for (name, value) in rows(summary) {
        writeln!(text, "{name:<14}{value}").expect("a string takes everything");
    }
    text
}

/// The rows of the summary: what, and how much.
pub(super) fn rows(summary: &HistorySummary) -> Vec<(&'static str, String)> {
    let mut rows = vec![("running", running(summary)), ("requests", requests(summary))];
    let (tokens, cache) = (&summary.tokens, &summary.cache);
    let speed = summary.tokens_per_second.map_or(String::new(), |speed| {
        let [mean, min, max] = [speed.mean, speed.min, speed.max].map(short);
        format!("; {mean} a second ({min} to {max})")
    });
    rows.push(("tokens", format!("{} read, {} generated{speed}", tokens.prompt, tokens.completion)));
    if let Some(ratio) = cache.hit_ratio {
        let looked_up = cache.hits + cache.misses;
        rows.push(("cache", format!("{} of {looked_up} answers, {}", cache.hits, percent(ratio))));
    }
    let latencies = [("first token", summary.ttft_ms), ("whole answer", summary.total_ms)];
    rows.extend(latencies.into_iter().filter_map(|(name, latency)| Some((name, percentiles(&latency?)))));
    if let Some(waiting) = summary.waiting {
        rows.push(("waiting", format!("{} on average, {:.0} at most", short(waiting.mean), waiting.max)));
    }
    let readings = [
        ("power", "W", summary.power_w),
        ("temperature", "°C", summary.temperature_c),
        ("processors", "%", summary.cpu_percent),
    ];
    rows.extend(
        readings.into_iter().filter_map(|(name, unit, spread)| Some((name, of_spread(&spread?, unit)))),
    );
    if let Some(seconds) = summary.throttled_s {
        rows.push(("throttled", duration(seconds)));
    }
    if let Some(seconds) = summary.under_voltage_s {
        rows.push(("under-voltage", duration(seconds)));
    }
    if let Some(memory) = summary.memory_mib {
        let budget = summary.memory_budget_mib.map_or(String::new(), |mib| format!(" of {mib:.0} MiB"));
        rows.push((
            "memory",
            format!("{:.0} MiB on average, {:.0} at most{budget}", memory.mean, memory.max),
        ));
    }
    rows.push(("energy", energy(summary)));
    rows.push(("alerts", alerts(summary)));
    rows
}

fn running(summary: &HistorySummary) -> String {
    let restarts = match summary.restarts {
        0 => "no restart".to_owned(),
        1 => "1 restart".to_owned(),
        count => format!("{count} restarts"),
    };
    format!("{} of {} h; {restarts}", duration(summary.observed_s), summary.hours)
}

fn requests(summary: &HistorySummary) -> String {
    let requests = &summary.requests;
    let success =
        requests.success_ratio.map_or(String::new(), |ratio| format!("; success {}", percent(ratio)));
    let rate = requests.per_minute.map_or(String::new(), |rate| format!("; {} a minute", short(rate)));
    format!(
        "{} completed, {} refused, {} cancelled, {} failed{success}{rate}",
        requests.completed, requests.refused, requests.cancelled, requests.failed
    )
}

fn energy(summary: &HistorySummary) -> String {
    let Some(energy) = &summary.energy else { return "not known: no sensor of power".into() };
    let each =
        energy.joules_per_token.map_or(String::new(), |joules| format!("; {} J a token", short(joules)));
    let cost = energy.cost.zip(energy.price_per_kwh);
    let cost = cost.map_or(String::new(), |(cost, price)| format!("; {cost:.2} at {price} a kWh"));
    format!("{} Wh{each}{cost}", short(energy.watt_hours))
}

fn alerts(summary: &HistorySummary) -> String {
    if summary.alerts.is_empty() {
        return "none".into();
    }
    let kinds: Vec<String> = summary
        .alerts
        .iter()
        .map(|alert| format!("{} in {}", alert.kind, duration(f64::from(alert.minutes) * 60.0)))
        .collect();
    format!("{} raised: {}", summary.alerts_raised, kinds.join(", "))
}

fn percentiles(latency: &LatencySummary) -> String {
    let [p50, p95, p99] = [latency.p50, latency.p95, latency.p99].map(milliseconds);
    format!("p50 {p50}, p95 {p95}, p99 {p99}")
}

fn of_spread(spread: &ReadingSpread, unit: &str) -> String {
    let [mean, min, max, p50, p95] = [spread.mean, spread.min, spread.max, spread.p50, spread.p95].map(short);
    format!("{mean} {unit} on average, {min} to {max}; p50 {p50}, p95 {p95}")
}

/// The period of a report, with the zone of its times.
pub(super) fn period(report: &HistoryReport, zone: &TimeZone) -> String {
    let [from, to] = [report.period.0, report.period.1].map(|minute| local(minute, zone, "%Y-%m-%d %H:%M"));
    let hours = report.summary.hours;
    let length = match hours {
        1 => "the last hour".to_owned(),
        hours if hours > 24 && hours.is_multiple_of(24) => format!("the last {} days", hours / 24),
        hours => format!("the last {hours} hours"),
    };
    format!("{length}: {from} to {to} {}", local(report.period.1, zone, "%Z"))
}

/// A minute since 1970 in the time of a zone, as strftime writes it.
pub(super) fn local(minute: u32, zone: &TimeZone, format: &str) -> String {
    let time = SystemTime::from(time_of(minute));
    let stamp = jiff::Timestamp::try_from(time).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    stamp.to_zoned_datetime(zone.clone()).strftime(format).to_string()
}

/// Three significant digits, as far as they stand behind the point.
pub(super) fn short(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 || size == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 0.1 => 2,
        _ => 4,
    };
    format!("{value:.digits$}")
}

pub(super) fn percent(ratio: f64) -> String {
    format!("{:.1} %", ratio * 100.0)
}

/// Milliseconds as they are read best.
pub(super) fn milliseconds(ms: f64) -> String {
    if ms < 1000.0 { format!("{ms:.0} ms") } else { format!("{} s", short(ms / 1000.0)) }
}

/// Seconds as hours, minutes and seconds.
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, 0) => format!("{minutes} min"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) if minutes == 0 || hours >= 100 => format!("{hours} h"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

/// A name from outside as one line without control characters.
fn one_line(name: &str) -> String {
    crate::protocol::text::one_line(name)
}
