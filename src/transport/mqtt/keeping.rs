//! What of the door outlives the process, and how it comes back: answers that the broker does not
//! have, and those that it got lately.
//!
//! Pure: between `arrivals` and `outbox` on one side and the store's records on the other.

use super::answered::Given;
use super::arrivals::{Arrivals, Keys};
use super::outbox::{Outbox, Packet, Waiting};
use super::store::record::{Answer, Contents, Record, State};
use std::time::{Duration, Instant, SystemTime};

/// The two clocks: ours, and the one that goes on while we do not.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Ours.
    pub now: Instant,
    /// Seconds since 1970, as far as the device knows.
    pub time_s: u64,
}

impl Clock {
    /// Both as they are.
    pub fn read() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Clock { now: Instant::now(), time_s: since.as_secs() }
    }
}

/// The record of an answer that waits for the broker, if it is to be kept.
pub fn record(waiting: Waiting, arrivals: &Arrivals, clock: Clock) -> Option<Answer> {
    let Packet { topic, correlation, expires, payload, .. } = waiting.packet;
    let left = expires.map(|expires| expires.saturating_duration_since(clock.now));
    let left_ms = left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
    let state = State::Waiting { topic: topic.clone(), correlation: correlation.clone(), left_ms };
    let keys = arrivals.durable(waiting.prompt)?;
    Some(answer(waiting.number, keys, waiting.id, payload, state, clock))
}

fn answer(number: u64, keys: Keys, id: &str, payload: &[u8], state: State, clock: Clock) -> Answer {
    let payload = String::from_utf8_lossy(payload).into_owned();
    Answer { number, keys, id: id.to_owned(), payload, state, time_s: clock.time_s }
}

/// The lines of everything that is to be kept.
pub fn all(arrivals: &Arrivals, outbox: &Outbox, clock: Clock) -> Vec<u8> {
    let given = arrivals.answered(clock.now).filter(|(given, _)| given.keys.delivery.is_some()).map(
        |(Given { number, keys, id, payload }, age)| {
            answer(*number, *keys, id, payload, State::Given { age_s: age.as_secs() }, clock)
        },
    );
    let waiting = outbox.waiting().filter_map(|waiting| record(waiting, arrivals, clock));
    let mut lines = Record::Session(arrivals.session()).line();
    given.chain(waiting).for_each(|answer| lines.extend(Record::Answer(answer).line()));
    lines
}

