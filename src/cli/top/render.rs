//! Renders a report as text, as wide as the terminal.
//!
//! Pure. It reads the report as JSON, as any other client has to, and leaves out unknown values. Deliberately knows
//! no terminal.

use super::report_view::ReportView;
use super::{alerts, limits};
use serde_json::Value;
use std::collections::VecDeque;
use std::fmt::Write;

/// Number of readings in the trend of a quantity.
const TREND_LENGTH: usize = 30;
const MIB: f64 = (1u64 << 20) as f64;
/// Bars from the lowest to the highest reading.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const BOLD: &str = "\x1b[1m";
const ALARM: &str = "\x1b[1;31m";
const PLAIN: &str = "\x1b[0m";

/// The trends that are drawn besides the latest report.
#[derive(Debug, Default)]
pub(super) struct Trends {
    power: Trend,
    heat: Trend,
    processor: Trend,
}

impl Trends {
    /// Adds the readings of one report.
    pub fn add(&mut self, report: &Value) {
        let view = ReportView(report);
        self.power.add(view.number("/power/value"));
        self.heat.add(view.number("/thermal/cpu/value"));
        self.processor.add(view.number("/cpu/host_percent"));
    }
}

/// The latest readings of one quantity.
#[derive(Debug, Default)]
struct Trend(VecDeque<f64>);

impl Trend {
    fn add(&mut self, value: Option<f64>) {
        self.0.extend(value);
        while self.0.len() > TREND_LENGTH {
            self.0.pop_front();
        }
    }

    /// A bar for each reading, scaled between lowest and highest; empty with fewer than two readings.
    fn draw(&self) -> String {
        let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if self.0.len() < 2 {
            return String::new();
        }
        let height = |value: &f64| match most > least {
            true => ((value - least) / (most - least) * (BARS.len() - 1) as f64).round() as usize,
            false => 0,
        };
        let bars: String = self.0.iter().map(|value| BARS[height(value).min(BARS.len() - 1)]).collect();
        format!(" {bars} {least:.0} to {most:.0}")
    }
}

/// The whole view, `width` characters wide. With `colours` names and alerts are highlighted.
pub(super) fn frame(report: &Value, trends: &Trends, socket: &str, width: usize, colours: bool) -> String {
    let view = ReportView(report);
    let mut lines = vec![title(&view, socket), String::new()];
    lines.extend(alerts::raised(&view).iter().map(|shown| style(shown, ALARM, colours)));
    lines.extend(alerts::past(&view));
    let rows = [
        ("power", power(&view, &trends.power)),
        ("energy", energy(&view)),
        ("heat", heat(&view, &trends.heat)),
        ("throttled", throttled(&view)),
        ("processor", processor(&view, &trends.processor)),
        ("governor", limits::governor(&view)),
        ("memory", memory(&view)),
        ("speed", speed(&view)),
        ("requests", requests(&view)),
        ("last hour", last_hour(&view)),
        ("together", together(&view)),
        ("waiting", waiting(&view)),
        ("broker", broker(&view)),
        ("security", limits::security(&view)),
    ];
    let name = |name: &str| style(&format!("{name:<11}"), BOLD, colours);
    lines.extend(rows.into_iter().filter_map(|(row, shown)| Some(format!("{} {}", name(row), shown?))));
    lines.push(String::new());
    lines.extend(latency(&view));
    lines.iter().map(|line| truncate_columns(line, width) + "\n").collect()
}

fn style(text: &str, how: &str, colours: bool) -> String {
    if colours { format!("{how}{text}{PLAIN}") } else { text.to_owned() }
}

/// Wraps text to a width; a longer word is truncated.
pub(super) fn wrap(text: &str, width: usize) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always one");
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.into());
        } else {
            line.push_str(if line.is_empty() { "" } else { " " });
            line.push_str(word);
        }
    }
    lines.iter().map(|line| truncate_columns(line, width) + "\n").collect()
}

