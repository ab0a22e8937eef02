//! The summary of some hours of the history: means, extremes, percentiles and sums.
//!
//! Deliberately knows no form of a report: text, data and page are made of it.

use super::column::StepColumn as C;
use super::record::{LatencyColumns, StepRecord, latency_percentiles, weighted_quantiles};
use super::request::ReportRequest;
use super::{HistorySteps, minute_of, time_of};
use crate::telemetry::alerts::Kind;
use crate::telemetry::rfc3339;
use serde::Serialize;
use std::time::SystemTime;

/// The hours up to which a report is made of steps of one minute.
const HOURS_OF_MINUTES: u32 = 24;

/// Who the report is about.
#[derive(Debug, Clone, Copy)]
pub struct ReportSubject<'a> {
    /// The device id.
    pub device: &'a str,
    /// The name of the model.
    pub model: &'a str,
}

/// The steps of some hours, and their summary.
#[derive(Debug, Clone, PartialEq)]
pub struct HistoryReport {
    /// The summary.
    pub summary: HistorySummary,
    /// The steps, the oldest first.
    pub steps: Vec<StepRecord>,
    /// The first minute, and the one behind the last.
    pub period: (u32, u32),
    /// Minutes of a step.
    pub step_minutes: u32,
}

/// The summary of some hours. What is not known is null, and so is what there was nothing of.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the names are those of the JSON form, which docs/operate.md explains")]
pub struct HistorySummary {
    pub device: String,
    pub model: String,
    pub version: &'static str,
    pub from: String,
    pub to: String,
    pub hours: u32,
    pub step_minutes: u32,
    pub observed_s: f64,
    pub restarts: u64,
    pub requests: RequestSummary,
    pub tokens: TokenSummary,
    pub cache: CacheSummary,
    pub tokens_per_second: Option<ReadingSpread>,
    pub ttft_ms: Option<LatencySummary>,
    pub total_ms: Option<LatencySummary>,
    pub waiting: Option<ReadingSpread>,
    pub power_w: Option<ReadingSpread>,
    pub temperature_c: Option<ReadingSpread>,
    pub throttled_s: Option<f64>,
    pub under_voltage_s: Option<f64>,
    pub cpu_percent: Option<ReadingSpread>,
    pub memory_mib: Option<ReadingSpread>,
    pub memory_budget_mib: Option<f64>,
    pub energy: Option<EnergySummary>,
    pub alerts_raised: u64,
    pub alerts: Vec<AlertSummary>,
}

/// A reading over the time: mean, extremes, and percentiles of the means of the steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct ReadingSpread {
    pub mean: f64,
    pub min: f64,
    pub max: f64,
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
}

/// A latency of all answers in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct LatencySummary {
    pub count: u64,
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
}

/// What became of the requests.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the names are those of the telemetry report")]
pub struct RequestSummary {
    pub completed: u64,
    pub refused: u64,
    pub cancelled: u64,
    /// Refused or cut off by the daemon, without those that clients cancelled and that a stop ended.
    pub failed: u64,
    /// The share of the requests that clients did not cancel, that did not fail.
    pub success_ratio: Option<f64>,
    pub per_minute: Option<f64>,
}

/// Tokens read and generated.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct TokenSummary {
    pub prompt: u64,
    pub completion: u64,
}

/// Answers from the cache.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the names are those of the telemetry report")]
pub struct CacheSummary {
    pub hits: u64,
    pub misses: u64,
    pub hit_ratio: Option<f64>,
}

/// Energy, and what it cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct EnergySummary {
    pub watt_hours: f64,
    pub joules_per_token: Option<f64>,
    pub price_per_kwh: Option<f64>,
    pub cost: Option<f64>,
}

/// One kind of alert.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AlertSummary {
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Minutes of the steps in which it was raised at any time.
    pub minutes: u32,
    /// The beginning of the first of them.
    pub first: String,
    /// The beginning of the last of them.
    pub last: String,
    /// Both as minutes since 1970.
    #[serde(skip)]
    pub(super) period: (u32, u32),
}

