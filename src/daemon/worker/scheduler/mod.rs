//! Which requests are answered together: a request joins as soon as a slot is free, and all of them get their next token
//! in the same pass (continuous batching, as in Orca, OSDI 2022).
//!
//! A request of high priority takes the slot of one of low priority, which goes on later. Whose turn it is among the
//! requests that wait is the queue's decision. Deliberately knows no sampling and no prompt.

#[cfg(test)]
mod tests;

use super::answer_events::FinishedAnswer;
use super::streamed_answer::StreamedAnswer;
use super::suspension::SuspensionRecord;
use super::{PreparedRequest, RequestTimes, WorkShare, Worker, log_thread_counts};
use crate::daemon::admission::{QueuedRequest, expiry};
use crate::daemon::answer_cache::CacheKey;
use crate::engine::Engine;
use crate::engine::error::LoadError;
use crate::engine::model::ShortlistStats;
use crate::engine::session::{Session, SuspendedAnswer};
use crate::engine::thread_tuner::ThreadCounts;
use crate::protocol::Code;
use crate::telemetry::ComputeSpan;
use log::{debug, error, warn};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// How long requests are prepared in a row while answers are under way, which wait meanwhile; the one that has begun is
/// prepared to its end.
const PREPARATION_TIME: Duration = Duration::from_millis(5);

/// A pause is slept in parts of this length, so that the end of the daemon does not wait for it.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);

/// The requests that are answered now.
pub(super) struct Scheduler<'w> {
    worker: &'w Worker,
    engine: &'w Engine,
    session: Session<'w>,
    active: Vec<Option<ActiveRequest<'w>>>, // [slots]
    /// Requests whose slot was taken by others: as many as there are slots at most.
    suspended: Vec<SuspendedRequest<'w>>,
    screening: ShortlistStats,
    threads: ThreadCounts,
    /// A problem with the files of the prefix store was logged.
    has_store_problem: bool,
    /// The limit on threads that the engine has now.
    thread_limit: usize,
}

/// A request in a slot.
struct ActiveRequest<'w> {
    answer: StreamedAnswer<'w>,
    /// Under which its answer is stored.
    key: Option<CacheKey>,
    is_constrained: bool,
    begun: Instant,
    work: ComputeSpan<'w>,
    /// Its part of the time since then, which it shared with others.
    own_time: Duration,
    suspensions: SuspensionRecord,
}

/// A request that waits to go on.
struct SuspendedRequest<'w> {
    request: ActiveRequest<'w>,
    answer: SuspendedAnswer,
    since: Instant,
}

impl<'w> Scheduler<'w> {
    /// `fixed`: the numbers of threads that the configuration names.
    pub fn new(worker: &'w Worker, engine: &'w Engine, fixed: ThreadCounts) -> Self {
        let session = open_session(worker, engine);
        Scheduler {
            worker,
            engine,
            active: (0..session.slots()).map(|_| None).collect(),
            session,
            suspended: Vec::new(),
            screening: ShortlistStats::default(),
            threads: fixed,
            has_store_problem: false,
            thread_limit: usize::MAX,
        }
    }

    /// Answers requests until the queue is closed, another model is to be loaded, or the model's file has changed.
    pub fn run(mut self) -> Result<(), LoadError> {
        log_thread_counts(self.engine.model().threads(), &mut self.threads);
        while self.guarded_step()?.is_continue() {}
        Ok(())
    }

    /// One [step](Self::step). A panic in it fails what runs: the replies send the error `internal` when they are dropped.
    fn guarded_step(&mut self) -> Result<ControlFlow<()>, LoadError> {
        match catch_unwind(AssertUnwindSafe(|| self.step())) {
            Ok(Ok(flow)) => Ok(flow),
            Ok(Err(error)) => {
                self.refuse_all(&error);
                Err(error)
            }
            Err(_) => {
                self.recover();
                Ok(ControlFlow::Continue(()))
            }
        }
    }

