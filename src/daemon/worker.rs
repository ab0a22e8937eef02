//! The border between the async doors and the engine: a queue with a lock, and one plain thread.
//!
//! The thread answers one request at a time. It never waits for a client: a client whose channel is
//! full is cancelled.

use super::Failure;
use super::admission::{Admission, Job, verdict};
use super::cache::{Cache, Key, Stored};
use super::locked;
use crate::engine::sampler::Sampling;
use crate::engine::session::{Answer, End, Options, Session, Step};
use crate::engine::tokenizer::{Role, Turn};
use crate::engine::{self, Engine, ModelFile};
use crate::protocol::{
    self, Code, Done, Event, FinishReason, Input, Refusal, Request, RequestEnergy, Timings, Usage,
};
use crate::telemetry::Telemetry;
use crate::telemetry::sensors::Sensors;
use crate::transport::{Cancel, Inbound, Reply};
use log::{debug, error, info};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};

/// Between two looks at whether the queue has drained.
const DRAIN_INTERVAL: Duration = Duration::from_millis(10);

/// Requests between the doors and the worker. Its lock is held for moves only, never while an
/// answer is computed or a client is told.
#[derive(Debug)]
pub(super) struct Queue {
    admission: Mutex<Admission>,
    telemetry: Arc<Telemetry>,
    /// Wakes the worker.
    offered: Condvar,
    /// Wakes the sweeper.
    occupied: Notify,
    running: AtomicBool,
    /// Ends the running answer: the drain deadline has passed.
    cut_off: AtomicBool,
    /// Counts what the worker does, for the watchdog.
    steps: AtomicU64,
    timeout: Duration,
}

impl Queue {
    pub fn new(config: &crate::config::Queue, telemetry: Arc<Telemetry>) -> Self {
        Queue {
            admission: Mutex::new(Admission::new(config.depth)),
            telemetry,
            offered: Condvar::new(),
            occupied: Notify::new(),
            running: AtomicBool::new(false),
            cut_off: AtomicBool::new(false),
            steps: AtomicU64::new(0),
            timeout: config.timeout,
        }
    }

    /// Takes a request in, or tells its client why not.
    pub fn offer(&self, inbound: Inbound) {
        let timeout = inbound.request.timeout.unwrap_or(self.timeout);
        let offered = locked(&self.admission).offer(inbound, timeout);
        match offered {
            Ok(()) => {
                self.offered.notify_one();
                self.occupied.notify_one();
            }
            Err((inbound, refusal)) => self.refuse(*inbound, refusal),
        }
    }

    /// Tells waiting requests that nobody waits for any more.
    pub fn sweep(&self, now: Instant) {
        let swept = locked(&self.admission).sweep(now);
        swept.into_iter().for_each(|(job, refusal)| self.refuse(job.inbound, refusal));
    }

    /// Waits until some request waits.
    pub async fn occupied(&self) {
        while locked(&self.admission).waiting() == 0 {
            self.occupied.notified().await;
        }
    }

    /// Waits until no request waits or runs, or `deadline`.
    pub async fn drained(&self, deadline: Instant) {
        while self.level() != (0, 0) && Instant::now() < deadline {
            tokio::time::sleep(DRAIN_INTERVAL).await;
        }
    }

    /// Ends what runs, tells what waits, and takes nothing in any more; the worker ends.
    pub fn close(&self) {
        self.cut_off.store(true, Ordering::Relaxed);
        let left = locked(&self.admission).close();
        self.offered.notify_all();
        left.into_iter().for_each(|(job, refusal)| self.refuse(job.inbound, refusal));
    }

    /// Requests that wait, and that run.
    pub fn level(&self) -> (usize, usize) {
        let admission = locked(&self.admission);
        (admission.waiting(), usize::from(self.running.load(Ordering::Relaxed)))
    }

