//! Answers of a model in this process. What earlier turns have in common with the next question is not read again.

use super::conversation::{ASSISTANT, ChatHistory, SYSTEM};
use super::{AnswerError, ChatAnswer, Interrupt, Responder};
use crate::cli::Failure;
use crate::cli::sampling_args::SamplingArgs;
use crate::cli::server_events::CutOff;
use crate::engine::Engine;
use crate::engine::session::{GenerateOptions, Session, Step, StopReason};
use crate::engine::tokenizer::{ChatRole, Turn};
use std::ops::ControlFlow;

/// Tokens of a conversation at most: the KV cache of a model with a context of 32768 would take gigabytes.
const MAX_CONTEXT: usize = 4096;

pub(super) struct LocalModel<'e> {
    engine: &'e Engine,
    session: Session<'e>,
    options: GenerateOptions,
    max_tokens: Option<u32>,
}

impl<'e> LocalModel<'e> {
    pub fn new(engine: &'e Engine, sampling: &SamplingArgs) -> Self {
        let context = engine.model().shape().context.min(MAX_CONTEXT);
        let options = GenerateOptions {
            sampling: sampling.params(),
            max_tokens: sampling.max_tokens.map(|most| most as usize),
            speculate: true,
            ..GenerateOptions::default()
        };
        LocalModel {
            engine,
            session: engine.shared_session(context, 1),
            options,
            max_tokens: sampling.max_tokens,
        }
    }
}

impl Responder for LocalModel<'_> {
    fn answer(
        &mut self,
        conversation: &ChatHistory,
        interrupt: &Interrupt,
        print: &mut dyn FnMut(&str) -> Result<(), Failure>,
    ) -> Result<ChatAnswer, AnswerError> {
        let messages = conversation.messages();
        let turns: Vec<Turn<'_>> = messages
            .iter()
            .map(|turn| {
                let role = match turn.role {
                    SYSTEM => ChatRole::System,
                    ASSISTANT => ChatRole::Assistant,
                    _ => ChatRole::User,
                };
                Turn { role, text: &turn.content }
            })
            .collect();
        let refused = |error: &dyn std::fmt::Display| {
            AnswerError::Refused(Failure { code: 5, message: format!("{error}; /reset begins anew") })
        };
        let prompt = self.engine.tokenizer().prompt_chat(&turns).map_err(|error| refused(&error))?;
        let mut stuck = None;
        let answer = self.session.generate(&prompt, &self.options, |step| {
            if interrupt.is_set() {
                return ControlFlow::Break(());
            }
            match step {
                Step::Token(text) => print(text).map_or_else(
                    |failure| {
                        stuck = Some(failure);
                        ControlFlow::Break(())
                    },
                    ControlFlow::Continue,
                ),
                _ => ControlFlow::Continue(()),
            }
        });
        let answer = answer.map_err(|error| refused(&error))?;
        self.engine.check_files().map_err(|error| AnswerError::Ended(error.into()))?;
        if let Some(failure) = stuck {
            return Err(AnswerError::Ended(failure));
        }
        let cut_off = match answer.end {
            StopReason::Stop => None,
            StopReason::Length => {
                let tokens = answer.tokens.len() as u64;
                Some(CutOff::Length { tokens, wanted: self.max_tokens }.message())
            }
            StopReason::Cancelled => Some("[stopped]".into()),
        };
        Ok(ChatAnswer { text: answer.text, cut_off })
    }
}
