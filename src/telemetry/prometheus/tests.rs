//! The text read by a strict parser of its own: families whole and once, labels escaped, histograms that add up.

use super::*;
use crate::protocol::{
    AnswerDetails, Code, Done, FinishReason, GovernorReason, GovernorState, GuardReason, Percentiles,
    RequestEnergy, Throttling, Timings, Usage, json,
};
use crate::telemetry::sensors::Snapshot;
use crate::telemetry::{About, ReloadOutcome, RemoteCommand, SecurityEvent, SecurityEventKind, TokenFailure};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// One sample: name, labels, value.
type Sample = (String, Vec<(String, String)>, f64);

/// A metric family as its HELP and TYPE lines describe it.
#[derive(Debug)]
struct Read {
    kind: String,
    samples: Vec<Sample>,
}

/// Reads a text of format 0.0.4 as strictly as it is written down; panics at the first thing that is wrong.
fn read(text: &str) -> BTreeMap<String, Read> {
    let mut families: BTreeMap<String, Read> = BTreeMap::new();
    let mut current = String::new();
    let mut lines = text.strip_suffix('\n').expect("the last line ends").split('\n');
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, message) = help.split_once(' ').expect("a name and a help");
            assert!(!message.is_empty() && !message.contains('\\'), "{line}");
            let kind = lines.next().and_then(|line| line.strip_prefix(&format!("# TYPE {name} ")));
            let kind = kind.unwrap_or_else(|| panic!("no type after {line}")).to_owned();
            assert!(["gauge", "counter", "histogram"].contains(&kind.as_str()), "{name}: {kind}");
            let before = families.insert(name.to_owned(), Read { kind, samples: vec![] });
            assert!(before.is_none(), "{name} comes twice");
            current = name.to_owned();
            continue;
        }
        let sample = sample(line);
        let family = families.get_mut(&current).unwrap_or_else(|| panic!("a sample of nothing: {line}"));
        let rest = sample.0.strip_prefix(&current).unwrap_or_else(|| panic!("in {current}: {line}"));
        let allowed: &[&str] =
            if family.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        assert!(allowed.contains(&rest), "in {current}: {line}");
        assert_eq!(family.kind == "counter", current.ends_with("_total"), "{current}");
        assert!(family.samples.iter().all(|other| (&other.0, &other.1) != (&sample.0, &sample.1)), "{line}");
        family.samples.push(sample);
    }
    assert!(families.values().all(|family| !family.samples.is_empty()), "a family of nothing");
    families
}

fn is_name(text: &str) -> bool {
    let is_start = |c: char| c.is_ascii_alphabetic() || c == '_';
    text.starts_with(is_start) && text.chars().all(|c| is_start(c) || c.is_ascii_digit())
}

fn sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("no value: {line}"));
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name), "{line}");
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("no label: {line}"));
            assert!(is_name(label) && labels.iter().all(|(other, _)| other != label), "{line}");
            let (value, after) = label_value(after, line);
            labels.push((label.to_owned(), value));
            let separator = after.chars().next().unwrap_or_else(|| panic!("no end: {line}"));
            rest = &after[1..];
            match separator {
                ',' => {}
                '}' => break,
                other => panic!("{other} in {line}"),
            }
        }
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("no blank: {line}"));
    assert!(!value.contains(' '), "{line}");
    let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
    assert!(value.is_finite(), "{line}");
    (name.to_owned(), labels, value)
}

/// A value up to its closing quote, and what follows that.
fn label_value<'t>(text: &'t str, line: &str) -> (String, &'t str) {
    let (mut value, mut chars) = (String::new(), text.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.push(match chars.next() {
                Some((_, '\\')) => '\\',
                Some((_, '"')) => '"',
                Some((_, 'n')) => '\n',
                other => panic!("{other:?} escaped in {line}"),
            }),
            c => value.push(c),
        }
    }
    panic!("a value without end: {line}")
}