impl HistoryReport {
    /// The report of the hours before `now`.
    pub fn new(
        history: &HistorySteps,
        subject: ReportSubject<'_>,
        request: &ReportRequest,
        now: SystemTime,
    ) -> Self {
        let ring = if request.hours <= HOURS_OF_MINUTES { &history.minutes } else { &history.quarters };
        let step_minutes = ring.length();
        // The step that is being observed is the last one.
        let end = (minute_of(now) / step_minutes).saturating_add(1).saturating_mul(step_minutes);
        let begin = end.saturating_sub(request.hours * 60);
        let steps: Vec<StepRecord> = ring.between(begin, end).copied().collect();
        let is_first = ring.between(0, begin).next().is_none();
        let summary = HistorySummary {
            device: subject.device.to_owned(),
            model: subject.model.to_owned(),
            version: env!("CARGO_PKG_VERSION"),
            from: rfc3339(time_of(begin)),
            to: rfc3339(time_of(end)),
            hours: request.hours,
            step_minutes,
            ..summary(&steps, step_minutes, request.price, is_first)
        };
        HistoryReport { summary, steps, period: (begin, end), step_minutes }
    }
}

fn summary(steps: &[StepRecord], step_minutes: u32, price: Option<f64>, is_first: bool) -> HistorySummary {
    let mib = |kib: f64| kib / 1024.0;
    let memory = spread(steps, [C::MemoryMean, C::MemoryMean, C::MemoryMax]);
    HistorySummary {
        device: String::new(),
        model: String::new(),
        version: "",
        from: String::new(),
        to: String::new(),
        hours: 0,
        step_minutes,
        observed_s: total(steps, C::ObservedS),
        restarts: restarts(steps, is_first),
        requests: requests(steps),
        tokens: TokenSummary {
            prompt: whole(steps, C::PromptTokens),
            completion: whole(steps, C::CompletionTokens),
        },
        cache: cache(steps),
        tokens_per_second: speed(steps),
        ttft_ms: latency(steps, LatencyColumns::Ttft),
        total_ms: latency(steps, LatencyColumns::Total),
        waiting: spread(steps, [C::QueueMean, C::QueueMean, C::QueueMax]),
        power_w: spread(steps, [C::PowerMean, C::PowerMin, C::PowerMax]),
        temperature_c: spread(steps, [C::TemperatureMean, C::TemperatureMin, C::TemperatureMax]),
        throttled_s: known_total(steps, C::ThrottledS),
        under_voltage_s: known_total(steps, C::UnderVoltageS),
        cpu_percent: spread(steps, [C::CpuMean; 3]),
        memory_mib: memory.map(|spread| spread.map(|kib| rounded(mib(kib)))),
        memory_budget_mib: steps.iter().rev().find_map(|step| step.get(C::MemoryBudget)).map(mib),
        energy: energy(steps, price),
        alerts_raised: whole(steps, C::AlertsRaised),
        alerts: alerts(steps, step_minutes),
    }
}

/// Without the digits that come of the binary form of numbers.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

fn known_total(steps: &[StepRecord], column: C) -> Option<f64> {
    steps.iter().filter_map(|step| step.get(column)).reduce(|sum, value| sum + value)
}

fn total(steps: &[StepRecord], column: C) -> f64 {
    known_total(steps, column).unwrap_or(0.0)
}

fn whole(steps: &[StepRecord], column: C) -> u64 {
    total(steps, column).round() as u64
}

/// Starts of the daemon without the very first.
fn restarts(steps: &[StepRecord], is_first: bool) -> u64 {
    let starts = whole(steps, C::Starts);
    let begins_with_start = steps.first().is_some_and(|step| step.count(C::Starts) > 0.0);
    starts - u64::from(is_first && begins_with_start)
}

/// Of a mean, a lowest and a highest value of each step.
fn spread(steps: &[StepRecord], [mean, low, high]: [C; 3]) -> Option<ReadingSpread> {
    let weight = |step: &StepRecord| step.count(C::ObservedS).max(1.0);
    let points: Vec<(f64, f64)> =
        steps.iter().filter_map(|step| Some((step.get(mean)?, weight(step)))).collect();
    let (sum, all) =
        points.iter().fold((0.0, 0.0), |(sum, all), (value, weight)| (sum + value * weight, all + weight));
    let [p50, p95, p99] = weighted_quantiles(points, [0.5, 0.95, 0.99])?;
    let spread = ReadingSpread {
        mean: sum / all,
        min: steps.iter().filter_map(|step| step.get(low)).reduce(f64::min)?,
        max: steps.iter().filter_map(|step| step.get(high)).reduce(f64::max)?,
        p50,
        p95,
        p99,
    };
    Some(spread.map(rounded))
}

