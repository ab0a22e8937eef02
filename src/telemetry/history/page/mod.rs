//! A report as one page that needs nothing else: plots as SVG, a style sheet inside it, no script.
//!
//! The SVG is written by hand: a plotting library would be larger than all of this, and those that make pictures for a
//! browser want scripts, which this page must not have. What comes from outside is escaped. Deliberately knows no HTTP.

mod axis;
mod plot;
mod plots;

use super::column::StepColumn as C;
use super::record::{LatencyColumns, StepRecord, latency_percentiles};
use super::summary::HistoryReport;
use super::text::{duration, local, milliseconds, percent, period, rows, short};
use axis::time_labels;
use jiff::tz::TimeZone;
use plot::PlotFrame;
use plots::{TimeColumns, plots};
use std::fmt::Write;

const STYLE: &str = include_str!("style.css");

/// What a browser may load for the page: nothing but its own style sheet.
pub const CONTENT_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// Text as it may stand in HTML, also between quotation marks. Control characters, which HTML does not allow, are replaced.
fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => shown.push_str("&amp;"),
            '<' => shown.push_str("&lt;"),
            '>' => shown.push_str("&gt;"),
            '"' => shown.push_str("&quot;"),
            '\'' => shown.push_str("&#39;"),
            c if crate::protocol::text::is_unsafe(c) => shown.push(char::REPLACEMENT_CHARACTER),
            c => shown.push(c),
        }
    }
    shown
}

/// The page; its times are those of `zone`.
pub(super) fn page(report: &HistoryReport, zone: &TimeZone) -> String {
    let summary = &report.summary;
    let device = escaped(&summary.device);
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{CONTENT_POLICY}\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\">\
         <title>bitnetd: {device}</title>\n<style>\n{STYLE}</style></head>\n<body><header><h1>{device}</h1>\
         <p>{}; {}; bitnetd {}</p></header>\n",
        escaped(&period(report, zone)),
        escaped(&summary.model),
        escaped(summary.version)
    );
    write_tiles(&mut html, report);
    html.push_str("<main>");
    let columns = TimeColumns::of(report);
    let (from, to) = report.period;
    let frame = PlotFrame { times: time_labels(from, to, zone), gaps: columns.gaps() };
    for plot in plots(&columns, summary) {
        html.push_str(&plot.html(&frame));
    }
    html.push_str("</main>\n");
    write_alerts(&mut html, report, zone);
    html.push_str("<section class=\"wide\"><h2>in numbers</h2><table class=\"pairs\">");
    for (name, value) in rows(summary) {
        put(&mut html, format_args!("<tr><th scope=\"row\">{name}</th><td>{}</td></tr>", escaped(&value)));
    }
    html.push_str("</table></section>\n");
    write_table(&mut html, report, zone);
    html.push_str("</body></html>\n");
    html
}

fn put(text: &mut String, more: std::fmt::Arguments<'_>) {
    text.write_fmt(more).expect("a string takes everything");
}

/// The most important numbers, large.
fn write_tiles(html: &mut String, report: &HistoryReport) {
    let summary = &report.summary;
    let energy = summary.energy.as_ref();
    let known = |value: Option<String>| value.unwrap_or_else(|| "–".into());
    let cost = energy.and_then(|energy| energy.cost).map(|cost| format!("cost {cost:.2}"));
    let joules = energy
        .and_then(|energy| energy.joules_per_token)
        .map(|joules| format!("{} J a token", short(joules)));
    let details = [joules, cost].into_iter().flatten().collect::<Vec<_>>().join(", ");
    let hit_ratio = summary.cache.hit_ratio.map(|ratio| format!("{} cached", percent(ratio)));
    let tiles = [
        ("requests", summary.requests.completed.to_string(), format!("{} failed", summary.requests.failed)),
        ("success", known(summary.requests.success_ratio.map(percent)), known(hit_ratio)),
        (
            "tokens a second",
            known(summary.tokens_per_second.map(|speed| short(speed.mean))),
            format!("{} generated", summary.tokens.completion),
        ),
        (
            "first token, p95",
            known(summary.ttft_ms.map(|latency| milliseconds(latency.p95))),
            known(summary.ttft_ms.map(|latency| format!("p50 {}", milliseconds(latency.p50)))),
        ),
        ("energy", known(energy.map(|energy| format!("{} Wh", short(energy.watt_hours)))), details),
        (
            "hottest",
            known(summary.temperature_c.map(|spread| format!("{} °C", short(spread.max)))),
            known(summary.throttled_s.map(|seconds| format!("throttled {}", duration(seconds)))),
        ),
        (
            "running",
            duration(summary.observed_s),
            match summary.restarts {
                1 => "1 restart".into(),
                count => format!("{count} restarts"),
            },
        ),
        (
            "alerts",
            summary.alerts_raised.to_string(),
            summary.alerts.iter().map(|alert| alert.kind).collect::<Vec<_>>().join(", "),
        ),
    ];
    html.push_str("<dl class=\"tiles\">");
    for (name, value, detail) in tiles {
        let (value, detail) = (escaped(&value), escaped(&detail));
        put(
            html,
            format_args!("<div><dt>{name}</dt><dd>{value}</dd><dd class=\"detail\">{detail}</dd></div>"),
        );
    }
    html.push_str("</dl>\n");
}

