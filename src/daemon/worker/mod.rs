//! The worker thread: it takes requests from the queue and runs the engine on them, one at a time.
//!
//! It never waits for a client: a request whose reply channel is full is cancelled. Deliberately knows no transport
//! and no configuration file.

mod answer_events;
mod request_options;
mod tool_calls;

use super::DaemonError;
use super::admission::{QueuedRequest, expiry};
use super::answer_cache::{CacheKey, CachedAnswer};
use super::home_intent::{self, HomeIntent, HomeIntents};
use super::locked;
use super::queue::Queue;
use crate::config::Budget;
use crate::engine::error::{LoadError, PromptError};
use crate::engine::grammar::Constraint;
use crate::engine::model::ShortlistStats;
use crate::engine::session::{Answer, GenerateOptions, Session, Step, StopReason};
use crate::engine::thread_pool;
use crate::engine::thread_tuner::ThreadCounts;
use crate::engine::tokenizer::CallSyntax;
use crate::engine::{self, Engine, ModelFile};
use crate::protocol::{
    AnswerDetails, Code, Done, Event, FinishReason, Refusal, Request, RequestEnergy, RequestId,
    ShortlistCounts, Timings, TokenLogprob, Usage,
};
use crate::telemetry::sensors::Sensors;
use crate::telemetry::{self, ComputeSpan, Telemetry};
use crate::transport::{Cancel, Inbound, Reply, WhenFull};
use answer_events::{FinishedAnswer, details, token_logprob};
use log::{debug, error, info, warn};
use request_options::{cache_key, cacheable, generate_options};
use std::ops::{ControlFlow, Not};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tool_calls::{HeldText, Prompt, written_calls};

/// The stack of the worker: grammars are compiled by recursion. Only what is used of it takes memory.
const STACK_BYTES: usize = 8 << 20;

/// What is known of the engine once the model is loaded.
#[derive(Debug, Clone)]
pub(super) struct EngineInfo {
    pub model: String,
    pub architecture: String,
    pub kernel: &'static str,
    /// Defects of the model's file, and how they were worked around.
    pub notes: Vec<String>,
}

/// The running worker.
pub(super) struct WorkerThread {
    pub handle: JoinHandle<()>,
    /// Resolves when the thread ends: with the reason, where the model can no longer be used.
    pub ended: oneshot::Receiver<LoadError>,
}

/// The inputs of the worker thread.
pub(super) struct Worker {
    /// The names of the home; `None` where none are read.
    pub intents: Option<HomeIntents>,
    pub queue: Arc<Queue>,
    pub telemetry: Arc<Telemetry>,
    pub sensors: Arc<Mutex<Sensors>>,
    pub context: usize,
    pub budget: Budget,
    /// Why structured output is refused, where the memory plan has no place for it.
    pub unplanned_grammar: Option<String>,
}

impl Worker {
    /// Starts the thread, which loads the model; returns when it is ready for requests.
    pub async fn start(
        self,
        file: ModelFile,
        options: engine::EngineOptions,
    ) -> Result<(WorkerThread, EngineInfo), DaemonError> {
        let (loaded, outcome) = oneshot::channel();
        let (alive, ended) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("compute-0".into())
            .stack_size(STACK_BYTES)
            .spawn(move || match self.load(file, &options) {
                Err(error) => drop(loaded.send(Err(error))),
                Ok(engine) => {
                    let engine_info = EngineInfo {
                        model: engine.name().to_owned(),
                        architecture: engine.model().shape().arch.clone(),
                        kernel: engine.model().kernels().name(),
                        notes: engine.notes().to_vec(),
                    };
                    drop(loaded.send(Ok(engine_info)));
                    if let Err(error) = self.work(&engine) {
                        let _ = alive.send(error); // nobody listens once the daemon stops
                    }
                }
            })
            .map_err(|error| DaemonError::Setup(format!("the worker cannot be started: {error}")))?;
        match outcome.await {
            Ok(Ok(engine_info)) => Ok((WorkerThread { handle: thread, ended }, engine_info)),
            Ok(Err(error)) => Err(DaemonError::Model(error)),
            Err(_) => Err(DaemonError::Setup("the worker died while it loaded the model".into())),
        }
    }

    /// Loads the model on this thread, which is bound to the processors for computing, and so are the threads that
    /// it starts.
    fn load(&self, file: ModelFile, options: &engine::EngineOptions) -> Result<Engine, LoadError> {
        thread_pool::pin_to(&self.budget.allowed_cpus);
        let fixed = ThreadCounts { decode: self.budget.decode_threads, prefill: self.budget.prefill_threads };
        Ok(file.load(options)?.tuned(fixed))
    }

