//! Other APIs over HTTP: what a translation of their calls to [`Request`]s, and of our [`Event`]s to their answers, consists of.
//!
//! Deliberately does no I/O and knows no path of any API: `transport::http` chooses the translation, sends the request on
//! its way, and passes the events to the [`AnswerEncoder`].

use super::{Code, Done, Event, Refusal, Request};
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

/// Maximum length of a call's body in bytes. The descriptions of 41 functions took 25 KB in practice, and
/// [`super::json::MAX_REQUEST`] would be too short for them.
pub const MAX_BODY: usize = 1 << 20;

/// What a call of another API means here.
#[derive(Debug)]
pub enum Call {
    /// A request to the model.
    Ask(Box<TranslatedRequest>),
    /// The answer is known already: status 200 with this body of this media type.
    Answer {
        /// The media type.
        content_type: &'static str,
        /// The body.
        body: Vec<u8>,
    },
}

/// A request in another API's form.
#[derive(Debug)]
pub struct TranslatedRequest {
    /// The request.
    pub request: Request,
    /// Writes its events.
    pub encoder: Box<dyn AnswerEncoder>,
    /// How many keys of the call were ignored because they are not known here.
    pub ignored_keys: u32,
}

/// Writes the events of one request in the form of an API. Either [`whole`](Self::whole) is called once, or, for a streamed
/// answer, [`begin`](Self::begin) and then [`event`](Self::event) for each event.
///
/// A request that fails before its first token is answered with [`HttpRefusal`] instead.
pub trait AnswerEncoder: fmt::Debug + Send {
    /// The media type of a streamed answer; `None` where the answer is sent as a whole.
    fn stream_type(&self) -> Option<&'static str>;

    /// A refusal of the request in the words of the call: its message begins with the caller's own name of the key.
    fn in_callers_words(&self, refusal: Refusal) -> Refusal {
        refusal
    }

    /// What precedes the first event of a streamed answer.
    fn begin(&mut self) -> Vec<u8> {
        Vec::new()
    }

    /// The bytes of one event of a streamed answer; for the last one with everything that ends the stream.
    fn event(&mut self, event: &Event) -> Vec<u8>;

    /// The body, as JSON, of an answer that is not streamed.
    fn whole(&mut self, done: &Done) -> Vec<u8>;
}

/// A call that was refused, in the form of its API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpRefusal {
    /// The HTTP status.
    pub status: u16,
    /// The body, which is JSON.
    pub body: Vec<u8>,
    /// Seconds after which to call again, for the header `Retry-After`.
    pub retry_after_s: Option<u64>,
}

/// What a translation has to know besides the call's body.
#[derive(Debug, Clone)]
pub struct CallContext {
    /// The model that is loaded.
    pub model: Arc<ModelCard>,
    /// The id that the request will have; the answer's own id contains it.
    pub id: String,
    /// When the call arrived.
    pub now: SystemTime,
    /// Maximum length of its body in bytes, at most [`MAX_BODY`].
    pub max_body: usize,
}

/// What the APIs tell of the model that is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelCard {
    /// Its name, as in the `info` topic.
    pub name: String,
    /// Its architecture, as its file names it: `bitnet-b1.58`.
    pub architecture: String,
    /// Number of parameters.
    pub parameters: u64,
    /// The type of most of its weights: `I2_S`, `TQ2_0`.
    pub quantization: String,
    /// Size of its file in bytes.
    pub bytes: u64,
    /// SHA-256 over the beginning of its file and its size, as 64 hexadecimal digits: it tells models apart and proves nothing.
    pub digest: String,
    /// When its file was last changed; for the built-in model, when the daemon started.
    pub modified: SystemTime,
    /// Tokens of context.
    pub context: u32,
    /// Its chat template; empty where it has none.
    pub template: String,
}

/// The HTTP status that says the same as a refusal's code.
pub fn status(code: Code) -> u16 {
    match code {
        Code::InvalidRequest | Code::ContextExceeded | Code::ContentFiltered => 400,
        Code::TooLarge => 413,
        Code::RateLimited => 429,
        // 429 is what clients retry by themselves after the time that the header names.
        Code::QueueFull => 429,
        Code::Timeout => 408,
        // The client has closed the connection; nginx made this number common.
        Code::Cancelled => 499,
        Code::BudgetExceeded | Code::ShuttingDown => 503,
        Code::ResponseFiltered | Code::Internal => 500,
    }
}

/// Whole seconds of `retry_after_ms`, at least one.
pub fn retry_after_s(refusal: &Refusal) -> Option<u64> {
    refusal.retry_after_ms.map(|ms| ms.div_ceil(1000).max(1))
}
