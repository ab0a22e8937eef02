use super::request_stats::tests::done;
use super::*;
use crate::protocol::{CacheRates, Method, RequestRates, Throttling};

fn watts(value: f64) -> Reading {
    let (source, scope) = ("/sys/p".into(), "as wired".into());
    Reading { value, unit: "W", method: Method::Measured, source, scope }
}

fn report(telemetry: &Telemetry) -> Report {
    telemetry.report(SystemTime::UNIX_EPOCH)
}

#[test]
fn a_daemon_that_did_nothing_reports_no_made_up_numbers() {
    let report = report(&Telemetry::new(7));
    assert_eq!(report.time, "1970-01-01T00:00:00Z");
    assert_eq!((report.power, report.energy, report.mqtt), (None, None, None));
    assert_eq!((report.requests, report.latency), Default::default());
    assert_eq!(report.throughput.tokens_per_second, None);
    assert_eq!(report.memory.budget_bytes, 7);
}

#[test]
fn each_event_is_counted_where_it_belongs() {
    let telemetry = Telemetry::new(0);
    telemetry.received();
    telemetry.received();
    telemetry.refused(Some("a"), "invalid_request", "not a request");
    for code in [Code::BudgetExceeded, Code::Cancelled, Code::Timeout] {
        telemetry.failed(code, Duration::from_secs(1));
    }
    telemetry.cache_hit(Duration::ZERO);
    telemetry.cache_miss();
    (0..3).for_each(|_| telemetry.waiting.joined("a"));
    telemetry.set_running(1);
    let Report { requests, cache, .. } = report(&telemetry);
    // How many there are in a minute depends on the time that the test takes.
    let per_minute = requests.rates.per_minute;
    let rates =
        RequestRates { succeeded: 1, failed: 2, success_ratio: Some(0.3333), per_minute, mean_s: Some(0.0) };
    let expected = Requests {
        received: 2,
        completed: 1,
        refused: 4,
        budget_exceeded: 1,
        cancelled: 1,
        timed_out: 1,
        queued: 3,
        running: 1,
        last_hour: rates.clone(),
        rates,
    };
    let cache_rates = CacheRates { lookups: 2, hits: 1, hit_ratio: Some(0.5) };
    let last_hour = cache_rates.clone();
    assert_eq!(cache, CacheCounts { rates: cache_rates, misses: 1, entries: 0, bytes: 0, last_hour });
    assert_eq!(
        requests,
        Requests { last_hour: RequestRates { per_minute, ..requests.last_hour.clone() }, ..expected }
    );
}

#[test]
fn energy_names_the_power_reading_behind_it() {
    let (telemetry, start) = (Telemetry::new(0), Instant::now());
    let after = |seconds| start + Duration::from_secs(seconds);
    (0..=20).for_each(|s| telemetry.record_power(after(s), Some(&watts(4.0))));
    let work = telemetry.computing_began();
    telemetry.record_power(after(25), Some(&watts(6.0)));
    let cost = work.cost(1.0, 10).expect("known");
    let expected = RequestEnergy {
        joules: 30.0,
        joules_above_idle: Some(10.0),
        joules_per_token: Some(3.0),
        method: Method::Measured,
    };
    assert_eq!(cost, expected);
    drop(work);
    telemetry.completed(&Done { energy: Some(cost), ..done(3, 10) });
    let energy = report(&telemetry).energy.expect("power was read");
    assert_eq!((energy.joules, energy.requests_joules, energy.joules_per_token), (110.0, 30.0, Some(3.0)));
    assert_eq!((energy.joules_above_idle, energy.joules_per_token_above_idle), (Some(10.0), Some(1.0)));
    assert_eq!(energy.idle_watts, Some(4.0));
    assert_eq!((energy.source.as_str(), energy.scope.as_str()), ("/sys/p", "as wired"));
}

