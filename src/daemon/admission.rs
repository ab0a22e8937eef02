//! Which requests wait, in which order, and which are turned away: decisions only, the time passed
//! in. Deliberately knows no thread and no model.

use super::budget::WAITING_TEXTS;
use super::pressure::{Held, Pressure, State};
use crate::protocol::{Code, Refusal};
use crate::transport::Inbound;
use std::time::{Duration, Instant};

/// A request that waits.
#[derive(Debug)]
pub(super) struct Job {
    /// The request with its way back.
    pub inbound: Inbound,
    /// When its time is up.
    pub deadline: Instant,
}

/// The requests that wait, and how long answers take of late.
#[derive(Debug)]
pub(super) struct Admission {
    waiting: Vec<Job>, // oldest first
    depth: usize,
    /// Bytes of the waiting requests' texts.
    texts: usize,
    memory: Pressure,
    /// Seconds an answer takes, smoothed; what a client that found the queue full is told to wait.
    pace: f64,
    /// The worker has nothing to do: it takes one more, though it has not come for it yet.
    idle: bool,
    closed: bool,
}

/// Share of the newest answer in the smoothed time: about the last ten count.
const NEWEST: f64 = 0.2;

impl Admission {
    /// Nothing waits; at most `depth` requests will, as long as there is `memory` for them.
    pub fn new(depth: usize, memory: Pressure) -> Self {
        Admission { waiting: Vec::new(), depth, texts: 0, memory, pace: 1.0, idle: true, closed: false }
    }

    /// Takes a request in, or gives it back with the reason. Look at the memory before.
    pub fn offer(&mut self, inbound: Inbound, timeout: Duration) -> Result<(), (Box<Inbound>, Refusal)> {
        let texts = self.texts + inbound.request.text_bytes();
        if let Some(refusal) = self.refusal(texts) {
            return Err((Box::new(inbound), refusal));
        }
        self.texts = texts;
        let deadline = inbound.received + timeout;
        self.waiting.push(Job { inbound, deadline });
        Ok(())
    }

    /// Why no request is taken in now that would make the waiting texts `texts` bytes.
    fn refusal(&self, texts: usize) -> Option<Refusal> {
        let count = self.waiting.len();
        if self.closed {
            Some(Refusal::shutting_down())
        } else if self.is_short() {
            Some(self.want_of_memory())
        } else if count >= self.depth + usize::from(self.idle) {
            let said = format!("{} requests wait already; ask again later", self.depth);
            Some(self.for_now(Code::QueueFull, said))
        } else if texts > WAITING_TEXTS {
            let mib = WAITING_TEXTS >> 20;
            let said = format!("the {count} requests that wait fill {mib} MiB; ask again later, or for less");
            Some(self.for_now(Code::QueueFull, said))
        } else {
            None
        }
    }

    /// What requests hear while memory is short.
    pub fn want_of_memory(&self) -> Refusal {
        let mib = self.memory.budget() >> 20;
        let said = format!("the memory budget of {mib} MiB is nearly used up; ask again later");
        self.for_now(Code::BudgetExceeded, said)
    }

    fn for_now(&self, code: Code, said: String) -> Refusal {
        let retry_after_ms = Some((self.pace * 1000.0).ceil() as u64);
        Refusal { retry_after_ms, ..Refusal::new(code, said) }
    }

    /// Looks at the memory of the process; `is_running` is whether a request runs.
    pub fn look(&mut self, held: Held, is_running: bool, now: Instant) -> State {
        let is_busy = is_running || !self.waiting.is_empty();
        self.memory.look(held, is_busy, now)
    }

    /// Whether memory was short when it was last looked at.
    pub fn is_short(&self) -> bool {
        self.memory.is_short()
    }