/// Checks what a histogram promises, for each set of labels.
fn check_histogram(name: &str, family: &Read) {
    let plain = |labels: &[(String, String)]| -> Vec<(String, String)> {
        labels.iter().filter(|(label, _)| label != "le").cloned().collect()
    };
    let sets: BTreeSet<_> = family.samples.iter().map(|(_, labels, _)| plain(labels)).collect();
    for set in sets {
        let of = |ending: &str| {
            let name = format!("{name}{ending}");
            family
                .samples
                .iter()
                .filter(move |sample| sample.0 == name)
                .filter(|sample| plain(&sample.1) == set)
        };
        let le = |sample: &Sample| {
            let (_, bound) = sample.1.iter().find(|(label, _)| label == "le").expect("a bound");
            bound.replace("+Inf", "inf").parse::<f64>().expect("a number")
        };
        let buckets: Vec<(f64, f64)> = of("_bucket").map(|sample| (le(sample), sample.2)).collect();
        assert!(
            buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1),
            "{name} {set:?}"
        );
        let (bound, last) = *buckets.last().expect("buckets");
        let counts: Vec<f64> = of("_count").map(|sample| sample.2).collect();
        assert!(bound == f64::INFINITY && counts == [last], "{name} {set:?}: {counts:?}");
        assert_eq!(of("_sum").count(), 1, "{name} {set:?}");
    }
}

fn reading(value: f64, unit: &'static str, source: &str) -> Option<Reading> {
    let (source, scope) = (source.to_owned(), "as wired".to_owned());
    Some(Reading { value, unit, method: Method::Measured, source, scope })
}

fn done() -> Done {
    Done {
        id: "a".into(),
        text: "x".into(),
        finish_reason: FinishReason::Stop,
        usage: Usage { prompt_tokens: 10, completion_tokens: 21, cached_tokens: 0 },
        timings: Timings {
            queue_ms: 1000.0,
            prompt_ms: 1500.0,
            ttft_ms: 3000.0,
            total_ms: 7000.0,
            tokens_per_second: 5.0,
        },
        energy: Some(RequestEnergy {
            joules: 42.0,
            joules_above_idle: Some(20.0),
            joules_per_token: Some(2.0),
            method: Method::Measured,
        }),
        cached: false,
        model: "m".into(),
        details: AnswerDetails::default(),
    }
}

const CODES: [Code; 12] = [
    Code::InvalidRequest,
    Code::TooLarge,
    Code::ContextExceeded,
    Code::RateLimited,
    Code::QueueFull,
    Code::ContentFiltered,
    Code::ResponseFiltered,
    Code::Timeout,
    Code::Cancelled,
    Code::BudgetExceeded,
    Code::ShuttingDown,
    Code::Internal,
];

/// Telemetry that has a value for every metric, after failures of every kind.
pub(in crate::telemetry) fn full() -> Telemetry {
    let (telemetry, now) = (Telemetry::new(64 << 20), Instant::now());
    telemetry.describe(About {
        model: "a \"model\" \\ of\ntwo lines, and many words".into(),
        kernel: "avx2".into(),
        is_fallback: false,
    });
    telemetry.set_thread_limit(3);
    telemetry.received();
    telemetry.completed(&done());
    CODES.iter().for_each(|code| telemetry.failed(*code, Duration::from_millis(1500)));
    telemetry.cache_hit(Duration::ZERO);
    telemetry.structured_output.answered(7);
    telemetry.decoding.record_step(3);
    telemetry.decoding.found_prefix(128);
    telemetry.decoding.record_suspension();
    // More clients than are named, each of whose names has the longest form.
    for client in 0..20 {
        telemetry
            .waiting
            .begun(&format!("mqtt:{client:02} {}", "\"x".repeat(29)), Duration::from_millis(1500));
    }
    (0..3).for_each(|_| telemetry.waiting.joined("late"));
    telemetry.structured_output.refused();
    telemetry.structured_output.nothing_fits(2);
    telemetry.http.called(super::super::HttpApi::OpenAi);
    telemetry.http.denied();
    telemetry.http.ignored_keys(3);
    telemetry.set_screen_counts(ShortlistCounts { tokens: 5, rows: 4, scans: 3, checks: 2, misses: 1 });
    telemetry.observe(now, host());
    telemetry.observe(now + Duration::from_secs(10), host());
    telemetry.set_governor(Some(GovernorState {
        threads: 2,
        percent: 80,
        reason: GovernorReason::Temperature,
        target_c: Some(70.0),
        limit_watts: Some(6.5),
    }));
    telemetry.set_link(MqttLink {
        connected: true,
        connects: 3,
        problem: Some("old".into()),
        ..MqttLink::default()
    });
    telemetry
}

