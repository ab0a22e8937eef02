//! The protocol of every transport: requests, events, refusals and the telemetry report, as plain data.
//!
//! Deliberately knows nothing of sockets, brokers, engines or queues: [`json`] parses bytes into these values and
//! writes them, and nothing here does any I/O.

mod answer;
pub mod api;
mod health;
pub mod json;
mod metadata;
pub mod ollama;
pub mod openai;
pub mod partial;
mod reload;
mod report;
mod request_id;
mod response_format;
mod security;
pub mod text;
mod tools;
pub mod wyoming;

pub use answer::{AnswerDetails, Choice, LikelyToken, PredictionUsage, TokenLogprob};
pub use health::{
    BrokerHealth, Health, HealthState, HealthSummary, LastAnswer, MemoryLevel, QueueLevel, SelfTest,
};
pub use metadata::{MAX_METADATA, Metadata};
pub use reload::ReloadReport;
pub use report::{
    CacheCounts, CacheRates, ClientWaiting, Cpu, Decoding, Energy, Flag, GovernorReason, GovernorState,
    HttpCalls, Latency, LatencyWindows, LogLines, Memory, MqttLink, Percentiles, Pressure, Reading, Report,
    RequestRates, Requests, ShortlistCounts, StructuredOutput, Thermal, Throttled, Throttling, Throughput,
};

pub use request_id::RequestId;
pub use response_format::ResponseFormat;
pub use security::{ClientInterface, ClientRefusals, GuardReason, GuardRefusals, Security};
pub use tools::{Tool, ToolCall, ToolChoice};

use serde::Serialize;
use std::time::Duration;

/// One prompt, and how it is to be answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The client's id of the request, which every event carries. The transport makes one where it is absent.
    pub id: Option<RequestId>,
    /// The prompt or the conversation.
    pub input: Input,
    /// Maximum number of tokens to generate; the rest of the context when absent.
    pub max_tokens: Option<u32>,
    /// How tokens are sampled.
    pub sampling: Sampling,
    /// How many answers to give, 1 to [`json::MAX_CHOICES`]; the prompt is read once.
    pub choices: u32,
    /// Gives each token's log-probability, and those of so many most likely tokens.
    pub logprobs: Option<u32>,
    /// Stop texts: each ends the answer, and none is part of it.
    pub stop: Vec<String>,
    /// What the answer has to fit.
    pub response_format: ResponseFormat,
    /// Functions that the model may call.
    pub tools: Vec<Tool>,
    /// Which of them the answer has to call.
    pub tool_choice: ToolChoice,
    /// Whether an answer may have more than one call.
    pub parallel_tool_calls: bool,
    /// Whether each token is an event of its own.
    pub stream: bool,
    /// Time allowed from arrival to the last event; the configured one when left out.
    pub timeout: Option<Duration>,
    /// Its priority among the waiting requests of its client.
    pub priority: Priority,
    /// Whether a cached answer may be returned.
    pub cache: bool,
    /// Whether several tokens may be verified in one pass, which changes no token; the configured value when left out.
    pub speculate: Option<bool>,
    /// The text that the answer probably has, in which speculation looks up what comes next.
    pub prediction: Option<String>,
    /// What every event of the request repeats.
    pub metadata: Option<Metadata>,
}

impl Request {
    /// Whether the model may call one of the functions.
    pub fn offers_tools(&self) -> bool {
        !self.tools.is_empty() && self.tool_choice != ToolChoice::None
    }

    /// Memory of its texts in bytes.
    pub fn text_bytes(&self) -> usize {
        let input = match &self.input {
            Input::Prompt(text) => text.capacity(),
            Input::Messages(messages) => {
                let texts: usize = messages.iter().map(Message::text_bytes).sum();
                texts + messages.capacity() * size_of::<Message>()
            }
        };
        let bias = self.sampling.logit_bias.capacity() * size_of::<(u32, f32)>();
        let stop: usize = self.stop.iter().map(String::capacity).sum();
        let tools: usize = self
            .tools
            .iter()
            .map(|tool| tool.name.capacity() + tool.definition.bytes() + size_of::<Tool>())
            .sum();
        let prediction = self.prediction.as_ref().map_or(0, String::capacity);
        let metadata = self.metadata.as_ref().map_or(0, Metadata::bytes);
        input + bias + stop + tools + prediction + metadata + self.response_format.text_bytes()
    }
}