    /// The next to be answered: the oldest of the highest priority.
    pub fn next(&mut self) -> Option<Job> {
        let priority = |job: &Job| job.inbound.request.priority;
        let highest = self.waiting.iter().map(priority).max()?;
        let at = self.waiting.iter().position(|job| priority(job) == highest)?;
        self.idle = false;
        let job = self.waiting.remove(at);
        self.texts -= job.inbound.request.text_bytes();
        Some(job)
    }

    /// Notes that the worker is done with what it had.
    pub fn note_idle(&mut self) {
        self.idle = true;
    }

    /// Takes out those that nobody waits for any more, each with what it is told.
    pub fn sweep(&mut self, now: Instant) -> Vec<(Job, Refusal)> {
        let taken = self.waiting.extract_if(.., |job| verdict(job, now).is_some());
        let swept: Vec<(Job, Refusal)> = taken
            .map(|job| {
                let refusal = verdict(&job, now).expect("just looked at");
                (job, refusal)
            })
            .collect();
        self.texts -= swept.iter().map(|(job, _)| job.inbound.request.text_bytes()).sum::<usize>();
        swept
    }

    /// Takes all out; from now on none is taken in.
    pub fn close(&mut self) -> Vec<(Job, Refusal)> {
        (self.closed, self.texts) = (true, 0);
        self.waiting.drain(..).map(|job| (job, Refusal::shutting_down())).collect()
    }

