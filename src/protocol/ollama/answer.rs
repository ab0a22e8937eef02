//! Answers in Ollama's form: one object, or one a line while the answer is written.

use super::timestamp::rfc3339;
use super::{NDJSON, error_body, line, with_caller_keys, written};
use crate::external_text::JsonValue;
use crate::protocol::api::AnswerEncoder;
use crate::protocol::{Done, Event, FinishReason, Refusal, RequestEnergy, Timings, TokenLogprob, ToolCall};
use serde::Serialize;
use std::time::{Duration, SystemTime};

/// Which call it answers: the text has another name in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallKind {
    /// `message`.
    Chat,
    /// `response`.
    Generate,
}

/// Writes the answer to one call.
#[derive(Debug)]
pub(super) struct OllamaEncoder {
    kind: CallKind,
    /// As the caller named it.
    model: String,
    /// When the call arrived.
    arrived: SystemTime,
    is_streamed: bool,
    /// Bytes of the answer that were written so far.
    written: usize,
}

/// One object of an answer.
#[derive(Debug, Serialize)]
pub(super) struct AnswerObject<'a> {
    model: &'a str,
    created_at: String,
    #[serde(flatten)]
    content: Content<'a>,
    done: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    done_reason: Option<&'static str>,
    #[serde(flatten)]
    metrics: Option<Metrics>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    logprobs: &'a [TokenLogprob],
    #[serde(skip_serializing_if = "Option::is_none")]
    bitnetd: Option<OwnDetails<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Content<'a> {
    Message(ChatReply<'a>),
    Response(&'a str),
}

#[derive(Debug, Serialize)]
struct ChatReply<'a> {
    role: &'static str,
    content: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ReplyCall<'a>>,
}

#[derive(Debug, Serialize)]
struct ReplyCall<'a> {
    id: &'a str,
    function: ReplyFunction<'a>,
}

#[derive(Debug, Serialize)]
struct ReplyFunction<'a> {
    index: usize,
    name: &'a str,
    arguments: &'a JsonValue,
}

/// Token counts, and durations in nanoseconds. The three parts of the total add up to it.
#[derive(Debug, Serialize)]
struct Metrics {
    /// From the arrival of the call to its last token.
    total_duration: u64,
    /// Waiting for the worker. The model itself is loaded before.
    load_duration: u64,
    prompt_eval_count: u32,
    /// Prefill.
    prompt_eval_duration: u64,
    eval_count: u32,
    /// All the rest of the total: choosing the tokens, from the first to the last.
    eval_duration: u64,
}

/// What Ollama has no key for.
#[derive(Debug, Serialize)]
struct OwnDetails<'a> {
    finish_reason: FinishReason,
    cached: bool,
    energy: &'a Option<RequestEnergy>,
    timings: Timings,
}

impl OllamaEncoder {
    pub fn new(kind: CallKind, model: String, arrived: SystemTime, is_streamed: bool) -> Self {
        OllamaEncoder { kind, model, arrived, is_streamed, written: 0 }
    }

