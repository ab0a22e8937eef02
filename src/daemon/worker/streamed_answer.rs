//! One answer while it is decoded: its events are streamed, and cancellation and the deadline are checked at every step.
//!
//! Deliberately knows no telemetry and nothing of the requests that wait.

use super::answer_events::{FinishedAnswer, token_logprob};
use super::tool_calls::{HeldText, written_calls};
use crate::daemon::admission::QueuedRequest;
use crate::daemon::home_intent::HomeIntent;
use crate::daemon::queue::Queue;
use crate::engine::Engine;
use crate::engine::error::PromptError;
use crate::engine::session::{Answer, GenerateOptions, Session, Step, StopReason};
use crate::engine::tokenizer::CallSyntax;
use crate::home::tool_call::FunctionAnswer;
use crate::protocol::{FinishReason, Refusal, RequestId, TokenLogprob, ToolCall};
use crate::transport::{Cancel, Inbound, Reply};
use std::ops::ControlFlow;
use std::time::Instant;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum AnswerError {
    /// The engine cannot take the prompt.
    Prompt(PromptError),
    /// What was decoded is no answer to the request.
    Refused(Refusal),
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

/// An answer under way: its events, and what may stop it.
pub(super) struct StreamedAnswer<'r> {
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
    pub intent: Option<HomeIntent>,
    /// Text that may become a call.
    held: Option<HeldText>,
    /// The log-probabilities of tokens whose text is still held back, to be streamed with it.
    logprobs: Vec<TokenLogprob>,
    /// Positions written in the KV cache: the prompt's, and one for each token.
    written: usize,
    halt: Option<FinishReason>,
    /// When the first token was chosen.
    pub first: Option<Instant>,
}

impl<'r> StreamedAnswer<'r> {
    pub fn new(
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
    pub fn generate(
        &mut self,
        session: &mut Session<'_>,
        prompt: &[u32],
        mut options: GenerateOptions,
        choices: u32,
    ) -> Result<Vec<FinishedAnswer>, AnswerError> {
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
            let finished = match self.intent.take() {
                None => self.finished(answer),
                Some(intent) => {
                    intent.finish(self.engine, session, prompt, &mut answer);
                    let finished = self.finished_intent(answer, &intent);
                    self.intent = Some(intent);
                    finished?
                }
            };
            answers.push(finished);
            options.sampling.seed = options.sampling.seed.wrapping_add(1);
        }
        Ok(answers)
    }

    /// The same sentence as so many answers, which no model has to write.
    pub fn repeat_sentence(&mut self, sentence: &str, choices: u32) -> Vec<FinishedAnswer> {
        let mut answer = |index| {
            self.index = (choices > 1).then_some(index);
            self.send_text(sentence.to_owned());
            FinishedAnswer::sentence(sentence)
        };
        (0..choices).map(&mut answer).collect()
    }

    /// An answer that is an intent: as it is, as the call of a function, or a sentence where there is none to call.
    fn finished_intent(
        &mut self,
        mut answer: Answer,
        intent: &HomeIntent,
    ) -> Result<FinishedAnswer, Refusal> {
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
        self.send_text(answer.text.clone());
        Ok(FinishedAnswer { tool_calls, nothing_fits, ..FinishedAnswer::new(answer, self.halt) })
    }

    /// What the ids of an answer's calls begin with.
    fn call_prefix(&self) -> String {
        format!("call_{}_{}_", self.id, self.index.unwrap_or_default())
    }

    /// An answer with the calls in it. What was held back and is no call is streamed.
    fn finished(&mut self, answer: Answer) -> FinishedAnswer {
        let mut finished = FinishedAnswer::new(answer, self.halt);
        let held = self.held.take().map(HeldText::into_text).unwrap_or_default();
        if let Some(syntax) = &self.calls {
            finished.tool_calls = written_calls(syntax, &finished.answer.text, &self.call_prefix());
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
