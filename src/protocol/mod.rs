//! What crosses every door: requests, events, refusals and the telemetry report, as plain data.
//!
//! Deliberately knows nothing of sockets, brokers, engines or queues: bytes become these values in
//! [`json`], and nothing here does any I/O.

pub mod json;
pub mod partial;
mod report;
pub mod text;

pub use report::{
    Cache, Cpu, Energy, Flag, Latency, LatencyWindows, LogLines, Memory, MqttLink, Percentiles, Pressure,
    Reading, Report, Requests, ShortlistCounts, Thermal, Throttled, Throttling, Throughput,
};

use serde::Serialize;
use std::time::Duration;

/// One prompt and how it is to be answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The client's name for it; every event carries it. The daemon makes one where none came.
    pub id: Option<String>,
    /// What is asked.
    pub input: Input,
    /// Most tokens to generate; the rest of the context when left out.
    pub max_tokens: Option<u32>,
    /// How a token is chosen.
    pub sampling: Sampling,
    /// Texts that end the answer; none of them is part of it.
    pub stop: Vec<String>,
    /// Whether each token is an event of its own.
    pub stream: bool,
    /// Time allowed from arrival to the last event; the configured one when left out.
    pub timeout: Option<Duration>,
    /// Which waiting request goes first.
    pub priority: Priority,
    /// Whether an answer computed before may be given again.
    pub cache: bool,
}

impl Request {
    /// Memory that its texts take, in bytes.
    pub fn text_bytes(&self) -> usize {
        let input = match &self.input {
            Input::Prompt(text) => text.capacity(),
            Input::Messages(messages) => {
                let texts: usize = messages.iter().map(|message| message.content.capacity()).sum();
                texts + messages.capacity() * size_of::<Message>()
            }
        };
        input + self.stop.iter().map(String::capacity).sum::<usize>()
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
    /// Who speaks.
    pub role: Role,
    /// What is said: text, never special tokens.
    pub content: String,
}

/// Who speaks in a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Standing instructions.
    System,
    /// The asker.
    User,
    /// The model.
    Assistant,
}

/// The sampler's settings; left out means the daemon's default, which is greedy.
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
    /// Same seed, same model, same request, same kind of processor: same answer. (Sums of floats are
    /// rounded differently by different processors, and now and then that decides a draw.)
    pub seed: Option<u64>,
}

/// Order among waiting requests; within one priority first come, first served.
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

/// What a client hears of its request: any number of tokens, then exactly one `Done` or `Error`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// The next piece of text, only when streaming.
    Token {
        /// The request's id.
        id: String,
        /// Whole characters, never half of one.
        text: String,
    },
    /// The answer.
    Done(Box<Done>),
    /// The refusal or failure; `id` is null where the request could not be read that far.
    Error {
        /// The request's id.
        id: Option<String>,
        /// What went wrong.
        #[serde(flatten)]
        refusal: Refusal,
    },
}

impl Event {
    /// Whether it ends its request.
    pub fn is_last(&self) -> bool {
        !matches!(self, Event::Token { .. })
    }
}

/// The end of an answered request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Done {
    /// The request's id.
    pub id: String,
    /// The whole answer.
    pub text: String,
    /// Why it ended there.
    pub finish_reason: FinishReason,
    /// Tokens read and written.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
    /// What it cost; null where the power was not known throughout, and for an answer given again.
    pub energy: Option<RequestEnergy>,
    /// Whether it was computed for an earlier request.
    pub cached: bool,
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
    /// Tokens generated, the end token not counted.
    pub completion_tokens: u32,
}

/// Where a request's time went, in milliseconds since it arrived.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Timings {
    /// Waiting for the worker.
    pub queue_ms: f64,
    /// Reading the prompt.
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
    /// How the power behind it was known.
    pub method: Method,
}

/// How a reading came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Read from a sensor of just this quantity.
    Measured,
    /// Computed from measured quantities.
    Derived,
    /// Guessed from what the owner said of the board.
    Estimated,
}

/// Why a request gets no answer, and the way out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Refusal {
    /// For programs.
    pub code: Code,
    /// For people: names the place and the way out.
    pub message: String,
    /// When asking again makes sense.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl Refusal {
    /// A refusal that waiting does not mend.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Refusal { code, message: message.into(), retry_after_ms: None }
    }

    /// What a request hears that comes while the daemon stops.
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
    /// A fault of ours.
    Internal,
}
