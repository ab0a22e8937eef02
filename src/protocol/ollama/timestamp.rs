//! Points in time as Ollama writes them.

use jiff::Timestamp;
use std::time::SystemTime;

/// RFC 3339 in UTC with nanoseconds: `2026-02-28T23:59:59.000000001Z`.
pub(super) fn rfc3339(time: SystemTime) -> String {
    // A time that no calendar has, from a file system or a clock, is shown as 1970.
    format!("{:.9}", Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn nanoseconds_are_always_written() {
        assert_eq!(rfc3339(UNIX_EPOCH), "1970-01-01T00:00:00.000000000Z");
        let time = UNIX_EPOCH + Duration::new(1_709_251_199, 12_340);
        assert_eq!(rfc3339(time), "2024-02-29T23:59:59.000012340Z");
    }
}
