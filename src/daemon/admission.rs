//! Which requests wait, in which order, and which are turned away: decisions only, the time passed
//! in. Deliberately knows no thread and no model.

use super::budget::WAITING_TEXTS;
use super::pressure::{Held, Pressure, State};
use super::shares::{Place, Shares};
use crate::config;
use crate::protocol::{Code, Refusal};
use crate::transport::fair_queue::FairQueue;
use crate::transport::{Inbound, WhenFull};
use std::time::{Duration, Instant};

/// A request that waits.
#[derive(Debug)]
pub(super) struct Job {
    /// The request with its way back.
    pub inbound: Inbound,
    /// When its time is up; `None` while it waits without a limit.
    pub deadline: Option<Instant>,
    /// Time for the answer of one that waits without a limit.
    timeout: Duration,
}

/// A request that gets no answer, and what it is told.
pub(super) type Refused = (Job, Refusal);

/// The requests that wait, and how long answers take of late.
#[derive(Debug)]
pub(super) struct Admission {
    waiting: FairQueue<Job>,
    /// Of those that are refused when too many wait.
    shares: Shares,
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
    /// Nothing waits; as much will as `settings` say, as long as there is `memory` for it.
    pub fn new(settings: &config::Queue, memory: Pressure) -> Self {
        Admission {
            waiting: FairQueue::default(),
            shares: Shares::new(settings.depth, settings.client_percent),
            memory,
            pace: 1.0,
            idle: true,
            closed: false,
        }
    }

    /// The share of a client where others wait, from now on.
    pub fn set_client_percent(&mut self, percent: usize) {
        self.shares.set_percent(percent);
    }

    /// Takes a request in, or gives it back with the reason. One that waited may have to make room for it. Look at the
    /// memory before.
    pub fn offer(
        &mut self,
        inbound: Inbound,
        timeout: Duration,
    ) -> Result<Option<Refused>, Box<(Inbound, Refusal)>> {
        let replaced = match self.place(&inbound) {
            Ok(replaced) => replaced,
            Err(refusal) => return Err(Box::new((inbound, refusal))),
        };
        // One that waits by itself is not refused for having waited, unless its client set a limit.
        let is_limited = inbound.when_full == WhenFull::Refuse || inbound.request.timeout.is_some();
        let deadline = is_limited.then(|| inbound.received + timeout);
        let (turn, priority, received) =
            (inbound.queue_key.clone(), inbound.request.priority, inbound.received);
        if inbound.when_full == WhenFull::Refuse {
            self.shares.add(&turn, inbound.request.text_bytes());
        }
        self.waiting.push(&turn, priority, received, Job { inbound, deadline, timeout });
        Ok(replaced)
    }

    /// Finds a place for a request: which other has to go for it, or why there is none.
    fn place(&mut self, inbound: &Inbound) -> Result<Option<Refused>, Refusal> {
        if self.closed {
            return Err(Refusal::shutting_down());
        }
        if self.is_short() {
            return Err(self.want_of_memory());
        }
        if inbound.when_full == WhenFull::Wait {
            return Ok(None);
        }
        let client = inbound.queue_key.as_str();
        let (texts_fit, own_fit) = self.shares.texts_fit(client, inbound.request.text_bytes(), WAITING_TEXTS);
        let place = self.shares.place(client, self.idle);
        if place == Place::None || !own_fit {
            let count = self.waiting.count(client);
            let said = format!("{count} requests of this client wait already; ask again later");
            return Err(self.for_now(Code::QueueFull, said));
        }
        if !texts_fit {
            let mib = WAITING_TEXTS >> 20;
            let said = format!("the requests that wait fill {mib} MiB; ask again later, or for less");
            return Err(self.for_now(Code::BudgetExceeded, said));
        }
        let Place::Of(client) = place else { return Ok(None) };
        let from = client.to_owned();
        let job = self.waiting.pop_last(&from).expect("who holds a place has something waiting");
        self.forget(&job);
        let said = "others wait, and this client has more than its share of the queue; ask again later";
        Ok(Some((job, self.for_now(Code::QueueFull, said.into()))))
    }