    /// Answers requests until the queue is closed, or the model's file has changed.
    fn work(&self, engine: &Engine) -> Result<(), LoadError> {
        let _off = WorkerEndGuard(&self.queue);
        let mut session = engine.session(self.context);
        let mut screening = ShortlistStats::default();
        let mut threads = engine.model().threads();
        while let Some(queued) = self.queue.next() {
            self.queue.worker.count_step();
            if let Some(refusal) = expiry(&queued, Instant::now()) {
                self.queue.refuse(queued.inbound, refusal);
                continue;
            }
            engine.model().limit_threads(self.queue.worker.thread_limit());
            // A panic fails this request only: its reply sends the error `internal` when it is dropped.
            let received = queued.inbound.received;
            match catch_unwind(AssertUnwindSafe(|| self.answer(engine, &mut session, queued))) {
                Ok(answered) => answered?,
                Err(_) => {
                    self.telemetry.failed(Code::Internal, received.elapsed());
                    error!("a request failed because of a bug (panic); standard error has its location");
                }
            }
            log_thread_counts(engine.model().threads(), &mut threads);
            self.note_screening(session.shortlist_stats(), &mut screening);
        }
        Ok(())
    }

    /// Records the counters of a screened head, and warns once at its first miss.
    fn note_screening(&self, now: Option<ShortlistStats>, before: &mut ShortlistStats) {
        let Some(now) = now else { return };
        let ShortlistStats { tokens, rows, scans, checks, misses, .. } = now;
        self.telemetry.set_screen_counts(ShortlistCounts { tokens, rows, scans, checks, misses });
        if before.misses == 0 && misses > 0 {
            warn!("the screened head chose another token than the whole head; it is read whole from now on");
        }
        *before = now;
    }

    /// Answers one request. An error means that the model can no longer be used, not that the request failed.
    fn answer(
        &self,
        engine: &Engine,
        session: &mut Session<'_>,
        queued: QueuedRequest,
    ) -> Result<(), LoadError> {
        if let Err(error) = engine.check_files() {
            return Err(self.refuse_for_lost_model(queued.inbound, error));
        }
        let Some((queued, Prompt { tokens: prompt, calls })) = self.tokenized(engine, queued) else {
            return Ok(());
        };
        let request = &queued.inbound.request;
        let intent = match home_intent::wanted(self.intents.as_ref(), request) {
            Ok(intent) => intent,
            Err(refusal) => return self.refuse_format(queued, refusal),
        };
        let client = self.queue.answers.is_shared().not().then(|| queued.inbound.cache_key.clone());
        let key = cache_key(request, client, &prompt, intent.as_ref().map(HomeIntent::home_version));
        match key.as_ref().map(|key| self.queue.answers.get(key)) {
            Some(Some(stored)) => {
                self.send_cached(stored, prompt.len(), queued.inbound);
                return Ok(());
            }
            Some(None) => self.telemetry.cache_miss(),
            None => {}
        }
        let constraint = match self.constraint(engine, request, calls.as_ref(), intent.as_ref()) {
            Ok(constraint) => constraint,
            Err(refusal) => return self.refuse_format(queued, refusal),
        };
        let begun = Instant::now();
        let work = self.begin_metering(begun);
        let mut run = StreamedAnswer::new(&self.queue, engine, &queued, prompt.len(), calls);
        run.intent = intent;
        let is_constrained = constraint.is_some();
        let options = GenerateOptions { constraint, ..generate_options(request) };
        let outcome = run.generate(session, &prompt, options, request.choices);
        // An answer that was computed from a changed file is not sent.
        if let Err(error) = engine.check_files() {
            return Err(self.refuse_for_lost_model(queued.inbound, error));
        }
        let answers = match outcome {
            Ok(answers) => answers,
            Err(error) => {
                self.queue.refuse(queued.inbound, self.prompt_refusal(&error));
                return Ok(());
            }
        };
        let at = RequestTimes::now(queued.inbound.received, begun, run.first);
        self.queue.record_duration(at.ended - at.begun);
        self.keep(key, &answers[0].answer);
        let Inbound { id, client, reply, .. } = queued.inbound;
        self.count_forced(is_constrained, &answers);
        let done = self.done(engine, id, &prompt, answers, at, &work);
        self.record_done(&client, &done);
        reply.finish(Event::Done(Box::new(done)));
        Ok(())
    }

