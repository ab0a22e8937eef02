//! The broker link as a state machine: when to connect, how long to back off, and what a disconnect means.
//!
//! Pure: time and random numbers are passed in, decisions are returned. Deliberately knows nothing of prompts or
//! packets.

use std::time::{Duration, Instant};

/// Backoff after a first failure: with it, at most one connect per second.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// Longest backoff: a broker that is back is found within about a minute.
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// A connection that lasted this long resets the backoff.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// Ping intervals without a received packet after which the connection counts as dead, whatever the socket says:
/// the client notices at the second ping, but not while a write to a vanished peer blocks it.
const PINGS_BEFORE_TIMEOUT: f64 = 2.5;
/// Consecutive connections that the broker closed soon and without a reason before another client is suspected of
/// using the same client id: one of them may be a broker that restarts.
const SHORT_CONNECTIONS_BEFORE_CONFLICT: u32 = 2;
/// Consecutive unreadable packets before the next connect discards the session (Clean Start): the broker would
/// otherwise deliver the same packet for ever.
const UNREADABLE_BEFORE_CLEAN_START: u32 = 3;

/// Kind of a disconnect by the daemon itself, so that the broker redelivers the prompts left to it.
pub const DEFERRED_PROMPTS: &str = "postponed prompts";

/// Kind of a disconnect over a message that is too large, in MQTT 3.1.1. The next connect takes it out of the session.
pub const OVERSIZED: &str = "oversized";

/// The state of the link over all its connections.
#[derive(Debug)]
pub struct Link {
    state: State,
    failures: u32,
    unreadable_packets: u32,
    /// The last connection ended over a message that is too large.
    is_oversized: bool,
    /// Consecutive connections that ended soon after the CONNACK, as when another client uses the same client id.
    short_connections: u32,
    /// The broker once had a session of this device, in this process or an earlier one.
    expects_session: bool,
    connects: u64,
    sessions_lost: u64,
    /// The kind of disconnect that was logged last, so that it is logged once.
    last_logged: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Backoff { until: Instant },
    Connecting,
    Online { since: Instant, last_received: Instant, patience: Duration },
}

/// How to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connect {
    /// Discard the session, because it holds a packet that cannot be read.
    pub clean_start: bool,
    /// First take the messages out of the session that are too large.
    pub take_oversized: bool,
}

/// What a new connection is, beside its predecessors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewConnection {
    /// Which connection since the start of the process this is.
    pub number: u64,
    /// The broker no longer has the session: prompts that it stored for the device are lost.
    pub session_lost: bool,
}

/// Why a connection ended, or could not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disconnect {
    /// Tells causes apart for the log: each is logged once until a connection has been stable again.
    pub kind: String,
    /// For people: what happened, and what to do about it.
    pub text: String,
    /// The broker sent a packet that cannot be read, and will send it again.
    pub unreadable: bool,
}

impl Disconnect {
    /// Whether the daemon ended the connection itself while the broker was well: the broker has lost nothing
    /// meanwhile.
    pub fn is_by_daemon(&self) -> bool {
        self.kind == DEFERRED_PROMPTS
    }

    /// Whether the broker closed the connection without a reason, as brokers do when another client connects with
    /// the same client id: MQTT 3.1.1 has no reasons, and mosquitto before 2.1 gives none in MQTT 5.
    fn is_without_reason(&self) -> bool {
        matches!(
            self.kind.as_str(),
            "closed" | "UnexpectedEof" | "ConnectionReset" | "ConnectionAborted" | "BrokenPipe"
        )
    }

    /// Whether the broker ended the connection, perhaps because of something the daemon sent: neither the daemon,
    /// nor the network, nor the broker for reasons of its own.
    pub fn is_by_broker(&self) -> bool {
        !matches!(
            self.kind.as_str(),
            "silence"
                | DEFERRED_PROMPTS
                | "begun anew"
                | "protocol"
                | "SessionTakenOver"
                | "ServerShuttingDown"
        )
    }
}

/// What to do after a disconnect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Time until the next connect.
    pub wait: Duration,
    /// Whether to log the disconnect.
    pub log: bool,
    /// Another client uses the same client id.
    pub client_id_conflict: Option<ClientIdConflict>,
}

impl Retry {
    /// What to append to the text of the disconnect; empty where that is enough.
    pub fn advice(self, device: &str) -> String {
        self.client_id_conflict.map(|conflict| conflict.advice(device)).unwrap_or_default()
    }
}

/// How a second client of the same client id is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientIdConflict {
    /// The broker says so (reason code 0x8E, Session taken over).
    Reported,
    /// The broker closes each connection soon, without a reason.
    Suspected,
}