/// Truncates a line to the terminal's width: a longer one would wrap. Escape sequences have no width.
fn truncate_columns(line: &str, width: usize) -> String {
    let (mut seen, mut escaped, mut kept) = (0, false, String::new());
    for c in line.chars() {
        escaped |= c == '\x1b';
        if escaped {
            kept.push(c);
            escaped = c != 'm';
        } else if seen < width {
            kept.push(c);
            seen += 1;
        }
    }
    kept
}

fn title(view: &ReportView<'_>, socket: &str) -> String {
    // The path is last, since it may be long and be truncated.
    let up = duration(view.count("/uptime_s"));
    format!("bitnetd up {up}, {}, {socket}", view.text("/time").unwrap_or_default())
}

/// A duration in its two largest units.
fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// `under_voltage` in words.
fn spaced(name: &str) -> String {
    name.replace('_', " ")
}

fn power(view: &ReportView<'_>, trend: &Trend) -> Option<String> {
    let watts = view.number("/power/value")?;
    let (method, scope) = (view.text("/power/method")?, view.text("/power/scope")?);
    Some(format!("{watts:.2} W{} ({method}, {})", trend.draw(), spaced(scope)))
}

fn energy(view: &ReportView<'_>) -> Option<String> {
    let mut shown = joules(view.number("/energy/joules")?);
    let parts = [
        ("for requests", view.number("/energy/requests_joules").map(joules)),
        ("a token", view.number("/energy/joules_per_token").map(joules)),
        ("of it above idle", view.number("/energy/joules_per_token_above_idle").map(joules)),
    ];
    for (of, joules) in parts.into_iter().filter_map(|(of, joules)| Some((of, joules?))) {
        write!(shown, ", {joules} {of}").expect("a string takes everything");
    }
    Some(shown)
}

fn joules(joules: f64) -> String {
    match joules {
        _ if joules >= 3.6e6 => format!("{:.2} kWh", joules / 3.6e6),
        _ if joules >= 1e4 => format!("{:.1} kJ", joules / 1e3),
        _ if joules >= 100.0 => format!("{joules:.0} J"),
        _ => format!("{joules:.2} J"),
    }
}

fn heat(view: &ReportView<'_>, trend: &Trend) -> Option<String> {
    let fan = view.number("/thermal/fan/value").map(|turns| format!(", fan {turns:.0} a minute"));
    let degrees = view.number("/thermal/cpu/value")?;
    Some(format!("{degrees:.1} °C{}{}", trend.draw(), fan.unwrap_or_default()))
}

fn throttled(view: &ReportView<'_>) -> Option<String> {
    let reasons = |when: &str| {
        let flags = view.0.pointer(&format!("/thermal/throttling/{when}"))?.as_object()?;
        let raised = flags.iter().filter(|(_, flag)| **flag == Value::Bool(true));
        let shown = raised.map(|(name, _)| spaced(name)).collect::<Vec<_>>().join(", ");
        Some(if shown.is_empty() { "no".to_owned() } else { shown })
    };
    match (reasons("now"), view.flag("/thermal/under_voltage/value")) {
        (Some(now), _) => Some(format!("{now}; since the board was switched on: {}", reasons("since_boot")?)),
        (None, low) => low.map(|low| if low { "under voltage".into() } else { "no under-voltage".into() }),
    }
}

fn processor(view: &ReportView<'_>, trend: &Trend) -> Option<String> {
    let parts = [
        view.number("/cpu/host_percent").map(|percent| format!("{percent:.0} %{}", trend.draw())),
        view.number("/cpu/process_percent").map(|percent| format!("this daemon {percent:.0} %")),
        clock(view),
        view.number("/cpu/load_1m").map(|load| format!("load {load:.2}")),
        view.number("/cpu/threads").map(|threads| format!("{threads} threads")),
    ];
    joined(parts)
}

fn clock(view: &ReportView<'_>) -> Option<String> {
    let now = view.number("/cpu/frequency/value")?;
    let most = view.number("/cpu/frequency_max_mhz").map(|most| format!(" of {most:.0}"));
    Some(format!("{now:.0}{} MHz", most.unwrap_or_default()))
}

