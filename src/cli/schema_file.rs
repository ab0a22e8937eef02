//! `--schema FILE` of `ask` and `generate`. Deliberately checks no more than that it is JSON.

use super::Failure;
use serde_json::Value;
use std::path::Path;

/// Reads the JSON schema in a file.
pub(super) fn read(path: &Path) -> Result<Value, Failure> {
    let failed = |why: String| Failure::usage(format!("--schema {}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| failed(format!("cannot be read: {error}")))?;
    serde_json::from_str(&text).map_err(|error| failed(format!("not JSON: {error}")))
}
