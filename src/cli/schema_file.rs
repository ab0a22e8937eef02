//! `--schema FILE` of `ask` and `generate`. Deliberately checks no more than that it is JSON.

use super::Failure;
use crate::{config, external_text};
use serde_json::Value;
use std::path::Path;

/// Reads the JSON schema in a file.
pub(super) fn read(path: &Path) -> Result<Value, Failure> {
    let failed = |why: String| Failure::usage(format!("--schema {}: {why}", path.display()));
    let text = config::read_text(path).map_err(failed)?;
    let text = external_text::utf8(text.as_bytes()).map_err(|why| failed(format!("the file {why}")))?;
    serde_json::from_str(text).map_err(|error| failed(format!("not JSON: {error}")))
}