    /// Notes that a request waits no more.
    fn forget(&mut self, job: &Job) {
        if job.inbound.when_full == WhenFull::Refuse {
            self.shares.remove(&job.inbound.queue_key, job.inbound.request.text_bytes());
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

    /// The next to be answered.
    pub fn next(&mut self, now: Instant) -> Option<Job> {
        let mut job = self.waiting.pop(now)?;
        job.deadline = job.deadline.or_else(|| now.checked_add(job.timeout));
        self.idle = false;
        self.forget(&job);
        Some(job)
    }

    /// Notes that the worker is done with what it had.
    pub fn note_idle(&mut self) {
        self.idle = true;
    }

    /// Takes out those that nobody waits for any more, each with what it is told.
    pub fn sweep(&mut self, now: Instant) -> Vec<Refused> {
        let swept = self.waiting.extract(|job| verdict(job, now).is_some());
        let told = swept.into_iter().map(|job| {
            self.forget(&job);
            let refusal = verdict(&job, now).expect("just looked at");
            (job, refusal)
        });
        told.collect()
    }

    /// Takes all out; from now on none is taken in.
    pub fn close(&mut self) -> Vec<Refused> {
        self.closed = true;
        let left = self.waiting.extract(|_| true);
        left.iter().for_each(|job| self.forget(job));
        left.into_iter().map(|job| (job, Refusal::shutting_down())).collect()
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
    if job.deadline.is_some_and(|deadline| now >= deadline) {
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
    use crate::transport::{Cancel, Reply};
    use tokio::sync::mpsc;

    const MINUTE: Duration = Duration::from_secs(60);

    fn admission(depth: usize) -> Admission {
        let (timeout, drain) = (MINUTE, MINUTE);
        let settings = config::Queue { depth, client_percent: 50, timeout, drain, inbox_bytes: 0 };
        Admission::new(&settings, Pressure::new(100 << 20, 0))
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
            cache_key: "test".into(),
            queue_key: "test".into(),
            when_full: WhenFull::Refuse,
            received: now,
            reply,
            cancel: Cancel::default(),
        };
        (inbound, receiver)
    }

    #[test]
    fn what_waits_by_itself_has_its_time_for_the_answer_and_not_for_the_queue() {
        let (mut admission, now) = (admission(9), Instant::now());
        let (prompt, _events) = inbound("a", Priority::Normal, now);
        admission.offer(Inbound { when_full: WhenFull::Wait, ..prompt }, MINUTE).expect("it waits");
        let (mut limited, _events) = inbound("b", Priority::Normal, now);
        limited.request.timeout = Some(MINUTE);
        admission.offer(Inbound { when_full: WhenFull::Wait, ..limited }, MINUTE).expect("it waits");
        let hour = now + 60 * MINUTE;
        let swept = admission.sweep(hour);
        assert_eq!(swept.iter().map(|(job, _)| job.inbound.id.as_str()).collect::<Vec<_>>(), ["b"]);
        assert_eq!(admission.next(hour).expect("the other").deadline, Some(hour + MINUTE));
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
            std::iter::from_fn(|| admission.next(now)).map(|job| job.inbound.id.clone()).collect();
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
        admission.next(now).expect("the first");
        let (late, _c) = inbound("c", Priority::High, now);
        let (_, refusal) = *admission.offer(late, MINUTE).expect_err("full");
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
        let (_, refusal) = *admission.offer(second, MINUTE).expect_err("closed");
        assert_eq!(refusal.code, Code::ShuttingDown);
    }

    #[test]
    fn long_requests_fill_the_queue_before_its_depth_does_and_leave_others_room() {
        let (mut admission, now) = (admission(10_000), Instant::now());
        let mut receivers = Vec::new();
        let mut offer = |admission: &mut Admission, client: &str, length: usize| {
            let (mut inbound, receiver) = inbound("a", Priority::Normal, now);
            inbound.request.input = Input::Prompt("x".repeat(length));
            inbound.queue_key = client.into();
            receivers.push(receiver);
            admission.offer(inbound, MINUTE).map(drop).map_err(|refused| refused.1)
        };
        for _ in 0..32 {
            offer(&mut admission, "a", json::MAX_REQUEST).expect("room");
        }
        let refusal = offer(&mut admission, "a", 9).expect_err("beyond its share");
        assert_eq!((refusal.code, refusal.retry_after_ms), (Code::QueueFull, Some(1000)), "{refusal:?}");
        for _ in 0..32 {
            offer(&mut admission, "b", json::MAX_REQUEST).expect("room");
        }
        assert_eq!(offer(&mut admission, "c", 9).expect_err("full").code, Code::BudgetExceeded);
        admission.next(now).expect("one waits").inbound.cancel.raise();
        offer(&mut admission, "c", 9).expect("room again");
        admission.waiting.iter().for_each(|job| job.inbound.cancel.raise());
        assert_eq!(admission.sweep(now).len(), 64);
        offer(&mut admission, "a", json::MAX_REQUEST).expect("room again");
        assert_eq!(admission.close().len(), 1);
    }

    #[test]
    fn another_client_takes_the_places_that_one_holds_beyond_its_share() {
        let (mut admission, now) = (admission(4), Instant::now());
        let mut receivers = Vec::new();
        let mut offer = |admission: &mut Admission, id: &str, client: &str| {
            let (inbound, receiver) = inbound(id, Priority::Normal, now);
            receivers.push(receiver);
            let refused = admission.offer(Inbound { queue_key: client.into(), ..inbound }, MINUTE);
            let replaced = refused.map_err(|refused| refused.1.code)?;
            Ok(replaced.map(|(job, refusal)| (job.inbound.id.clone(), refusal.code)))
        };
        for id in ["a0", "a1", "a2", "a3", "a4"] {
            assert_eq!(offer(&mut admission, id, "a"), Ok(None));
        }
        assert_eq!(admission.next(now).expect("one waits").inbound.id, "a0");
        assert_eq!(offer(&mut admission, "a5", "a"), Err(Code::QueueFull));
        assert_eq!(offer(&mut admission, "b1", "b"), Ok(Some(("a4".into(), Code::QueueFull))));
        assert_eq!(offer(&mut admission, "b2", "b"), Ok(Some(("a3".into(), Code::QueueFull))));
        assert_eq!(offer(&mut admission, "b3", "b"), Err(Code::QueueFull));
        let order: Vec<String> =
            std::iter::from_fn(|| admission.next(now)).map(|job| job.inbound.id.clone()).collect();
        assert_eq!(order, ["b1", "a1", "b2", "a2"], "clients take turns");
    }

    #[test]
    fn what_is_to_wait_is_never_refused_and_takes_nobody_s_place() {
        let (mut admission, now) = (admission(1), Instant::now());
        let mut receivers = Vec::new();
        let mut offer = |admission: &mut Admission, when_full| {
            let (inbound, receiver) = inbound("a", Priority::Normal, now);
            receivers.push(receiver);
            let turn = format!("{when_full:?}");
            admission
                .offer(Inbound { queue_key: turn, when_full, ..inbound }, MINUTE)
                .map_err(|refused| refused.1.code)
        };
        for _ in 0..50 {
            assert!(offer(&mut admission, WhenFull::Wait).expect("it waits").is_none());
        }
        for _ in 0..2 {
            assert!(offer(&mut admission, WhenFull::Refuse).expect("its own place is free").is_none());
        }
        assert_eq!(offer(&mut admission, WhenFull::Refuse).expect_err("full"), Code::QueueFull);
        assert_eq!(admission.waiting(), 52);
    }

    #[test]
    fn short_of_memory_it_takes_nothing_in_and_then_again() {
        let (mut admission, now) = (admission(9), Instant::now());
        let held = |mib: u64| Held { resident: mib << 20, ..Held::default() };
        assert_eq!(admission.look(held(99), false, now), State::Short);
        let (first, _a) = inbound("a", Priority::High, now);
        let (_, refusal) = *admission.offer(first, MINUTE).expect_err("short");
        assert_eq!((refusal.code, refusal.retry_after_ms), (Code::BudgetExceeded, Some(1000)));
        assert_eq!(admission.look(held(50), false, now), State::Room);
        let (second, _b) = inbound("b", Priority::Normal, now);
        admission.offer(second, MINUTE).expect("room");
    }
}