    fn count_forced(&self, is_constrained: bool, answers: &[FinishedAnswer]) {
        if is_constrained {
            self.telemetry.structured_output.answered(answers.iter().map(FinishedAnswer::forced).sum());
        }
    }

    /// Stores a complete answer that may be given again.
    fn keep(&self, key: Option<CacheKey>, answer: &Answer) {
        if let Some(key) = key.filter(|_| answer.end != StopReason::Cancelled) {
            self.queue.answers.insert(key, cacheable(answer));
        }
    }

    /// The constraint of an answer; `None` where any text will do.
    fn constraint(
        &self,
        engine: &Engine,
        request: &Request,
        calls: Option<&CallSyntax>,
        intent: Option<&HomeIntent>,
    ) -> Result<Option<Constraint>, Refusal> {
        let unplanned = self.unplanned_grammar.as_deref();
        match intent {
            Some(intent) => intent.constraint(engine, unplanned).map(Some),
            None => tool_calls::constraint(engine, request, calls, unplanned),
        }
    }

    /// The refusal of a request that the engine cannot take.
    fn prompt_refusal(&self, error: &PromptError) -> Refusal {
        let code = match error {
            PromptError::ContextExceeded { .. } => Code::ContextExceeded,
            PromptError::Grammar(_) => {
                self.telemetry.structured_output.refused();
                Code::InvalidRequest
            }
            _ => Code::InvalidRequest,
        };
        Refusal::new(code, error.to_string())
    }

    /// Refuses a request because of the form of its answer.
    fn refuse_format(&self, queued: QueuedRequest, refusal: Refusal) -> Result<(), LoadError> {
        self.telemetry.structured_output.refused();
        self.queue.refuse(queued.inbound, refusal);
        Ok(())
    }

    /// A request with the tokens of its prompt; `None` where it was refused.
    fn tokenized(&self, engine: &Engine, queued: QueuedRequest) -> Option<(QueuedRequest, Prompt)> {
        // The memory is checked in any case; what was to wait is never refused for want of it.
        let is_refusable = queued.inbound.when_full == WhenFull::Refuse;
        if let Some(refusal) = self.queue.memory.refusal().filter(|_| is_refusable) {
            self.queue.refuse(queued.inbound, refusal);
            return None;
        }
        let input = &queued.inbound.request.input;
        debug!(REQUEST_ID = queued.inbound.id.as_str(); "prompt: {input:?}");
        match tool_calls::prompt(engine, &queued.inbound.request) {
            Ok(prompt) => Some((queued, prompt)),
            Err(error) => {
                self.queue.refuse(queued.inbound, self.prompt_refusal(&error));
                None
            }
        }
    }

    /// Refuses a request because the model can no longer be used. The daemon ends, and systemd starts it again.
    fn refuse_for_lost_model(&self, inbound: Inbound, error: LoadError) -> LoadError {
        let reason = format!(
            "the daemon stops because its model file can no longer be used; ask again after the restart: \
             {error}"
        );
        self.queue.refuse(inbound, Refusal::new(Code::ShuttingDown, reason));
        error
    }

    /// Sends an answer from the cache.
    fn send_cached(&self, stored: CachedAnswer, prompt: usize, inbound: Inbound) {
        let Inbound { request, id, client, received, reply, .. } = inbound;
        self.telemetry.cache_hit();
        info!(CLIENT = client.as_str(), REQUEST_ID = id.as_str(); "answered from the cache");
        if request.stream && !stored.text.is_empty() {
            // A full reply channel does no harm here: the last event has the whole text.
            let _ = reply.token(stored.text.clone());
        }
        let ms = milliseconds(received, Instant::now());
        reply.finish(Event::Done(Box::new(Done {
            id,
            text: stored.text,
            finish_reason: if stored.stopped { FinishReason::Stop } else { FinishReason::Length },
            usage: Usage { prompt_tokens: prompt as u32, completion_tokens: stored.completion_tokens },
            timings: Timings { queue_ms: ms, ttft_ms: ms, total_ms: ms, ..Timings::default() },
            energy: None,
            cached: true,
            details: AnswerDetails::default(),
        })));
    }

