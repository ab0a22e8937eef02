//! From the engine's answers to the parts of the `done` event. Deliberately knows no request and no client.

use crate::engine::Engine;
use crate::engine::logprobs::{IdLogprob, PositionLogprobs};
use crate::engine::model::PassTimings;
use crate::engine::session::{Answer, SpeculationCounts, StopReason};
use crate::protocol::{
    AnswerDetails, Choice, FinishReason, LikelyToken, PredictionUsage, TokenLogprob, ToolCall,
};
use std::time::Duration;

/// An answer, and why it ended.
pub(super) struct FinishedAnswer {
    pub answer: Answer,
    pub finish_reason: FinishReason,
    /// The functions that it calls; its text is then empty.
    pub tool_calls: Vec<ToolCall>,
    /// Whether it is that no intent of the home fits the sentence.
    pub nothing_fits: bool,
}

impl FinishedAnswer {
    /// `halt`: why the worker cancelled it, where it did.
    pub fn new(answer: Answer, halt: Option<FinishReason>) -> Self {
        // An answer that ended by itself at the very last step was not halted.
        let finish_reason = match answer.end {
            StopReason::Stop => FinishReason::Stop,
            StopReason::Length => FinishReason::Length,
            StopReason::Cancelled => halt.unwrap_or(FinishReason::Cancelled),
        };
        FinishedAnswer { answer, finish_reason, tool_calls: Vec::new(), nothing_fits: false }
    }

    /// How many of its tokens a grammar forced.
    pub fn forced(&self) -> usize {
        self.answer.forced
    }

    /// One of several answers that was not begun, because the request was halted before.
    pub fn not_begun(finish_reason: FinishReason) -> Self {
        let answer = without_tokens(String::new(), StopReason::Cancelled);
        FinishedAnswer { answer, finish_reason, tool_calls: Vec::new(), nothing_fits: false }
    }

    /// A sentence that no model has to write.
    pub fn sentence(text: &str) -> Self {
        FinishedAnswer::new(without_tokens(text.to_owned(), StopReason::Stop), None)
    }
}

fn without_tokens(text: String, end: StopReason) -> Answer {
    Answer {
        text,
        tokens: Vec::new(),
        logprobs: None,
        forced: 0,
        cached: 0,
        looked_up: SpeculationCounts::default(),
        predicted: SpeculationCounts::default(),
        end,
        prefill: Duration::ZERO,
        first_token: None,
        decode: Duration::ZERO,
        prefill_parts: PassTimings::default(),
        decode_parts: PassTimings::default(),
    }
}

/// What the event has beyond the first text; the log-probabilities are taken out of the answers.
pub(super) fn details(engine: &Engine, answers: &mut [FinishedAnswer]) -> AnswerDetails {
    let mut choices: Vec<Choice> = Vec::new();
    let mut first = None;
    let is_one = answers.len() == 1;
    let tool_calls = answers[0].tool_calls.clone();
    for (index, FinishedAnswer { answer, finish_reason, tool_calls, .. }) in (0..).zip(answers) {
        let logprobs = answer.logprobs.take();
        let logprobs: Option<Vec<TokenLogprob>> = logprobs
            .map(|positions| positions.iter().map(|position| token_logprob(engine, position)).collect());
        if is_one {
            first = logprobs;
            continue;
        }
        let (text, tool_calls) = (answer.text.clone(), std::mem::take(tool_calls));
        choices.push(Choice { index, text, finish_reason: *finish_reason, tool_calls, logprobs });
    }
    AnswerDetails { logprobs: first, tool_calls, choices, ..AnswerDetails::default() }
}

/// What became of the tokens that were looked up in the predicted answer.
pub(super) fn prediction_usage(answers: &[FinishedAnswer]) -> PredictionUsage {
    let of_all = |count: fn(SpeculationCounts) -> usize| {
        answers.iter().map(|answer| count(answer.answer.predicted)).sum::<usize>() as u32
    };
    PredictionUsage {
        accepted_tokens: of_all(|counts| counts.accepted),
        rejected_tokens: of_all(|counts| counts.proposed - counts.accepted),
    }
}

/// The log-probabilities at one position, with the tokens' texts.
pub(super) fn token_logprob(engine: &Engine, position: &PositionLogprobs) -> TokenLogprob {
    TokenLogprob {
        token: likely_token(engine, position.chosen),
        top_logprobs: position.top.iter().map(|token| likely_token(engine, *token)).collect(),
    }
}

fn likely_token(engine: &Engine, IdLogprob { id, logprob }: IdLogprob) -> LikelyToken {
    let bytes = engine.tokenizer().bytes(id);
    LikelyToken { token: String::from_utf8_lossy(bytes).into_owned(), logprob, bytes: bytes.to_vec() }
}
