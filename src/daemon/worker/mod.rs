//! The worker thread: it takes requests from the queue and runs the engine on them, several at a time; see [`scheduler`].
//!
//! It never waits for a client: a request whose reply channel is full is cancelled. Deliberately knows no transport
//! and no configuration file.

mod answer_events;
mod filtered_text;
mod request_options;
mod scheduler;
mod streamed_answer;
mod suspension;
mod thread;
mod tool_calls;

use super::admission::QueuedRequest;
use super::answer_cache::{CacheKey, CachedAnswer};
use super::home_intent::{self, HomeIntent, HomeIntents};
use super::locked;
use super::queue::Queue;
use crate::config::Budget;
use crate::engine::Engine;
use crate::engine::error::{LoadError, PromptError};
use crate::engine::grammar::Constraint;
use crate::engine::model::ShortlistStats;
use crate::engine::session::{Answer, GenerateOptions, StopReason};
use crate::engine::thread_tuner::ThreadCounts;
use crate::engine::tokenizer::CallSyntax;
use crate::guard::Denied;
use crate::protocol::{
    AnswerDetails, Code, Done, Event, FinishReason, PredictionUsage, Refusal, Request, RequestEnergy,
    RequestId, ResponseFormat, ShortlistCounts, Timings, Usage,
};
use crate::telemetry::sensors::Sensors;
use crate::telemetry::{self, ComputeSpan, Telemetry};
use crate::transport::{Inbound, WhenFull};
use answer_events::{FinishedAnswer, details, prediction_usage};
use log::{debug, info, warn};
use request_options::{cache_key, cacheable, generate_options, prefix_scope};
use std::ops::Not;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use streamed_answer::{AnswerError, StreamedAnswer};
pub(super) use thread::{WorkerModel, WorkerThread};
use tool_calls::Prompt;

/// The inputs of the worker thread.
#[derive(Clone)]
pub(super) struct Worker {
    /// Which answers are intents; whether the model is the built-in one is set when it is loaded.
    pub intents: HomeIntents,
    pub queue: Arc<Queue>,
    pub telemetry: Arc<Telemetry>,
    pub sensors: Arc<Mutex<Sensors>>,
    pub budget: Budget,
    /// Bytes that the beginnings of prompts may take on disk; 0 stores none.
    pub disk_bytes: u64,
    /// The model that is loaded.
    pub model: WorkerModel,
}

impl Worker {
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

