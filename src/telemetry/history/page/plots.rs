//! Which plots a page has, out of the steps of a report.
//!
//! Deliberately draws nothing.

use super::super::column::StepColumn as C;
use super::super::record::StepRecord;
use super::super::summary::{HistoryReport, HistorySummary, ReadingSpread};
use super::super::text::{duration, milliseconds, percent, short};
use super::plot::{Mark, Plot, Series, Values};

/// The most columns of time of a plot: on a wide screen each is some pixels wide.
const MOST_COLUMNS: u32 = 300;
/// How many steps become one column of time.
const STEPS_A_COLUMN: [u32; 9] = [1, 2, 3, 4, 5, 6, 8, 10, 12];

/// The steps of a report in columns of equal time; `None` where the daemon did not run.
pub(super) struct TimeColumns {
    columns: Vec<Option<StepRecord>>,
    /// Minutes of a column.
    pub minutes: u32,
}

impl TimeColumns {
    pub fn of(report: &HistoryReport) -> Self {
        let (from, to) = report.period;
        let steps = (to - from) / report.step_minutes;
        let each = STEPS_A_COLUMN.into_iter().find(|each| steps.div_ceil(*each) <= MOST_COLUMNS);
        let minutes = each.unwrap_or(steps.div_ceil(MOST_COLUMNS)) * report.step_minutes;
        let mut groups: Vec<Vec<&StepRecord>> = vec![Vec::new(); (to - from).div_ceil(minutes) as usize];
        for step in &report.steps {
            groups[((step.minute - from) / minutes) as usize].push(step);
        }
        let merge =
            |steps: Vec<&StepRecord>| steps.first().map(|first| StepRecord::merged(first.minute, &steps));
        TimeColumns { columns: groups.into_iter().map(merge).collect(), minutes }
    }

    /// Where the daemon did not run.
    pub fn gaps(&self) -> Vec<bool> {
        self.columns.iter().map(Option::is_none).collect()
    }

    fn values(&self, value: impl Fn(&StepRecord) -> Option<f64>) -> Values {
        self.columns.iter().map(|column| column.as_ref().and_then(&value)).collect()
    }

    fn of_column(&self, column: C) -> Values {
        self.values(|step| step.get(column))
    }

    fn line(&self, label: &str, class: &'static str, value: impl Fn(&StepRecord) -> Option<f64>) -> Series {
        Series { label: label.into(), class, mark: Mark::Line(self.values(value)) }
    }

    fn band(&self, low: C, high: C) -> Series {
        let mark = Mark::Band(self.of_column(low), self.of_column(high));
        Series { label: "lowest to highest".into(), class: "first", mark }
    }

    fn strip(&self, label: &str, class: &'static str, column: C, level: u8) -> Series {
        let is_so = self.columns.iter().map(|step| step.is_some_and(|step| step.count(column) > 0.0));
        Series { label: label.into(), class, mark: Mark::Strip(is_so.collect(), level) }
    }
}

/// All plots of the page.
pub(super) fn plots(columns: &TimeColumns, summary: &HistorySummary) -> Vec<Plot> {
    vec![
        power(columns, summary),
        temperature(columns, summary),
        speed(columns, summary),
        latency(columns, "time to the first token", [C::TtftP50, C::TtftP95, C::TtftP99]),
        latency(columns, "time to the last token", [C::TotalP50, C::TotalP95, C::TotalP99]),
        requests(columns, summary),
        queue(columns, summary),
        memory(columns, summary),
    ]
}

fn note(spread: Option<ReadingSpread>, unit: &str) -> String {
    spread.map_or(String::new(), |spread| {
        let [mean, min, max] = [spread.mean, spread.min, spread.max].map(short);
        format!("{mean} {unit} on average, {min} to {max}")
    })
}

fn power(columns: &TimeColumns, summary: &HistorySummary) -> Plot {
    let mean = columns.line("mean", "first", |step| step.get(C::PowerMean));
    Plot {
        title: "power",
        unit: "W",
        note: note(summary.power_w, "W"),
        from_zero: true,
        series: vec![columns.band(C::PowerMin, C::PowerMax), mean],
    }
}