/// Takes over what an earlier process left: what waits is sent, what was given is remembered. Says
/// how many answers wait.
pub fn restore(contents: Contents, arrivals: &mut Arrivals, outbox: &mut Outbox, clock: Clock) -> usize {
    let mut waiting = 0;
    for answer in contents.answers {
        let (left, age) = (answer.left(clock.time_s), answer.age(clock.time_s));
        let Answer { number, keys, id, payload, state, .. } = answer;
        let payload = payload.into_bytes();
        match (state, left) {
            (State::Waiting { topic, correlation, .. }, Some(left)) if !arrivals.is_running(keys) => {
                // A deadline beyond all clocks is none.
                let expires = left.and_then(|left| clock.now.checked_add(left));
                let packet = Packet { correlation, expires, ..Packet::json(topic, payload) };
                outbox.restore(number, arrivals.resume(keys), &id, packet);
                waiting += 1;
            }
            // Expired meanwhile, given, or asked again before the disk told of it.
            _ => {
                let given = Given { number, keys, id, payload };
                arrivals.remember(given, age.unwrap_or(Duration::ZERO), clock.now);
            }
        }
    }
    waiting
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::mqtt::arrivals::{Arrival, Verdict};
    use crate::transport::mqtt::outbox::{Limits, WINDOW};
    use crate::transport::mqtt::store::record;

    const WIDE: Limits = Limits { packet: usize::MAX, window: WINDOW };

    fn arrival(id: &str) -> Arrival<'_> {
        Arrival {
            packet: Some(id.len() as u16),
            redelivered: false,
            client: "-",
            id: Some(id),
            correlation: None,
            payload: b"hello",
        }
    }

    /// A door of a process that starts at `time_s`.
    struct Process {
        arrivals: Arrivals,
        outbox: Outbox,
        clock: Clock,
    }

    impl Process {
        fn new(time_s: u64) -> Self {
            let clock = Clock { now: Instant::now(), time_s };
            Process { arrivals: Arrivals::new(1), outbox: Outbox::numbered_from(0), clock }
        }

        /// Answers this prompt; the answer is wanted for so many seconds.
        fn answer(&mut self, id: &str, seconds: Option<u64>) -> u64 {
            let Verdict::New(prompt) = self.arrivals.arrive(&arrival(id), self.clock.now) else {
                panic!("not new")
            };
            let expires = seconds.map(|seconds| self.clock.now + Duration::from_secs(seconds));
            let packet = Packet { expires, ..Packet::json(format!("reply/{id}"), id.into()) };
            self.outbox.push_last(prompt, id, packet)
        }

        fn deliver(&mut self, row: u64) {
            self.outbox.acknowledged(row, true);
            for (prompt, outcome) in self.outbox.take_settled() {
                self.arrivals.settled(prompt, outcome, self.clock.now);
            }
        }

        /// The next process, at this time.
        fn next(&self, time_s: u64) -> Self {
            let lines = all(&self.arrivals, &self.outbox, self.clock);
            let mut next = Process::new(time_s);
            restore(record::read(&lines), &mut next.arrivals, &mut next.outbox, next.clock);
            next
        }

        fn waiting(&self) -> Vec<(u64, &str, Option<Instant>)> {
            self.outbox.waiting().map(|one| (one.number, one.id, one.packet.expires)).collect()
        }

        fn comes_again(&mut self, id: &str) -> Verdict {
            let again = Arrival { redelivered: true, ..arrival(id) };
            self.arrivals.arrive(&again, self.clock.now)
        }
    }

    #[test]
    fn what_waits_goes_on_waiting_and_finds_its_prompt() {
        let mut first = Process::new(1_000);
        let row = first.answer("a", None);
        let mut second = first.next(2_000);
        assert_eq!(second.waiting(), [(row, "a", None)]);
        let (_, packet) = second.outbox.next(second.clock.now, WIDE).expect("to be sent");
        assert_eq!((packet.topic.as_str(), packet.payload.as_slice()), ("reply/a", b"a".as_slice()));
        assert_eq!(second.comes_again("a"), Verdict::Duplicate);
    }

    #[test]
    fn what_was_given_is_given_again_and_not_computed_again() {
        let mut first = Process::new(1_000);
        let row = first.answer("a", None);
        first.deliver(row);
        let mut second = first.next(5_000).next(9_000);
        assert!(second.waiting().is_empty());
        let Verdict::Again(_, given) = second.comes_again("a") else { panic!("not again") };
        assert_eq!((given.number, given.payload.as_slice()), (row, b"a".as_slice()));
        assert!(matches!(second.arrivals.arrive(&arrival("a"), second.clock.now), Verdict::Duplicate));
    }

    #[test]
    fn an_answer_expires_while_nobody_runs() {
        let mut first = Process::new(1_000);
        first.answer("a", Some(60));
        first.answer("bb", Some(200));
        let second = first.next(1_100);
        let left = |seconds| Some(second.clock.now + Duration::from_secs(seconds));
        let waiting = second.waiting();
        assert_eq!(waiting.len(), 1);
        assert_eq!(waiting[0].1, "bb");
        assert!(waiting[0].2 > left(99) && waiting[0].2 <= left(100));
    }

    #[test]
    fn a_deadline_beyond_all_clocks_is_none() {
        let mut first = Process::new(1_000);
        first.answer("a", None);
        let mut contents = record::read(&all(&first.arrivals, &first.outbox, first.clock));
        let State::Waiting { left_ms, .. } = &mut contents.answers[0].state else { panic!("waits") };
        *left_ms = Some(u64::MAX);
        let mut second = Process::new(1_000);
        restore(contents, &mut second.arrivals, &mut second.outbox, second.clock);
        assert_eq!(second.waiting().len(), 1);
    }

    #[test]
    fn an_answer_that_the_disk_tells_of_too_late_is_not_sent_beside_the_new_one() {
        let mut first = Process::new(1_000);
        first.answer("a", None);
        let lines = all(&first.arrivals, &first.outbox, first.clock);
        let mut second = Process::new(1_001);
        assert!(matches!(second.arrivals.arrive(&arrival("a"), second.clock.now), Verdict::New(_)));
        restore(record::read(&lines), &mut second.arrivals, &mut second.outbox, second.clock);
        assert!(second.waiting().is_empty());
    }

    #[test]
    fn prompts_at_qos_0_leave_nothing() {
        let mut first = Process::new(1_000);
        let unsure = Arrival { packet: None, ..arrival("a") };
        let Verdict::New(prompt) = first.arrivals.arrive(&unsure, first.clock.now) else { panic!() };
        let row = first.outbox.push_last(prompt, "a", Packet::json("t".into(), b"{}".to_vec()));
        assert!(first.next(1_001).waiting().is_empty());
        first.deliver(row);
        let second = first.next(1_001);
        assert_eq!(second.arrivals.answered(second.clock.now).count(), 0);
    }
}
