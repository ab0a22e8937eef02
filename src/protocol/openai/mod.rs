//! OpenAI's HTTP API: chat completions, completions, responses and models, translated to [`Request`](super::Request)s, and
//! our [`Event`](super::Event)s to the objects that OpenAI's clients read.
//!
//! A call's keys are renamed to our own and then checked by [`json::translated`](super::json::translated), so that there is
//! one set of checks; its messages are changed to name the caller's own keys. What would change the answer and is not
//! supported is refused by name. Everything else that is not known is ignored and counted.
//!
//! Deliberately does no I/O, and knows neither paths nor headers: `transport::http` does.

mod answer;
mod call_keys;
mod chat;
mod chat_answer;
mod choice_encoder;
mod completion_logprobs;
mod completions;
mod content;
mod errors;
mod models;
mod responses;

pub use chat::chat_completions;
pub use completions::completions;
pub use errors::{error_body, refused};
pub use models::{model, models};
pub use responses::responses;

#[cfg(test)]
mod tests;