fn write_alerts(html: &mut String, report: &HistoryReport, zone: &TimeZone) {
    if report.summary.alerts.is_empty() {
        return;
    }
    html.push_str(
        "<section class=\"wide\"><h2>alerts</h2><table><tr><th>alert</th><th>raised for about</th><th>first</th>\
         <th>last</th></tr>",
    );
    for alert in &report.summary.alerts {
        let minutes = duration(f64::from(alert.minutes) * 60.0);
        let (first, last) = alert.period;
        let [first, last] = [first, last].map(|minute| escaped(&local(minute, zone, "%-d %b %H:%M")));
        put(
            html,
            format_args!("<tr><td>{}</td><td>{minutes}</td><td>{first}</td><td>{last}</td></tr>", alert.kind),
        );
    }
    html.push_str("</table></section>\n");
}

/// The plots as a table of hours, or of days where there are many.
fn write_table(html: &mut String, report: &HistoryReport, zone: &TimeZone) {
    let form = if report.summary.hours <= 48 { "%-d %b %H:00" } else { "%-d %b %Y" };
    let mut groups: Vec<(String, Vec<&StepRecord>)> = Vec::new();
    for step in &report.steps {
        let name = local(step.minute, zone, form);
        match groups.last_mut().filter(|(last, _)| *last == name) {
            Some((_, steps)) => steps.push(step),
            None => groups.push((name, vec![step])),
        }
    }
    html.push_str(
        "<details class=\"wide\"><summary>table</summary><div class=\"scroll\"><table><tr><th>from</th><th>requests</th>\
         <th>failed</th><th>tokens/s</th><th>first token, p95</th><th>W</th><th>°C, highest</th><th>throttled</th>\
         <th>waiting, most</th><th>MiB, highest</th></tr>",
    );
    for (name, steps) in groups {
        let merged = StepRecord::merged(0, &steps);
        let known = |value: Option<String>| value.unwrap_or_else(|| "–".into());
        let p95 = latency_percentiles(LatencyColumns::Ttft, steps.iter().copied())
            .map(|values| milliseconds(values[1]));
        let cells = [
            format!("{:.0}", merged.count(C::Completed)),
            format!("{:.0}", merged.count(C::Failed)),
            known(merged.tokens_per_second().map(short)),
            known(p95),
            known(merged.get(C::PowerMean).map(short)),
            known(merged.get(C::TemperatureMax).map(short)),
            known(merged.get(C::ThrottledS).map(duration)),
            known(merged.get(C::QueueMax).map(|count| format!("{count:.0}"))),
            known(merged.get(C::MemoryMax).map(|kib| format!("{:.0}", kib / 1024.0))),
        ];
        put(
            html,
            format_args!(
                "<tr><th scope=\"row\">{}</th><td>{}</td></tr>",
                escaped(&name),
                cells.join("</td><td>")
            ),
        );
    }
    html.push_str("</table></div></details>\n");
}

#[cfg(test)]
mod tests {
    use super::super::format::tests::full;
    use super::super::request::ReportRequest;
    use super::super::summary::ReportSubject;
    use super::super::{HistorySteps, time_of};
    use super::*;

    fn of(history: &HistorySteps, hours: u32, device: &str) -> String {
        let request = ReportRequest { hours, price: Some(0.3), ..ReportRequest::default() };
        let subject = ReportSubject { device, model: device };
        let now = time_of(29_930_400 + 1440 - 1);
        page(&HistoryReport::new(history, subject, &request, now), &TimeZone::UTC)
    }

    #[test]
    fn the_page_needs_nothing_from_outside_and_has_no_script() {
        let html = of(&full(), 24, "cellar");
        for word in ["<script", "http:", "https:", "//", "url(", "@import", "src=", "href=", "onload"] {
            assert!(!html.contains(word), "{word}");
        }
        assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
        assert!(html.matches("<svg").count() >= 4);
    }

    #[test]
    fn names_from_outside_are_text_and_nothing_else() {
        let hostile = "<script>alert('x')</script>\"><img src=x onerror=y>\u{202e}\u{0}&amp;";
        let html = of(&full(), 24, hostile);
        assert!(!html.contains("<script>") && !html.contains("<img"), "escaped");
        assert!(!html.contains('\u{202e}') && !html.contains('\u{0}'));
        assert!(html.contains("&lt;script&gt;alert(&#39;x&#39;)"));
    }

    #[test]
    fn every_length_is_a_page_of_bounded_size() {
        for history in [HistorySteps::default(), full()] {
            for hours in [1, 3, 6, 24, 25, 48, 100, 168, 720] {
                let html = of(&history, hours, "cellar");
                assert!(html.len() < 300 << 10, "{hours}: {}", html.len());
                assert!(html.ends_with("</html>\n") && !html.contains("NaN"), "{hours}");
            }
        }
    }
}
