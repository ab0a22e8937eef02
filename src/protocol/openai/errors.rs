//! Refusals in OpenAI's form: `{"error":{"message","type","param","code"}}`.

use super::answer::bytes;
use crate::protocol::api::{HttpRefusal, retry_after_s, status};
use crate::protocol::{Code, Refusal};
use serde_json::{Value, json};

const INVALID: &str = "invalid_request_error";
const RATE_LIMIT: &str = "rate_limit_error";
const SERVER: &str = "server_error";

/// The answer to a call that is refused.
pub fn refused(refusal: &Refusal) -> HttpRefusal {
    HttpRefusal {
        status: status(refusal.code),
        body: bytes(&error(refusal)),
        retry_after_s: retry_after_s(refusal),
    }
}

/// The body of an error of HTTP itself. `code` is for programs, such as `invalid_api_key`.
pub fn error_body(status: u16, code: &str, message: &str) -> Vec<u8> {
    let kind = match status {
        429 => RATE_LIMIT,
        500.. => SERVER,
        _ => INVALID,
    };
    bytes(&object(kind, Some(code), None, message))
}

/// The object that says why, also in a stream.
pub(super) fn error(refusal: &Refusal) -> Value {
    let (kind, code) = kind_and_code(refusal.code);
    object(kind, code, param(refusal), &refusal.message)
}

/// An error object.
pub(super) fn object(kind: &str, code: Option<&str>, param: Option<&str>, message: &str) -> Value {
    json!({ "error": { "message": message, "type": kind, "param": param, "code": code } })
}

/// OpenAI's type and code, where it has one of that meaning; otherwise our own code.
fn kind_and_code(code: Code) -> (&'static str, Option<&'static str>) {
    match code {
        Code::InvalidRequest => (INVALID, None),
        Code::TooLarge => (INVALID, Some("request_too_large")),
        Code::ContextExceeded => (INVALID, Some("context_length_exceeded")),
        Code::ContentFiltered => (INVALID, Some("content_policy_violation")),
        Code::RateLimited | Code::QueueFull => (RATE_LIMIT, Some("rate_limit_exceeded")),
        Code::Timeout => (SERVER, Some("timeout")),
        Code::Cancelled => (INVALID, Some("cancelled")),
        Code::ResponseFiltered => (SERVER, Some("response_filtered")),
        Code::BudgetExceeded => (SERVER, Some("budget_exceeded")),
        Code::ShuttingDown => (SERVER, Some("shutting_down")),
        Code::Internal => (SERVER, Some("internal_error")),
    }
}

/// The key at the head of a message, such as `messages[0].content`.
fn param(refusal: &Refusal) -> Option<&str> {
    let (head, _) = refusal.message.split_once(": ").filter(|_| refusal.code == Code::InvalidRequest)?;
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_.[]-".contains(c);
    let is_key = head.starts_with(|c: char| c.is_ascii_lowercase()) && head.chars().all(is_part);
    is_key.then_some(head)
}
