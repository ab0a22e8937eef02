//! What survives the process, and how it is restored: prompts that were acknowledged before they are answered,
//! answers that the broker has not acknowledged, and the latest delivered answers.
//!
//! Pure: translates between `dedup`, `backlog` and `outbox` and the records of `answer_log`. Deliberately knows
//! nothing of files.

use super::backlog::{Backlog, BacklogPrompt};
use super::clock::Clock;
use super::dedup::Deduplicator;
use super::outbox::{Outbox, PendingAnswer};
use super::recent_answers::StoredAnswer;
use super::requests::ReplyRoute;
use crate::protocol::{Priority, json};
use crate::transport::mqtt::delivery::answer_log::record::{
    AnswerState, LogContents, Record, SavedAnswer, SavedPrompt, Work,
};
use crate::transport::mqtt::message::OutgoingMessage;
use crate::transport::mqtt::prompt_client::PromptClient;
use std::time::Duration;

/// The record of an answer that waits for the broker, if it must survive the process.
pub fn answer_record(waiting: PendingAnswer, dedup: &Deduplicator, clock: Clock) -> Option<SavedAnswer> {
    let OutgoingMessage { topic, correlation, expires, payload, .. } = waiting.packet;
    let left = expires.map(|expires| expires.saturating_duration_since(clock.now));
    let left_ms = left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
    let state = AnswerState::Waiting { topic: topic.clone(), correlation: correlation.clone(), left_ms };
    let keys = dedup.durable_keys(waiting.prompt)?;
    Some(SavedAnswer {
        number: waiting.number,
        prompt: Some(waiting.prompt),
        keys,
        id: waiting.id.clone(),
        payload: String::from_utf8_lossy(payload).into_owned(),
        state,
        time_s: clock.time_s,
    })
}

/// The record of an answer that was delivered `age` ago.
fn delivered_record(stored: &StoredAnswer, age: Duration, clock: Clock) -> SavedAnswer {
    let StoredAnswer { number, keys, id, payload } = stored;
    SavedAnswer {
        number: *number,
        prompt: None,
        keys: *keys,
        id: id.clone(),
        payload: String::from_utf8_lossy(payload).into_owned(),
        state: AnswerState::Given { age_s: age.as_secs() },
        time_s: clock.time_s,
    }
}

/// The lines of everything that must survive the process.
pub fn log_lines(dedup: &Deduplicator, backlog: &Backlog, outbox: &Outbox, clock: Clock) -> Vec<u8> {
    let mut lines = Record::Session(dedup.session()).line();
    let stored = dedup.recent_answers(clock.now).filter(|(stored, _)| stored.keys.delivery.is_some());
    stored
        .for_each(|(stored, age)| lines.extend(Record::Answer(delivered_record(stored, age, clock)).line()));
    let prompts = dedup.saved_prompts().filter_map(|(prompt, keys)| backlog.record(prompt, keys, clock));
    prompts.for_each(|prompt| lines.extend(Record::Prompt(prompt).line()));
    let waiting = outbox.pending_answers().filter_map(|waiting| answer_record(waiting, dedup, clock));
    waiting.for_each(|answer| lines.extend(Record::Answer(answer).line()));
    lines
}

/// What was restored from an earlier process.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RestoredCounts {
    /// Answers that wait for the broker.
    pub answers: usize,
    /// Prompts that wait for their answer.
    pub prompts: usize,
}

/// Restores what an earlier process left: pending answers are published, acknowledged prompts are answered, and
/// delivered answers are remembered.
pub fn restore(
    contents: LogContents,
    dedup: &mut Deduplicator,
    backlog: &mut Backlog,
    outbox: &mut Outbox,
    clock: Clock,
) -> RestoredCounts {
    let mut restored = RestoredCounts::default();
    for answer in contents.answers {
        restored.answers += usize::from(restore_answer(answer, dedup, outbox, clock));
    }
    for prompt in contents.prompts {
        restored.prompts += usize::from(restore_prompt(prompt, dedup, backlog, clock));
    }
    restored
}

fn restore_answer(answer: SavedAnswer, dedup: &mut Deduplicator, outbox: &mut Outbox, clock: Clock) -> bool {
    let (left, age) = (answer.left(clock.time_s), answer.age(clock.time_s));
    let SavedAnswer { number, prompt, keys, id, payload, state, .. } = answer;
    let payload = payload.into_bytes();
    match (state, left) {
        (AnswerState::Waiting { topic, correlation, .. }, Some(left)) if !dedup.is_open(keys) => {
            let packet = OutgoingMessage {
                correlation,
                expires: clock.after(left),
                ..OutgoingMessage::json(topic, payload)
            };
            let prompt = prompt.unwrap_or_else(|| dedup.allocate_id());
            dedup.resume(prompt, keys, false);
            outbox.restore(number, prompt, id, packet);
            true
        }
        // Expired meanwhile, delivered, or received again before the file was read.
        _ => {
            let stored = StoredAnswer { number, keys, id, payload };
            dedup.remember(stored, age.unwrap_or(Duration::ZERO), clock.now);
            false
        }
    }
}