fn memory(view: &ReportView<'_>) -> Option<String> {
    let mib = |path| view.number(path).map(|bytes| bytes / MIB);
    let (ours, budget) = (mib("/memory/process_bytes")?, mib("/memory/budget_bytes")?);
    let host = mib("/memory/host_available_bytes").map(|free| format!("host has {free:.0} MiB left"));
    let limit = match view.flag("/memory/memory_limit_enforced")? {
        true => "limit enforced by the kernel",
        false => "limit not enforced by the kernel",
    };
    joined([Some(format!("{ours:.0} of {budget:.0} MiB")), host, Some(limit.into())])
}

fn speed(view: &ReportView<'_>) -> Option<String> {
    let tokens = view.count("/throughput/completion_tokens");
    joined([
        view.number("/throughput/tokens_per_second").map(|speed| format!("{speed:.1} tokens/s")),
        view.number("/throughput/prompt_tokens_per_second")
            .map(|speed| format!("prompts {speed:.0} tokens/s")),
        Some(format!("{tokens} tokens in all")),
    ])
}

fn requests(view: &ReportView<'_>) -> Option<String> {
    let count = |name: &str| view.count(&format!("/requests/{name}"));
    Some(format!(
        "{} running, {} waiting; {} answered ({} from the cache), {} refused, {} cancelled, {} out of time",
        count("running"),
        count("queued"),
        count("completed"),
        view.count("/cache/hits"),
        count("refused"),
        count("cancelled"),
        count("timed_out"),
    ))
}

/// How many of the last hour's requests succeeded, how many came and how long they took; what the cache has and gave. No row
/// before the first request has ended.
fn last_hour(view: &ReportView<'_>) -> Option<String> {
    let percent = |path: &str| view.number(path).map(|ratio| format!("{:.1} %", 100.0 * ratio));
    let success = percent("/requests/last_hour/success_ratio").map(|percent| format!("{percent} succeeded"));
    let cache = || {
        let (entries, kib) = (view.count("/cache/entries"), view.count("/cache/bytes").div_ceil(1024));
        let found = percent("/cache/last_hour/hit_ratio").map(|percent| format!(", {percent} found"));
        format!("cache: {entries} answers, {kib} KiB{}", found.unwrap_or_default())
    };
    view.number("/requests/per_minute").filter(|rate| *rate > 0.0)?;
    joined([
        success,
        view.number("/requests/last_hour/per_minute").map(|rate| format!("{rate:.1} requests a minute")),
        view.number("/requests/last_hour/mean_s").map(|seconds| format!("mean {seconds:.2} s")),
        Some(cache()),
    ])
}

/// How many requests share a pass over the weights, what prompts had in common, and how much of what was looked up was
/// right.
fn together(view: &ReportView<'_>) -> Option<String> {
    let count = |name: &str| view.count(&format!("/decoding/{name}"));
    let steps = view.number("/decoding/steps").filter(|steps| *steps > 0.0)?;
    let prefixes = match count("prefix_hits") {
        0 => None,
        hits => Some(format!("prefix hits: {hits} ({} tokens saved)", count("prefix_tokens"))),
    };
    let speculation = match count("proposed_tokens") {
        0 => None,
        proposed => {
            let percent = 100.0 * count("accepted_tokens") as f64 / proposed as f64;
            Some(format!("looked up: {proposed} tokens ({percent:.0} % accepted)"))
        }
    };
    let suspensions = match count("suspensions") {
        0 => None,
        suspensions => Some(format!("suspended: {suspensions}")),
    };
    joined([
        Some(format!("{:.1} requests a step", view.number("/decoding/step_requests")? / steps)),
        prefixes,
        speculation,
        suspensions,
    ])
}