fn host() -> Snapshot {
    let held = Throttled { under_voltage: true, throttled: true, ..Throttled::default() };
    let (source, scope) = ("/dev/vcio".to_owned(), "board".to_owned());
    let pressure = Some(Pressure { some_10s: 25.0, some_60s: 12.5, full_10s: None });
    Snapshot {
        is_on_battery: false,
        power: reading(4.5, "W", "/sys/p"),
        thermal: Thermal {
            cpu: reading(56.25, "°C", "/sys/t"),
            throttling: Some(Throttling {
                now: held,
                since_boot: held,
                method: Method::Measured,
                source: source.clone(),
                scope: scope.clone(),
            }),
            under_voltage: Some(Flag { value: true, method: Method::Measured, source, scope }),
            fan: reading(3000.0, "1/min", "/sys/f"),
        },
        cpu: Cpu {
            host_percent: Some(50.0),
            process_percent: Some(150.0),
            threads: Some(6),
            load_1m: Some(0.5),
            frequency: reading(2400.0, "MHz", "/sys/c"),
            frequency_max_mhz: Some(2400.0),
            pressure,
            ..Cpu::default()
        },
        memory: Memory {
            process_bytes: Some(1 << 20),
            host_total_bytes: Some(8 << 30),
            host_available_bytes: Some(4 << 30),
            group_bytes: Some(2 << 20),
            group_peak_bytes: Some(3 << 20),
            oom_kills: Some(0),
            pressure,
            ..Memory::default()
        },
    }
}

fn value(families: &BTreeMap<String, Read>, name: &str, label: &str) -> f64 {
    let family = families.get(name).unwrap_or_else(|| panic!("no {name}"));
    let is_it = |sample: &&Sample| label.is_empty() || sample.1.iter().any(|(_, value)| value == label);
    family.samples.iter().find(is_it).unwrap_or_else(|| panic!("no {name} of {label}")).2
}

#[test]
fn everything_that_is_known_is_there_and_can_be_read() {
    let families = read(&render(&full(), SystemTime::UNIX_EPOCH));
    for (name, family) in families.iter().filter(|(_, family)| family.kind == "histogram") {
        check_histogram(name, family);
    }
    for (name, label, expected) in [
        ("bitnetd_power_watts", "/sys/p", 4.5),
        ("bitnetd_energy_joules_total", "as wired", 45.0),
        ("bitnetd_temperature_celsius", "measured", 56.25),
        ("bitnetd_throttled", "throttled", 1.0),
        ("bitnetd_throttled", "frequency_capped", 0.0),
        ("bitnetd_requests_completed_total", "", 2.0),
        ("bitnetd_tokens_total", "output", 21.0),
        ("bitnetd_thread_limit", "", 3.0),
        ("bitnetd_process_cpu_ratio", "", 1.5),
        ("bitnetd_pressure_ratio", "memory", 0.25),
        ("bitnetd_cpu_frequency_hertz", "", 2.4e9),
        ("bitnetd_memory_budget_bytes", "", (64 << 20) as f64),
        ("bitnetd_mqtt_connects_total", "", 3.0),
        ("bitnetd_memory_limit_enforced", "", 0.0),
        ("bitnetd_alerts", "", 0.0),
        ("bitnetd_governor_threads", "", 2.0),
        ("bitnetd_governor_pause_ratio", "", 0.2),
        ("bitnetd_governor_reason", "temperature", 1.0),
        ("bitnetd_governor_reason", "battery", 0.0),
        ("bitnetd_governor_target_celsius", "", 70.0),
        ("bitnetd_governor_limit_watts", "", 6.5),
    ] {
        assert!((value(&families, name, label) - expected).abs() < 1e-6, "{name} of {label}");
    }
}