#[test]
fn dropped_work_leaves_the_device_idle() {
    let (telemetry, start) = (Telemetry::new(0), Instant::now());
    telemetry.record_power(start, Some(&watts(4.0)));
    drop(telemetry.computing_began());
    (1..=20).for_each(|s| telemetry.record_power(start + Duration::from_secs(s), Some(&watts(4.0))));
    assert_eq!(report(&telemetry).energy.expect("power was read").idle_watts, Some(4.0));
}

#[test]
fn without_a_sensor_a_request_has_no_energy() {
    let (telemetry, now) = (Telemetry::new(0), Instant::now());
    telemetry.record_power(now, None);
    assert_eq!(telemetry.computing_began().cost(1.0, 3), None);
    assert_eq!(report(&telemetry).energy, None);
}

/// Each condition has its worst reading, so an alert that is not raised is not evaluated.
#[test]
fn alerts_are_evaluated_on_host_link_queue_and_requests() {
    let (telemetry, now) = (Telemetry::new(100), Instant::now());
    telemetry.set_alert_rules(config::Alerts {
        hold: Duration::ZERO,
        temperature_c: Some(80.0),
        throttled: true,
        under_voltage: true,
        memory_percent: Some(95.0),
        cpu_percent: Some(90.0),
        tokens_per_second: Some(6.0),
        error_percent: Some(50.0),
        ttft_ms: Some(2900.0),
        queue_percent: Some(90.0),
        broker_link_s: Some(0.5),
        subscription: true,
        storage: true,
        fallback: true,
    });
    assert_eq!(telemetry.evaluate_alerts(now, 16), [], "nothing is known yet");
    let mut host = Snapshot::default();
    host.thermal.cpu = Some(watts(81.0));
    let all = Throttled { under_voltage: true, throttled: true, ..Throttled::default() };
    let (source, scope) = ("/dev/vcio".to_owned(), "board".to_owned());
    host.thermal.throttling =
        Some(Throttling { now: all, since_boot: all, method: Method::Measured, source, scope });
    host.cpu.host_percent = Some(100.0);
    host.memory.process_bytes = Some(96);
    telemetry.observe(now, host);
    (0..15).for_each(|_| telemetry.waiting.joined("a"));
    telemetry.completed(&done(10, 21));
    (0..5).for_each(|_| telemetry.failed(Code::QueueFull, Duration::ZERO));
    telemetry.set_link(MqttLink { deaf: true, storage_problem: Some("full".into()), ..MqttLink::default() });
    telemetry.describe(About { model: "m".into(), kernel: "k".into(), is_fallback: true });
    let after = |ms| now + Duration::from_millis(ms);
    let raised = [1, 600].map(|ms| telemetry.evaluate_alerts(after(ms), 16).len());
    assert_eq!(raised, [12, 1], "the broker is away for half a second only then");
    assert_eq!(report(&telemetry).alerts, alerts::Kind::ALL.map(alerts::Kind::name));
}

/// The plan takes the whole budget of 1400 MiB, of which 6 are the reserve.
#[test]
fn what_the_plan_foresees_is_no_alert_and_what_goes_beyond_it_is() {
    let (telemetry, start, mib) = (Telemetry::new(1400 << 20), Instant::now(), 1u64 << 20);
    telemetry.set_planned_memory(1394 << 20, 6 << 20);
    let rules = config::Alerts { memory_percent: Some(95.0), ..config::Alerts::off() };
    telemetry.set_alert_rules(rules.clone());
    let mut second = 0;
    let mut held = |mb: u64| {
        let mut host = Snapshot::default();
        host.memory.process_bytes = Some(mb * mib);
        second += 1;
        let now = start + Duration::from_secs(second);
        telemetry.observe(now, host);
        telemetry.evaluate_alerts(now, 1);
        telemetry.raised_alerts().len()
    };
    assert_eq!([1330, 1372, 1394, 1395, 1394, 1389, 1387].map(&mut held), [0, 0, 0, 1, 1, 1, 0]);
    // With a smaller plan the owner's threshold counts.
    telemetry.set_planned_memory(400 << 20, 6 << 20);
    assert_eq!([1329, 1330, 1261, 1260].map(&mut held), [0, 1, 1, 0]);
}

