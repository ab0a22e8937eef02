//! The thread that computes: it takes requests from the queue and answers them, one at a time.
//!
//! It never waits for a client: one whose channel is full is cancelled.

use super::Failure;
use super::admission::{Job, verdict};
use super::cache::{Key, Stored};
use super::locked;
use super::queue::Queue;
use crate::config::Budget;
use crate::engine::error::{LoadError, PromptError};
use crate::engine::model::ShortlistStats;
use crate::engine::sampler::SamplingParams;
use crate::engine::session::{Answer, GenerateOptions, Session, Step, StopReason};
use crate::engine::thread_pool;
use crate::engine::thread_tuner::ThreadCounts;
use crate::engine::tokenizer::{Role, Turn};
use crate::engine::{self, Engine, ModelFile};
use crate::protocol::{
    self, Code, Done, Event, FinishReason, Input, Refusal, Request, RequestEnergy, ShortlistCounts, Timings,
    Usage,
};
use crate::telemetry::sensors::Sensors;
use crate::telemetry::{self, Telemetry, Work};
use crate::transport::{Cancel, Inbound, Reply};
use log::{debug, error, info, warn};
use std::ops::{ControlFlow, Not};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// What the engine turned out to be.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub model: String,
    pub architecture: String,
    pub kernel: &'static str,
    /// What was wrong in its file, and how it is read all the same.
    pub notes: Vec<String>,
}

/// The running thread.
pub(super) struct Thread {
    pub handle: JoinHandle<()>,
    /// Resolves when the thread ends: with the reason, where the model can be used no more.
    pub ended: oneshot::Receiver<LoadError>,
}

/// What the worker thread needs.
pub(super) struct Worker {
    pub queue: Arc<Queue>,
    pub telemetry: Arc<Telemetry>,
    pub sensors: Arc<Mutex<Sensors>>,
    pub context: usize,
    pub budget: Budget,
}

impl Worker {
    /// Starts the thread, which loads the model; returns when it is ready for requests.
    pub async fn start(
        self,
        file: ModelFile,
        options: engine::EngineOptions,
    ) -> Result<(Thread, Facts), Failure> {
        let (loaded, outcome) = oneshot::channel();
        let (alive, ended) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("compute-0".into())
            .spawn(move || match self.load(file, &options) {
                Err(error) => drop(loaded.send(Err(error))),
                Ok(engine) => {
                    let facts = Facts {
                        model: engine.name().to_owned(),
                        architecture: engine.model().shape().arch.clone(),
                        kernel: engine.model().kernels().name(),
                        notes: engine.notes().to_vec(),
                    };
                    drop(loaded.send(Ok(facts)));
                    if let Err(error) = self.work(&engine) {
                        let _ = alive.send(error); // nobody listens once the daemon stops
                    }
                }
            })
            .map_err(|error| Failure::Setup(format!("the worker cannot be started: {error}")))?;
        match outcome.await {
            Ok(Ok(facts)) => Ok((Thread { handle: thread, ended }, facts)),
            Ok(Err(error)) => Err(Failure::Model(error)),
            Err(_) => Err(Failure::Setup("the worker died while it loaded the model".into())),
        }
    }

    /// Loads the model on this thread, which keeps to the processors that are meant for computing; so do the
    /// threads it starts.
    fn load(&self, file: ModelFile, options: &engine::EngineOptions) -> Result<Engine, LoadError> {
        thread_pool::pin_to(&self.budget.keep_to);
        let said = ThreadCounts { decode: self.budget.decode_threads, prefill: self.budget.prefill_threads };
        Ok(file.load(options)?.tuned(said))
    }

    /// Answers until the queue is closed, or the model's file is no longer what it was.
    fn work(&self, engine: &Engine) -> Result<(), LoadError> {
        let _off = Off(&self.queue);
        let mut session = engine.session(self.context);
        let mut screening = ShortlistStats::default();
        let mut threads = engine.model().threads();
        while let Some(job) = self.queue.next() {
            self.queue.step();
            if let Some(refusal) = verdict(&job, Instant::now()) {
                self.queue.refuse(job.inbound, refusal);
                continue;
            }
            engine.model().limit_threads(self.queue.thread_limit());
            // A fault costs this request its answer, and nobody else theirs; its reply says
            // `internal` as it is dropped.
            let received = job.inbound.received;
            match catch_unwind(AssertUnwindSafe(|| self.answer(engine, &mut session, job))) {
                Ok(answered) => answered?,
                Err(_) => {
                    self.telemetry.failed(Code::Internal, received.elapsed());
                    error!("a request was lost to a fault; standard error says where");
                }
            }
            say_threads(engine.model().threads(), &mut threads);
            self.note_screening(session.shortlist_stats(), &mut screening);
        }
        Ok(())
    }

