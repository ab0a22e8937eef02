//! Which requests are answered together: a request joins as soon as a slot is free, and all of them get their next token
//! in the same pass (continuous batching, as in Orca, OSDI 2022).
//!
//! Whose turn it is among the requests that wait is the queue's decision. Deliberately knows no sampling and no prompt.

use super::streamed_answer::StreamedAnswer;
use super::{PreparedRequest, RequestTimes, WorkShare, Worker, WorkerEndGuard, log_thread_counts};
use crate::daemon::admission::{QueuedRequest, expiry};
use crate::daemon::answer_cache::CacheKey;
use crate::engine::Engine;
use crate::engine::error::LoadError;
use crate::engine::model::ShortlistStats;
use crate::engine::session::Session;
use crate::engine::thread_tuner::ThreadCounts;
use crate::protocol::Code;
use crate::telemetry::ComputeSpan;
use log::{debug, error, warn};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// The requests that are answered now.
pub(super) struct Scheduler<'w> {
    worker: &'w Worker,
    engine: &'w Engine,
    session: Session<'w>,
    active: Vec<Option<ActiveRequest<'w>>>, // [slots]
    screening: ShortlistStats,
    threads: ThreadCounts,
    /// A problem with the files of the prefix store was logged.
    has_store_problem: bool,
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
            screening: ShortlistStats::default(),
            threads: fixed,
            has_store_problem: false,
        }
    }

    /// Answers requests until the queue is closed, or the model's file has changed.
    pub fn run(mut self) -> Result<(), LoadError> {
        let _off = WorkerEndGuard(&self.worker.queue);
        log_thread_counts(self.engine.model().threads(), &mut self.threads);
        loop {
            // A panic fails what runs: the replies send the error `internal` when they are dropped.
            match catch_unwind(AssertUnwindSafe(|| self.step())) {
                Ok(Ok(ControlFlow::Continue(()))) => {}
                Ok(Ok(ControlFlow::Break(()))) => return Ok(()),
                Ok(Err(error)) => {
                    self.refuse_all(&error);
                    return Err(error);
                }
                Err(_) => self.recover(),
            }
        }
    }

    /// Lets requests join, takes all answers one step further, and sends those that have ended. Breaks when the queue is
    /// closed and nothing runs.
    fn step(&mut self) -> Result<ControlFlow<()>, LoadError> {
        while let Some(slot) = self.active.iter().position(Option::is_none) {
            let is_idle = self.active.iter().all(Option::is_none);
            match if is_idle { self.next_when_idle() } else { self.worker.queue.try_next() } {
                Some(queued) => self.join(slot, queued)?,
                None if is_idle => return Ok(ControlFlow::Break(())),
                None => break,
            }
        }
        self.worker.queue.worker.count_step();
        let began = Instant::now();
        let Scheduler { session, active, .. } = self;
        session.step(|slot, step| match &mut active[slot] {
            Some(request) => request.answer.step(step),
            None => ControlFlow::Break(()),
        });
        self.share_time(began.elapsed());
        self.log_store_problem();
        self.worker.queue.memory.record_written(self.session.cache_tokens_written());
        for slot in 0..self.active.len() {
            if let Some(answer) = self.session.take_answer(slot)
                && let Some(mut request) = self.active[slot].take()
            {
                match request.answer.take(&mut self.session, slot, answer) {
                    Ok(None) => self.active[slot] = Some(request),
                    Ok(Some(answers)) => self.finish(slot, request, answers)?,
                    Err(error) => {
                        self.session.release(slot);
                        self.worker.refuse_answer(request.answer.queued, error);
                    }
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The next request. Until there is one, what is new in the KV cache is written to disk, where the owner wants that.
    fn next_when_idle(&mut self) -> Option<QueuedRequest> {
        loop {
            if let Some(queued) = self.worker.queue.try_next() {
                return Some(queued);
            }
            // The daemon's end does not wait for the disk.
            if self.worker.queue.is_closed() || !self.store_block() {
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

    /// Begins to answer a request in a free slot, unless it is refused or answered at once.
    fn join(&mut self, slot: usize, queued: QueuedRequest) -> Result<(), LoadError> {
        let Scheduler { worker, engine, session, .. } = self;
        worker.queue.worker.count_step();
        if let Some(refusal) = expiry(&queued, Instant::now()) {
            worker.queue.refuse(queued.inbound, refusal);
            return Ok(());
        }
        engine.model().limit_threads(worker.queue.worker.thread_limit());
        let Some(prepared) = worker.prepare(engine, queued)? else { return Ok(()) };
        let PreparedRequest { mut answer, options, intent, key } = prepared;
        let begun = Instant::now();
        let work = worker.begin_metering(begun);
        let is_constrained = options.constraint.is_some();
        match answer.begin(session, slot, options, intent) {
            Err(error) => worker.refuse_answer(answer.queued, error.into()),
            Ok(()) => {
                let own_time = Duration::ZERO;
                let request = ActiveRequest { answer, key, is_constrained, begun, work, own_time };
                self.active[slot] = Some(request);
            }
        }
        Ok(())
    }

    /// Divides the time of a step equally among the requests that took part.
    fn share_time(&mut self, took: Duration) {
        let count = self.active.iter().flatten().count().max(1) as u32;
        self.active.iter_mut().flatten().for_each(|request| request.own_time += took / count);
        self.worker.telemetry.decoding.record_step(count as usize);
    }

    /// Sends the answers of a request.
    fn finish(
        &mut self,
        slot: usize,
        request: ActiveRequest<'w>,
        answers: Vec<super::FinishedAnswer>,
    ) -> Result<(), LoadError> {
        let Scheduler { worker, engine, session, .. } = self;
        session.release(slot);
        let ActiveRequest { answer, key, is_constrained, begun, work, own_time } = request;
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
        for request in self.active.iter_mut().filter_map(Option::take) {
            self.worker.refuse_for_lost_model(request.answer.queued.inbound, error.clone());
        }
    }

    /// Goes on after a panic, which is a bug: what ran has failed.
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
    let (context, slots) = (worker.context, worker.parallel);
    if worker.disk_bytes > 0 {
        match engine.stored_session(context, slots, worker.disk_bytes) {
            Ok(session) => return session,
            Err(error) => warn!("cache.disk_mb: the beginnings of prompts are not stored: {error}"),
        }
    }
    engine.shared_session(context, slots)
}
