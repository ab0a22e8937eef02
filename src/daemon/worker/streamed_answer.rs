//! One request while it is answered: its events are streamed, and cancellation and the deadline are checked at every step.
//!
//! Deliberately knows no telemetry and nothing of the requests that wait.

use super::answer_events::{FinishedAnswer, token_logprob};
use super::filtered_text::FilteredText;
use super::tool_calls::{HeldText, Prompt, written_calls};
use crate::daemon::admission::QueuedRequest;
use crate::daemon::home_intent::HomeIntent;
use crate::daemon::queue::Queue;
use crate::engine::Engine;
use crate::engine::error::PromptError;
use crate::engine::session::{Answer, GenerateOptions, Session, Step, StopReason};
use crate::engine::tokenizer::CallSyntax;
use crate::guard::filter::FilterMatch;
use crate::home::tool_call::FunctionAnswer;
use crate::protocol::{FinishReason, Refusal, TokenLogprob, ToolCall};
use crate::transport::Inbound;
use std::ops::ControlFlow;
use std::time::Instant;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum AnswerError {
    /// The engine cannot take the prompt.
    Prompt(PromptError),
    /// What was decoded is no answer to the request.
    Refused(Refusal),
    /// The answer has text that is not allowed.
    Filtered(FilterMatch),
}

impl From<FilterMatch> for AnswerError {
    fn from(found: FilterMatch) -> Self {
        AnswerError::Filtered(found)
    }
}

impl From<PromptError> for AnswerError {
    fn from(error: PromptError) -> Self {
        AnswerError::Prompt(error)
    }
}

impl From<Refusal> for AnswerError {
    fn from(refusal: Refusal) -> Self {
        AnswerError::Refused(refusal)
    }
}

/// A request while it is answered: its events, and what may stop it.
pub(super) struct StreamedAnswer<'w> {
    queue: &'w Queue,
    engine: &'w Engine,
    pub queued: QueuedRequest,
    /// The tokens of the prompt.
    pub prompt: Vec<u32>,
    /// How the model may call a function.
    calls: Option<CallSyntax>,
    /// What the answer may be where it is an intent of this home. It is sent when it is complete.
    intent: Option<HomeIntent>,
    options: GenerateOptions,
    /// The answers so far, of as many as were asked for.
    answers: Vec<FinishedAnswer>,
    /// Text that may become part of what the filter forbids.
    filtered: FilteredText,
    /// Text that may become a call.
    held: Option<HeldText>,
    /// The log-probabilities of tokens whose text is still held back, to be streamed with it.
    logprobs: Vec<TokenLogprob>,
    halt: Option<FinishReason>,
    /// When the first token was chosen.
    pub first: Option<Instant>,
}

impl<'w> StreamedAnswer<'w> {
    pub fn new(queue: &'w Queue, engine: &'w Engine, queued: QueuedRequest, prompt: Prompt) -> Self {
        StreamedAnswer {
            queue,
            engine,
            queued,
            prompt: prompt.tokens,
            calls: prompt.calls,
            intent: None,
            options: GenerateOptions::default(),
            answers: Vec::new(),
            filtered: FilteredText::new(queue.guard.filter()),
            held: None,
            logprobs: Vec::new(),
            halt: None,
            first: None,
        }
    }

    /// Begins to generate in a slot.
    pub fn begin(
        &mut self,
        session: &mut Session<'_>,
        slot: usize,
        options: GenerateOptions,
        intent: Option<HomeIntent>,
    ) -> Result<(), PromptError> {
        (self.options, self.intent) = (options, intent);
        self.prepare();
        session.begin(slot, &self.prompt, &self.options)
    }

    fn prepare(&mut self) {
        self.logprobs.clear();
        self.filtered.begin();
        self.held = self.calls.as_ref().filter(|_| self.queued.inbound.request.stream).map(HeldText::new);
    }

    /// How many answers were asked for.
    fn choices(&self) -> u32 {
        self.queued.inbound.request.choices
    }

    /// Which of several answers is under way; `None` where there is one.
    fn index(&self) -> Option<u32> {
        (self.choices() > 1).then_some(self.answers.len() as u32)
    }

    /// Takes over the answer of the slot. Where more were asked for, the next begins in the same slot, with the seed plus
    /// one and reading only the last token of the prompt again; otherwise all of them are returned.
    pub fn take(
        &mut self,
        session: &mut Session<'_>,
        slot: usize,
        answer: Result<Answer, PromptError>,
    ) -> Result<Option<Vec<FinishedAnswer>>, AnswerError> {
        let mut answer = answer?;
        if answer.end == StopReason::Cancelled {
            self.halt.get_or_insert(FinishReason::Cancelled);
        }
        let finished = match self.intent.take() {
            None => self.finished(answer)?,
            Some(intent) => {
                intent.finish(self.engine, session, slot, &mut answer);
                let finished = self.finished_intent(answer, &intent);
                self.intent = Some(intent);
                finished?
            }
        };
        if let Some(answers) = self.complete(finished) {
            return Ok(Some(answers));
        }
        self.options.sampling.seed = self.options.sampling.seed.wrapping_add(1);
        self.prepare();
        session.begin_again(slot, &self.options)?;
        Ok(None)
    }

    /// Takes over the answer of a suspended request that [is halted](Self::is_halted).
    pub fn take_halted(&mut self, answer: Answer) -> Result<Vec<FinishedAnswer>, AnswerError> {
        let finished = match self.intent.take() {
            None => self.finished(answer)?,
            Some(intent) => self.finished_intent(answer, &intent)?,
        };
        Ok(self.complete(finished).unwrap_or_default())
    }

