//! Prometheus' text format, version 0.0.4: a family is a line of help, a line with its type, and its samples.
//!
//! Deliberately knows nothing of what is counted.

use crate::telemetry::Distribution;
use std::fmt::{Display, Write};

/// A label's name and value.
pub type Label<'a> = (&'a str, &'a str);

/// The text under construction.
#[derive(Debug, Default)]
pub struct Exposition(String);

/// One metric family; its header is written with its first sample.
#[derive(Debug)]
pub struct MetricFamily<'t> {
    text: &'t mut Exposition,
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    has_begun: bool,
}

impl Exposition {
    /// A level that rises and falls.
    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> MetricFamily<'_> {
        self.family(name, "gauge", help)
    }

    /// A count since start; by convention its name ends in `_total`.
    pub fn counter(&mut self, name: &'static str, help: &'static str) -> MetricFamily<'_> {
        debug_assert!(name.ends_with("_total"), "{name}");
        self.family(name, "counter", help)
    }

    /// Durations, in seconds.
    pub fn histogram(&mut self, name: &'static str, help: &'static str) -> MetricFamily<'_> {
        self.family(name, "histogram", help)
    }

    fn family(&mut self, name: &'static str, kind: &'static str, help: &'static str) -> MetricFamily<'_> {
        MetricFamily { text: self, name, kind, help, has_begun: false }
    }

    /// Adds the families of another text.
    pub fn append(&mut self, other: Exposition) {
        self.0.push_str(&other.0);
    }

    /// Bytes of the text as a JSON string.
    pub fn json_len(&self) -> usize {
        self.0.len() + self.0.bytes().filter(|byte| matches!(byte, b'"' | b'\\' | b'\n')).count() + 2
    }

    /// The whole text.
    pub fn finish(self) -> String {
        self.0
    }

    fn line(&mut self, name: impl Display, labels: &[Label<'_>], value: impl Display) {
        let text = &mut self.0;
        let _ = write!(text, "{name}"); // a string takes everything
        for (index, (label, value)) in labels.iter().enumerate() {
            let _ = write!(text, "{}{label}=\"", if index == 0 { '{' } else { ',' });
            escape(value, text);
            text.push('"');
        }
        let _ = writeln!(text, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

impl MetricFamily<'_> {
    /// Writes one sample; an unknown or non-finite one is left out.
    pub fn sample(mut self, labels: &[Label<'_>], value: Option<f64>) -> Self {
        if let Some(value) = value.filter(|value| value.is_finite()) {
            self.write_header();
            self.text.line(self.name, labels, value);
        }
        self
    }

    /// A sample without labels.
    pub fn unlabelled(self, value: Option<f64>) {
        self.sample(&[], value);
    }

    /// A count without labels.
    pub fn count(self, value: u64) {
        self.unlabelled(Some(value as f64));
    }

    /// All buckets of a distribution, its sum and its count.
    pub fn distribution(mut self, labels: &[Label<'_>], found: &Distribution) -> Self {
        self.write_header();
        let bucket = format_args!("{}_bucket", self.name).to_string();
        let bounds = found.quantity.bounds().iter().map(|bound| format!("{bound:?}"));
        let all = bounds.zip(found.cumulative.iter().copied()).chain([("+Inf".to_owned(), found.count)]);
        for (bound, count) in all {
            let labels = [labels, &[("le", bound.as_str())]].concat();
            self.text.line(&bucket, &labels, count);
        }
        self.text.line(format_args!("{}_sum", self.name), labels, found.sum_s);
        self.text.line(format_args!("{}_count", self.name), labels, found.count);
        self
    }

    fn write_header(&mut self) {
        if !std::mem::replace(&mut self.has_begun, true) {
            let MetricFamily { text, name, kind, help, .. } = self;
            let _ = writeln!(text.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        }
    }
}

/// Escapes a label's value, which may contain anything.
fn escape(value: &str, text: &mut String) {
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
}
