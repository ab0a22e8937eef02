//! What became of a reload. Plain data; deliberately knows nothing of how the settings are applied.

use serde::Serialize;

/// What a reload did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReloadReport {
    /// `applied`, or what stayed as it was: `refused`, `filter_kept`, `model_kept`.
    pub outcome: &'static str,
    /// The name of the model that answers now.
    pub model: String,
    /// The keys that were changed.
    pub changed: Vec<&'static str>,
    /// The keys that differ and need a restart.
    pub needs_restart: Vec<&'static str>,
    /// What stayed as it was, and why.
    pub problem: Option<String>,
}