fn temperature(columns: &TimeColumns, summary: &HistorySummary) -> Plot {
    let mean = columns.line("mean", "first", |step| step.get(C::TemperatureMean));
    let mut series = vec![columns.band(C::TemperatureMin, C::TemperatureMax), mean];
    let mut text = note(summary.temperature_c, "°C");
    let flags = [
        ("throttled", "bad", C::ThrottledS, summary.throttled_s, 0),
        ("under-voltage", "second", C::UnderVoltageS, summary.under_voltage_s, 1),
    ];
    for (label, class, column, seconds, level) in flags {
        if let Some(seconds) = seconds.filter(|seconds| *seconds > 0.0) {
            series.push(columns.strip(label, class, column, level));
            text.push_str(&format!("; {label} for {}", duration(seconds)));
        }
    }
    Plot { title: "temperature and throttling", unit: "°C", note: text, from_zero: false, series }
}

fn speed(columns: &TimeColumns, summary: &HistorySummary) -> Plot {
    Plot {
        title: "speed",
        unit: "tokens a second",
        note: note(summary.tokens_per_second, "tokens a second"),
        from_zero: true,
        series: vec![columns.line("while answers are generated", "first", StepRecord::tokens_per_second)],
    }
}

fn latency(columns: &TimeColumns, title: &'static str, percentiles: [C; 3]) -> Plot {
    let highest = columns.of_column(percentiles[2]).into_iter().flatten().fold(0.0, f64::max);
    let (unit, factor) = if highest < 2000.0 { ("ms", 1.0) } else { ("s", 1000.0) };
    let names = [("p50", "p50"), ("p95", "p95"), ("p99", "p99")];
    let lines = names.into_iter().zip(percentiles).rev();
    let series = lines.map(|((label, class), column)| {
        columns.line(label, class, move |step| step.get(column).map(|ms| ms / factor))
    });
    let note = if highest > 0.0 { format!("p99 up to {}", milliseconds(highest)) } else { String::new() };
    Plot { title, unit, note, from_zero: true, series: series.collect() }
}

fn requests(columns: &TimeColumns, summary: &HistorySummary) -> Plot {
    // An answer that ran out of time counts as completed and as failed.
    let completed = columns.values(|step| {
        Some((step.count(C::Completed) + step.count(C::Refused) - step.count(C::Failed)).max(0.0))
    });
    let failed = columns.of_column(C::Failed);
    let success = summary.requests.success_ratio;
    let success = success.map_or(String::new(), |ratio| format!("; success {}", percent(ratio)));
    let minutes = columns.minutes;
    Plot {
        title: "requests",
        unit: if minutes == 1 { "each minute" } else { "each bar" },
        note: format!(
            "{} completed, {} failed{success}; a bar is {}",
            summary.requests.completed,
            summary.requests.failed,
            duration(f64::from(minutes) * 60.0)
        ),
        from_zero: true,
        series: vec![
            Series {
                label: "answered or cancelled".into(),
                class: "first",
                mark: Mark::Bars(completed.clone()),
            },
            Series { label: "failed".into(), class: "bad", mark: Mark::Stacked(completed, failed) },
        ],
    }
}

fn queue(columns: &TimeColumns, summary: &HistorySummary) -> Plot {
    let most = columns.of_column(C::QueueMax);
    let waiting = summary.waiting.map_or(String::new(), |spread| {
        format!("{} waiting on average, {:.0} at most", short(spread.mean), spread.max)
    });
    Plot {
        title: "queue",
        unit: "requests",
        note: waiting,
        from_zero: true,
        series: vec![
            Series { label: "waiting, at most".into(), class: "second", mark: Mark::Bars(most) },
            columns.line("being answered, mean", "first", |step| step.get(C::RunningMean)),
        ],
    }
}

fn memory(columns: &TimeColumns, summary: &HistorySummary) -> Plot {
    let mib = |kib: f64| kib / 1024.0;
    let note = summary.memory_mib.map_or(String::new(), |memory| {
        let budget = summary.memory_budget_mib;
        let share =
            budget.map_or(String::new(), |mib| format!(", {} of the budget", percent(memory.max / mib)));
        format!("{:.0} MiB at most{share}", memory.max)
    });
    Plot {
        title: "memory",
        unit: "MiB",
        note,
        from_zero: true,
        series: vec![
            columns.line("resident, highest", "first", move |step| step.get(C::MemoryMax).map(mib)),
            columns.line("budget", "limit", move |step| step.get(C::MemoryBudget).map(mib)),
        ],
    }
}
