//! Limits the lines of the log about requests that a transport refused: one client that sends nothing else writes a few lines a
//! minute.
//!
//! Pure: the time is passed in. Bounded, however many clients come: beyond so many in a minute, all others share one limit.

use crate::protocol::text::shortened;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The time in which the lines of a client are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// Lines of a client in that time.
const LINES: u32 = 5;
/// Clients that have a limit of their own at a time.
const MAX_CLIENTS: usize = 32;

/// The lines of the last minute, by client; `None` is all that are not known or are too many.
#[derive(Debug, Default)]
pub(super) struct RefusalLimit(HashMap<Option<String>, (Instant, u32)>);

/// Whether a refusal has a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RefusalLine {
    Whole,
    /// It is the last one of this client for a minute.
    Last,
    None,
}

impl RefusalLimit {
    /// Counts a refusal of a client.
    pub fn admit(&mut self, client: Option<&str>, now: Instant) -> RefusalLine {
        self.0.retain(|_, (began, _)| now.saturating_duration_since(*began) < WINDOW);
        let key = client.map(shortened).filter(|client| {
            self.0.len() < MAX_CLIENTS || self.0.keys().any(|key| key.as_ref() == Some(client))
        });
        let (_, lines) = self.0.entry(key).or_insert((now, 0));
        *lines = lines.saturating_add(1);
        match (*lines).cmp(&LINES) {
            std::cmp::Ordering::Less => RefusalLine::Whole,
            std::cmp::Ordering::Equal => RefusalLine::Last,
            std::cmp::Ordering::Greater => RefusalLine::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_five_lines_a_minute_and_takes_none_from_others() {
        let (mut limit, start) = (RefusalLimit::default(), Instant::now());
        let lines: Vec<_> = (0..7).map(|_| limit.admit(Some("a"), start)).collect();
        use RefusalLine::{Last, None, Whole};
        assert_eq!(lines, [Whole, Whole, Whole, Whole, Last, None, None]);
        assert_eq!(limit.admit(Some("b"), start), Whole);
        assert_eq!(limit.admit(Some("a"), start + Duration::from_secs(59)), None);
        assert_eq!(limit.admit(Some("a"), start + Duration::from_secs(60)), Whole);
    }

    #[test]
    fn however_many_clients_come_the_lines_are_bounded() {
        let (mut limit, start) = (RefusalLimit::default(), Instant::now());
        let written = (0..1000)
            .filter(|number| limit.admit(Some(&format!("client {number}")), start) != RefusalLine::None)
            .count();
        assert_eq!(written, MAX_CLIENTS + LINES as usize);
        assert!(limit.0.len() <= MAX_CLIENTS + 1);
    }
}