#[test]
fn latencies_have_the_names_and_attributes_of_opentelemetry() {
    let families = read(&render(&full(), SystemTime::UNIX_EPOCH));
    for (name, sum) in [
        ("gen_ai_server_time_to_first_token_seconds", 3.0),
        ("gen_ai_server_time_per_output_token_seconds", 0.2),
        ("bitnetd_queue_duration_seconds", 1.0),
    ] {
        let family = &families[name];
        let (_, labels, found) =
            family.samples.iter().find(|sample| sample.0.ends_with("_sum")).expect("a sum of the answers");
        assert!((found - sum).abs() < 1e-9, "{name}: {found}");
        for (label, value) in [
            ("gen_ai_operation_name", "chat"),
            ("gen_ai_provider_name", "bitnetd"),
            ("gen_ai_request_model", "a ?model? ? of?two lines, and ma"),
        ] {
            assert!(labels.contains(&(label.into(), value.into())), "{name}: {labels:?}");
        }
    }
    let durations = &families["gen_ai_server_request_duration_seconds"];
    let of_full_queue =
        |sample: &&Sample| sample.1.contains(&("error_type".to_owned(), "queue_full".to_owned()));
    assert!(durations.samples.iter().filter(of_full_queue).count() > 3, "{durations:?}");
}

#[test]
fn what_is_not_known_is_left_out_and_never_zero() {
    let families = read(&render(&Telemetry::new(0), SystemTime::UNIX_EPOCH));
    for unknown in [
        "bitnetd_power_watts",
        "bitnetd_energy_joules_total",
        "bitnetd_temperature_celsius",
        "bitnetd_throttled",
        "bitnetd_under_voltage",
        "bitnetd_tokens_per_second",
        "bitnetd_thread_limit",
        "bitnetd_memory_process_bytes",
        "bitnetd_pressure_ratio",
        "bitnetd_mqtt_connected",
        "bitnetd_build_info",
        "bitnetd_alert",
    ] {
        assert!(!families.contains_key(unknown), "{unknown}");
    }
    assert_eq!(value(&families, "bitnetd_requests_received_total", ""), 0.0);
}

#[test]
fn clients_that_wait_have_samples_each_and_the_rest_one_together() {
    let telemetry = Telemetry::new(0);
    telemetry.waiting.begun("uid=1000", Duration::from_millis(2500));
    telemetry.waiting.begun("uid=1000", Duration::from_millis(500));
    // Names that are alike as far as a label has them.
    ["1", "2"].into_iter().for_each(|end| {
        telemetry.waiting.begun(&format!("mqtt:{}{end}", "x".repeat(40)), Duration::from_secs(1))
    });
    (0..4).for_each(|_| telemetry.waiting.joined("uid=1000"));
    let shown = |telemetry: &Telemetry| render(telemetry, SystemTime::UNIX_EPOCH);
    let text = shown(&telemetry);
    for line in [
        "bitnetd_client_begun_total{client=\"uid=1000\"} 2",
        "bitnetd_client_waited_seconds_total{client=\"uid=1000\"} 3",
        "bitnetd_client_waiting{client=\"uid=1000\"} 4",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line}: {text}");
    }
    let alike = format!("bitnetd_client_begun_total{{client=\"mqtt:{}\"}} 2", "x".repeat(27));
    assert!(text.lines().any(|line| line == alike), "{text}");
    for client in 0..30 {
        telemetry.waiting.begun(&format!("client {client}"), Duration::ZERO);
    }
    let text = shown(&telemetry);
    let of = |name: &str| text.lines().filter(|line| line.starts_with(name)).count();
    assert_eq!((of("bitnetd_client_begun_total{"), of("bitnetd_client_waiting{")), (17, 17), "{text}");
    assert!(text.contains("bitnetd_client_begun_total{client=\"\"} 17\n"), "{text}");
}

#[test]
fn a_number_that_is_none_is_left_out() {
    let mut text = Exposition::default();
    text.gauge("a", "Help.")
        .sample(&[("b", "c")], Some(f64::NAN))
        .sample(&[("b", "d")], Some(f64::INFINITY))
        .sample(&[("b", "e")], None);
    assert_eq!(text.finish(), "");
}