/// A bare prompt or a conversation; both go through the chat template.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// One user turn.
    Prompt(String),
    /// A conversation, oldest turn first.
    Messages(Vec<Message>),
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Whose turn it is.
    pub role: Role,
    /// The text; special tokens in it are plain text.
    pub content: String,
    /// Functions that the assistant called.
    pub tool_calls: Vec<ToolCall>,
    /// The call whose result it is.
    pub tool_call_id: Option<String>,
}

impl Message {
    fn text_bytes(&self) -> usize {
        let calls: usize = self.tool_calls.iter().map(ToolCall::text_bytes).sum();
        self.content.capacity() + calls + self.tool_call_id.as_ref().map_or(0, String::capacity)
    }
}

/// Whose turn of a conversation it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Standing instructions.
    System,
    /// The person or program that asks.
    User,
    /// The model.
    Assistant,
    /// A function that the model called.
    Tool,
}

/// The settings of the sampler; an absent one means the daemon's default, which is greedy sampling.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: Option<f32>,
    /// Keep the likeliest tokens up to this probability mass.
    pub top_p: Option<f32>,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    pub top_k: Option<u32>,
    /// Keep tokens at least this share of the likeliest one's probability.
    pub min_p: Option<f32>,
    /// Divides the logit of every token already seen; 1 changes nothing.
    pub repetition_penalty: Option<f32>,
    /// Is subtracted from the logit of every token that is in the answer already.
    pub presence_penalty: Option<f32>,
    /// Is subtracted from a token's logit once for each time the token is in the answer already.
    pub frequency_penalty: Option<f32>,
    /// What is added to the logits of single tokens, by their ids, which rise; empty for none.
    pub logit_bias: Vec<(u32, f32)>,
    /// Same seed, same model, same request: same answer, whatever the kernel and the number of threads.
    pub seed: Option<u64>,
}

/// The priority of a waiting request; within one priority the first received is the first served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Priority {
    /// After all others.
    Low,
    /// The default.
    #[default]
    Normal,
    /// Before all others.
    High,
}

/// What is sent to the client of a request: any number of tokens, then exactly one `Done` or `Error`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// The next piece of text, only when streaming.
    Token {
        /// The request's id.
        id: RequestId,
        /// Whole characters, never half of one.
        text: String,
        /// Which of several answers it belongs to; absent where only one was asked for.
        #[serde(skip_serializing_if = "Option::is_none")]
        index: Option<u32>,
        /// The log-probabilities of the tokens of this text, where they were asked for.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        logprobs: Vec<TokenLogprob>,
        /// The request's metadata.
        #[serde(skip_serializing_if = "Option::is_none")]
        metadata: Option<Metadata>,
    },
    /// The answer.
    Done(Box<Done>),
    /// The refusal or failure; `id` is null where the request could not be read that far.
    Error {
        /// The request's id.
        id: Option<RequestId>,
        /// What went wrong.
        #[serde(flatten)]
        refusal: Refusal,
        /// The request's metadata, where it could be read that far.
        #[serde(skip_serializing_if = "Option::is_none")]
        metadata: Option<Metadata>,
    },
}

impl Event {
    /// The refusal of a message that has no metadata, or none that could be read.
    pub fn error(id: Option<RequestId>, refusal: Refusal) -> Self {
        Event::Error { id, refusal, metadata: None }
    }

    /// Whether it ends its request.
    pub fn is_last(&self) -> bool {
        !matches!(self, Event::Token { .. })
    }
}

