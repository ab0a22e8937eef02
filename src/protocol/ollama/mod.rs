//! Ollama's API as a translation: its calls to [`Request`](super::Request)s, our events to its answers, and what it tells of
//! the model that is loaded.
//!
//! Deliberately does no I/O and reads no clock: `transport::http` chooses the function by the path. The checks of a
//! request's values are those of [`super::json`]; what is here only knows the names and forms that Ollama's clients use.

mod answer;
mod chat;
mod conversation;
mod generate;
mod keep_alive;
mod model_name;
mod models;
mod options;
mod schema;
mod settings;
mod timestamp;

pub use chat::chat;
pub use generate::generate;
pub use models::{ps, pull, show, tags};

use super::api::{self, HttpRefusal};
use super::text::Shown;
use super::{Code, Refusal};
use serde::Serialize;
use serde_json::Value;
use std::borrow::Cow;

/// The version of Ollama whose API this is. Clients compare it with the oldest that they work with, as plain numbers with
/// points between them.
const OLLAMA_VERSION: &str = "0.12.11";
/// The media type of an answer that is one object.
const JSON: &str = "application/json";
/// The media type of a streamed answer: one object a line.
const NDJSON: &str = "application/x-ndjson";

/// Our keys, whose names begin a refusal's message, and what Ollama calls them. The first that fits counts.
const CALLER_KEYS: &[(&str, &str)] = &[
    ("response_format.json_schema.schema", "format"),
    ("response_format", "format"),
    ("max_tokens", "options.num_predict"),
    ("repetition_penalty", "options.repeat_penalty"),
    ("temperature", "options.temperature"),
    ("top_p", "options.top_p"),
    ("top_k", "options.top_k"),
    ("min_p", "options.min_p"),
    ("presence_penalty", "options.presence_penalty"),
    ("frequency_penalty", "options.frequency_penalty"),
    ("seed", "options.seed"),
    ("speculate", "options.speculate"),
    ("stop", "options.stop"),
];

/// `GET /api/version`.
pub fn version() -> Vec<u8> {
    #[derive(Serialize)]
    struct Version {
        version: &'static str,
        bitnetd: &'static str,
    }
    written(&Version { version: OLLAMA_VERSION, bitnetd: env!("CARGO_PKG_VERSION") })
}

/// A refusal in Ollama's form.
pub fn refused(refusal: &Refusal) -> HttpRefusal {
    HttpRefusal {
        status: api::status(refusal.code),
        body: error_body(&with_caller_keys(&refusal.message)),
        retry_after_s: api::retry_after_s(refusal),
    }
}

/// The body of an error in Ollama's form.
pub fn error_body(message: &str) -> Vec<u8> {
    #[derive(Serialize)]
    struct ErrorBody<'a> {
        error: &'a str,
    }
    written(&ErrorBody { error: message })
}

/// The message of a refusal with the key that it is about as the caller wrote it.
fn with_caller_keys(message: &str) -> Cow<'_, str> {
    let renamed = CALLER_KEYS.iter().find_map(|(ours, theirs)| {
        let rest = message.strip_prefix(ours)?;
        rest.starts_with([':', '[', '.']).then(|| format!("{theirs}{rest}"))
    });
    renamed.map_or(Cow::Borrowed(message), Cow::Owned)
}

fn written(data: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(data).expect("answers hold only text, numbers and booleans")
}

fn line(data: &impl Serialize) -> Vec<u8> {
    let mut bytes = written(data);
    bytes.push(b'\n');
    bytes
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(Code::InvalidRequest, message)
}

/// A whole number, which some clients write as `8192.0`.
fn whole_number(key: &str, value: &Value) -> Result<i64, Refusal> {
    // Beyond this not every whole number is an f64.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let of_float = |x: f64| (x.fract() == 0.0 && x.abs() <= EXACT).then_some(x as i64);
    value.as_i64().or_else(|| value.as_f64().and_then(of_float)).ok_or_else(|| {
        invalid(format!("{key}: {} is no whole number in the range of 64 bits", Shown(&value.to_string())))
    })
}

#[cfg(test)]
mod tests;