    /// `answers`: one for each that was asked for.
    fn done(
        &self,
        engine: &Engine,
        id: RequestId,
        prompt: &[u32],
        mut answers: Vec<FinishedAnswer>,
        at: RequestTimes,
        work: &ComputeSpan<'_>,
    ) -> Done {
        let completion_tokens = answers.iter().map(|answer| answer.answer.tokens.len() as u32).sum();
        let timings = at.timings(&answers);
        let details = details(engine, &mut answers);
        let first = answers.swap_remove(0);
        Done {
            id,
            finish_reason: first.finish_reason,
            usage: Usage { prompt_tokens: prompt.len() as u32, completion_tokens },
            timings,
            text: first.answer.text,
            energy: self.request_energy(work, at.ended, completion_tokens),
            cached: false,
            details,
        }
    }

    /// Begins to meter a request. Power is read first, so that earlier energy is not attributed to the request.
    fn begin_metering(&self, now: Instant) -> ComputeSpan<'_> {
        if !self.telemetry.is_power_fresh(now) {
            self.read_power(now);
        }
        self.telemetry.computing_began()
    }

    /// The energy of the request. Energy counters and loads are read once more at its end.
    fn request_energy(&self, work: &ComputeSpan<'_>, ended: Instant, tokens: u32) -> Option<RequestEnergy> {
        self.telemetry.computing_ended(ended, || locked(&self.sensors).power(ended));
        work.cost(tokens)
    }

    fn read_power(&self, now: Instant) {
        let reading = locked(&self.sensors).power(now);
        self.telemetry.record_power(now, reading.as_ref());
    }

    fn record_done(&self, client: &str, done: &Done) {
        self.telemetry.completed(done);
        telemetry::write_answered(client, done);
    }
}

/// Tells the queue that the worker has ended, also after a panic.
struct WorkerEndGuard<'q>(&'q Queue);

impl Drop for WorkerEndGuard<'_> {
    fn drop(&mut self) {
        self.0.worker_ended();
    }
}

/// Logs the tuned numbers of threads when both are known, and when one changes.
fn log_thread_counts(found: ThreadCounts, last_logged: &mut ThreadCounts) {
    if let ThreadCounts { decode: Some(decode), prefill: Some(prefill) } = found
        && found != *last_logged
    {
        info!("threads: decode {decode}, prefill {prefill}");
        *last_logged = found;
    }
}

/// An answer under way: its events, and what may stop it.
struct StreamedAnswer<'r> {
    queue: &'r Queue,
    engine: &'r Engine,
    reply: &'r Reply,
    id: &'r RequestId,
    cancel: &'r Cancel,
    deadline: Option<Instant>,
    stream: bool,
    /// Which of several answers is under way; `None` where there is one.
    index: Option<u32>,
    /// How the model may call a function.
    calls: Option<CallSyntax>,
    /// What the answer may be where it is an intent of this home. It is sent when it is complete.
    intent: Option<HomeIntent>,
    /// Text that may become a call.
    held: Option<HeldText>,
    /// The log-probabilities of tokens whose text is still held back, to be streamed with it.
    logprobs: Vec<TokenLogprob>,
    /// Positions written in the KV cache: the prompt's, and one for each token.
    written: usize,
    halt: Option<FinishReason>,
    first: Option<Instant>,
}

impl<'r> StreamedAnswer<'r> {
    fn new(
        queue: &'r Queue,
        engine: &'r Engine,
        queued: &'r QueuedRequest,
        prompt: usize,
        calls: Option<CallSyntax>,
    ) -> Self {
        let Inbound { request, id, reply, cancel, .. } = &queued.inbound;
        let (deadline, stream) = (queued.deadline, request.stream);
        StreamedAnswer {
            queue,
            engine,
            reply,
            id,
            cancel,
            deadline,
            stream,
            index: None,
            calls,
            intent: None,
            held: None,
            logprobs: Vec::new(),
            written: prompt,
            halt: None,
            first: None,
        }
    }

    /// Generates so many answers. Each but the first gets the seed of the one before plus one, and reads only the last
    /// token of the prompt again.
    fn generate(
        &mut self,
        session: &mut Session<'_>,
        prompt: &[u32],
        mut options: GenerateOptions,
        choices: u32,
    ) -> Result<Vec<FinishedAnswer>, PromptError> {
        let mut answers = Vec::with_capacity(choices as usize);
        for index in 0..choices {
            if let Some(halt) = self.halt.filter(|_| index > 0) {
                answers.push(FinishedAnswer::not_begun(halt));
                continue;
            }
            self.index = (choices > 1).then_some(index);
            self.written = prompt.len();
            self.logprobs.clear();
            self.held = self.calls.as_ref().filter(|_| self.stream).map(HeldText::new);
            let mut answer = match index {
                0 => session.generate(prompt, &options, |step| self.step(step))?,
                _ => session.generate_again(prompt, &options, |step| self.step(step))?,
            };
            if answer.end == StopReason::Cancelled {
                self.halt.get_or_insert(FinishReason::Cancelled);
            }
            if let Some(intent) = &self.intent {
                intent.finish(self.engine, session, prompt, &mut answer);
                self.send_text(answer.text.clone());
            }
            answers.push(self.finished(answer));
            options.sampling.seed = options.sampling.seed.wrapping_add(1);
        }
        Ok(answers)
    }