    /// The answer to a call without a prompt.
    pub fn empty(&self, reason: &'static str) -> AnswerObject<'_> {
        AnswerObject { done: true, done_reason: Some(reason), ..self.piece("", &[]) }
    }

    /// A piece of text.
    fn piece<'a>(&'a self, text: &'a str, logprobs: &'a [TokenLogprob]) -> AnswerObject<'a> {
        AnswerObject {
            model: &self.model,
            created_at: rfc3339(self.arrived),
            content: self.content(text, &[]),
            done: false,
            done_reason: None,
            metrics: None,
            logprobs,
            bitnetd: None,
        }
    }

    /// The last object, with these parts of the answer in it.
    fn last<'a>(
        &'a self,
        done: &'a Done,
        content: Content<'a>,
        logprobs: &'a [TokenLogprob],
    ) -> AnswerObject<'a> {
        let metrics = Metrics::new(done);
        let ended = self.arrived.checked_add(Duration::from_nanos(metrics.total_duration));
        AnswerObject {
            model: &self.model,
            created_at: rfc3339(ended.unwrap_or(self.arrived)),
            content,
            done: true,
            done_reason: Some(done_reason(done.finish_reason)),
            metrics: Some(metrics),
            logprobs,
            bitnetd: Some(OwnDetails {
                finish_reason: done.finish_reason,
                cached: done.cached,
                energy: &done.energy,
                timings: done.timings,
            }),
        }
    }

    fn content<'a>(&self, text: &'a str, calls: &'a [ToolCall]) -> Content<'a> {
        match self.kind {
            CallKind::Generate => Content::Response(text),
            CallKind::Chat => Content::Message(ChatReply {
                role: "assistant",
                content: text,
                tool_calls: calls.iter().enumerate().map(ReplyCall::new).collect(),
            }),
        }
    }

    /// What a stream still lacks of the answer: a piece that the client's queue had no place for, and the calls, which
    /// are never streamed.
    fn remainder(&self, done: &Done) -> Vec<u8> {
        let text = done.text.get(self.written..).unwrap_or_default();
        let calls = &done.details.tool_calls;
        if text.is_empty() && calls.is_empty() {
            return Vec::new();
        }
        let logprobs = if self.written == 0 { done.details.logprobs.as_deref() } else { None };
        let content = self.content(text, calls);
        line(&AnswerObject { content, ..self.piece("", logprobs.unwrap_or_default()) })
    }
}

impl AnswerEncoder for OllamaEncoder {
    fn stream_type(&self) -> Option<&'static str> {
        self.is_streamed.then_some(NDJSON)
    }

    /// What the call names the prompt; the other keys are renamed by [`refused`](super::refused).
    fn in_callers_words(&self, refusal: Refusal) -> Refusal {
        let theirs = match self.kind {
            CallKind::Chat => "messages",
            CallKind::Generate => "prompt",
        };
        let rest = ["prompt:", "messages:"].iter().find_map(|ours| refusal.message.strip_prefix(ours));
        let message = rest.map(|rest| format!("{theirs}:{rest}"));
        Refusal { message: message.unwrap_or(refusal.message), ..refusal }
    }

    fn event(&mut self, event: &Event) -> Vec<u8> {
        match event {
            Event::Token { text, logprobs, .. } => {
                self.written += text.len();
                line(&self.piece(text, logprobs))
            }
            Event::Done(done) => {
                let mut bytes = self.remainder(done);
                bytes.extend(line(&self.last(done, self.content("", &[]), &[])));
                bytes
            }
            Event::Error { refusal, .. } => {
                let refusal = self.in_callers_words(refusal.clone());
                let mut bytes = error_body(&with_caller_keys(&refusal.message));
                bytes.push(b'\n');
                bytes
            }
        }
    }

    fn whole(&mut self, done: &Done) -> Vec<u8> {
        let content = self.content(&done.text, &done.details.tool_calls);
        written(&self.last(done, content, done.details.logprobs.as_deref().unwrap_or_default()))
    }
}

impl Metrics {
    fn new(done: &Done) -> Self {
        let timings = done.timings;
        let (total, queue, prompt) =
            (nanoseconds(timings.total_ms), nanoseconds(timings.queue_ms), nanoseconds(timings.prompt_ms));
        Metrics {
            total_duration: total,
            load_duration: queue,
            prompt_eval_count: done.usage.prompt_tokens,
            prompt_eval_duration: prompt,
            eval_count: done.usage.completion_tokens,
            eval_duration: total.saturating_sub(queue).saturating_sub(prompt),
        }
    }
}

impl<'a> ReplyCall<'a> {
    fn new((index, call): (usize, &'a ToolCall)) -> Self {
        ReplyCall {
            id: &call.id,
            function: ReplyFunction { index, name: &call.name, arguments: &call.arguments },
        }
    }
}

/// Ollama knows no time limit and no cancelling: an answer that either cut short is like one that became too long.
fn done_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length | FinishReason::Timeout | FinishReason::Cancelled => "length",
    }
}

fn nanoseconds(ms: f64) -> u64 {
    (ms * 1e6).round() as u64
}
