//! The worker thread: it takes requests from the queue and runs the engine on them, one at a time.
//!
//! It never waits for a client: a request whose reply channel is full is cancelled. Deliberately knows no transport
//! and no configuration file.

use super::DaemonError;
use super::admission::{QueuedRequest, expiry};
use super::answer_cache::{CacheKey, CachedAnswer};
use super::home_intent::{self, HomeIntent, HomeIntents};
use super::locked;
use super::queue::Queue;
use super::structured;
use crate::config::Budget;
use crate::engine::error::{LoadError, PromptError};
use crate::engine::grammar::Constraint;
use crate::engine::model::ShortlistStats;
use crate::engine::sampler::SamplingParams;
use crate::engine::session::{Answer, GenerateOptions, Session, Step, StopReason};
use crate::engine::thread_pool;
use crate::engine::thread_tuner::ThreadCounts;
use crate::engine::tokenizer::{ChatRole, Turn};
use crate::engine::{self, Engine, ModelFile};
use crate::protocol::{
    self, Code, Done, Event, FinishReason, Input, Refusal, Request, RequestEnergy, ShortlistCounts, Timings,
    Usage,
};
use crate::telemetry::sensors::Sensors;
use crate::telemetry::{self, ComputeSpan, Telemetry};
use crate::transport::{Cancel, Inbound, Reply, WhenFull};
use log::{debug, error, info, warn};
use std::ops::{ControlFlow, Not};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

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
        let Some((queued, prompt)) = self.tokenized(engine, queued) else { return Ok(()) };
        let request = &queued.inbound.request;
        let intent = match home_intent::wanted(self.intents.as_ref(), request) {
            Ok(intent) => intent,
            Err(refusal) => return Ok(self.refuse_format(queued, refusal)),
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
        let constraint = match self.constraint(engine, request, intent.as_ref()) {
            Ok(constraint) => constraint,
            Err(refusal) => return Ok(self.refuse_format(queued, refusal)),
        };
        let begun = Instant::now();
        let work = self.begin_metering(begun);
        let mut run = StreamedAnswer::new(&self.queue, engine, &queued, prompt.len());
        // What is sent of an intent is known at its end only.
        run.stream &= intent.is_none();
        let options = GenerateOptions { constraint, ..options(request) };
        let outcome = session.generate(&prompt, &options, |step| run.step(step));
        let (halt, first) = (run.halt, run.first);
        // An answer that was computed from a changed file is not sent.
        if let Err(error) = engine.check_files() {
            return Err(self.refuse_for_lost_model(queued.inbound, error));
        }
        let answer = match outcome {
            Ok(mut answer) => {
                if let Some(intent) = intent {
                    intent.finish(engine, session, &prompt, &mut answer);
                    // A full reply channel does no harm here: the last event has the whole text.
                    let _ = request.stream.then(|| queued.inbound.reply.token(answer.text.clone()));
                }
                answer
            }
            Err(error) => {
                let is_grammar = matches!(error, PromptError::Grammar(_));
                let code = if is_grammar { Code::InvalidRequest } else { Code::ContextExceeded };
                self.queue.refuse(queued.inbound, Refusal::new(code, error.to_string()));
                return Ok(());
            }
        };
        let at = RequestTimes { received: queued.inbound.received, begun, first, ended: Instant::now() };
        self.queue.record_duration(at.ended - at.begun);
        if let Some(key) = key.filter(|_| answer.end != StopReason::Cancelled) {
            self.queue.answers.insert(key, cacheable(&answer));
        }
        let Inbound { id, client, reply, .. } = queued.inbound;
        if options.constraint.is_some() {
            self.telemetry.structured_output.answered(answer.forced);
        }
        let done = self.done(id, &prompt, answer, halt, at, &work);
        self.record_done(&client, &done);
        reply.finish(Event::Done(Box::new(done)));
        Ok(())
    }

    /// The constraint of an answer; `None` where any text will do.
    fn constraint(
        &self,
        engine: &Engine,
        request: &Request,
        intent: Option<&HomeIntent>,
    ) -> Result<Option<Constraint>, Refusal> {
        let why = self.unplanned_grammar.as_deref();
        match intent {
            Some(intent) => intent.constraint(engine, why).map(Some),
            None => structured::constraint(engine, &request.response_format, why),
        }
    }

    /// Refuses a request because of the form of its answer.
    fn refuse_format(&self, queued: QueuedRequest, refusal: Refusal) {
        self.telemetry.structured_output.refused();
        self.queue.refuse(queued.inbound, refusal);
    }

    /// A request with the tokens of its prompt; `None` where it was refused.
    fn tokenized(&self, engine: &Engine, queued: QueuedRequest) -> Option<(QueuedRequest, Vec<u32>)> {
        // The memory is checked in any case; what was to wait is never refused for want of it.
        let is_refusable = queued.inbound.when_full == WhenFull::Refuse;
        if let Some(refusal) = self.queue.memory.refusal().filter(|_| is_refusable) {
            self.queue.refuse(queued.inbound, refusal);
            return None;
        }
        let input = &queued.inbound.request.input;
        debug!(REQUEST_ID = queued.inbound.id.as_str(); "prompt: {input:?}");
        match tokenize(engine, input) {
            Ok(prompt) => Some((queued, prompt)),
            Err(error) => {
                let refusal = Refusal::new(Code::InvalidRequest, error.to_string());
                self.queue.refuse(queued.inbound, refusal);
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
        })));
    }

    fn done(
        &self,
        id: String,
        prompt: &[u32],
        answer: Answer,
        halt: Option<FinishReason>,
        at: RequestTimes,
        work: &ComputeSpan<'_>,
    ) -> Done {
        let completion_tokens = answer.tokens.len() as u32;
        Done {
            id,
            // An answer that ended by itself at the very last step was not halted.
            finish_reason: match answer.end {
                StopReason::Stop => FinishReason::Stop,
                StopReason::Length => FinishReason::Length,
                StopReason::Cancelled => halt.unwrap_or(FinishReason::Cancelled),
            },
            usage: Usage { prompt_tokens: prompt.len() as u32, completion_tokens },
            timings: at.timings(&answer),
            text: answer.text,
            energy: self.request_energy(work, at.ended, completion_tokens),
            cached: false,
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
    cancel: &'r Cancel,
    deadline: Option<Instant>,
    stream: bool,
    /// Positions written in the KV cache: the prompt's, and one for each token.
    written: usize,
    halt: Option<FinishReason>,
    first: Option<Instant>,
}

impl<'r> StreamedAnswer<'r> {
    fn new(queue: &'r Queue, engine: &'r Engine, queued: &'r QueuedRequest, prompt: usize) -> Self {
        let Inbound { request, reply, cancel, .. } = &queued.inbound;
        let (deadline, stream) = (queued.deadline, request.stream);
        StreamedAnswer {
            queue,
            engine,
            reply,
            cancel,
            deadline,
            stream,
            written: prompt,
            halt: None,
            first: None,
        }
    }

    fn step(&mut self, step: Step<'_>) -> ControlFlow<()> {
        self.queue.worker.count_step();
        match step {
            Step::Prefill(read) => self.queue.memory.record_written(read),
            Step::Token(_) => self.written += 1,
        }
        self.queue.memory.record_written(self.written);
        if self.engine.has_zeroed_pages() {
            // The file was truncated, so the result is computed from zeros; the request is refused when the pass
            // has ended.
            return ControlFlow::Break(());
        }
        if let Step::Token(text) = step {
            self.first.get_or_insert_with(Instant::now);
            if self.stream && !text.is_empty() && self.reply.token(text.to_owned()).is_err() {
                // The client reads too slowly or is gone.
                self.cancel.raise();
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
    fn timings(&self, answer: &Answer) -> Timings {
        let later_tokens = answer.tokens.len().saturating_sub(1) as f64;
        let seconds = answer.decode.as_secs_f64();
        Timings {
            queue_ms: milliseconds(self.received, self.begun),
            prompt_ms: in_milliseconds(answer.prefill),
            ttft_ms: milliseconds(self.received, self.first.unwrap_or(self.ended)),
            total_ms: milliseconds(self.received, self.ended),
            tokens_per_second: if seconds > 0.0 { later_tokens / seconds } else { 0.0 },
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

fn tokenize(engine: &Engine, input: &Input) -> Result<Vec<u32>, PromptError> {
    match input {
        Input::Prompt(text) => engine.tokenizer().prompt_chat(&[Turn { role: ChatRole::User, text }]),
        Input::Messages(messages) => {
            let turns: Vec<Turn<'_>> = messages
                .iter()
                .map(|message| Turn { role: role(message.role), text: &message.content })
                .collect();
            engine.tokenizer().prompt_chat(&turns)
        }
    }
}

fn role(role: protocol::Role) -> ChatRole {
    match role {
        protocol::Role::System => ChatRole::System,
        protocol::Role::User => ChatRole::User,
        protocol::Role::Assistant => ChatRole::Assistant,
    }
}

fn options(request: &Request) -> GenerateOptions {
    let asked = &request.sampling;
    let default = SamplingParams::default();
    GenerateOptions {
        sampling: SamplingParams {
            temperature: asked.temperature.unwrap_or(default.temperature),
            top_k: asked.top_k.map_or(default.top_k, |k| k as usize),
            top_p: asked.top_p.unwrap_or(default.top_p),
            min_p: asked.min_p.unwrap_or(default.min_p),
            repetition_penalty: asked.repetition_penalty.unwrap_or(default.repetition_penalty),
            // Without a seed each answer is sampled differently.
            seed: asked.seed.unwrap_or_else(clock_seed),
        },
        max_tokens: request.max_tokens.map(|n| n as usize),
        stop: request.stop.clone(),
        ..GenerateOptions::default()
    }
}

fn clock_seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}

/// The key of the answer in the cache; `None` where it may not be cached: it is sampled at random, or the client
/// disabled the cache.
fn cache_key(
    request: &Request,
    client: Option<String>,
    prompt: &[u32],
    home_version: Option<u64>,
) -> Option<CacheKey> {
    let greedy = request.sampling.temperature.unwrap_or(0.0) <= 0.0;
    (request.cache && greedy).then(|| CacheKey {
        client,
        prompt: prompt.to_vec(),
        max_tokens: request.max_tokens.map(|n| n as usize),
        stop: request.stop.clone(),
        format: request.response_format.clone(),
        home_version,
        penalty: request.sampling.repetition_penalty.unwrap_or(1.0).to_bits(),
    })
}

fn cacheable(answer: &Answer) -> CachedAnswer {
    CachedAnswer {
        text: answer.text.clone(),
        completion_tokens: answer.tokens.len() as u32,
        stopped: answer.end == StopReason::Stop,
    }
}