impl ReadingSpread {
    fn map(self, change: impl Fn(f64) -> f64) -> Self {
        let ReadingSpread { mean, min, max, p50, p95, p99 } = self;
        let [mean, min, max, p50, p95, p99] = [mean, min, max, p50, p95, p99].map(change);
        ReadingSpread { mean, min, max, p50, p95, p99 }
    }
}

/// Tokens a second; the mean is all tokens over all the time that they took, and percentiles are of the steps.
fn speed(steps: &[StepRecord]) -> Option<ReadingSpread> {
    let speeds = || steps.iter().filter_map(StepRecord::tokens_per_second);
    let points = steps.iter().filter_map(|step| Some((step.tokens_per_second()?, step.get(C::DecodeMs)?)));
    let [p50, p95, p99] = weighted_quantiles(points.collect(), [0.5, 0.95, 0.99])?;
    let spread = ReadingSpread {
        mean: total(steps, C::DecodedTokens) * 1000.0 / total(steps, C::DecodeMs),
        min: speeds().reduce(f64::min)?,
        max: speeds().reduce(f64::max)?,
        p50,
        p95,
        p99,
    };
    Some(spread.map(rounded))
}

fn latency(steps: &[StepRecord], latency: LatencyColumns) -> Option<LatencySummary> {
    let [p50, p95, p99] = latency_percentiles(latency, steps.iter())?.map(rounded);
    Some(LatencySummary { count: whole(steps, latency.columns().0), p50, p95, p99 })
}

fn requests(steps: &[StepRecord]) -> RequestSummary {
    let [completed, refused, cancelled, failed] =
        [C::Completed, C::Refused, C::Cancelled, C::Failed].map(|column| whole(steps, column));
    // Cancelled requests are among the completed and the refused ones.
    let judged = (completed + refused).saturating_sub(cancelled);
    let minutes = total(steps, C::ObservedS) / 60.0;
    RequestSummary {
        completed,
        refused,
        cancelled,
        failed,
        success_ratio: (judged > 0).then(|| rounded(1.0 - failed.min(judged) as f64 / judged as f64)),
        per_minute: (minutes > 0.0).then(|| rounded((completed + refused) as f64 / minutes)),
    }
}

fn cache(steps: &[StepRecord]) -> CacheSummary {
    let (hits, misses) = (whole(steps, C::CacheHits), whole(steps, C::CacheMisses));
    let all = hits + misses;
    CacheSummary { hits, misses, hit_ratio: (all > 0).then(|| rounded(hits as f64 / all as f64)) }
}

fn energy(steps: &[StepRecord], price: Option<f64>) -> Option<EnergySummary> {
    let watt_hours = rounded(known_total(steps, C::Joules)? / 3600.0);
    let tokens = total(steps, C::RequestTokens);
    Some(EnergySummary {
        watt_hours,
        joules_per_token: (tokens > 0.0).then(|| rounded(total(steps, C::RequestJoules) / tokens)),
        price_per_kwh: price,
        cost: price.map(|price| price * watt_hours / 1000.0),
    })
}