impl ClientIdConflict {
    /// The cause, and what to do about it.
    fn advice(self, device: &str) -> String {
        let cause = match self {
            ClientIdConflict::Reported => "another client",
            ClientIdConflict::Suspected => {
                "it does so soon after each connect and gives no reason, as when another client or another daemon"
            }
        };
        format!(
            "; {cause} uses the same client id, bitnetd-{device}: the two end each other's connections until one of \
             the devices has another name ([device] id, the key device.id)"
        )
    }
}

impl Link {
    /// A link that is to connect at once.
    pub fn new(now: Instant) -> Self {
        Link {
            state: State::Backoff { until: now },
            failures: 0,
            unreadable_packets: 0,
            is_oversized: false,
            short_connections: 0,
            expects_session: false,
            connects: 0,
            sessions_lost: 0,
            last_logged: None,
        }
    }

    /// Notes that an earlier process had a session, which the broker should still have.
    pub fn expect_session(&mut self) {
        self.expects_session = true;
    }

    /// Whether the broker has accepted the connection.
    pub fn is_online(&self) -> bool {
        matches!(self.state, State::Online { .. })
    }

    /// Whether the connection has lasted so long that what ended earlier ones is over.
    pub fn is_stable(&self, now: Instant) -> bool {
        matches!(self.state, State::Online { since, .. } if now >= since + STABLE_AFTER)
    }

    /// Connections made.
    pub fn connects(&self) -> u64 {
        self.connects
    }

    /// Those of them on which the broker no longer had the session.
    pub fn sessions_lost(&self) -> u64 {
        self.sessions_lost
    }

    /// When [`Link::connect_if_due`] or [`Link::is_timed_out`] has to be called next.
    pub fn due(&self) -> Option<Instant> {
        match self.state {
            State::Backoff { until } => Some(until),
            State::Connecting => None,
            State::Online { last_received, patience, .. } => Some(last_received + patience),
        }
    }

    /// Whether to connect now, and how.
    pub fn connect_if_due(&mut self, now: Instant) -> Option<Connect> {
        match self.state {
            State::Backoff { until } if now >= until => {
                self.state = State::Connecting;
                let clean_start = self.unreadable_packets >= UNREADABLE_BEFORE_CLEAN_START;
                Some(Connect { clean_start, take_oversized: self.is_oversized && !clean_start })
            }
            _ => None,
        }
    }

    /// Whether nothing was received for so long that the connection is to be given up.
    pub fn is_timed_out(&self, now: Instant) -> bool {
        matches!(self.state, State::Online { last_received, patience, .. } if now >= last_received + patience)
    }

    /// Notes that something was received.
    pub fn received_packet(&mut self, now: Instant) {
        if let State::Online { last_received, .. } = &mut self.state {
            *last_received = now;
        }
    }

    /// The broker accepted the connection, with or without its session of the device; the first ping is sent after
    /// `ping`.
    pub fn connected(&mut self, now: Instant, session_present: bool, ping: Duration) -> NewConnection {
        self.state =
            State::Online { since: now, last_received: now, patience: ping.mul_f64(PINGS_BEFORE_TIMEOUT) };
        let session_lost = !session_present && self.expects_session;
        self.expects_session = true;
        self.connects += 1;
        self.sessions_lost += u64::from(session_lost);
        if !session_present {
            self.unreadable_packets = 0;
        }
        NewConnection { number: self.connects, session_lost }
    }

    /// A message that was too large was taken out of the session, and will not be delivered again.
    pub fn oversized_taken(&mut self) {
        self.unreadable_packets = 0;
    }

    /// The broker discarded the session as requested, and would discard the new one as well: the meaning of Clean
    /// Session in MQTT 3.1.1. The next connection counts as the one on which the session was lost.
    pub fn session_discarded(&mut self) {
        self.connects += 1;
        self.unreadable_packets = 0;
    }

    /// The connection ended, or could not be made. `random`, from 0 to 1, spreads the reconnects of many devices
    /// over time, so that a restarted broker does not receive them all at once.
    pub fn disconnected(&mut self, now: Instant, disconnect: &Disconnect, random: f64) -> Retry {
        let lasted = match self.state {
            State::Online { since, .. } => Some(now.saturating_duration_since(since)),
            State::Backoff { .. } | State::Connecting => None,
        };
        if lasted.is_some_and(|lasted| lasted >= STABLE_AFTER) {
            self.failures = 0;
            self.last_logged = None;
            self.short_connections = 0;
        }
        if lasted.is_some_and(|lasted| lasted < STABLE_AFTER) && disconnect.is_without_reason() {
            self.short_connections += 1;
        }
        let conflict = if disconnect.kind == "SessionTakenOver" {
            Some(ClientIdConflict::Reported)
        } else {
            (self.short_connections >= SHORT_CONNECTIONS_BEFORE_CONFLICT && disconnect.is_without_reason())
                .then_some(ClientIdConflict::Suspected)
        };
        self.is_oversized = disconnect.kind == OVERSIZED;
        self.unreadable_packets = if disconnect.unreadable { self.unreadable_packets + 1 } else { 0 };
        let wait = backoff(self.failures, random);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Backoff { until: now + wait };
        let kind = if conflict.is_some() { "conflict" } else { &disconnect.kind };
        let log = self.last_logged.as_deref() != Some(kind);
        self.last_logged = Some(kind.to_owned());
        Retry { wait, log, client_id_conflict: conflict }
    }
}