    /// What the worker has done so far.
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Waits for a request; `None` when the queue is closed.
    fn next(&self) -> Option<Job> {
        let mut admission = locked(&self.admission);
        self.running.store(false, Ordering::Relaxed);
        loop {
            if let Some(job) = admission.next() {
                self.running.store(true, Ordering::Relaxed);
                return Some(job);
            }
            if admission.is_closed() {
                return None;
            }
            admission = self.offered.wait(admission).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn refuse(&self, inbound: Inbound, refusal: Refusal) {
        match refusal.code {
            Code::Cancelled => self.telemetry.cancelled(),
            Code::Timeout => self.telemetry.timed_out(),
            _ => {}
        }
        self.telemetry.refused();
        info!(CLIENT = inbound.client.as_str(), REQUEST_ID = inbound.id.as_str(); "refused: {}", refusal.message);
        inbound.reply.refuse(refusal);
    }
}

/// What the engine turned out to be.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub model: String,
    pub architecture: String,
    pub kernel: &'static str,
}

/// What the worker thread needs.
pub(super) struct Worker {
    pub queue: Arc<Queue>,
    pub telemetry: Arc<Telemetry>,
    pub sensors: Arc<Mutex<Sensors>>,
    pub context: usize,
}

impl Worker {
    /// Starts the thread, which loads the model; returns when it is ready for requests.
    pub async fn start(
        self,
        file: ModelFile,
        options: engine::Options,
    ) -> Result<(JoinHandle<()>, Facts), Failure> {
        let (loaded, outcome) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("compute-0".into())
            .spawn(move || match file.load(&options) {
                Err(error) => drop(loaded.send(Err(error))),
                Ok(engine) => {
                    let facts = Facts {
                        model: engine.name().to_owned(),
                        architecture: engine.model().shape().arch.clone(),
                        kernel: engine.model().kernels().name(),
                    };
                    drop(loaded.send(Ok(facts)));
                    self.work(&engine);
                }
            })
            .map_err(|error| Failure::Setup(format!("the worker cannot be started: {error}")))?;
        match outcome.await {
            Ok(Ok(facts)) => Ok((thread, facts)),
            Ok(Err(error)) => Err(Failure::Model(error)),
            Err(_) => Err(Failure::Setup("the worker died while it loaded the model".into())),
        }
    }

    fn work(&self, engine: &Engine) {
        let mut session = engine.session(self.context);
        let mut cache = Cache::default();
        while let Some(job) = self.queue.next() {
            self.queue.steps.fetch_add(1, Ordering::Relaxed);
            match verdict(&job, Instant::now()) {
                Some(refusal) => self.queue.refuse(job.inbound, refusal),
                None => self.answer(engine, &mut session, &mut cache, job),
            }
        }
    }

    fn answer(&self, engine: &Engine, session: &mut Session<'_>, cache: &mut Cache, job: Job) {
        let Job { inbound, deadline } = job;
        let Inbound { request, id, client, received, reply, cancel } = inbound;
        debug!(REQUEST_ID = id.as_str(); "prompt: {:?}", request.input);
        let begun = Instant::now();
        let prompt = tokenize(engine, &request.input);
        let key = cache_key(&request, &prompt);
        if let Some(stored) = key.as_ref().and_then(|key| cache.get(key)) {
            self.telemetry.cache_hit();
            info!(CLIENT = client.as_str(), REQUEST_ID = id.as_str(); "answered again");
            return give_again(stored, prompt.len(), &request, id, received, reply);
        }
        key.iter().for_each(|_| self.telemetry.cache_miss());
        let mut run = Run {
            queue: &self.queue,
            reply: &reply,
            cancel: &cancel,
            deadline,
            stream: request.stream,
            halt: None,
            first: None,
        };
        let options = options(&request);
        // A fault in the engine costs this request its answer, and nobody else theirs.
        let outcome =
            catch_unwind(AssertUnwindSafe(|| session.generate(&prompt, &options, |step| run.step(step))));
        let (halt, first) = (run.halt, run.first);
        let answer = match outcome {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                self.telemetry.refused();
                info!(CLIENT = client.as_str(), REQUEST_ID = id.as_str(); "refused: {error}");
                return reply.refuse(Refusal::new(Code::ContextExceeded, error.to_string()));
            }
            Err(_) => {
                self.telemetry.refused();
                error!(CLIENT = client.as_str(), REQUEST_ID = id.as_str(); "the engine failed; see the line before");
                let said = "a fault of the daemon, noted in its log; ask again";
                return reply.refuse(Refusal::new(Code::Internal, said));
            }
        };
        let ended = Instant::now();
        locked(&self.queue.admission).note_pace(ended - begun);
        if let (Some(key), None) = (key, halt) {
            cache.put(key, stored(&answer));
        }
        let done = self.done(id, &prompt, answer, halt, Moments { received, begun, first, ended });
        self.note(&client, &done);
        reply.finish(Event::Done(Box::new(done)));
    }