/// Raises every alert but the one for the time to the broker.
fn raise_alerts(telemetry: &Telemetry) {
    telemetry.set_alert_rules(crate::config::Alerts {
        hold: Duration::ZERO,
        temperature_c: Some(50.0),
        throttled: true,
        under_voltage: true,
        memory_percent: Some(1.0),
        cpu_percent: Some(10.0),
        tokens_per_second: Some(1e6),
        error_percent: Some(1.0),
        ttft_ms: Some(1.0),
        queue_percent: Some(1.0),
        broker_link_s: None,
        subscription: true,
        storage: true,
        fallback: true,
    });
    telemetry.set_link(MqttLink { deaf: true, storage_problem: Some("full".into()), ..MqttLink::default() });
    let now = Instant::now();
    telemetry.evaluate_alerts(now, 1);
    (0..5).for_each(|_| telemetry.failed(Code::Internal, Duration::ZERO));
    telemetry.evaluate_alerts(now + Duration::from_millis(1), 1);
}

/// The samples of the clients' families, which have only the space that is left.
fn clients(families: &BTreeMap<String, Read>) -> usize {
    families.get("bitnetd_client_begun_total").map_or(0, |family| family.samples.len())
}

#[test]
fn the_longest_text_has_all_totals_and_takes_no_more_than_a_request_may() {
    let telemetry = full();
    raise_alerts(&telemetry);
    let text = render(&telemetry, SystemTime::UNIX_EPOCH);
    let families = read(&text);
    assert!(families["bitnetd_alert"].samples.len() >= 10, "{:?}", families["bitnetd_alert"]);
    assert_eq!(families["bitnetd_guard_refused_total"].samples.len(), GuardReason::ALL.len());
    let is_of_clients = |line: &&str| line.contains("bitnetd_client_");
    let totals: Vec<&str> = text.lines().filter(|line| !is_of_clients(line)).collect();
    // Each number may become ten digits longer.
    let digits = 10 * totals.iter().filter(|line| !line.starts_with('#')).count();
    let escaped = json::metrics(&totals.join("\n"), None).len();
    assert!(escaped + digits < json::MAX_REQUEST, "{escaped} bytes, and {digits} more");
    assert!(json::metrics(&text, None).len() < json::MAX_REQUEST, "{}", text.len());
    let named = clients(&families);
    assert!(named >= 9, "{named}: 8 clients at least, and all others");
}

#[test]
fn a_text_that_would_become_too_long_leaves_clients_out_before_any_total() {
    let telemetry = full();
    // Nothing else is as long as anybody makes it.
    let (source, scope) = ("/sys/".repeat(2000), "board".to_owned());
    let power = Some(Reading { value: 1.0, unit: "W", method: Method::Measured, source, scope });
    telemetry.observe(Instant::now(), Snapshot { power, ..host() });
    let text = render(&telemetry, SystemTime::UNIX_EPOCH);
    let families = read(&text);
    let named = clients(&families);
    assert!(named < 17 && json::metrics(&text, None).len() < json::MAX_REQUEST, "{named} of {}", text.len());
    for total in ["bitnetd_guard_refused_total", "bitnetd_failed_tokens_total", "bitnetd_alerts"] {
        assert!(families.contains_key(total), "{total}");
    }
}

#[test]
fn clients_have_all_their_samples_where_requests_fail_for_few_reasons() {
    let telemetry = Telemetry::new(64 << 20);
    (0..20).for_each(|client| telemetry.waiting.begun(&format!("mqtt:{client}"), Duration::from_secs(1)));
    telemetry.failed(Code::Internal, Duration::ZERO);
    telemetry.observe(Instant::now(), host());
    let families = read(&render(&telemetry, SystemTime::UNIX_EPOCH));
    for name in
        ["bitnetd_client_begun_total", "bitnetd_client_waited_seconds_total", "bitnetd_client_waiting"]
    {
        assert_eq!(families[name].samples.len(), 17, "16 clients, and all others");
    }
}

#[test]
fn what_concerns_security_is_counted_in_all() {
    let telemetry = Telemetry::new(0);
    telemetry.security.record(&SecurityEvent {
        kind: SecurityEventKind::Refused { reason: GuardReason::RateLimited, filter_line: None },
        client: Some("a"),
        ..SecurityEvent::reload(ReloadOutcome::Applied)
    });
    telemetry.security.record(&SecurityEvent {
        kind: SecurityEventKind::FailedToken(TokenFailure::Wrong),
        ..SecurityEvent::reload(ReloadOutcome::Applied)
    });
    telemetry.security.record(&SecurityEvent::command(RemoteCommand::ThreadLimit(1)));
    [ReloadOutcome::Applied, ReloadOutcome::Refused]
        .into_iter()
        .for_each(|outcome| telemetry.security.record(&SecurityEvent::reload(outcome)));
    let families = read(&render(&telemetry, SystemTime::UNIX_EPOCH));
    for (name, label, count) in [
        ("bitnetd_guard_refused_total", "rate_limited", 1.0),
        ("bitnetd_guard_refused_total", "prompt_bytes", 0.0),
        ("bitnetd_failed_tokens_total", "", 1.0),
        ("bitnetd_commands_total", "", 1.0),
        ("bitnetd_reloads_total", "", 2.0),
        ("bitnetd_reloads_refused_total", "", 1.0),
    ] {
        assert_eq!(value(&families, name, label), count, "{name} {label}");
    }
}

