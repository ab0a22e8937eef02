//! The checks of the section `[telemetry]`.
//!
//! Deliberately reads no sensor and no file.

use super::BoardWatts;
use super::key_error::{KeyError, KeyResult};
use std::path::Path;

/// Both values or neither, since a linear estimate needs two points.
pub(super) fn board_watts(idle: Option<f64>, full: Option<f64>) -> KeyResult<Option<BoardWatts>> {
    let missing = |missing, given| {
        let reason =
            format!("missing, though {given} is set; an estimate needs both, measured at rest and at work");
        Err(KeyError("telemetry", missing, reason))
    };
    let (idle, full) = match (idle, full) {
        (None, None) => return Ok(None),
        (Some(_), None) => return missing("full_watts", "idle_watts"),
        (None, Some(_)) => return missing("idle_watts", "full_watts"),
        (Some(idle), Some(full)) => (watts("idle_watts", idle)?, watts("full_watts", full)?),
    };
    if full <= idle {
        let reason =
            format!("{full} is not more than idle_watts, {idle}; give the power with all processors at work");
        return Err(KeyError("telemetry", "full_watts", reason));
    }
    Ok(Some(BoardWatts { idle, full }))
}

/// The power of a board in watts: more than 0, and no more than is plausible for sensors.
fn watts(key: &'static str, value: f64) -> KeyResult<f64> {
    if value > 0.0 && value <= 2000.0 {
        return Ok(value);
    }
    Err(KeyError("telemetry", key, format!("{value} is outside 0 to 2000 watts; give what the board draws")))
}

/// node_exporter reads only files with this extension.
pub(super) fn check_textfile(path: &Path) -> KeyResult<()> {
    let wrong = if path.is_relative() {
        "is no absolute path; begin it with /"
    } else if path.extension().is_none_or(|ending| ending != "prom") {
        "does not end in .prom, and node_exporter reads no other files; name it so"
    } else {
        return Ok(());
    };
    Err(KeyError("telemetry", "textfile", format!("{path:?} {wrong}, or use \"\" for none")))
}
