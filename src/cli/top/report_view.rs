//! Access to a report as JSON, as any other client has it. Deliberately knows no layout.

use serde_json::Value;

/// Access to a report, with unknown values as `None`.
pub(super) struct ReportView<'a>(pub &'a Value);

impl ReportView<'_> {
    pub fn number(&self, path: &str) -> Option<f64> {
        self.0.pointer(path)?.as_f64()
    }

    pub fn text(&self, path: &str) -> Option<&str> {
        self.0.pointer(path)?.as_str()
    }

    pub fn flag(&self, path: &str) -> Option<bool> {
        self.0.pointer(path)?.as_bool()
    }

    pub fn count(&self, path: &str) -> u64 {
        self.0.pointer(path).and_then(Value::as_u64).unwrap_or(0)
    }
}
