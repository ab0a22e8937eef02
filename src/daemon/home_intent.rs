//! Answers that are intents with names of this home: which requests get one, and what is sent of what the model wrote.
//!
//! Deliberately knows no queue, no clients and no broker.

use crate::engine::Engine;
use crate::engine::grammar::Constraint;
use crate::engine::session::{Answer, Session, StopReason};
use crate::home::{IntentPrompt, SharedHome};
use crate::protocol::{Code, Input, Refusal, Request, ResponseFormat, Role};
use std::sync::Arc;

/// The home, and whose answers are held to it.
#[derive(Debug, Clone)]
pub(super) struct HomeIntents {
    pub home: Arc<SharedHome>,
    /// Whether the model is the built-in one, all of whose answers are intents.
    pub is_built_in: bool,
}

/// What may be answered to one request.
#[derive(Debug)]
pub(super) struct HomeIntent(IntentPrompt);

/// What may be answered to a request; `None` where it is not held to the names of the home.
pub(super) fn wanted(
    intents: Option<&HomeIntents>,
    request: &Request,
) -> Result<Option<HomeIntent>, Refusal> {
    let is_asked = request.response_format == ResponseFormat::HomeIntent;
    let Some(HomeIntents { home, is_built_in }) = intents else {
        let message = "response_format: home_intent needs [home] enabled = true in the configuration";
        return if is_asked { Err(Refusal::new(Code::InvalidRequest, message)) } else { Ok(None) };
    };
    let is_constrained = *is_built_in
        && home.is_constrained()
        && request.response_format == ResponseFormat::Text
        && !request.offers_tools();
    let is_wanted = is_asked || is_constrained;
    Ok(is_wanted.then(|| HomeIntent(IntentPrompt::new(&home.current(), sentence(&request.input)))))
}

/// The sentence that is asked: the prompt, or the user's last message.
fn sentence(input: &Input) -> &str {
    match input {
        Input::Prompt(text) => text,
        Input::Messages(messages) => {
            let mut of_user = messages.iter().rev().filter(|message| message.role == Role::User);
            of_user.next().map_or("", |message| message.content.as_str())
        }
    }
}

impl HomeIntent {
    /// The number of the home's names, which changes with them.
    pub fn home_version(&self) -> u64 {
        self.0.home_version()
    }

    /// The constraint of the answer. `unplanned`: why the memory plan has no place for a grammar, where it has none.
    pub fn constraint(&self, engine: &Engine, unplanned: Option<&str>) -> Result<Constraint, Refusal> {
        if let Some(why) = unplanned {
            return Err(Refusal::new(Code::BudgetExceeded, format!("home.enabled: {why}")));
        }
        let internal = |error| Refusal::new(Code::Internal, format!("the grammar of the home: {error}"));
        let grammars = engine.grammars().map_err(internal)?;
        grammars.compile_own(self.0.lark()).map_err(internal)
    }

    /// Replaces the text of a complete answer by what is sent: in the home's own names, or that nothing fits.
    pub fn finish(&self, engine: &Engine, session: &mut Session<'_>, prompt: &[u32], answer: &mut Answer) {
        if answer.end != StopReason::Stop {
            return;
        }
        let log_probabilities = session.log_probabilities(prompt, &answer.tokens);
        let mut end = 0;
        let tokens: Vec<(usize, f64)> = answer
            .tokens
            .iter()
            .zip(log_probabilities)
            .map(|(token, log_probability)| {
                end += engine.tokenizer().bytes(*token).len();
                (end, log_probability)
            })
            .collect();
        answer.text = self.0.decide(&answer.text, &tokens).text;
    }
}
