//! Admission control: which requests wait, in which order, and which are refused. Decisions only, with the time
//! passed in. Deliberately knows no thread and no model.

use super::client_shares::{ClientShares, Slot};
use super::memory_guard::{MemoryGuard, MemoryState, MemoryUse};
use super::memory_plan::MAX_WAITING_TEXTS;
use super::running::Running;
use crate::config;
use crate::protocol::{Code, Priority, Refusal};
use crate::transport::fair_queue::FairQueue;
use crate::transport::{Inbound, WhenFull};
use std::time::{Duration, Instant};

/// A request that waits.
#[derive(Debug)]
pub(super) struct QueuedRequest {
    /// The request with its reply channel.
    pub inbound: Inbound,
    /// Its deadline; `None` while it waits without a limit.
    pub deadline: Option<Instant>,
    /// Time allowed for the answer once a request without a limit begins.
    timeout: Duration,
    /// Says that it runs, once it does.
    pub running: Option<Running>,
}

/// A request that gets no answer, and the reason.
pub(super) type Refused = (QueuedRequest, Refusal);

/// The waiting requests, and how long answers take lately.
#[derive(Debug)]
pub(super) struct Admission {
    waiting: FairQueue<QueuedRequest>,
    /// The places of requests that may be refused because the queue is full.
    shares: ClientShares,
    memory_guard: MemoryGuard,
    /// Seconds per answer, exponentially smoothed: the `retry_after_ms` of refused requests.
    mean_answer_s: f64,
    /// Whether the worker has a free slot, so that it takes one more request at once.
    worker_is_idle: bool,
    closed: bool,
}

/// Weight of the newest answer in the smoothed time: about the last ten count.
const NEWEST_WEIGHT: f64 = 0.2;

impl Admission {
    /// An empty queue with these settings and this memory guard.
    pub fn new(settings: &config::Queue, memory: MemoryGuard) -> Self {
        Admission {
            waiting: FairQueue::default(),
            shares: ClientShares::new(settings.depth, settings.client_percent),
            memory_guard: memory,
            mean_answer_s: 1.0,
            worker_is_idle: true,
            closed: false,
        }
    }

    /// Sets the share of places that one client may hold while others wait, in percent.
    pub fn set_client_percent(&mut self, percent: usize) {
        self.shares.set_percent(percent);
    }

    /// Another model is loaded, with so many bytes of weights that are mapped from its file.
    pub fn set_mapped(&mut self, bytes: u64) {
        self.memory_guard.set_mapped(bytes);
    }

    /// Admits a request, or returns it with the reason. A waiting request of another client may be refused in its
    /// place. Call [`check_memory`](Self::check_memory) before.
    pub fn offer(
        &mut self,
        inbound: Inbound,
        timeout: Duration,
    ) -> Result<Option<Refused>, Box<(Inbound, Refusal)>> {
        let replaced = match self.find_slot(&inbound) {
            Ok(replaced) => replaced,
            Err(refusal) => return Err(Box::new((inbound, refusal))),
        };
        // A request that may wait in the queue for any time has no deadline until it begins, unless its client set
        // one.
        let is_limited = inbound.when_full == WhenFull::Refuse || inbound.request.timeout.is_some();
        let deadline = is_limited.then(|| inbound.received + timeout);
        let (queue_key, priority, received) =
            (inbound.queue_key.clone(), inbound.request.priority, inbound.received);
        if inbound.when_full == WhenFull::Refuse {
            self.shares.add(&queue_key, inbound.request.text_bytes());
        }
        self.waiting.push(
            &queue_key,
            priority,
            received,
            QueuedRequest { inbound, deadline, timeout, running: None },
        );
        Ok(replaced)
    }

    /// Finds a place for a request: the request that is refused in its place, if one must be, or why there is none.
    fn find_slot(&mut self, inbound: &Inbound) -> Result<Option<Refused>, Refusal> {
        if self.closed {
            return Err(Refusal::shutting_down());
        }
        // Also while memory is short: few of these are in the queue at a time, and the plan has their memory.
        if inbound.when_full == WhenFull::Wait {
            return Ok(None);
        }
        if self.is_short() {
            return Err(self.memory_refusal());
        }
        let client = inbound.queue_key.as_str();
        let (texts_fit, own_fit) =
            self.shares.texts_fit(client, inbound.request.text_bytes(), MAX_WAITING_TEXTS);
        let place = self.shares.find_slot(client, self.worker_is_idle);
        if place == Slot::None || !own_fit {
            let count = self.waiting.count(client);
            let message = format!("{count} requests of this client wait already; ask again later");
            return Err(self.refuse_for_now(Code::QueueFull, message));
        }
        if !texts_fit {
            let mib = MAX_WAITING_TEXTS >> 20;
            let message = format!("the requests that wait fill {mib} MiB; ask again later, or for less");
            return Err(self.refuse_for_now(Code::BudgetExceeded, message));
        }
        let Slot::TakenFrom(client) = place else { return Ok(None) };
        let from = client.to_owned();
        let job = self.waiting.pop_last(&from).expect("who holds a place has something waiting");
        self.release_slot(&job);
        let message = "others wait, and this client has more than its share of the queue; ask again later";
        Ok(Some((job, self.refuse_for_now(Code::QueueFull, message.into()))))
    }

