//! The events of an answer as the clients of a daemon read them, and what they mean to the user: a refusal, an answer that was
//! cut off. Deliberately knows no socket.

use super::Failure;
use crate::protocol::text::{Shown, one_line};
use serde::Deserialize;

/// An event of a request.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub(super) enum ServerEvent {
    Token { text: String },
    Done(DoneEvent),
    Error { code: String, message: String },
}

/// The last event of an answer, as far as people see it.
#[derive(Debug, Deserialize)]
pub(super) struct DoneEvent {
    pub text: String,
    #[serde(default)]
    pub finish_reason: String,
    #[serde(default)]
    pub usage: TokenCounts,
    #[serde(default)]
    pub timings: TotalTime,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct TokenCounts {
    #[serde(default)]
    pub completion_tokens: u64,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct TotalTime {
    #[serde(default)]
    pub total_ms: f64,
}

/// Why an answer ended before the model ended it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum CutOff {
    /// `max_tokens`, where the command named it, or what context and configuration allow.
    Length { tokens: u64, wanted: Option<u32> },
    /// The daemon's time limit, which is known by the time that the answer took.
    Time { total_ms: f64 },
    /// Somebody else ended it, or the daemon stops.
    Cancelled,
}

impl DoneEvent {
    /// Whether it was cut off; `max_tokens` is that of the request.
    pub fn cut_off(&self, max_tokens: Option<u32>) -> Option<CutOff> {
        match self.finish_reason.as_str() {
            "length" => Some(CutOff::Length { tokens: self.usage.completion_tokens, wanted: max_tokens }),
            "timeout" => Some(CutOff::Time { total_ms: self.timings.total_ms }),
            "cancelled" => Some(CutOff::Cancelled),
            _ => None,
        }
    }
}

impl CutOff {
    /// What the user reads.
    pub fn message(self) -> String {
        match self {
            CutOff::Length { tokens, wanted: Some(most) } if tokens >= u64::from(most) => {
                format!("[cut off: max_tokens of {most}]")
            }
            CutOff::Length { tokens, .. } => {
                format!("[cut off: {tokens} tokens, the most that context and configuration allow]")
            }
            // An answer ends at its limit or within the pass after it.
            CutOff::Time { total_ms } if total_ms >= 1000.0 => {
                format!("[cut off: time limit of {:.0} s]", (total_ms / 1000.0).floor())
            }
            CutOff::Time { total_ms } => format!("[cut off: time limit of {total_ms:.0} ms]"),
            CutOff::Cancelled => "[cut off: cancelled, or the daemon stops]".into(),
        }
    }

    /// The end of a command whose answer was cut off.
    pub fn failure(self) -> Failure {
        Failure { code: 5, message: self.message() }
    }
}

/// The daemon's error on one line, of limited length whoever answers on the socket.
pub(super) fn refused(code: &str, message: &str) -> Failure {
    let message: Vec<&str> = message.split_whitespace().collect();
    Failure { code: 5, message: format!("refused ({}): {}", Shown(code), one_line(&message.join(" "))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_was_cut_off_names_its_limit() {
        let done = |reason: &str, total: u32| {
            let json = format!(
                r#"{{"event":"done","text":"a","finish_reason":"{reason}","usage":{{"completion_tokens":10}},"timings":{{"total_ms":{total}.5}}}}"#
            );
            match serde_json::from_str(&json).expect("an event") {
                ServerEvent::Done(done) => done,
                other => panic!("{other:?}"),
            }
        };
        let message = |reason, total, most| done(reason, total).cut_off(most).map(CutOff::message);
        assert_eq!(message("stop", 5, Some(10)), None);
        assert_eq!(message("length", 5, Some(10)).as_deref(), Some("[cut off: max_tokens of 10]"));
        let by_context = "[cut off: 10 tokens, the most that context and configuration allow]";
        assert_eq!(message("length", 5, Some(500)).as_deref(), Some(by_context));
        assert_eq!(message("length", 5, None).as_deref(), Some(by_context));
        assert_eq!(message("timeout", 120_004, None).as_deref(), Some("[cut off: time limit of 120 s]"));
        assert_eq!(message("timeout", 300, None).as_deref(), Some("[cut off: time limit of 300 ms]"));
        assert_eq!(done("cancelled", 5).cut_off(None).map(|cut| cut.failure().code), Some(5));
    }
}