#[test]
fn what_clients_cancel_is_no_error() {
    let (telemetry, now) = (Telemetry::new(0), Instant::now());
    let rules = config::Alerts { error_percent: Some(1.0), ..config::Alerts::off() };
    telemetry.set_alert_rules(rules);
    telemetry.evaluate_alerts(now, 1);
    (0..9).for_each(|_| telemetry.failed(Code::Cancelled, Duration::ZERO));
    telemetry.completed(&Done { finish_reason: FinishReason::Cancelled, ..done(1, 1) });
    assert_eq!(telemetry.evaluate_alerts(now + Duration::from_secs(1), 1), []);
    (0..9).for_each(|_| {
        telemetry.completed(&Done { finish_reason: FinishReason::Timeout, ..done(1, 1) });
    });
    assert_eq!(telemetry.evaluate_alerts(now + Duration::from_secs(2), 1).len(), 1);
}

#[test]
fn one_clients_mistakes_neither_raise_the_error_rate_nor_hide_the_failures_of_the_daemon() {
    let (telemetry, start) = (Telemetry::new(0), Instant::now());
    let rules = config::Alerts { error_percent: Some(50.0), ..config::Alerts::off() };
    telemetry.set_alert_rules(rules);
    let raised_after = |second| telemetry.evaluate_alerts(start + Duration::from_secs(second), 1).len();
    assert_eq!(raised_after(0), 0);
    let mistakes = || {
        (0..50).for_each(|_| telemetry.refused(Some("a"), "invalid_request", "not a request"));
        [
            Code::InvalidRequest,
            Code::TooLarge,
            Code::ContextExceeded,
            Code::RateLimited,
            Code::ContentFiltered,
        ]
        .into_iter()
        .for_each(|code| telemetry.failed(code, Duration::ZERO));
    };
    mistakes();
    (0..5).for_each(|_| telemetry.completed(&done(10, 21)));
    assert_eq!(raised_after(1), 0);
    (0..5).for_each(|_| telemetry.failed(Code::Internal, Duration::ZERO));
    mistakes();
    assert_eq!(raised_after(2), 1, "five of ten");
    assert_eq!(report(&telemetry).requests.refused, 115, "they are counted all the same");
}

#[test]
fn threads_count_together() {
    let telemetry = Telemetry::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..1000).for_each(|_| telemetry.received()));
        }
    });
    assert_eq!(report(&telemetry).requests.received, 4000);
}

#[test]
fn a_report_is_one_json_object_with_null_for_the_unknown() {
    let json = serde_json::to_value(report(&Telemetry::new(0))).expect("plain data");
    for key in ["power", "energy", "mqtt"] {
        assert!(json[key].is_null(), "{key}");
    }
    for key in ["thermal", "cpu", "memory", "latency", "throughput", "requests", "cache"] {
        assert!(json[key].is_object(), "{key}");
    }
    assert!(json["alerts"].is_array() && json["uptime_s"].is_u64());
}

#[test]
fn what_the_owner_has_refused_is_no_failure_and_neither_is_what_is_too_long() {
    let telemetry = Telemetry::new(0);
    let failed = |code| {
        telemetry.failed(code, Duration::ZERO);
        telemetry.conditions(Instant::now(), 1).failed
    };
    let blameless =
        [Code::RateLimited, Code::ContentFiltered, Code::ResponseFiltered, Code::Cancelled, Code::TooLarge];
    for code in blameless {
        assert_eq!(failed(code), 0, "{code:?}");
    }
    assert_eq!((failed(Code::Internal), telemetry.requests().refused), (1, 6));
}