#[test]
fn a_label_of_any_text_comes_back_as_it_was() {
    let odd = "/sys/\"a\\b\"\n{x=\"1\",} 2 #\u{e4}";
    let telemetry = Telemetry::new(0);
    let power = reading(1.0, "W", odd);
    telemetry.observe(Instant::now(), Snapshot { power, ..Snapshot::default() });
    let families = read(&render(&telemetry, SystemTime::UNIX_EPOCH));
    assert_eq!(families["bitnetd_power_watts"].samples[0].1[0], ("source".into(), odd.into()));
}

#[test]
fn reports_have_the_numbers_that_the_text_has() {
    let telemetry = full();
    let report = telemetry.report(SystemTime::UNIX_EPOCH);
    let families = read(&render(&telemetry, SystemTime::UNIX_EPOCH));
    let Percentiles { count, .. } = report.latency.ttft_ms.all;
    assert_eq!(value(&families, "bitnetd_requests_refused_total", ""), report.requests.refused as f64);
    let counted = |sample: &&Sample| sample.0.ends_with("_count");
    let found = families["gen_ai_server_time_to_first_token_seconds"].samples.iter().find(counted);
    assert_eq!(found.map(|sample| sample.2), Some(count as f64));
}

/// Every name in a query that may be one of the exported metrics.
fn names(query: &str) -> BTreeSet<&str> {
    let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("bitnetd_") || word.starts_with("gen_ai_")).collect()
}

#[test]
fn the_dashboard_uses_only_exported_metrics_and_all_that_matter() {
    let dashboard: serde_json::Value =
        serde_json::from_str(include_str!("../../../config/grafana-dashboard.json")).expect("JSON");
    let telemetry = full();
    let mut text = render(&telemetry, SystemTime::UNIX_EPOCH);
    // None of these does anything on the device that was recorded.
    text.push_str("# HELP bitnetd_alert x\n# TYPE bitnetd_alert gauge\nbitnetd_alert{name=\"x\"} 1\n");
    let families = read(&text);
    let reported: BTreeSet<&str> =
        families.values().flat_map(|family| &family.samples).map(|s| s.0.as_str()).collect();
    let panels = dashboard["panels"].as_array().expect("panels");
    let queries = panels.iter().flat_map(|panel| panel["targets"].as_array().expect("queries"));
    let mut asked = BTreeSet::new();
    for query in queries {
        let query = query["expr"].as_str().expect("a query");
        for name in names(query) {
            let is_known = reported.contains(name) || name == "bitnetd_idle_power_watts";
            assert!(is_known, "{name} in {query}");
            asked.insert(name);
        }
    }
    for variable in dashboard["templating"]["list"].as_array().expect("variables") {
        let query = variable["query"]["query"].as_str().expect("a query");
        assert!(names(query).iter().all(|name| reported.contains(name)), "{query}");
    }
    for name in [
        "bitnetd_power_watts",
        "bitnetd_temperature_celsius",
        "bitnetd_throttled",
        "bitnetd_alert",
        "bitnetd_decoding_steps_total",
        "bitnetd_prefix_tokens_total",
        "bitnetd_accepted_tokens_total",
        "bitnetd_suspensions_total",
        "bitnetd_client_waiting",
    ] {
        assert!(asked.contains(name), "{name}");
    }
    let source = &dashboard["__inputs"][0]["name"];
    assert!(
        panels
            .iter()
            .all(|panel| panel["datasource"]["uid"] == format!("${{{}}}", source.as_str().expect("a name")))
    );
}