    /// Frees the place of a request that no longer waits.
    fn release_slot(&mut self, job: &QueuedRequest) {
        if job.inbound.when_full == WhenFull::Refuse {
            self.shares.remove(&job.inbound.queue_key, job.inbound.request.text_bytes());
        }
    }

    /// The refusal of requests while memory is short.
    pub fn memory_refusal(&self) -> Refusal {
        let mib = self.memory_guard.budget() >> 20;
        let message = format!("the memory budget of {mib} MiB is nearly used up; ask again later");
        self.refuse_for_now(Code::BudgetExceeded, message)
    }

    fn refuse_for_now(&self, code: Code, message: String) -> Refusal {
        let retry_after_ms = Some((self.mean_answer_s * 1000.0).ceil() as u64);
        Refusal { retry_after_ms, ..Refusal::new(code, message) }
    }

    /// Updates the memory guard; `is_running` is whether a request runs, `was_freed` whether what could be freed was freed
    /// just before.
    pub fn check_memory(
        &mut self,
        held: MemoryUse,
        is_running: bool,
        was_freed: bool,
        now: Instant,
    ) -> MemoryState {
        let is_busy = is_running || !self.waiting.is_empty();
        self.memory_guard.update(held, is_busy, was_freed, now)
    }

    /// Whether this use of memory, which was enough at the last check, is now too much.
    pub fn is_becoming_short(&self, held: MemoryUse) -> bool {
        self.memory_guard.is_becoming_short(held)
    }

    /// Whether memory was short at the last check.
    pub fn is_short(&self) -> bool {
        self.memory_guard.is_short()
    }

    /// The next request to be answered.
    pub fn next(&mut self, now: Instant) -> Option<QueuedRequest> {
        let job = self.waiting.pop(now)?;
        Some(self.begin(job, now))
    }

    /// The next request that may take the place of a running one of low priority: one that is of high priority, its age
    /// counted in, unless it was sent with a low one. None while memory is short, since both hold some then.
    pub fn next_ahead(&mut self, now: Instant) -> Option<QueuedRequest> {
        if self.is_short() {
            return None;
        }
        let job = self.waiting.pop_ahead(now, |_, job| job.inbound.request.priority != Priority::Low)?;
        Some(self.begin(job, now))
    }

    /// The priority of the request that [`Admission::next`] would return, its age counted in.
    pub fn next_priority(&self, now: Instant) -> Option<usize> {
        self.waiting.next_priority(now)
    }

    fn begin(&mut self, mut job: QueuedRequest, now: Instant) -> QueuedRequest {
        job.deadline = job.deadline.or_else(|| now.checked_add(job.timeout));
        self.worker_is_idle = false;
        self.release_slot(&job);
        job
    }

    /// Records whether the worker has a free slot.
    pub fn set_idle(&mut self, is_idle: bool) {
        self.worker_is_idle = is_idle;
    }

    /// Removes requests that were cancelled or exceeded their deadline, each with its refusal.
    pub fn sweep(&mut self, now: Instant) -> Vec<Refused> {
        let swept = self.waiting.extract(|job| expiry(job, now).is_some());
        let refused = swept.into_iter().map(|job| {
            self.release_slot(&job);
            let refusal = expiry(&job, now).expect("just looked at");
            (job, refusal)
        });
        refused.collect()
    }

    /// Removes all requests, and refuses new ones from now on.
    pub fn close(&mut self) -> Vec<Refused> {
        self.closed = true;
        let left = self.waiting.extract(|_| true);
        left.iter().for_each(|job| self.release_slot(job));
        left.into_iter().map(|job| (job, Refusal::shutting_down())).collect()
    }

