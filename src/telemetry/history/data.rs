//! A report as data: JSON and CSV.
//!
//! Deliberately computes nothing.

use super::column::StepColumn;
use super::record::StepRecord;
use super::summary::HistoryReport;
use super::time_of;
use crate::telemetry::alerts::Kind;
use crate::telemetry::rfc3339;
use serde_json::{Value, json};
use std::fmt::Write;

/// The summary, and the steps as rows of the columns that are named once.
pub fn json(report: &HistoryReport) -> Vec<u8> {
    let columns: Vec<&str> = ["time"].into_iter().chain(StepColumn::ALL.iter().map(|c| c.key())).collect();
    let head = json!({ "summary": report.summary, "columns": columns }).to_string();
    // The rows are written one by one, since all of them as values would take many times their memory.
    let mut text = head;
    text.pop();
    text.push_str(",\"steps\":[");
    for (at, step) in report.steps.iter().enumerate() {
        let time = Value::from(rfc3339(time_of(step.minute)));
        let values = StepColumn::ALL.iter().map(|column| json_value(*column, step));
        let row: Vec<String> = [time].into_iter().chain(values).map(|value| value.to_string()).collect();
        let comma = if at == 0 { "" } else { "," };
        write!(text, "{comma}\n[{}]", row.join(",")).expect("a string takes everything");
    }
    text.push_str("]}\n");
    text.into_bytes()
}

fn json_value(column: StepColumn, step: &StepRecord) -> Value {
    match column {
        StepColumn::AlertBits => alert_names(step).collect(),
        _ => step.get(column).map_or(Value::Null, |value| number(value).parse().unwrap_or(Value::Null)),
    }
}

/// The steps, one a line, below a line of names; what is not known is empty.
pub fn csv(report: &HistoryReport) -> Vec<u8> {
    let mut text = String::from("time");
    StepColumn::ALL.iter().for_each(|column| text.extend([",", column.key()]));
    text.push('\n');
    for step in &report.steps {
        text.push_str(&rfc3339(time_of(step.minute)));
        for column in StepColumn::ALL {
            text.push(',');
            match column {
                StepColumn::AlertBits => text.push_str(&alert_names(step).collect::<Vec<_>>().join(" ")),
                column => text.push_str(&step.get(*column).map_or(String::new(), number)),
            }
        }
        text.push('\n');
    }
    text.into_bytes()
}

/// A number with no more digits than are known of it.
fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn alert_names(step: &StepRecord) -> impl Iterator<Item = &'static str> {
    let bits = step.count(StepColumn::AlertBits) as u16;
    Kind::ALL.into_iter().enumerate().filter(move |(at, _)| bits >> at & 1 == 1).map(|(_, kind)| kind.name())
}