/// The end of an answered request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Done {
    /// The request's id.
    pub id: RequestId,
    /// The whole answer.
    pub text: String,
    /// Why it ended there.
    pub finish_reason: FinishReason,
    /// Tokens read and written.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
    /// The energy it took; null where the power was not known throughout, and for a cached answer.
    pub energy: Option<RequestEnergy>,
    /// Whether it is the cached answer of an earlier request.
    pub cached: bool,
    /// The name of the model that answered.
    pub model: String,
    /// What only some requests ask for.
    #[serde(flatten)]
    pub details: AnswerDetails,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model ended it, or a stop text came.
    Stop,
    /// `max_tokens` or the context was used up.
    Length,
    /// The request's time was up; the text so far is given.
    Timeout,
    /// The client asked, or the daemon is stopping; the text so far is given.
    Cancelled,
}

/// Token counts of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Usage {
    /// Tokens of the prompt with its template.
    pub prompt_tokens: u32,
    /// Tokens generated in all answers, end tokens not counted.
    pub completion_tokens: u32,
    /// Tokens of the prompt that were not computed, because an earlier prompt began with them, or because the whole answer
    /// is one that was given before.
    pub cached_tokens: u32,
}

/// Where a request's time went, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Timings {
    /// Waiting for the worker.
    pub queue_ms: f64,
    /// Prefill: reading the prompt.
    pub prompt_ms: f64,
    /// From arrival to the first token, the queue included.
    pub ttft_ms: f64,
    /// From arrival to the last token.
    pub total_ms: f64,
    /// Decode speed: tokens after the first over their time; 0 where there was none.
    pub tokens_per_second: f64,
}

/// Energy of one request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RequestEnergy {
    /// Joules drawn while it was computed.
    pub joules: f64,
    /// Of these, what was drawn beyond the idle power; null where that is not known.
    pub joules_above_idle: Option<f64>,
    /// Joules for each generated token; null where there is none.
    pub joules_per_token: Option<f64>,
    /// How the power was determined.
    pub method: Method,
}

/// How a reading was determined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Read from a sensor of exactly this quantity.
    Measured,
    /// Computed from measured quantities.
    Derived,
    /// Estimated from the owner's figures for the board.
    Estimated,
}

/// Why a request gets no answer, and what to do about it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Refusal {
    /// For programs.
    pub code: Code,
    /// For people: what is wrong and where, and what to do about it.
    pub message: String,
    /// Milliseconds after which to retry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl Refusal {
    /// A refusal that waiting does not remedy.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Refusal { code, message: message.into(), retry_after_ms: None }
    }

    /// The refusal of a request that is received while the daemon stops.
    pub fn shutting_down() -> Self {
        Refusal::new(Code::ShuttingDown, "the daemon is stopping; ask again when it is back")
    }
}

/// The kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// Not a request of the documented form.
    InvalidRequest,
    /// Larger than a message may be.
    TooLarge,
    /// The prompt does not fit the model's context.
    ContextExceeded,
    /// The client asks too often.
    RateLimited,
    /// Too many requests wait.
    QueueFull,
    /// The prompt is not allowed here.
    ContentFiltered,
    /// The answer is not allowed here.
    ResponseFiltered,
    /// Its time was up before work on it began.
    Timeout,
    /// It was cancelled before work on it began.
    Cancelled,
    /// Memory does not allow it.
    BudgetExceeded,
    /// The daemon is stopping.
    ShuttingDown,
    /// A fault of the daemon.
    Internal,
}

impl Code {
    /// Its name in payloads.
    pub fn name(self) -> &'static str {
        match self {
            Code::InvalidRequest => "invalid_request",
            Code::TooLarge => "too_large",
            Code::ContextExceeded => "context_exceeded",
            Code::RateLimited => "rate_limited",
            Code::QueueFull => "queue_full",
            Code::ContentFiltered => "content_filtered",
            Code::ResponseFiltered => "response_filtered",
            Code::Timeout => "timeout",
            Code::Cancelled => "cancelled",
            Code::BudgetExceeded => "budget_exceeded",
            Code::ShuttingDown => "shutting_down",
            Code::Internal => "internal",
        }
    }
}