    /// An answer with the calls in it. What was held back and is no call is streamed.
    fn finished(&mut self, answer: Answer) -> FinishedAnswer {
        let mut finished = FinishedAnswer::new(answer, self.halt);
        let held = self.held.take().map(HeldText::into_text).unwrap_or_default();
        if let Some(syntax) = &self.calls {
            let prefix = format!("call_{}_{}_", self.id, self.index.unwrap_or_default());
            finished.tool_calls = written_calls(syntax, &finished.answer.text, &prefix);
        }
        if finished.tool_calls.is_empty() {
            self.send_text(held);
        } else {
            finished.answer.text.clear();
        }
        finished
    }

    /// Streams a piece of text, once it is clear that it is no part of a call.
    fn stream_text(&mut self, text: &str) {
        if self.intent.is_some() {
            return;
        }
        let text = match &mut self.held {
            None => Some(text.to_owned()),
            Some(held) => held.push(text),
        };
        if let Some(text) = text {
            self.held = None;
            self.send_text(text);
        }
    }

    fn send_text(&mut self, text: String) {
        if !self.stream || text.is_empty() {
            return;
        }
        let logprobs = std::mem::take(&mut self.logprobs);
        if self.reply.token_of(self.index, text, logprobs).is_err() {
            // The client reads too slowly or is gone.
            self.cancel.raise();
        }
    }

    fn step(&mut self, step: Step<'_>) -> ControlFlow<()> {
        if let Step::Logprobs(logprobs) = step {
            if self.stream {
                self.logprobs.push(token_logprob(self.engine, logprobs));
            }
            return ControlFlow::Continue(());
        }
        self.queue.worker.count_step();
        match step {
            Step::Prefill(read) => self.queue.memory.record_written(read),
            Step::Token(_) | Step::Logprobs(_) => self.written += 1,
        }
        self.queue.memory.record_written(self.written);
        if self.engine.has_zeroed_pages() {
            // The file was truncated, so the result is computed from zeros; the request is refused when the pass
            // has ended.
            return ControlFlow::Break(());
        }
        if let Step::Token(text) = step {
            self.first.get_or_insert_with(Instant::now);
            if self.stream {
                self.stream_text(text);
            }
        }
        self.halt = if self.cancel.is_raised() || self.queue.worker.is_cut_off() {
            Some(FinishReason::Cancelled)
        } else if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            Some(FinishReason::Timeout)
        } else {
            return ControlFlow::Continue(());
        };
        ControlFlow::Break(())
    }
}

/// The timestamps of one request.
struct RequestTimes {
    received: Instant,
    begun: Instant,
    first: Option<Instant>,
    ended: Instant,
}

impl RequestTimes {
    /// The times of a request that ends now.
    fn now(received: Instant, begun: Instant, first: Option<Instant>) -> Self {
        RequestTimes { received, begun, first, ended: Instant::now() }
    }

    fn timings(&self, answers: &[FinishedAnswer]) -> Timings {
        let later_tokens: usize =
            answers.iter().map(|answer| answer.answer.tokens.len().saturating_sub(1)).sum();
        let seconds: f64 = answers.iter().map(|answer| answer.answer.decode.as_secs_f64()).sum();
        Timings {
            queue_ms: milliseconds(self.received, self.begun),
            prompt_ms: in_milliseconds(answers[0].answer.prefill),
            ttft_ms: milliseconds(self.received, self.first.unwrap_or(self.ended)),
            total_ms: milliseconds(self.received, self.ended),
            tokens_per_second: if seconds > 0.0 { later_tokens as f64 / seconds } else { 0.0 },
        }
    }
}

fn milliseconds(since: Instant, until: Instant) -> f64 {
    in_milliseconds(until.saturating_duration_since(since))
}

/// Milliseconds with three decimals; further ones are noise.
fn in_milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}