fn restore_prompt(
    prompt: SavedPrompt,
    dedup: &mut Deduplicator,
    backlog: &mut Backlog,
    clock: Clock,
) -> bool {
    // Received again before the file was read, and not acknowledged yet.
    if dedup.is_open(prompt.keys) {
        return false;
    }
    let left = prompt.remaining(clock.time_s);
    let SavedPrompt { number, keys, client, id, topic, correlation, work, .. } = prompt;
    let priority = match &work {
        Work::Ask(text) => json::request_or_text(text.as_bytes()).map(|request| request.priority),
        Work::Refuse(_) => Ok(Priority::Normal),
    };
    let metadata = match &work {
        Work::Ask(text) | Work::Refuse(text) => json::metadata_of(text.as_bytes()),
    };
    let route = ReplyRoute::restored(id, topic, correlation, clock.after(left), metadata);
    let (priority, received) = (priority.unwrap_or_default(), clock.now);
    let client = PromptClient::from_cache_key(&client);
    dedup.resume(number, keys, true);
    backlog.push(number, BacklogPrompt { client, route, work, priority, received, is_qos_1: true });
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::mqtt::delivery::answer_log::record;
    use crate::transport::mqtt::delivery::dedup::{Delivery, Verdict};
    use crate::transport::mqtt::message::{MAX_IN_FLIGHT, PublishLimits};
    use std::time::Instant;

    const WIDE: PublishLimits = PublishLimits { packet: usize::MAX, window: MAX_IN_FLIGHT };

    fn delivery(id: &str) -> Delivery<'_> {
        Delivery {
            packet: Some(id.len() as u16),
            redelivered: false,
            topic: b"prompt",
            client: "-",
            id: Some(id),
            response_topic: None,
            correlation: None,
            payload: b"hello",
        }
    }

    /// The delivery state of a process that starts at `time_s`.
    struct Process {
        dedup: Deduplicator,
        backlog: Backlog,
        outbox: Outbox,
        clock: Clock,
    }

    impl Process {
        fn new(time_s: u64) -> Self {
            let clock = Clock { now: Instant::now(), time_s };
            Process {
                dedup: Deduplicator::new(1, 0),
                backlog: Backlog::new(1 << 20),
                outbox: Outbox::numbered_from(0),
                clock,
            }
        }

        fn receive(&mut self, id: &str) -> u64 {
            match self.dedup.receive(&delivery(id)) {
                Verdict::New(prompt) => prompt,
                Verdict::Duplicate => panic!("not new"),
            }
        }

        /// Takes a prompt that is to wait, and writes it to the disk.
        fn save(&mut self, id: &str, deadline: Option<Instant>) -> u64 {
            let number = self.receive(id);
            let route = ReplyRoute::restored(id.into(), format!("reply/{id}"), Some(vec![7]), deadline, None);
            let (client, work, received) =
                (PromptClient::from_cache_key("-"), Work::Ask("hello".into()), self.clock.now);
            let prompt =
                BacklogPrompt { client, route, work, priority: Priority::Normal, received, is_qos_1: true };
            self.backlog.push(number, prompt);
            self.dedup.mark_saved(number);
            number
        }

        /// Answers this prompt; the answer is wanted for so many seconds.
        fn answer(&mut self, id: &str, seconds: Option<u64>) -> u64 {
            let prompt = self.receive(id);
            let expires = seconds.map(|seconds| self.clock.now + Duration::from_secs(seconds));
            let packet =
                OutgoingMessage { expires, ..OutgoingMessage::json(format!("reply/{id}"), id.into()) };
            self.outbox.push_last(prompt, id, packet)
        }

        fn deliver(&mut self, entry: u64) {
            self.outbox.acknowledged(entry, true);
            for (prompt, outcome) in self.outbox.take_settled() {
                self.dedup.settle(prompt, outcome, self.clock.now);
            }
        }

        /// The next process, at this time.
        fn next(&self, time_s: u64) -> Self {
            let mut next = Process::new(time_s);
            next.restore(record::parse_log(&self.lines()));
            next
        }

        fn lines(&self) -> Vec<u8> {
            log_lines(&self.dedup, &self.backlog, &self.outbox, self.clock)
        }

        fn restore(&mut self, contents: LogContents) -> RestoredCounts {
            restore(contents, &mut self.dedup, &mut self.backlog, &mut self.outbox, self.clock)
        }

        fn waiting(&self) -> Vec<(u64, &str, Option<Instant>)> {
            self.outbox
                .pending_answers()
                .map(|one| (one.number, one.id.as_str(), one.packet.expires))
                .collect()
        }

        fn comes_again(&mut self, id: &str) -> Verdict {
            self.dedup.receive(&Delivery { redelivered: true, ..delivery(id) })
        }
    }

    #[test]
    fn a_pending_answer_is_restored_and_found_by_its_prompt() {
        let mut first = Process::new(1_000);
        let entry = first.answer("a", None);
        let mut second = first.next(2_000);
        assert_eq!(second.waiting(), [(entry, "a", None)]);
        let (_, packet) = second.outbox.next(second.clock.now, WIDE).expect("to be sent");
        assert_eq!((packet.topic.as_str(), packet.payload.as_slice()), ("reply/a", b"a".as_slice()));
        assert_eq!(second.comes_again("a"), Verdict::Duplicate);
    }

    #[test]
    fn a_delivered_answer_is_sent_again_and_not_computed_again() {
        let mut first = Process::new(1_000);
        let entry = first.answer("a", None);
        first.deliver(entry);
        let mut second = first.next(5_000).next(9_000);
        assert!(second.waiting().is_empty());
        let Verdict::New(prompt) = second.comes_again("a") else { panic!("the broker may have lost it") };
        let stored = second.dedup.stored_answer(prompt, second.clock.now).expect("remembered");
        assert_eq!((stored.number, stored.payload.as_slice()), (entry, b"a".as_slice()));
        assert_eq!(second.comes_again("a"), Verdict::Duplicate);
    }

    #[test]
    fn an_answer_expires_while_the_daemon_is_not_running() {
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
        let mut contents = record::parse_log(&first.lines());
        let AnswerState::Waiting { left_ms, .. } = &mut contents.answers[0].state else { panic!("waits") };
        *left_ms = Some(u64::MAX);
        let mut second = Process::new(1_000);
        second.restore(contents);
        assert_eq!(second.waiting().len(), 1);
    }

    #[test]
    fn an_answer_that_the_disk_tells_of_too_late_is_not_sent_beside_the_new_one() {
        let mut first = Process::new(1_000);
        first.answer("a", None);
        let lines = first.lines();
        let mut second = Process::new(1_001);
        assert!(matches!(second.comes_again("a"), Verdict::New(_)));
        second.restore(record::parse_log(&lines));
        assert!(second.waiting().is_empty());
    }

    #[test]
    fn prompts_at_qos_0_leave_nothing() {
        let mut first = Process::new(1_000);
        let unsure = Delivery { packet: None, ..delivery("a") };
        let Verdict::New(prompt) = first.dedup.receive(&unsure) else { panic!() };
        let entry = first.outbox.push_last(prompt, "a", OutgoingMessage::json("t".into(), b"{}".to_vec()));
        assert!(first.next(1_001).waiting().is_empty());
        first.deliver(entry);
        let second = first.next(1_001);
        assert_eq!(second.dedup.recent_answers(second.clock.now).count(), 0);
    }

    #[test]
    fn a_prompt_that_was_acknowledged_is_answered_by_the_next_process() {
        let mut first = Process::new(1_000);
        let deadline = first.clock.now + Duration::from_secs(60);
        let number = first.save("a", Some(deadline));
        let mut second = first.next(1_020);
        let prompt = second.backlog.get(number).expect("taken over");
        assert_eq!((prompt.route.id.as_str(), prompt.route.topic()), ("a", "reply/a"));
        let left = prompt.route.remaining_ms(second.clock.now).expect("a deadline");
        assert!((39_000..=40_000).contains(&left), "{left}");
        assert_eq!(prompt.work, Work::Ask("hello".into()));
        assert_eq!(second.comes_again("a"), Verdict::Duplicate, "its acknowledgement was lost");
        assert_eq!(second.dedup.next_ack(), Some(1));
    }

    #[test]
    fn a_prompt_with_an_answer_on_disk_is_not_answered_again() {
        let mut first = Process::new(1_000);
        let number = first.save("a", None);
        let mut lines = first.lines();
        let packet = OutgoingMessage::json("reply/a".into(), b"{}".to_vec());
        let entry = first.outbox.push_last(number, "a", packet);
        let waiting = first.outbox.pending_answers().next().expect("pushed");
        lines.extend(
            Record::Answer(answer_record(waiting, &first.dedup, first.clock).expect("durable")).line(),
        );
        let mut second = Process::new(1_001);
        let restored = second.restore(record::parse_log(&lines));
        assert_eq!(restored, RestoredCounts { answers: 1, prompts: 0 });
        assert_eq!(second.waiting().first().map(|(number, ..)| *number), Some(entry));
    }
}
