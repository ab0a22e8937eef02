//! The rows about alerts: what is raised, with its value, and what was in the last hours.
//!
//! Pure. A daemon that does not list its alerts is shown with their names alone.

use super::report_view::ReportView;
use serde_json::Value;

/// Rows about alerts that are over; a terminal has few lines.
const MAX_PAST: usize = 3;

/// What is raised, one row each.
pub(super) fn raised(view: &ReportView<'_>) -> Vec<String> {
    let details = list(view, "/alert_list/raised");
    let names = list(view, "/alerts").iter().filter_map(Value::as_str);
    let row = |name: &str| {
        let detail = details.iter().map(ReportView).find(|alert| alert.text("/type") == Some(name));
        let detail = detail.map(|alert| {
            let (severity, since) = (alert.text("/severity"), alert.text("/time"));
            format!(
                ": {}, {} since {}",
                values(&alert),
                severity.unwrap_or_default(),
                since.unwrap_or_default()
            )
        });
        format!("ALERT       {}{}", name.replace('_', " "), detail.unwrap_or_default())
    };
    names.map(row).collect()
}

/// What was cleared in the last hours, the latest first.
pub(super) fn past(view: &ReportView<'_>) -> Vec<String> {
    let all = list(view, "/alert_list/recent");
    let row = |alert: ReportView<'_>| {
        let text = |path| alert.text(path).unwrap_or_default();
        let name = text("/type").replace('_', " ");
        format!("earlier     {name}: {}, {} to {}", values(&alert), text("/time"), text("/cleared_time"))
    };
    let rows = all.iter().take(MAX_PAST).map(|alert| row(ReportView(alert)));
    let more = (all.len() > MAX_PAST)
        .then(|| format!("            and {} more in the last 6 hours", all.len() - MAX_PAST));
    rows.chain(more).collect()
}

/// The reading when it was raised, and the threshold.
fn values(alert: &ReportView<'_>) -> String {
    let number = |path| alert.number(path).map_or("?".to_owned(), |value| value.to_string());
    format!("{} (alert at {})", number("/value"), number("/threshold"))
}

fn list<'a>(view: &ReportView<'a>, path: &str) -> &'a [Value] {
    view.0.pointer(path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn raised_alerts_have_their_values_where_the_daemon_lists_them() {
        let alert = |kind: &str| {
            json!({
                "type": kind, "severity": "warning", "value": 91.5, "threshold": 90.0, "time": "T", "cleared_time": "U",
            })
        };
        let mut report = json!({"alerts": ["queue", "under_voltage"]});
        assert_eq!(raised(&ReportView(&report)), ["ALERT       queue", "ALERT       under voltage"]);
        report["alert_list"] = json!({"raised": [alert("queue")], "recent": vec![alert("slow_tokens"); 5]});
        let rows = raised(&ReportView(&report));
        assert_eq!(rows[0], "ALERT       queue: 91.5 (alert at 90), warning since T");
        let rows = past(&ReportView(&report));
        assert_eq!(rows[0], "earlier     slow tokens: 91.5 (alert at 90), T to U");
        assert_eq!((rows.len(), rows[3].trim()), (4, "and 2 more in the last 6 hours"));
    }
}