    fn done(
        &self,
        id: String,
        prompt: &[u32],
        answer: Answer,
        halt: Option<FinishReason>,
        at: Moments,
    ) -> Done {
        let completion_tokens = answer.tokens.len() as u32;
        Done {
            id,
            finish_reason: halt.unwrap_or(match answer.end {
                End::Stop => FinishReason::Stop,
                End::Length | End::Halted => FinishReason::Length,
            }),
            usage: Usage { prompt_tokens: prompt.len() as u32, completion_tokens },
            timings: at.timings(&answer),
            text: answer.text,
            energy: self.energy(at.begun, at.ended),
            cached: false,
        }
    }

    /// What the time between two moments cost. One more reading at the end: without it a short
    /// answer would be charged at the idle power before it.
    fn energy(&self, begun: Instant, ended: Instant) -> Option<RequestEnergy> {
        let reading = locked(&self.sensors).power(ended);
        self.telemetry.power(ended, reading.as_ref());
        self.telemetry.energy_between(begun, ended)
    }

    fn note(&self, client: &str, done: &Done) {
        match done.finish_reason {
            FinishReason::Cancelled => self.telemetry.cancelled(),
            FinishReason::Timeout => self.telemetry.timed_out(),
            FinishReason::Stop | FinishReason::Length => {}
        }
        let joules = done.energy.as_ref().map(|energy| energy.joules);
        self.telemetry.completed(&done.usage, &done.timings, joules);
        info!(
            CLIENT = client, REQUEST_ID = done.id.as_str(), TOKENS_IN = done.usage.prompt_tokens,
            TOKENS_OUT = done.usage.completion_tokens, TTFT_MS = done.timings.ttft_ms,
            TOTAL_MS = done.timings.total_ms;
            "answered"
        );
    }
}

/// An answer on its way to the client, and what may stop it.
struct Run<'r> {
    queue: &'r Queue,
    reply: &'r Reply,
    cancel: &'r Cancel,
    deadline: Instant,
    stream: bool,
    halt: Option<FinishReason>,
    first: Option<Instant>,
}

impl Run<'_> {
    fn step(&mut self, step: Step<'_>) -> ControlFlow<()> {
        self.queue.steps.fetch_add(1, Ordering::Relaxed);
        if let Step::Token(text) = step {
            self.first.get_or_insert_with(Instant::now);
            if self.stream && !text.is_empty() && self.reply.token(text.to_owned()).is_err() {
                // It reads too slowly or is gone: either way nobody reads this.
                self.cancel.raise();
            }
        }
        self.halt = if self.cancel.is_raised() || self.queue.cut_off.load(Ordering::Relaxed) {
            Some(FinishReason::Cancelled)
        } else if Instant::now() >= self.deadline {
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
        let ms = |since: Instant, until: Instant| (until - since).as_secs_f64() * 1000.0;
        let later_tokens = answer.tokens.len().saturating_sub(1) as f64;
        let seconds = answer.decode.as_secs_f64();
        Timings {
            queue_ms: ms(self.received, self.begun),
            prompt_ms: answer.prefill.as_secs_f64() * 1000.0,
            ttft_ms: ms(self.received, self.first.unwrap_or(self.ended)),
            total_ms: ms(self.received, self.ended),
            tokens_per_second: if seconds > 0.0 { later_tokens / seconds } else { 0.0 },
        }
    }
}

fn tokenize(engine: &Engine, input: &Input) -> Vec<u32> {
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

fn options(request: &Request) -> Options {
    let asked = &request.sampling;
    let default = Sampling::default();
    Options {
        sampling: Sampling {
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
        ignore_end: false,
    }
}

fn clock_seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}

/// `None` where an answer may not be given again: drawn at random, or the client said so.
fn cache_key(request: &Request, prompt: &[u32]) -> Option<Key> {
    let greedy = request.sampling.temperature.unwrap_or(0.0) <= 0.0;
    (request.cache && greedy).then(|| Key {
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
        stopped: answer.end == End::Stop,
    }
}

fn give_again(stored: Stored, prompt: usize, request: &Request, id: String, received: Instant, reply: Reply) {
    let ms = received.elapsed().as_secs_f64() * 1000.0;
    if request.stream && !stored.text.is_empty() {
        // A client that cannot take one event gets the whole text in the last one all the same.
        let _ = reply.token(stored.text.clone());
    }
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