    /// Takes over the counts of a screened head, and says once that it was wrong.
    fn note_screening(&self, now: Option<ShortlistStats>, before: &mut ShortlistStats) {
        let Some(now) = now else { return };
        let ShortlistStats { tokens, rows, scans, checks, misses, .. } = now;
        self.telemetry.screened(ShortlistCounts { tokens, rows, scans, checks, misses });
        if before.misses == 0 && misses > 0 {
            warn!("the screened head chose another token than the whole head; it is read whole from now on");
        }
        *before = now;
    }

    /// Ends one request. An error is the model's, not the request's: no other can be answered either.
    fn answer(&self, engine: &Engine, session: &mut Session<'_>, job: Job) -> Result<(), LoadError> {
        if let Err(error) = engine.check_files() {
            return Err(self.send_back(job.inbound, error));
        }
        if let Some(refusal) = self.queue.want_of_memory() {
            self.queue.refuse(job.inbound, refusal);
            return Ok(());
        }
        let request = &job.inbound.request;
        debug!(REQUEST_ID = job.inbound.id.as_str(); "prompt: {:?}", request.input);
        let prompt = match tokenize(engine, &request.input) {
            Ok(prompt) => prompt,
            Err(error) => {
                let refusal = Refusal::new(Code::InvalidRequest, error.to_string());
                self.queue.refuse(job.inbound, refusal);
                return Ok(());
            }
        };
        let client = self.queue.is_cache_shared().not().then(|| job.inbound.cache_key.clone());
        let key = cache_key(request, client, &prompt);
        match key.as_ref().map(|key| self.queue.cached(key)) {
            Some(Some(stored)) => {
                self.give_again(stored, prompt.len(), job.inbound);
                return Ok(());
            }
            Some(None) => self.telemetry.cache_miss(),
            None => {}
        }
        let begun = Instant::now();
        let work = self.metered(begun);
        let mut run = Run::new(&self.queue, engine, &job, prompt.len());
        let options = options(request);
        let outcome = session.generate(&prompt, &options, |step| run.step(step));
        let (halt, first) = (run.halt, run.first);
        // Computed from a file that is another by now, it is no answer.
        if let Err(error) = engine.check_files() {
            return Err(self.send_back(job.inbound, error));
        }
        let answer = match outcome {
            Ok(answer) => answer,
            Err(error) => {
                let refusal = Refusal::new(Code::ContextExceeded, error.to_string());
                self.queue.refuse(job.inbound, refusal);
                return Ok(());
            }
        };
        let at = Moments { received: job.inbound.received, begun, first, ended: Instant::now() };
        self.queue.note_pace(at.ended - at.begun);
        if let Some(key) = key.filter(|_| answer.end != StopReason::Cancelled) {
            self.queue.keep(key, stored(&answer));
        }
        let Inbound { id, client, reply, .. } = job.inbound;
        let done = self.done(id, &prompt, answer, halt, at, &work);
        self.note(&client, &done);
        reply.finish(Event::Done(Box::new(done)));
        Ok(())
    }

    /// The model can be used no more, and the daemon ends over it; asked again, the next one answers.
    fn send_back(&self, inbound: Inbound, error: LoadError) -> LoadError {
        let said = format!("the daemon ends, for its model can be used no more; ask the next one: {error}");
        self.queue.refuse(inbound, Refusal::new(Code::ShuttingDown, said));
        error
    }

    /// Answers from the cache.
    fn give_again(&self, stored: Stored, prompt: usize, inbound: Inbound) {
        let Inbound { request, id, client, received, reply, .. } = inbound;
        self.telemetry.cache_hit();
        info!(CLIENT = client.as_str(), REQUEST_ID = id.as_str(); "answered again");
        if request.stream && !stored.text.is_empty() {
            // A client that cannot take one event gets the whole text in the last one all the same.
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
        at: Moments,
        work: &Work<'_>,
    ) -> Done {
        let completion_tokens = answer.tokens.len() as u32;
        Done {
            id,
            // An answer that came to its own end at the very last step was not halted.
            finish_reason: match answer.end {
                StopReason::Stop => FinishReason::Stop,
                StopReason::Length => FinishReason::Length,
                StopReason::Cancelled => halt.unwrap_or(FinishReason::Cancelled),
            },
            usage: Usage { prompt_tokens: prompt.len() as u32, completion_tokens },
            timings: at.timings(&answer),
            text: answer.text,
            energy: self.cost(work, at.ended, completion_tokens),
            cached: false,
        }
    }

    /// Computing begins. Power is read first: what was drawn until now is not the request's.
    fn metered(&self, now: Instant) -> Work<'_> {
        if !self.telemetry.is_power_fresh(now) {
            self.read_power(now);
        }
        self.telemetry.work()
    }