/// The clients whose requests wait now, and how long those of each waited on average before.
fn waiting(view: &ReportView<'_>) -> Option<String> {
    let clients = view.0.pointer("/waiting")?.as_array()?;
    let waits = clients.iter().map(ReportView).filter(|client| client.count("/waiting") > 0);
    let shown: Vec<String> = waits
        .map(|client| {
            let mean = match client.count("/begun") {
                0 => String::new(),
                begun => {
                    format!(" (mean {:.1} s)", client.count("/waited_ms") as f64 / 1000.0 / begun as f64)
                }
            };
            let name = client.text("/client").unwrap_or("others");
            // A client may name itself anything.
            let name: String = name.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
            format!("{name} {}{mean}", client.count("/waiting"))
        })
        .collect();
    (!shown.is_empty()).then(|| shown.join(", "))
}

fn broker(view: &ReportView<'_>) -> Option<String> {
    let connected = view.flag("/mqtt/connected")?;
    let state = match view.text("/mqtt/problem") {
        _ if connected => "connected".to_owned(),
        Some(problem) => format!("away: {problem}"),
        None => "connecting".to_owned(),
    };
    let waiting = view.count("/mqtt/outbox");
    let storage = view.text("/mqtt/storage_problem").map(|problem| format!("answers not on disk: {problem}"));
    joined([Some(state), (waiting > 0).then(|| format!("{waiting} answers to send")), storage])
}

fn joined(parts: impl IntoIterator<Item = Option<String>>) -> Option<String> {
    let shown = parts.into_iter().flatten().collect::<Vec<_>>().join(", ");
    (!shown.is_empty()).then_some(shown)
}

const QUANTITIES: [(&str, &str); 4] = [
    ("in the queue", "queue_ms"),
    ("first token", "ttft_ms"),
    ("each token", "token_ms"),
    ("whole answer", "total_ms"),
];
/// The windows in the order of the columns; the one since start is the quantity itself.
const SPANS: [(&str, &str); 3] =
    [("last minute", "/last_minute"), ("last hour", "/last_hour"), ("since start", "")];

/// A table of percentiles, in milliseconds.
fn latency(view: &ReportView<'_>) -> Vec<String> {
    let mut head = format!("{:<12}", "ms");
    let mut names = " ".repeat(12);
    for (span, path) in SPANS {
        let answers = view.count(&format!("/latency/total_ms{path}/count"));
        write!(head, "  {:>20}", format!("{span} ({answers})")).expect("a string takes everything");
        write!(names, "  {:>6} {:>6} {:>6}", "p50", "p95", "p99").expect("a string takes everything");
    }
    let rows = QUANTITIES.into_iter().map(|(name, key)| {
        let spans = SPANS.map(|(_, path)| percentiles(view, &format!("/latency/{key}{path}")));
        format!("{name:<12}{}", spans.concat())
    });
    [head, names].into_iter().chain(rows).map(|line| line.trim_end().to_owned()).collect()
}