    /// Records how long an answer took.
    pub fn record_duration(&mut self, took: Duration) {
        self.mean_answer_s += NEWEST_WEIGHT * (took.as_secs_f64() - self.mean_answer_s);
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_closed(&self) -> bool {
        self.closed
    }
}

/// The refusal of a request that was cancelled or exceeded its deadline before it began.
pub(super) fn expiry(job: &QueuedRequest, now: Instant) -> Option<Refusal> {
    if job.inbound.cancel.is_raised() {
        return Some(Refusal::new(Code::Cancelled, "cancelled before it was begun"));
    }
    if job.deadline.is_some_and(|deadline| now >= deadline) {
        let waited = now.saturating_duration_since(job.inbound.received).as_millis();
        let message = format!("not begun after {waited} ms; allow more with timeout_ms, or ask less often");
        return Some(Refusal::new(Code::Timeout, message));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{ClientInterface, Event, Input, json};
    use crate::transport::{Cancel, Reply};
    use tokio::sync::mpsc;

    const MINUTE: Duration = Duration::from_secs(60);

    fn admission(depth: usize) -> Admission {
        let (timeout, drain) = (MINUTE, MINUTE);
        let settings = config::Queue { depth, client_percent: 50, timeout, drain, inbox_bytes: 0 };
        Admission::new(&settings, MemoryGuard::new(100 << 20, 0))
    }

    fn inbound(id: &str, priority: Priority, now: Instant) -> (Inbound, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(4);
        let mut request = json::request(br#"{"prompt":"a"}"#).expect("sound");
        request.priority = priority;
        let reply = Reply::new(&id.into(), &sender).expect("room");
        let inbound = Inbound {
            request,
            id: id.into(),
            interface: ClientInterface::Unix,
            client: "test".into(),
            cache_key: "test".into(),
            queue_key: "test".into(),
            limit_key: "test".into(),
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
            std::iter::from_fn(|| admission.next(now)).map(|job| job.inbound.id.to_string()).collect();
        assert_eq!(order, ["c", "b", "d", "a"]);
    }

    #[test]
    fn what_takes_a_place_is_of_high_priority_by_its_own_or_by_its_age_and_never_sent_as_low() {
        let (mut admission, now) = (admission(9), Instant::now());
        let mut receivers = Vec::new();
        for (id, priority) in [("low", Priority::Low), ("normal", Priority::Normal), ("high", Priority::High)]
        {
            let (mut inbound, receiver) = inbound(id, priority, now);
            inbound.queue_key = id.into();
            receivers.push(receiver);
            admission.offer(inbound, MINUTE).expect("room");
        }
        let mut ahead = |seconds: u64| {
            let job = admission.next_ahead(now + Duration::from_secs(seconds))?;
            assert!(job.deadline.is_some());
            Some(job.inbound.id.to_string())
        };
        assert_eq!([ahead(0), ahead(0)], [Some("high".into()), None]);
        assert_eq!([ahead(5), ahead(50)], [Some("normal".into()), None]);
        assert_eq!(admission.next_priority(now), Some(Priority::Low as usize));
        assert_eq!(admission.waiting(), 1);
    }

    #[test]
    fn a_full_queue_refuses_with_a_time_to_retry() {
        let (mut admission, now) = (admission(1), Instant::now());
        (0..50).for_each(|_| admission.record_duration(Duration::from_secs(3)));
        let (running, _a) = inbound("a", Priority::Normal, now);
        admission.offer(running, MINUTE).expect("room");
        // One request to run and one to wait, whether or not the worker has fetched the first yet.
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
    fn long_requests_fill_the_queue_before_its_depth_does_and_leave_places_to_others() {
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
            std::iter::from_fn(|| admission.next(now)).map(|job| job.inbound.id.to_string()).collect();
        assert_eq!(order, ["b1", "a1", "b2", "a2"], "clients take turns");
    }

    #[test]
    fn what_is_to_wait_is_never_refused_and_takes_nobody_s_place() {
        let (mut admission, now) = (admission(1), Instant::now());
        let mut receivers = Vec::new();
        let mut offer = |admission: &mut Admission, when_full| {
            let (inbound, receiver) = inbound("a", Priority::Normal, now);
            receivers.push(receiver);
            let queue_key = format!("{when_full:?}");
            admission
                .offer(Inbound { queue_key, when_full, ..inbound }, MINUTE)
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
    fn short_of_memory_it_admits_only_what_is_to_wait_and_then_everything() {
        let (mut admission, now) = (admission(9), Instant::now());
        let held = |mib: u64| MemoryUse { resident: mib << 20, ..MemoryUse::default() };
        assert_eq!(admission.check_memory(held(99), false, false, now), MemoryState::Short);
        let (first, _a) = inbound("a", Priority::High, now);
        let (_, refusal) = *admission.offer(first, MINUTE).expect_err("short");
        assert_eq!((refusal.code, refusal.retry_after_ms), (Code::BudgetExceeded, Some(1000)));
        let (to_wait, _c) = inbound("c", Priority::Normal, now);
        assert!(admission.offer(Inbound { when_full: WhenFull::Wait, ..to_wait }, MINUTE).is_ok());
        assert_eq!(admission.check_memory(held(50), false, false, now), MemoryState::Free);
        let (second, _b) = inbound("b", Priority::Normal, now);
        admission.offer(second, MINUTE).expect("room");
    }
}