    /// What it cost. Counters and loads are read once more at the end.
    fn cost(&self, work: &Work<'_>, ended: Instant, tokens: u32) -> Option<RequestEnergy> {
        self.telemetry.computed(ended, || locked(&self.sensors).power(ended));
        work.cost(tokens)
    }

    fn read_power(&self, now: Instant) {
        let reading = locked(&self.sensors).power(now);
        self.telemetry.power(now, reading.as_ref());
    }

    fn note(&self, client: &str, done: &Done) {
        self.telemetry.completed(done);
        telemetry::write_answered(client, done);
    }
}

/// The worker's thread, which no longer runs anything once it ends, however it ends.
struct Off<'q>(&'q Queue);

impl Drop for Off<'_> {
    fn drop(&mut self) {
        self.0.worker_ended();
    }
}

/// Says how many threads were found to be fastest: when both numbers are known, and when one changes.
fn say_threads(found: ThreadCounts, said: &mut ThreadCounts) {
    if let ThreadCounts { decode: Some(decode), prefill: Some(prefill) } = found
        && found != *said
    {
        info!("threads: decode {decode}, prefill {prefill}");
        *said = found;
    }
}

/// An answer on its way to the client, and what may stop it.
struct Run<'r> {
    queue: &'r Queue,
    engine: &'r Engine,
    reply: &'r Reply,
    cancel: &'r Cancel,
    deadline: Option<Instant>,
    stream: bool,
    /// Places of the KV cache: the prompt's, and one for each token.
    written: usize,
    halt: Option<FinishReason>,
    first: Option<Instant>,
}

impl<'r> Run<'r> {
    fn new(queue: &'r Queue, engine: &'r Engine, job: &'r Job, prompt: usize) -> Self {
        let Inbound { request, reply, cancel, .. } = &job.inbound;
        let (deadline, stream) = (job.deadline, request.stream);
        Run { queue, engine, reply, cancel, deadline, stream, written: prompt, halt: None, first: None }
    }

    fn step(&mut self, step: Step<'_>) -> ControlFlow<()> {
        self.queue.step();
        match step {
            Step::Prefill(read) => self.queue.note_reach(read),
            Step::Token(_) => self.written += 1,
        }
        self.queue.note_reach(self.written);
        if self.engine.has_zeroed_pages() {
            // What was just computed is made of zeros; who asked is told when the pass ends.
            return ControlFlow::Break(());
        }
        if let Step::Token(text) = step {
            self.first.get_or_insert_with(Instant::now);
            if self.stream && !text.is_empty() && self.reply.token(text.to_owned()).is_err() {
                // It reads too slowly or is gone: either way nobody reads this.
                self.cancel.raise();
            }
        }
        self.halt = if self.cancel.is_raised() || self.queue.is_cut_off() {
            Some(FinishReason::Cancelled)
        } else if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            Some(FinishReason::Timeout)
        } else {
            return ControlFlow::Continue(());
        };
        ControlFlow::Break(())
    }
}

/// When things happened to one request.
struct Moments {
    received: Instant,
    begun: Instant,
    first: Option<Instant>,
    ended: Instant,
}

impl Moments {
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

/// With three decimals: what comes after them is noise, and long to read.
fn in_milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

fn tokenize(engine: &Engine, input: &Input) -> Result<Vec<u32>, PromptError> {
    match input {
        Input::Prompt(text) => engine.tokenizer().prompt_chat(&[Turn { role: Role::User, text }]),
        Input::Messages(messages) => {
            let turns: Vec<Turn<'_>> = messages
                .iter()
                .map(|message| Turn { role: role(message.role), text: &message.content })
                .collect();
            engine.tokenizer().prompt_chat(&turns)
        }
    }
}

fn role(role: protocol::Role) -> Role {
    match role {
        protocol::Role::System => Role::System,
        protocol::Role::User => Role::User,
        protocol::Role::Assistant => Role::Assistant,
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
            // Without a seed every answer is another draw.
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

/// `None` where an answer may not be given again: drawn at random, or the client said so.
fn cache_key(request: &Request, client: Option<String>, prompt: &[u32]) -> Option<Key> {
    let greedy = request.sampling.temperature.unwrap_or(0.0) <= 0.0;
    (request.cache && greedy).then(|| Key {
        client,
        prompt: prompt.to_vec(),
        max_tokens: request.max_tokens.map(|n| n as usize),
        stop: request.stop.clone(),
        penalty: request.sampling.repetition_penalty.unwrap_or(1.0).to_bits(),
    })
}

fn stored(answer: &Answer) -> Stored {
    Stored {
        text: answer.text.clone(),
        completion_tokens: answer.tokens.len() as u32,
        stopped: answer.end == StopReason::Stop,
    }
}