fn percentiles(view: &ReportView<'_>, path: &str) -> String {
    let values = ["p50", "p95", "p99"].map(|name| {
        let value = view.number(&format!("{path}/{name}"));
        value.map_or("-".into(), |ms| if ms < 100.0 { format!("{ms:.1}") } else { format!("{ms:.0}") })
    });
    format!("  {:>6} {:>6} {:>6}", values[0], values[1], values[2])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Telemetry;
    use crate::telemetry::sensors::{Sensors, Snapshot};
    use serde_json::json;
    use std::path::Path;
    use std::time::{Duration, Instant, SystemTime};

    fn report_of(host: Snapshot) -> Value {
        let telemetry = Telemetry::new(64 << 20);
        telemetry.observe(Instant::now(), host);
        serde_json::to_value(telemetry.report(SystemTime::UNIX_EPOCH)).expect("plain data")
    }

    fn drawn(report: &Value, width: usize, colours: bool) -> String {
        frame(report, &Trends::default(), "/s", width, colours)
    }

    #[test]
    fn what_a_board_does_not_tell_has_no_row() {
        let shown = drawn(&report_of(Snapshot::default()), 200, false);
        for row in ["power", "energy", "heat", "throttled", "memory", "broker", "together", "waiting"] {
            assert!(!shown.lines().any(|line| line.starts_with(row)), "{row}: {shown}");
        }
        assert!(shown.contains("requests    0 running, 0 waiting; 0 answered"), "{shown}");
        assert!(!shown.contains("null") && !shown.contains('\x1b'), "{shown}");
    }

    #[test]
    fn readings_are_shown_with_their_source() {
        let board = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/boards/ina219");
        let report = report_of(Sensors::new(&board).read(Instant::now()));
        let shown = drawn(&report, 200, false);
        assert!(shown.contains("\npower       4.86 W (measured, as wired)\n"), "{shown}");
        assert!(shown.contains("\nheat        "), "{shown}");
    }

    #[test]
    fn every_key_that_it_reads_is_in_the_report_under_that_name() {
        let report = report_of(Snapshot::default());
        for path in [
            "/requests/timed_out",
            "/requests/per_minute",
            "/requests/last_hour/success_ratio",
            "/requests/last_hour/per_minute",
            "/requests/last_hour/mean_s",
            "/cache/entries",
            "/cache/bytes",
            "/cache/last_hour/hit_ratio",
            "/latency/ttft_ms/last_minute/p95",
            "/latency/token_ms/p99",
        ] {
            assert!(report.pointer(path).is_some(), "{path}: {report}");
        }
        for path in
            ["/thermal/throttling", "/cpu/frequency_max_mhz", "/energy", "/mqtt", "/memory/process_bytes"]
        {
            assert_eq!(report.pointer(path), Some(&Value::Null), "{path}: {report}");
        }
    }

    #[test]
    fn the_last_hour_has_a_row_once_a_request_has_ended() {
        let report = json!({
            "requests": {"per_minute": 0.5, "last_hour": {"success_ratio": 0.995, "per_minute": 12.04, "mean_s": 1.5}},
            "cache": {"entries": 3, "bytes": 1025, "last_hour": {"hit_ratio": 0.25}},
        });
        let row = |report: &Value| last_hour(&ReportView(report));
        let all =
            "99.5 % succeeded, 12.0 requests a minute, mean 1.50 s, cache: 3 answers, 2 KiB, 25.0 % found";
        assert_eq!(row(&report).as_deref(), Some(all));
        let quiet = json!({"requests": {"per_minute": 0.5, "last_hour": {"per_minute": 0.0}}, "cache": {}});
        assert_eq!(row(&quiet).as_deref(), Some("0.0 requests a minute, cache: 0 answers, 0 KiB"));
        assert_eq!(row(&json!({"requests": {"per_minute": 0.0}})), None);
    }

    #[test]
    fn what_requests_share_and_who_waits_has_a_row_each() {
        let telemetry = Telemetry::new(64 << 20);
        [1, 2, 4].into_iter().for_each(|requests| telemetry.decoding.record_step(requests));
        let shown = |telemetry: &Telemetry| {
            let report = serde_json::to_value(telemetry.report(SystemTime::UNIX_EPOCH)).expect("plain data");
            drawn(&report, 200, false)
        };
        assert!(shown(&telemetry).contains("\ntogether    2.3 requests a step\n"), "{}", shown(&telemetry));
        telemetry.decoding.found_prefix(128);
        telemetry.decoding.record_suspension();
        telemetry.decoding.speculated(12, 9);
        [1000, 2000]
            .into_iter()
            .for_each(|ms| telemetry.waiting.begun("a\x1b[1m", Duration::from_millis(ms)));
        telemetry.waiting.begun("idle", Duration::ZERO);
        ["a\x1b[1m", "b", "a\x1b[1m", "a\x1b[1m"]
            .into_iter()
            .for_each(|client| telemetry.waiting.joined(client));
        let shown = shown(&telemetry);
        let together = "\ntogether    2.3 requests a step, prefix hits: 1 (128 tokens saved), \
                        looked up: 12 tokens (75 % accepted), suspended: 1\n";
        assert!(shown.contains(together), "{shown}");
        assert!(shown.contains("\nwaiting     a?[1m 3 (mean 1.5 s), b 1\n"), "{shown}");
    }

    #[test]
    fn alerts_come_first_and_stand_out() {
        let mut report = report_of(Snapshot::default());
        report["alerts"] = json!(["under_voltage", "queue"]);
        let shown = drawn(&report, 80, true);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[2], "\x1b[1;31mALERT       under voltage\x1b[0m");
        assert_eq!(lines[3], "\x1b[1;31mALERT       queue\x1b[0m");
    }

    #[test]
    fn throttling_is_shown_for_now_and_since_boot() {
        let flags = |under_voltage| {
            json!({ "under_voltage": under_voltage, "frequency_capped": false, "throttled": under_voltage,
                "soft_temperature_limit": false })
        };
        let mut report = report_of(Snapshot::default());
        report["thermal"]["throttling"] = json!({ "now": flags(false), "since_boot": flags(true) });
        let shown = drawn(&report, 100, false);
        let row = "\nthrottled   no; since the board was switched on: under voltage, throttled\n";
        assert!(shown.contains(row), "{shown}");
        report["thermal"]["throttling"] = Value::Null;
        report["thermal"]["under_voltage"] = json!({ "value": true });
        assert!(drawn(&report, 100, false).contains("\nthrottled   under voltage\n"));
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_and_colours_take_no_space() {
        let mut report = report_of(Snapshot::default());
        report["mqtt"] = json!({ "connected": false, "problem": "x".repeat(500) });
        for width in [1, 20, 80] {
            let (plain, coloured) = (drawn(&report, width, false), drawn(&report, width, true));
            assert!(plain.lines().all(|line| line.chars().count() <= width), "{plain}");
            let uncoloured = coloured.replace(BOLD, "").replace(PLAIN, "").replace(ALARM, "");
            assert_eq!(uncoloured, plain);
        }
    }

    #[test]
    fn the_table_of_latencies_fits_a_terminal_of_80_columns() {
        let mut report = report_of(Snapshot::default());
        report["latency"]["total_ms"] =
            json!({ "p50": 12_345.6, "p95": 99_999.0, "p99": 99_999.0, "count": 99_999 });
        let shown = drawn(&report, 200, false);
        let table: Vec<&str> = shown.lines().skip_while(|line| !line.starts_with("ms")).collect();
        assert!(table.iter().all(|line| line.chars().count() <= 80), "{shown}");
        assert!(
            table[0].ends_with("since start (99999)") && table[5].ends_with(" 12346  99999  99999"),
            "{shown}"
        );
    }

    #[test]
    fn errors_are_wrapped_to_the_width_of_the_terminal() {
        assert_eq!(wrap("/run/x: no daemon listens there", 12), "/run/x: no\ndaemon\nlistens\nthere\n");
        assert_eq!(wrap("abcdef gh", 3), "abc\ngh\n");
        assert_eq!(wrap("", 3), "\n");
    }

    #[test]
    fn the_trend_goes_from_the_least_to_the_most_and_forgets() {
        let mut trend = Trend::default();
        trend.add(Some(4.0));
        assert_eq!(trend.draw(), "");
        [Some(8.0), None, Some(6.0)].into_iter().for_each(|value| trend.add(value));
        assert_eq!(trend.draw(), " ▁█▅ 4 to 8");
        (0..TREND_LENGTH).for_each(|_| trend.add(Some(5.0)));
        assert_eq!(trend.draw(), format!(" {} 5 to 5", "▁".repeat(TREND_LENGTH)));
    }

    #[test]
    fn times_and_energies_are_shown_in_units_that_fit() {
        let times = [7, 125, 3_660, 200_000].map(duration);
        assert_eq!(times, ["7 s", "2 min 5 s", "1 h 1 min", "2 d 7 h"]);
        let energies = [0.52, 250.4, 12_345.0, 7.2e6].map(joules);
        assert_eq!(energies, ["0.52 J", "250 J", "12.3 kJ", "2.00 kWh"]);
    }
}
