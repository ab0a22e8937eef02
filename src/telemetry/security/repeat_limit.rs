//! Limits the lines of the security record: of events that are alike, some a minute have a line, and the others are counted.
//!
//! Pure: the time is passed in. Bounded, however many clients come: beyond so many in a minute, all others share one limit
//! for each reason.

use super::event::{SecurityEvent, SecurityLine};
use crate::protocol::ClientInterface;
use crate::protocol::text::shortened;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The time after which the events that were left out get their line.
const WINDOW: Duration = Duration::from_secs(60);
/// Lines of events that are alike, in that time: enough to see what a client does, and no flood.
const LINES: u64 = 5;
/// Clients that have a limit of their own at a time. With it, and as many lines for the others of each reason, at most some
/// four lines a second can be written in the long run.
const MAX_LIMITED: usize = 32;

/// The limits of the last minute.
#[derive(Debug, Default)]
pub(super) struct RepeatLimit(HashMap<LimitKey, LimitWindow>);

/// Events with the same key are alike.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct LimitKey {
    event: &'static str,
    reason: &'static str,
    /// `None` for those of whom nothing is known, and for all beyond [`MAX_LIMITED`].
    source: Option<EventSource>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct EventSource {
    client: Option<String>,
    interface: Option<ClientInterface>,
    address: Option<IpAddr>,
}

#[derive(Debug)]
struct LimitWindow {
    began: Instant,
    events: u64,
}

/// Events that had no line.
#[derive(Debug)]
pub(super) struct LeftOut {
    key: LimitKey,
    count: u64,
}

impl RepeatLimit {
    /// Whether an event has a line of its own; otherwise it is counted.
    pub fn admit(&mut self, event: &SecurityEvent<'_>, now: Instant) -> bool {
        let (name, reason) = event.kind.names();
        let client = event.client.map(shortened);
        let source = EventSource { client, interface: event.interface, address: event.address };
        let mut key = LimitKey { event: name, reason, source: Some(source) };
        if self.0.len() >= MAX_LIMITED && !self.0.contains_key(&key) {
            key.source = None;
        }
        let window = self.0.entry(key).or_insert(LimitWindow { began: now, events: 0 });
        window.events += 1;
        window.events <= LINES
    }

    /// The events without a line of all whose minute is over, which begins anew with their next event.
    pub fn take_ended(&mut self, now: Instant) -> Vec<LeftOut> {
        self.take(|window| now.saturating_duration_since(window.began) >= WINDOW)
    }

    /// The same of all.
    pub fn take_all(&mut self) -> Vec<LeftOut> {
        self.take(|_| true)
    }

    fn take(&mut self, is_over: impl Fn(&LimitWindow) -> bool) -> Vec<LeftOut> {
        let over = self.0.extract_if(|_, window| is_over(window));
        over.filter(|(_, window)| window.events > LINES)
            .map(|(key, window)| LeftOut { key, count: window.events - LINES })
            .collect()
    }
}

impl LeftOut {
    /// The line that says how many there were.
    pub fn line(&self, time: String) -> SecurityLine<'_> {
        let LimitKey { event, reason, source } = &self.key;
        SecurityLine {
            time,
            event,
            reason,
            client: source.as_ref().and_then(|source| source.client.clone()),
            request_id: None,
            interface: source.as_ref().and_then(|source| source.interface).map(ClientInterface::name),
            address: source.as_ref().and_then(|source| source.address),
            filter_line: None,
            requests: None,
            threads: None,
            left_out: Some(self.count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::SecurityEventKind;
    use super::*;
    use crate::protocol::GuardReason;

    fn refused(client: &str) -> SecurityEvent<'_> {
        let kind = SecurityEventKind::Refused { reason: GuardReason::RateLimited, filter_line: None };
        let interface = Some(ClientInterface::Unix);
        SecurityEvent { kind, client: Some(client), request_id: Some("1"), interface, address: None }
    }

    #[test]
    fn a_flood_has_some_lines_and_then_one_that_says_how_many_were_left_out() {
        let (mut limit, now) = (RepeatLimit::default(), Instant::now());
        assert_eq!((0..1000).filter(|_| limit.admit(&refused("a"), now)).count() as u64, LINES);
        assert!(limit.admit(&refused("b"), now), "another client has lines of its own");
        let mut other = refused("a");
        other.kind = SecurityEventKind::Refused { reason: GuardReason::PromptBytes, filter_line: None };
        assert!(limit.admit(&other, now), "and so has another reason");
        assert!(limit.take_ended(now + WINDOW - Duration::from_millis(1)).is_empty());
        let ended = limit.take_ended(now + WINDOW);
        assert_eq!(ended.len(), 1, "who was not limited has no line more: {ended:?}");
        let line = serde_json::to_value(ended[0].line("now".into())).expect("plain data");
        assert_eq!((&line["client"], &line["left_out"]), (&"a".into(), &(1000 - LINES).into()), "{line}");
        assert!(limit.admit(&refused("a"), now + WINDOW), "the next minute");
        assert!(limit.0.len() == 1 && limit.take_all().is_empty());
    }

    #[test]
    fn however_many_clients_come_the_lines_are_bounded_and_every_event_is_counted() {
        let (mut limit, now) = (RepeatLimit::default(), Instant::now());
        let names: Vec<String> = (0..1000).map(|client| format!("client {client}")).collect();
        let written =
            (0..20).flat_map(|_| &names).filter(|name| limit.admit(&refused(name), now)).count() as u64;
        assert_eq!(written, LINES * (MAX_LIMITED as u64 + 1));
        assert_eq!(limit.0.len(), MAX_LIMITED + 1);
        let left_out = limit.take_all();
        assert_eq!(left_out.iter().map(|left_out| left_out.count).sum::<u64>(), 20_000 - written);
        let others: Vec<_> = left_out.iter().filter(|left_out| left_out.key.source.is_none()).collect();
        assert_eq!(others.len(), 1);
        assert_eq!(others[0].line("now".into()).client, None);
    }
}