    /// Adds an answer; all of them, once there are as many as were asked for or the request was halted.
    fn complete(&mut self, finished: FinishedAnswer) -> Option<Vec<FinishedAnswer>> {
        self.answers.push(finished);
        let choices = self.choices() as usize;
        if let Some(halt) = self.halt {
            self.answers.resize_with(choices, || FinishedAnswer::not_begun(halt));
        }
        (self.answers.len() == choices).then(|| std::mem::take(&mut self.answers))
    }

    /// Whether the request was cancelled or its time is over.
    pub fn is_halted(&mut self) -> bool {
        self.halt = if self.queued.inbound.cancel.is_raised() || self.queue.worker.is_cut_off() {
            Some(FinishReason::Cancelled)
        } else {
            let is_late = self.queued.deadline.is_some_and(|deadline| Instant::now() >= deadline);
            is_late.then_some(FinishReason::Timeout)
        };
        self.halt.is_some()
    }

    /// The same sentence as so many answers, which no model has to write.
    pub fn repeat_sentence(&mut self, sentence: &str) -> Vec<FinishedAnswer> {
        for _ in 0..self.choices() {
            self.send_text(sentence.to_owned());
            self.answers.push(FinishedAnswer::sentence(sentence));
        }
        std::mem::take(&mut self.answers)
    }

    /// An answer that is an intent: as it is, as the call of a function, or a sentence where there is none to call.
    fn finished_intent(
        &mut self,
        mut answer: Answer,
        intent: &HomeIntent,
    ) -> Result<FinishedAnswer, AnswerError> {
        let mut tool_calls = Vec::new();
        let nothing_fits = intent.is_nothing(&answer);
        match intent.function_answer(&answer)? {
            None => {}
            Some(FunctionAnswer::Sentence(sentence)) => answer.text = sentence.to_owned(),
            Some(FunctionAnswer::Call { name, arguments }) => {
                answer.text.clear();
                tool_calls.push(ToolCall { id: format!("{}0", self.call_prefix()), name, arguments });
            }
        }
        let finished = FinishedAnswer { tool_calls, nothing_fits, ..FinishedAnswer::new(answer, self.halt) };
        self.filtered.check(&finished)?;
        self.send_text(finished.answer.text.clone());
        Ok(finished)
    }

    /// What the ids of an answer's calls begin with.
    fn call_prefix(&self) -> String {
        format!("call_{}_{}_", self.queued.inbound.id, self.answers.len())
    }

    /// An answer with the calls in it. What was held back and is neither a call nor forbidden is streamed.
    fn finished(&mut self, answer: Answer) -> Result<FinishedAnswer, FilterMatch> {
        let rest = self.filtered.finish()?;
        let mut finished = FinishedAnswer::new(answer, self.halt);
        if let Some(syntax) = &self.calls {
            finished.tool_calls = written_calls(syntax, &finished.answer.text, &self.call_prefix());
        }
        self.filtered.check(&finished)?;
        self.stream_text(&rest);
        let held = self.held.take().map(HeldText::into_text).unwrap_or_default();
        if finished.tool_calls.is_empty() {
            self.send_text(held);
        } else {
            finished.answer.text.clear();
        }
        Ok(finished)
    }

    /// Takes a piece of the answer through the filter, and streams what comes out. Breaks where the answer is forbidden: it is
    /// refused once the pass has ended.
    fn pass_on(&mut self, text: &str, is_streamed: bool) -> ControlFlow<()> {
        // An intent is checked when it is complete, in the form in which it is sent.
        if self.intent.is_some() {
            return ControlFlow::Continue(());
        }
        let Some(text) = self.filtered.push(text) else { return ControlFlow::Break(()) };
        if is_streamed {
            self.stream_text(&text);
        }
        ControlFlow::Continue(())
    }

    /// Streams a piece of text, once it is clear that it is no part of a call.
    fn stream_text(&mut self, text: &str) {
        if self.intent.is_some() || text.is_empty() {
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
        let Inbound { request, reply, cancel, .. } = &self.queued.inbound;
        if !request.stream || text.is_empty() {
            return;
        }
        // They have the texts of tokens, so they wait until nothing is held back.
        let is_holding = self.filtered.is_holding();
        let logprobs = if is_holding { Vec::new() } else { std::mem::take(&mut self.logprobs) };
        if reply.token_of(self.index(), text, logprobs).is_err() {
            // The client reads too slowly or is gone.
            cancel.raise();
        }
    }

    /// Notes the progress of the answer, and says whether it goes on.
    pub fn step(&mut self, step: Step<'_>) -> ControlFlow<()> {
        let is_streamed = self.queued.inbound.request.stream;
        if let Step::Logprobs(logprobs) = step {
            if is_streamed {
                self.logprobs.push(token_logprob(self.engine, logprobs));
            }
            return ControlFlow::Continue(());
        }
        self.queue.worker.count_step();
        if self.engine.has_zeroed_pages() {
            // The file was truncated, so the result is computed from zeros; the request is refused when the pass
            // has ended.
            return ControlFlow::Break(());
        }
        if let Step::Token(text) = step {
            self.first.get_or_insert_with(Instant::now);
            self.pass_on(text, is_streamed)?;
        }
        match self.is_halted() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}