    /// Lets requests join, takes all answers one step further, and sends those that have ended. Breaks when nothing runs and
    /// the queue has no more requests for this model.
    fn step(&mut self) -> Result<ControlFlow<()>, LoadError> {
        self.end_halted()?;
        let began = Instant::now();
        if self.fill_slots(began)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        self.make_way(began)?;
        self.worker.queue.worker.count_step();
        self.limit_threads();
        let began = Instant::now();
        let Scheduler { session, active, .. } = self;
        session.step(|slot, step| match &mut active[slot] {
            Some(request) => request.answer.step(step),
            None => ControlFlow::Break(()),
        });
        let took = began.elapsed();
        self.share_time(took);
        self.pause_after(took);
        self.log_store_problem();
        self.worker.queue.memory.record_written(self.session.cache_tokens_written());
        for slot in 0..self.active.len() {
            if let Some(answer) = self.session.take_answer(slot)
                && let Some(mut request) = self.active[slot].take()
            {
                match request.answer.take(&mut self.session, slot, answer) {
                    Ok(None) => self.active[slot] = Some(request),
                    Ok(Some(answers)) => {
                        self.session.release(slot);
                        self.finish(request, answers)?;
                    }
                    Err(error) => {
                        self.session.release(slot);
                        self.worker.refuse_answer(request.answer.queued, error);
                    }
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Lets as many threads compute as the owner and the governor allow.
    fn limit_threads(&mut self) {
        let limit = self.worker.queue.worker.thread_limit();
        if std::mem::replace(&mut self.thread_limit, limit) != limit {
            self.engine.model().limit_threads(limit);
        }
    }

    /// Computes nothing for a while after a step that took so long, where the governor wants that.
    fn pause_after(&self, step: Duration) {
        let controls = &self.worker.queue.worker;
        let percent = u32::from(controls.computing_percent());
        let mut left = step * (100 - percent.min(100)) / percent.max(1);
        while !left.is_zero() && !controls.is_cut_off() {
            let part = left.min(LONGEST_SLEEP);
            std::thread::park_timeout(part);
            // The watchdog sees that the worker is well.
            controls.count_step();
            left -= part;
        }
    }

    /// The next request. Until there is one, what is new in the KV cache is written to disk, where the owner wants that.
    fn next_when_idle(&mut self) -> Option<QueuedRequest> {
        loop {
            if let Some(queued) = self.worker.queue.try_next() {
                return Some(queued);
            }
            // The daemon's end does not wait for the disk.
            let queue = &self.worker.queue;
            if queue.is_closed() || queue.is_model_ordered() || !self.store_block() {
                return self.worker.queue.next();
            }
        }
    }

    /// Writes a block of the KV cache to disk; `false` where none is left.
    fn store_block(&mut self) -> bool {
        self.worker.queue.worker.count_step();
        // What was computed from a changed file is not to be found again.
        if self.engine.check_files().is_err() {
            self.session.forget_unwritten();
        }
        let is_written = self.session.store_block();
        self.log_store_problem();
        is_written
    }

    fn log_store_problem(&mut self) {
        if let Some(problem) = self.session.take_store_problem() {
            match std::mem::replace(&mut self.has_store_problem, true) {
                false => {
                    warn!("cache.disk_mb: {problem}; further problems of this kind are logged at level debug")
                }
                true => debug!("cache.disk_mb: {problem}"),
            }
        }
    }

    /// Ends the suspended requests that were cancelled or whose time is over, with what they have.
    fn end_halted(&mut self) -> Result<(), LoadError> {
        while let Some(at) = self.suspended.iter_mut().position(|waits| waits.request.answer.is_halted()) {
            let SuspendedRequest { mut request, answer, .. } = self.suspended.remove(at);
            match request.answer.take_halted(answer.cancel()) {
                Ok(answers) => self.finish(request, answers)?,
                Err(error) => self.worker.refuse_answer(request.answer.queued, error),
            }
        }
        Ok(())
    }

    /// Fills the free slots, with requests that were suspended or with those that wait. Breaks when there are none and the
    /// queue has no more for this model. `began`: when the step began.
    fn fill_slots(&mut self, began: Instant) -> Result<ControlFlow<()>, LoadError> {
        while let Some(slot) = self.active.iter().position(Option::is_none) {
            let is_answering = self.active.iter().any(Option::is_some);
            if is_answering && began.elapsed() >= PREPARATION_TIME {
                break;
            }
            let is_idle = !is_answering && self.suspended.is_empty();
            let queued = match self.next_to_resume() {
                Some(at) => match self.passes(at) {
                    Some(queued) => Some(queued),
                    None => {
                        self.resume(slot, at);
                        continue;
                    }
                },
                None if is_idle => self.next_when_idle(),
                None => self.worker.queue.try_next(),
            };
            match queued {
                Some(queued) => {
                    if let Some(prepared) = self.prepare(queued)? {
                        self.begin(slot, prepared);
                    }
                }
                None if is_idle => return Ok(ControlFlow::Break(())),
                None => break,
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The suspended request that goes on next, where it goes before those that wait.
    fn next_to_resume(&self) -> Option<usize> {
        let waited = |waits: &SuspendedRequest<'_>| waits.since.elapsed();
        let level = |waits: &SuspendedRequest<'_>| waits.request.suspensions.level(waited(waits));
        let (at, first) = self.suspended.iter().enumerate().max_by(|(_, a), (_, b)| {
            let received = |waits: &SuspendedRequest<'_>| waits.request.answer.queued.inbound.received;
            level(a).cmp(&level(b)).then(received(b).cmp(&received(a)))
        })?;
        let next = self.worker.queue.next_priority();
        first.request.suspensions.goes_before(waited(first), next).then_some(at)
    }

    /// A waiting request for which a suspended one would be suspended again at once.
    fn passes(&self, at: usize) -> Option<QueuedRequest> {
        let SuspendedRequest { request, since, .. } = &self.suspended[at];
        let mut suspensions = request.suspensions;
        suspensions.add(since.elapsed());
        suspensions.may_be_suspended().then(|| self.worker.queue.try_next_ahead()).flatten()
    }

    /// Lets waiting requests of high priority take the slots of running ones of low priority.
    fn make_way(&mut self, began: Instant) -> Result<(), LoadError> {
        while began.elapsed() < PREPARATION_TIME
            && let Some(slot) = self.slot_to_take()
            && let Some(queued) = self.worker.queue.try_next_ahead()
        {
            if let Some(prepared) = self.prepare(queued)? {
                self.suspend(slot);
                self.begin(slot, prepared);
            }
        }
        Ok(())
    }

    /// The slot of the request that is suspended next, the one that was begun last, where all slots are taken. The memory
    /// plan has place for one grammar without a slot, that of a suspended request or of one that is prepared.
    fn slot_to_take(&self) -> Option<usize> {
        if self.suspended.len() >= self.active.len() || self.active.iter().any(Option::is_none) {
            return None;
        }
        let has_grammar = self.suspended.iter().any(|waits| waits.request.is_constrained);
        let may_go = |request: &ActiveRequest<'_>| {
            request.suspensions.may_be_suspended() && !(has_grammar && request.is_constrained)
        };
        let running =
            self.active.iter().enumerate().filter_map(|(slot, request)| Some((slot, request.as_ref()?)));
        running
            .filter(|(_, request)| may_go(request))
            .max_by_key(|(_, request)| request.begun)
            .map(|(slot, _)| slot)
    }

    fn suspend(&mut self, slot: usize) {
        if let Some(answer) = self.session.suspend(slot)
            && let Some(request) = self.active[slot].take()
        {
            let id = request.answer.queued.inbound.id.as_str();
            debug!(REQUEST_ID = id; "suspended for a request of high priority");
            self.worker.telemetry.decoding.record_suspension();
            self.suspended.push(SuspendedRequest { request, answer, since: Instant::now() });
        }
    }

    fn resume(&mut self, slot: usize, at: usize) {
        let SuspendedRequest { mut request, answer, since } = self.suspended.remove(at);
        request.suspensions.add(since.elapsed());
        self.session.resume(slot, answer);
        self.active[slot] = Some(request);
        self.worker.queue.note_resumed();
    }

    /// Prepares a request; `None` where it is refused or answered at once.
    fn prepare(&mut self, queued: QueuedRequest) -> Result<Option<PreparedRequest<'w>>, LoadError> {
        let Scheduler { worker, engine, .. } = self;
        worker.queue.worker.count_step();
        if let Some(refusal) = expiry(&queued, Instant::now()) {
            worker.queue.refuse(queued.inbound, refusal);
            return Ok(None);
        }
        worker.prepare(engine, queued)
    }

    /// Begins to answer a request in a free slot, unless the engine refuses it.
    fn begin(&mut self, slot: usize, prepared: PreparedRequest<'w>) {
        let PreparedRequest { mut answer, options, intent, key } = prepared;
        let begun = Instant::now();
        let work = self.worker.begin_metering(begun);
        let is_constrained = options.constraint.is_some();
        match answer.begin(&mut self.session, slot, options, intent) {
            Err(error) => self.worker.refuse_answer(answer.queued, error.into()),
            Ok(()) => {
                let inbound = &answer.queued.inbound;
                let waited = begun.saturating_duration_since(inbound.received);
                self.worker.telemetry.waiting.begun(&inbound.client, waited);
                let (own_time, priority) = (Duration::ZERO, inbound.request.priority);
                let suspensions = SuspensionRecord::new(priority);
                let request =
                    ActiveRequest { answer, key, is_constrained, begun, work, own_time, suspensions };
                self.active[slot] = Some(request);
            }
        }
    }

    /// Divides the time of a step equally among the requests that took part.
    fn share_time(&mut self, took: Duration) {
        let count = self.active.iter().flatten().count().max(1) as u32;
        self.active.iter_mut().flatten().for_each(|request| request.own_time += took / count);
        self.worker.telemetry.decoding.record_step(count as usize);
    }

    /// Sends the answers of a request.
    fn finish(&mut self, request: ActiveRequest<'w>, answers: Vec<FinishedAnswer>) -> Result<(), LoadError> {
        let Scheduler { worker, engine, session, .. } = self;
        let ActiveRequest { answer, key, is_constrained, begun, work, own_time, .. } = request;
        let StreamedAnswer { queued, prompt, first, .. } = answer;
        // An answer that was computed from a changed file is not sent.
        if let Err(error) = engine.check_files() {
            return Err(worker.refuse_for_lost_model(queued.inbound, error));
        }
        let at = RequestTimes::now(queued.inbound.received, begun, first);
        let took = at.ended - at.begun;
        worker.queue.record_duration(took);
        worker.keep(key, &answers[0].answer);
        worker.count_forced(is_constrained, &answers);
        let share = (own_time.as_secs_f64() / took.as_secs_f64().max(f64::MIN_POSITIVE)).min(1.0);
        let share = WorkShare { span: &work, share };
        worker.telemetry.decoding.found_prefix(answers[0].answer.cached);
        worker.count_speculation(&answers);
        worker.send_done(engine, queued.inbound, &prompt, answers, at, share);
        log_thread_counts(engine.model().threads(), &mut self.threads);
        worker.note_screening(session.shortlist_stats(), &mut self.screening);
        Ok(())
    }

    /// Refuses what runs because the model can no longer be used.
    fn refuse_all(&mut self, error: &LoadError) {
        let suspended = self.suspended.drain(..).map(|waits| waits.request);
        for request in self.active.iter_mut().filter_map(Option::take).chain(suspended) {
            self.worker.refuse_for_lost_model(request.answer.queued.inbound, error.clone());
        }
    }

    /// Goes on after a panic, which is a bug: what ran has failed. Suspended requests had no part in it.
    fn recover(&mut self) {
        for request in self.active.iter_mut().filter_map(Option::take) {
            self.worker.telemetry.failed(Code::Internal, request.answer.queued.inbound.received.elapsed());
        }
        self.session.reset();
        error!("the running requests failed because of a bug (panic); standard error has its location");
    }
}

/// A session with as many slots as requests are answered at the same time, and with the blocks that are on disk.
fn open_session<'w>(worker: &Worker, engine: &'w Engine) -> Session<'w> {
    let (context, slots) = (worker.model.plan.context, worker.model.plan.parallel);
    if worker.disk_bytes > 0 {
        match engine.stored_session(context, slots, worker.disk_bytes) {
            Ok(session) => return session,
            Err(error) => warn!("cache.disk_mb: the beginnings of prompts are not stored: {error}"),
        }
    }
    engine.shared_session(context, slots)
}