    /// Prepares a request for the engine; `None` where it was refused, or answered without the engine. An error means that
    /// the model can no longer be used, not that the request failed.
    fn prepare<'w>(
        &'w self,
        engine: &'w Engine,
        queued: QueuedRequest,
    ) -> Result<Option<PreparedRequest<'w>>, LoadError> {
        if let Err(error) = engine.check_files() {
            return Err(self.refuse_for_lost_model(queued.inbound, error));
        }
        let Some((mut queued, prompt)) = self.tokenized(engine, queued) else { return Ok(None) };
        let request = &queued.inbound.request;
        match self.intents.sentence_after_call(request) {
            Ok(Some(sentence)) => {
                self.send_sentence(engine, queued, &sentence);
                return Ok(None);
            }
            Ok(None) => {}
            Err(refusal) => return Ok(self.refuse_format(queued, refusal)),
        }
        let intent = match self.intents.wanted(request) {
            Ok(intent) => intent,
            Err(refusal) => return Ok(self.refuse_format(queued, refusal)),
        };
        // A command has one right answer, which is the likeliest.
        if intent.is_none() {
            self.queue.defaults.set_sampling(&mut queued.inbound.request.sampling);
        }
        let request = &queued.inbound.request;
        let client = self.queue.answers.is_shared().not().then(|| queued.inbound.cache_key.clone());
        let prefix_scope = client.as_ref().map_or(0, |client| prefix_scope(client));
        let home_version = intent.as_ref().map(HomeIntent::home_version);
        let key = cache_key(request, client, &prompt.tokens, home_version)
            .filter(|_| self.queue.answers.is_enabled());
        match key.as_ref().map(|key| self.queue.answers.get(key)) {
            Some(Some(stored)) => {
                // The filter may be newer than the answer.
                match self.queue.guard.filter().and_then(|filter| filter.find(&stored.text)) {
                    Some(found) => self.queue.deny(queued.inbound, Denied::answer(found)),
                    None => self.send_cached(engine, stored, prompt.tokens.len(), queued.inbound),
                }
                return Ok(None);
            }
            Some(None) => self.telemetry.cache_miss(),
            None => {}
        }
        let constraint = match self.constraint(engine, request, prompt.calls.as_ref(), intent.as_ref()) {
            Ok(constraint) => constraint,
            Err(refusal) => return Ok(self.refuse_format(queued, refusal)),
        };
        let speculate = self.queue.defaults.speculates(request);
        let prediction = if speculate { self.prediction(engine, request) } else { Vec::new() };
        let options = generate_options(request);
        let options = GenerateOptions { constraint, prefix_scope, speculate, prediction, ..options };
        let answer = StreamedAnswer::new(&self.queue, engine, queued, prompt);
        Ok(Some(PreparedRequest { answer, options, intent, key }))
    }

    /// The tokens of the answer that the client predicts, as many as an answer can have.
    fn prediction(&self, engine: &Engine, request: &Request) -> Vec<u32> {
        let text = request.prediction.as_deref().unwrap_or_default();
        let mut tokens = engine.tokenizer().encode_continuation(text);
        tokens.truncate(self.model.plan.context);
        tokens
    }

    /// Sends the last event of a request that was answered.
    fn send_done(
        &self,
        engine: &Engine,
        inbound: Inbound,
        prompt: &[u32],
        answers: Vec<FinishedAnswer>,
        at: RequestTimes,
        work: WorkShare<'_>,
    ) {
        let Inbound { request, id, client, reply, .. } = inbound;
        let prediction = request.prediction.is_some().then(|| prediction_usage(&answers));
        let mut done = self.done(engine, id, prompt, answers, at, work);
        done.details.prediction = prediction;
        self.record_done(&client, &done);
        reply.finish(Event::Done(Box::new(done)));
    }

    fn count_forced(&self, is_constrained: bool, answers: &[FinishedAnswer]) {
        if is_constrained {
            self.telemetry.structured_output.answered(answers.iter().map(FinishedAnswer::forced).sum());
            let nothing_fits = answers.iter().filter(|answer| answer.nothing_fits).count();
            self.telemetry.structured_output.nothing_fits(nothing_fits);
        }
    }

    fn count_speculation(&self, answers: &[FinishedAnswer]) {
        let of_all = |count: fn(&Answer) -> usize| answers.iter().map(|answer| count(&answer.answer)).sum();
        self.telemetry.decoding.speculated(
            of_all(|answer| answer.looked_up.proposed),
            of_all(|answer| answer.looked_up.accepted),
        );
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
        let unplanned = self.model.unplanned_grammar.as_deref();
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

    /// Refuses a request that has no answer.
    fn refuse_answer(&self, queued: QueuedRequest, error: AnswerError) {
        match error {
            AnswerError::Prompt(error) => self.queue.refuse(queued.inbound, self.prompt_refusal(&error)),
            AnswerError::Filtered(found) => self.queue.deny(queued.inbound, Denied::answer(found)),
            AnswerError::Refused(refusal) => {
                self.refuse_format::<()>(queued, refusal);
            }
        }
    }

    /// Refuses a request because of the form of its answer; there is none then.
    fn refuse_format<T>(&self, queued: QueuedRequest, refusal: Refusal) -> Option<T> {
        self.telemetry.structured_output.refused();
        self.queue.refuse(queued.inbound, refusal);
        None
    }

    /// A request with the tokens of its prompt; `None` where it was refused.
    fn tokenized(&self, engine: &Engine, mut queued: QueuedRequest) -> Option<(QueuedRequest, Prompt)> {
        // The memory is checked in any case; what was to wait is never refused for want of it.
        let is_refusable = queued.inbound.when_full == WhenFull::Refuse;
        if let Some(refusal) = self.queue.memory.refusal().filter(|_| is_refusable) {
            self.queue.refuse(queued.inbound, refusal);
            return None;
        }
        let own_tokens = self.add_default_system(engine, &mut queued.inbound.request);
        let input = &queued.inbound.request.input;
        debug!(REQUEST_ID = queued.inbound.id.as_str(); "prompt: {input:?}");
        let request = &queued.inbound.request;
        let prompt = if self.intents.calls_intents(request) {
            tool_calls::sentence_prompt(engine, home_intent::sentence(input))
        } else {
            tool_calls::prompt(engine, request)
        };
        match prompt {
            // What the owner adds is not the client's.
            Ok(prompt) => match self.queue.guard.check_tokens(prompt.tokens.len().saturating_sub(own_tokens))
            {
                Ok(()) => Some((queued, prompt)),
                Err(denied) => {
                    self.queue.deny(queued.inbound, denied);
                    None
                }
            },
            Err(error) => {
                self.queue.refuse(queued.inbound, self.prompt_refusal(&error));
                None
            }
        }
    }

    /// Adds the default system text, and counts its tokens. Commands get none: the built-in model knows only commands, and
    /// takes another text for a part of them.
    fn add_default_system(&self, engine: &Engine, request: &mut Request) -> usize {
        if self.intents.is_built_in || request.response_format == ResponseFormat::HomeIntent {
            return 0;
        }
        let added = self.queue.defaults.add_system(request);
        added.map_or(0, |text| engine.tokenizer().encode_continuation(&text).len())
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
    fn send_cached(&self, engine: &Engine, stored: CachedAnswer, prompt: usize, inbound: Inbound) {
        let Inbound { request, id, client, received, reply, .. } = inbound;
        self.telemetry.cache_hit(received.elapsed());
        info!(CLIENT = client.as_str(), REQUEST_ID = id.as_str(); "answered from the cache");
        if request.stream && !stored.text.is_empty() {
            // A full reply channel does no harm here: the last event has the whole text.
            let _ = reply.token(stored.text.clone());
        }
        let ms = milliseconds(received, Instant::now());
        let prediction = request.prediction.is_some().then(PredictionUsage::default);
        reply.finish(Event::Done(Box::new(Done {
            id,
            text: stored.text,
            finish_reason: if stored.stopped { FinishReason::Stop } else { FinishReason::Length },
            usage: Usage {
                prompt_tokens: prompt as u32,
                completion_tokens: stored.completion_tokens,
                cached_tokens: prompt as u32,
            },
            timings: Timings { queue_ms: ms, ttft_ms: ms, total_ms: ms, ..Timings::default() },
            energy: None,
            cached: true,
            model: engine.name().into(),
            details: AnswerDetails { prediction, ..AnswerDetails::default() },
        })));
    }

    /// Answers with a sentence that no model has to write.
    fn send_sentence(&self, engine: &Engine, queued: QueuedRequest, sentence: &str) {
        let begun = Instant::now();
        let work = self.begin_metering(begun);
        let prompt = Prompt { tokens: Vec::new(), calls: None };
        let mut answer = StreamedAnswer::new(&self.queue, engine, queued, prompt);
        let answers = answer.repeat_sentence(sentence);
        let inbound = answer.queued.inbound;
        let at = RequestTimes::now(inbound.received, begun, None);
        self.send_done(engine, inbound, &[], answers, at, WorkShare { span: &work, share: 1.0 });
    }

    /// `answers`: one for each that was asked for.
    fn done(
        &self,
        engine: &Engine,
        id: RequestId,
        prompt: &[u32],
        mut answers: Vec<FinishedAnswer>,
        at: RequestTimes,
        work: WorkShare<'_>,
    ) -> Done {
        let completion_tokens = answers.iter().map(|answer| answer.answer.tokens.len() as u32).sum();
        let cached_tokens = answers[0].answer.cached as u32;
        let timings = at.timings(&answers);
        let details = details(engine, &mut answers);
        let first = answers.swap_remove(0);
        Done {
            id,
            finish_reason: first.finish_reason,
            usage: Usage { prompt_tokens: prompt.len() as u32, completion_tokens, cached_tokens },
            timings,
            text: first.answer.text,
            energy: self.request_energy(work, at.ended, completion_tokens),
            cached: false,
            model: engine.name().into(),
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
    fn request_energy(&self, work: WorkShare<'_>, ended: Instant, tokens: u32) -> Option<RequestEnergy> {
        self.telemetry.computing_ended(ended, || locked(&self.sensors).power(ended));
        work.span.cost(work.share, tokens)
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

/// The computing during a request, and the share of it (0 to 1) that was for this request.
#[derive(Clone, Copy)]
struct WorkShare<'s> {
    span: &'s ComputeSpan<'s>,
    share: f64,
}

/// A request that the engine is to answer.
struct PreparedRequest<'w> {
    answer: StreamedAnswer<'w>,
    options: GenerateOptions,
    intent: Option<HomeIntent>,
    key: Option<CacheKey>,
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