    /// Notes how long an answer took.
    pub fn note_pace(&mut self, took: Duration) {
        self.pace += NEWEST * (took.as_secs_f64() - self.pace);
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_closed(&self) -> bool {
        self.closed
    }
}

/// Why a request that has not begun is not worth beginning, if so.
pub(super) fn verdict(job: &Job, now: Instant) -> Option<Refusal> {
    if job.inbound.cancel.is_raised() {
        return Some(Refusal::new(Code::Cancelled, "cancelled before it was begun"));
    }
    if now >= job.deadline {
        let waited = now.saturating_duration_since(job.inbound.received).as_millis();
        let said = format!("not begun after {waited} ms; allow more with timeout_ms, or ask less often");
        return Some(Refusal::new(Code::Timeout, said));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Event, Input, Priority, json};
    use crate::transport::{Cancel, Reply, WhenFull};
    use tokio::sync::mpsc;

    const MINUTE: Duration = Duration::from_secs(60);

    fn admission(depth: usize) -> Admission {
        Admission::new(depth, Pressure::new(100 << 20, 0))
    }

    fn inbound(id: &str, priority: Priority, now: Instant) -> (Inbound, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(4);
        let mut request = json::request(br#"{"prompt":"a"}"#).expect("sound");
        request.priority = priority;
        let reply = Reply::new(id, &sender).expect("room");
        let inbound = Inbound {
            request,
            id: id.into(),
            client: "test".into(),
            turn: "test".into(),
            when_full: WhenFull::Refuse,
            received: now,
            reply,
            cancel: Cancel::default(),
        };
        (inbound, receiver)
    }

    #[test]
    fn higher_priority_goes_first_and_within_one_the_oldest() {
        let (mut admission, now) = (admission(9), Instant::now());
        let mut receivers = Vec::new();
        for (id, priority) in
            [("a", Priority::Low), ("b", Priority::Normal), ("c", Priority::High), ("d", Priority::Normal)]
        {
            let (inbound, receiver) = inbound(id, priority, now);
            receivers.push(receiver);
            admission.offer(inbound, MINUTE).expect("room");
        }
        let order: Vec<String> =
            std::iter::from_fn(|| admission.next()).map(|job| job.inbound.id.clone()).collect();
        assert_eq!(order, ["c", "b", "d", "a"]);
    }

    #[test]
    fn a_full_queue_refuses_and_says_when_to_come_back() {
        let (mut admission, now) = (admission(1), Instant::now());
        (0..50).for_each(|_| admission.note_pace(Duration::from_secs(3)));
        let (running, _a) = inbound("a", Priority::Normal, now);
        admission.offer(running, MINUTE).expect("room");
        // One to run and one to wait: it is the same whether the worker has come for the first.
        let (waiting, _b) = inbound("b", Priority::Normal, now);
        admission.offer(waiting, MINUTE).expect("room");
        admission.next().expect("the first");
        let (late, _c) = inbound("c", Priority::High, now);
        let (_, refusal) = admission.offer(late, MINUTE).expect_err("full");
        assert_eq!(refusal.code, Code::QueueFull);
        assert!((2900..=3100).contains(&refusal.retry_after_ms.expect("a time")), "{refusal:?}");
    }

    #[test]
    fn what_is_cancelled_or_late_is_swept_out_and_the_rest_stays() {
        let (mut admission, now) = (admission(9), Instant::now());
        let (cancelled, _a) = inbound("a", Priority::Normal, now);
        cancelled.cancel.raise();
        admission.offer(cancelled, MINUTE).expect("room");
        let (late, _b) = inbound("b", Priority::Normal, now);
        admission.offer(late, Duration::from_secs(1)).expect("room");
        let (sound, _c) = inbound("c", Priority::Normal, now);
        admission.offer(sound, MINUTE).expect("room");
        let swept = admission.sweep(now + Duration::from_secs(2));
        let codes: Vec<(&str, Code)> =
            swept.iter().map(|(job, r)| (job.inbound.id.as_str(), r.code)).collect();
        assert_eq!(codes, [("a", Code::Cancelled), ("b", Code::Timeout)]);
        assert_eq!(admission.waiting(), 1);
    }

    #[test]
    fn a_closed_queue_gives_all_back_and_takes_none() {
        let (mut admission, now) = (admission(9), Instant::now());
        let (first, _a) = inbound("a", Priority::Normal, now);
        admission.offer(first, MINUTE).expect("room");
        assert_eq!(admission.close().len(), 1);
        let (second, _b) = inbound("b", Priority::Normal, now);
        let (_, refusal) = admission.offer(second, MINUTE).expect_err("closed");
        assert_eq!(refusal.code, Code::ShuttingDown);
    }

    #[test]
    fn long_requests_fill_the_queue_before_its_depth_does_and_room_comes_back() {
        let (mut admission, now) = (admission(10_000), Instant::now());
        let mut receivers = Vec::new();
        let mut offer = |admission: &mut Admission, length: usize| {
            let (mut inbound, receiver) = inbound("a", Priority::Normal, now);
            inbound.request.input = Input::Prompt("x".repeat(length));
            receivers.push(receiver);
            admission.offer(inbound, MINUTE).map_err(|(_, refusal)| refusal)
        };
        for _ in 0..64 {
            offer(&mut admission, json::MAX_REQUEST).expect("room");
        }
        let refusal = offer(&mut admission, 9).expect_err("full");
        assert_eq!((refusal.code, refusal.retry_after_ms), (Code::QueueFull, Some(1000)), "{refusal:?}");
        admission.next().expect("one waits").inbound.cancel.raise();
        offer(&mut admission, 9).expect("room again");
        admission.waiting[0].inbound.cancel.raise();
        assert_eq!(admission.sweep(now).len(), 1);
        offer(&mut admission, json::MAX_REQUEST).expect("room again");
        admission.close();
        assert_eq!(admission.texts, 0);
    }

    #[test]
    fn short_of_memory_it_takes_nothing_in_and_then_again() {
        let (mut admission, now) = (admission(9), Instant::now());
        let held = |mib: u64| Held { resident: mib << 20, ..Held::default() };
        assert_eq!(admission.look(held(99), false, now), State::Short);
        let (first, _a) = inbound("a", Priority::High, now);
        let (_, refusal) = admission.offer(first, MINUTE).expect_err("short");
        assert_eq!((refusal.code, refusal.retry_after_ms), (Code::BudgetExceeded, Some(1000)));
        assert_eq!(admission.look(held(50), false, now), State::Room);
        let (second, _b) = inbound("b", Priority::Normal, now);
        admission.offer(second, MINUTE).expect("room");
    }
}
