//! The answers of chat completions and completions: both are lists of choices, whole or in chunks, and end alike.
//!
//! What a choice looks like is the business of its [`ChoiceForm`].

use super::answer::{AnswerHead, ChoiceView, SentText, bytes, choices, extras, push_data, usage};
use super::call_keys::KeyNames;
use super::errors::error;
use crate::protocol::api::{AnswerEncoder, CallContext};
use crate::protocol::{Done, Event, Refusal, Request, TokenLogprob};
use serde_json::{Value, json};
use std::fmt;

/// What ends a stream.
const END_OF_STREAM: &[u8] = b"data: [DONE]\n\n";

/// The choices of one kind of answer.
pub(super) trait ChoiceForm: fmt::Debug + Send {
    /// What the ids of answers begin with.
    const ID_PREFIX: &'static str;
    /// The kind of a whole answer's object.
    const OBJECT: &'static str;
    /// The kind of a chunk's object.
    const CHUNK: &'static str;

    /// The choices of the chunks before the first event.
    fn begin(&self) -> Vec<Value> {
        Vec::new()
    }

    /// A piece of an answer.
    fn piece(&mut self, index: u32, text: &str, tokens: &[TokenLogprob]) -> Value;

    /// The calls of an answer in a chunk of their own; `None` where there are none.
    fn calls(&self, choice: &ChoiceView<'_>) -> Option<Value>;

    /// The last chunk of an answer.
    fn last(&self, choice: &ChoiceView<'_>) -> Value;

    /// A whole answer.
    fn whole(&self, choice: &ChoiceView<'_>) -> Value;
}

/// Writes answers whose choices have the form `F`.
#[derive(Debug)]
pub(super) struct ChoiceEncoder<F> {
    head: AnswerHead,
    stream: bool,
    include_usage: bool,
    sent: SentText,
    names: KeyNames,
    form: F,
}

impl<F: ChoiceForm> ChoiceEncoder<F> {
    /// `include_usage`: whether a stream ends with the token counts.
    pub fn new(
        context: &CallContext,
        request: &Request,
        names: KeyNames,
        include_usage: bool,
        form: F,
    ) -> Self {
        let head = AnswerHead::new(context, F::ID_PREFIX);
        ChoiceEncoder { head, stream: request.stream, include_usage, sent: SentText::default(), names, form }
    }

    /// Where the last chunk has the token counts, all others have them too, as null.
    fn chunk(&self, choice: Value) -> Value {
        let mut chunk = self.head.object(F::CHUNK, json!([choice]));
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn push_piece(&mut self, to: &mut Vec<u8>, index: u32, text: &str, tokens: &[TokenLogprob]) {
        let piece = self.form.piece(index, text, tokens);
        push_data(to, &self.chunk(piece));
    }

    fn push_end(&mut self, to: &mut Vec<u8>, done: &Done) {
        let choices = choices(done);
        for (at, choice) in choices.iter().enumerate() {
            let (text, tokens) = self.sent.rest(choice);
            if !text.is_empty() || !tokens.is_empty() {
                self.push_piece(to, choice.index, text, tokens);
            }
            if let Some(calls) = self.form.calls(choice) {
                push_data(to, &self.chunk(calls));
            }
            let mut last = self.chunk(self.form.last(choice));
            if at + 1 == choices.len() {
                last["bitnetd"] = extras(done);
            }
            push_data(to, &last);
        }
        if self.include_usage {
            let mut chunk = self.head.object(F::CHUNK, json!([]));
            chunk["usage"] = usage(done);
            push_data(to, &chunk);
        }
        to.extend_from_slice(END_OF_STREAM);
    }
}

impl<F: ChoiceForm> AnswerEncoder for ChoiceEncoder<F> {
    fn stream_type(&self) -> Option<&'static str> {
        self.stream.then_some("text/event-stream")
    }

    fn in_callers_words(&self, refusal: Refusal) -> Refusal {
        self.names.in_callers_words(refusal)
    }

    fn begin(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.form.begin().into_iter().for_each(|choice| push_data(&mut out, &self.chunk(choice)));
        out
    }

    fn event(&mut self, event: &Event) -> Vec<u8> {
        let mut out = Vec::new();
        match event {
            Event::Token { text, index, logprobs, .. } => {
                let index = index.unwrap_or(0);
                self.sent.add(index, text, logprobs);
                self.push_piece(&mut out, index, text, logprobs);
            }
            Event::Done(done) => self.push_end(&mut out, done),
            Event::Error { refusal, .. } => {
                push_data(&mut out, &error(&self.in_callers_words(refusal.clone())));
                out.extend_from_slice(END_OF_STREAM);
            }
        }
        out
    }

    fn whole(&mut self, done: &Done) -> Vec<u8> {
        let choices: Vec<Value> = choices(done).iter().map(|choice| self.form.whole(choice)).collect();
        let mut answer = self.head.object(F::OBJECT, Value::Array(choices));
        answer["usage"] = usage(done);
        answer["bitnetd"] = extras(done);
        bytes(&answer)
    }
}