fn alerts(steps: &[StepRecord], step_minutes: u32) -> Vec<AlertSummary> {
    let raised = |at: usize| steps.iter().filter(move |step| step.count(C::AlertBits) as u16 >> at & 1 == 1);
    let of_kind = |(at, kind): (usize, Kind)| {
        let begin = |step: &StepRecord| rfc3339(time_of(step.minute));
        let (first, last) = (raised(at).next()?, raised(at).last()?);
        Some(AlertSummary {
            kind: kind.name(),
            minutes: raised(at).count() as u32 * step_minutes,
            first: begin(first),
            last: begin(last),
            period: (first.minute, last.minute),
        })
    };
    Kind::ALL.into_iter().enumerate().filter_map(of_kind).collect()
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::step;
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    const SUBJECT: ReportSubject<'_> = ReportSubject { device: "cellar", model: "tiny" };

    fn report(steps: &HistorySteps, hours: u32, minute: u64) -> HistoryReport {
        let request = ReportRequest { hours, price: Some(0.5), ..ReportRequest::default() };
        HistoryReport::new(steps, SUBJECT, &request, UNIX_EPOCH + Duration::from_secs(minute * 60 + 5))
    }

    fn history(steps: &[StepRecord]) -> HistorySteps {
        let mut history = HistorySteps::default();
        steps.iter().for_each(|step| history.minutes.add(*step, None));
        history
    }

    #[test]
    fn an_empty_history_is_a_report_without_numbers() {
        let report = report(&HistorySteps::default(), 24, 30_000_000);
        let summary = &report.summary;
        assert_eq!((summary.power_w, summary.energy, summary.ttft_ms), (None, None, None));
        assert_eq!(
            (summary.requests.success_ratio, summary.cache.hit_ratio, summary.restarts),
            (None, None, 0)
        );
        assert_eq!(
            (summary.from.as_str(), summary.to.as_str()),
            ("2027-01-14T08:01:00Z", "2027-01-15T08:01:00Z")
        );
    }

    #[test]
    fn readings_are_weighted_by_the_time_they_were_seen() {
        let steps = [
            step(
                1000,
                &[
                    (C::ObservedS, 60.0),
                    (C::PowerMean, 4.0),
                    (C::PowerMin, 3.0),
                    (C::PowerMax, 9.0),
                    (C::Joules, 240.0),
                ],
            ),
            step(
                1001,
                &[
                    (C::ObservedS, 20.0),
                    (C::PowerMean, 8.0),
                    (C::PowerMin, 8.0),
                    (C::PowerMax, 8.0),
                    (C::Joules, 160.0),
                ],
            ),
            step(1002, &[(C::ObservedS, 60.0)]),
        ];
        let summary = report(&history(&steps), 1, 1002).summary;
        let power = summary.power_w.expect("known");
        assert_eq!((power.mean, power.min, power.max, power.p50, power.p99), (5.0, 3.0, 9.0, 4.0, 8.0));
        let energy = summary.energy.expect("known");
        assert!((energy.watt_hours - 400.0 / 3600.0).abs() < 1e-4);
        assert!((energy.cost.expect("a price") - 0.5 * energy.watt_hours / 1000.0).abs() < 1e-12);
        assert_eq!((energy.joules_per_token, summary.observed_s), (None, 140.0));
    }

    #[test]
    fn what_clients_cancelled_is_no_failure_and_no_success() {
        let counts = [
            (C::Completed, 8.0),
            (C::Refused, 4.0),
            (C::Cancelled, 2.0),
            (C::Failed, 3.0),
            (C::ObservedS, 60.0),
        ];
        let requests = report(&history(&[step(1000, &counts)]), 1, 1000).summary.requests;
        assert_eq!((requests.success_ratio, requests.per_minute), (Some(0.7), Some(12.0)));
    }

    #[test]
    fn only_steps_of_the_hours_asked_for_count() {
        let steps: Vec<_> =
            [939, 940, 1000, 1001].map(|at| step(at, &[(C::Completed, 1.0), (C::Starts, 1.0)])).into();
        let history = history(&steps);
        let of = |hours| report(&history, hours, 1000).summary;
        assert_eq!((of(1).requests.completed, of(2).requests.completed), (1, 3));
        assert_eq!((of(1).restarts, of(2).restarts), (1, 2), "the very first start is no restart");
        assert_eq!(of(25).requests.completed, 0, "longer reports are of longer steps");
    }

    #[test]
    fn alerts_have_their_kind_and_their_time() {
        let steps = [
            step(1000, &[(C::AlertBits, 1.0), (C::AlertsRaised, 1.0)]),
            step(1001, &[(C::AlertBits, 5.0), (C::AlertsRaised, 1.0)]),
            step(1002, &[(C::AlertBits, 0.0)]),
        ];
        let summary = report(&history(&steps), 1, 1002).summary;
        let alerts: Vec<_> = summary.alerts.iter().map(|alert| (alert.kind, alert.minutes)).collect();
        assert_eq!(alerts, [("temperature", 2), ("under_voltage", 1)]);
        assert_eq!((summary.alerts_raised, summary.alerts[0].first.as_str()), (2, "1970-01-01T16:40:00Z"));
    }
}