/// 1, 2, 4 … 60 s, and up to a quarter more.
fn backoff(failures: u32, random: f64) -> Duration {
    let plain = FIRST_BACKOFF.saturating_mul(1 << failures.min(6));
    plain.mul_f64(1.0 + random.clamp(0.0, 1.0) / 4.0).min(MAX_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: Duration = Duration::from_secs(30);
    const ORDINARY: Connect = Connect { clean_start: false, take_oversized: false };

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    fn loss(kind: &str) -> Disconnect {
        Disconnect { kind: kind.into(), text: String::new(), unreadable: false }
    }

    fn unreadable() -> Disconnect {
        Disconnect { unreadable: true, ..loss("oversize") }
    }

    #[test]
    fn a_new_link_connects_at_once_and_once() {
        let now = Instant::now();
        let mut link = Link::new(now);
        assert_eq!(link.connect_if_due(now), Some(ORDINARY));
        assert_eq!(link.connect_if_due(at(now, 99)), None);
        assert_eq!(link.due(), None);
    }

    #[test]
    fn waits_double_up_to_a_minute() {
        let now = Instant::now();
        let mut link = Link::new(now);
        let waits: Vec<u64> =
            (0..8).map(|_| link.disconnected(now, &loss("refused"), 0.0).wait.as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn chance_only_makes_a_wait_longer_and_never_passes_the_cap() {
        assert_eq!(backoff(0, 1.0), Duration::from_millis(1250));
        assert_eq!(backoff(1, 0.5), Duration::from_millis(2250));
        assert_eq!(backoff(40, 1.0), MAX_BACKOFF);
        assert_eq!(backoff(0, -9.0), FIRST_BACKOFF);
    }

    #[test]
    fn a_connection_is_stable_after_ten_seconds() {
        let now = Instant::now();
        let mut link = Link::new(now);
        assert!(!link.is_stable(at(now, 99)), "not connected");
        link.connected(now, true, PING);
        assert!(!link.is_stable(at(now, 9)) && link.is_stable(at(now, 10)));
    }

    #[test]
    fn it_waits_before_the_next_try() {
        let now = Instant::now();
        let mut link = Link::new(now);
        link.connect_if_due(now);
        link.disconnected(now, &loss("refused"), 0.0);
        assert_eq!(link.due(), Some(at(now, 1)));
        assert_eq!(link.connect_if_due(now), None);
        assert!(link.connect_if_due(at(now, 1)).is_some());
    }

    #[test]
    fn a_connection_that_lasted_begins_the_waits_anew() {
        let now = Instant::now();
        let mut link = Link::new(now);
        for _ in 0..5 {
            link.disconnected(now, &loss("refused"), 0.0);
        }
        link.connected(now, false, PING);
        assert_eq!(link.disconnected(at(now, 10), &loss("io"), 0.0).wait, FIRST_BACKOFF);
    }

    #[test]
    fn a_connection_that_ends_at_once_makes_the_waits_longer() {
        let now = Instant::now();
        let mut link = Link::new(now);
        for seconds in [1, 2, 4] {
            link.connected(now, true, PING);
            let wait = link.disconnected(at(now, 1), &loss("taken over"), 0.0).wait;
            assert_eq!(wait, Duration::from_secs(seconds));
        }
    }

    #[test]
    fn each_kind_of_failure_is_logged_once() {
        let now = Instant::now();
        let mut link = Link::new(now);
        assert!(link.disconnected(now, &loss("refused"), 0.0).log);
        assert!(!link.disconnected(now, &loss("refused"), 0.0).log);
        assert!(link.disconnected(now, &loss("password"), 0.0).log);
        link.connected(now, false, PING);
        assert!(link.disconnected(at(now, 10), &loss("password"), 0.0).log);
    }

    #[test]
    fn two_connections_closed_soon_and_without_a_reason_mean_another_client_of_our_id() {
        let now = Instant::now();
        let mut link = Link::new(now);
        let mut lost = |connected: u64, lasted: u64, kind: &str| {
            link.connected(at(now, connected), true, PING);
            link.disconnected(at(now, connected + lasted), &loss(kind), 0.0)
        };
        assert_eq!(lost(0, 1, "closed").client_id_conflict, None, "a broker may restart");
        let second = lost(5, 2, "UnexpectedEof");
        assert!(second.log);
        let advice = second.advice("cellar");
        assert!(advice.contains("bitnetd-cellar") && advice.contains("[device] id"), "{advice}");
        let third = lost(10, 2, "closed");
        assert!(third.client_id_conflict.is_some() && !third.log, "said once");
        assert_eq!(
            lost(20, 60, "closed").client_id_conflict,
            None,
            "a connection that lasted is not contested"
        );
        assert_eq!(lost(100, 1, "unreadable").client_id_conflict, None);
        assert_eq!(lost(110, 99, "SessionTakenOver").client_id_conflict, Some(ClientIdConflict::Reported));
    }

    #[test]
    fn what_never_connected_is_not_contested() {
        let now = Instant::now();
        let mut link = Link::new(now);
        assert!(
            (0..9).all(|n| link.disconnected(at(now, n), &loss("closed"), 0.0).client_id_conflict.is_none())
        );
    }

    #[test]
    fn the_first_connection_has_lost_no_session() {
        let now = Instant::now();
        let mut link = Link::new(now);
        assert_eq!(link.connected(now, false, PING), NewConnection { number: 1, session_lost: false });
        assert_eq!((link.connects(), link.sessions_lost()), (1, 0));
    }

    #[test]
    fn a_session_of_an_earlier_process_can_be_lost_too() {
        let now = Instant::now();
        let mut link = Link::new(now);
        link.expect_session();
        assert!(link.connected(now, false, PING).session_lost);
        assert_eq!((link.connects(), link.sessions_lost()), (1, 1));
    }

    #[test]
    fn a_lost_session_is_counted() {
        let now = Instant::now();
        let mut link = Link::new(now);
        link.connected(now, false, PING);
        link.disconnected(now, &loss("io"), 0.0);
        assert_eq!(link.connected(now, true, PING), NewConnection { number: 2, session_lost: false });
        link.disconnected(now, &loss("io"), 0.0);
        assert_eq!(link.connected(now, false, PING), NewConnection { number: 3, session_lost: true });
        assert_eq!((link.connects(), link.sessions_lost()), (3, 1));
    }

    #[test]
    fn a_packet_that_cannot_be_read_thrice_makes_the_broker_forget_the_session() {
        let now = Instant::now();
        let mut link = Link::new(now);
        for n in 0..3 {
            let later = at(now, 100 * n);
            assert_eq!(link.connect_if_due(later), Some(ORDINARY));
            link.connected(later, n > 0, PING);
            link.disconnected(later, &unreadable(), 0.0);
        }
        assert_eq!(link.connect_if_due(at(now, 400)), Some(Connect { clean_start: true, ..ORDINARY }));
        link.connected(at(now, 400), false, PING);
        link.disconnected(at(now, 401), &loss("io"), 0.0);
        assert_eq!(link.connect_if_due(at(now, 500)), Some(ORDINARY));
    }

    #[test]
    fn a_session_begun_anew_for_one_connection_is_lost_once() {
        let now = Instant::now();
        let mut link = Link::new(now);
        (0..3).for_each(|n| {
            link.connected(at(now, n), n > 0, PING);
            link.disconnected(at(now, n), &unreadable(), 0.0);
        });
        assert_eq!(link.connect_if_due(at(now, 99)), Some(Connect { clean_start: true, ..ORDINARY }));
        link.session_discarded();
        link.disconnected(at(now, 99), &loss("begun anew"), 0.0);
        assert_eq!(link.connect_if_due(at(now, 199)), Some(ORDINARY));
        assert!(link.connected(at(now, 199), false, PING).session_lost);
        assert_eq!((link.connects(), link.sessions_lost()), (5, 1));
    }

    #[test]
    fn silence_ends_a_connection_and_a_sign_of_life_keeps_it() {
        let now = Instant::now();
        let mut link = Link::new(now);
        link.connected(now, false, PING);
        link.received_packet(at(now, 60));
        assert!(!link.is_timed_out(at(now, 100)));
        assert!(link.is_timed_out(at(now, 135)));
        assert_eq!(link.due(), Some(at(now, 135)));
    }

    #[test]
    fn a_broker_that_wants_few_pings_is_given_as_much_more_time() {
        let now = Instant::now();
        let mut link = Link::new(now);
        link.connected(now, false, 10 * PING);
        assert!(!link.is_timed_out(at(now, 700)) && link.is_timed_out(at(now, 750)));
    }
}
