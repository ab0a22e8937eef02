//! Answers that are intents: which requests get one, and what is sent of what the model wrote.
//!
//! An intent is the answer itself, with names of this home, or a call of a function that the client offers under the
//! intent's name. Deliberately knows no queue, no clients and no broker.

use crate::engine::Engine;
use crate::engine::grammar::Constraint;
use crate::engine::session::{Answer, Session, StopReason};
use crate::home::tool_call::{FunctionAnswer, OfferedFunction, function_answer, is_intent, sentence_after};
use crate::home::{Home, IntentPrompt, IntentScope, NOTHING_FITS, SharedHome, overview};
use crate::protocol::{Code, Input, Message, Refusal, Request, ResponseFormat, Role, Tool, ToolChoice};
use std::sync::Arc;

/// The home, and whether the model knows nothing but intents.
#[derive(Debug, Clone)]
pub(super) struct HomeIntents {
    /// The names of the home; `None` where none are read.
    pub home: Option<Arc<SharedHome>>,
    /// Whether the model is the built-in one, all of whose answers are intents.
    pub is_built_in: bool,
}

/// What may be answered to one request.
#[derive(Debug)]
pub(super) struct HomeIntent {
    prompt: IntentPrompt,
    /// The functions of which the answer is a call, where the client offers some.
    functions: Option<Functions>,
}

#[derive(Debug)]
struct Functions {
    offered: Vec<OfferedFunction>,
    /// Whether the answer has to be a call.
    is_required: bool,
}

impl HomeIntents {
    /// What may be answered to a request; `None` where it is not held to intents.
    pub fn wanted(&self, request: &Request) -> Result<Option<HomeIntent>, Refusal> {
        if self.calls_intents(request) {
            return self.function_call(request).map(Some);
        }
        let is_asked = request.response_format == ResponseFormat::HomeIntent;
        let Some(home) = &self.home else {
            let message = "response_format: home_intent needs [home] enabled = true in the configuration";
            return if is_asked { Err(Refusal::new(Code::InvalidRequest, message)) } else { Ok(None) };
        };
        let is_constrained = self.is_built_in
            && home.is_constrained()
            && request.response_format == ResponseFormat::Text
            && !request.offers_tools();
        let is_wanted = is_asked || is_constrained;
        let prompt = || IntentPrompt::new(&home.current(), sentence(&request.input));
        Ok(is_wanted.then(|| HomeIntent { prompt: prompt(), functions: None }))
    }

    /// Whether the answer is a call of a function that has an intent's name. The built-in model reads then the last
    /// sentence of the user alone.
    pub fn calls_intents(&self, request: &Request) -> bool {
        self.is_built_in
            && request.offers_tools()
            && request.response_format == ResponseFormat::Text
            && chosen(request).any(|tool| is_intent(&tool.name))
    }

    /// The answer to the results of such calls, which needs no model; `None` where the last message is none.
    pub fn sentence_after_call(&self, request: &Request) -> Result<Option<String>, Refusal> {
        let Input::Messages(messages) = &request.input else { return Ok(None) };
        let is_result = |message: &&Message| message.role == Role::Tool;
        let results = messages.iter().rev().take_while(is_result).count();
        if results == 0 || !self.calls_intents(request) {
            return Ok(None);
        }
        if request.tool_choice != ToolChoice::Auto {
            let message =
                "tool_choice: the built-in model calls one function for a sentence, and has done so";
            return Err(Refusal::new(Code::InvalidRequest, message));
        }
        let results = messages[messages.len() - results..].iter();
        Ok(Some(sentence_after(results.map(|message| message.content.as_str()))))
    }

    fn function_call(&self, request: &Request) -> Result<HomeIntent, Refusal> {
        let home = self.home.as_ref().filter(|home| home.is_constrained()).map(|home| home.current());
        let (home, is_any_floor) = match home {
            Some(home) => (Some(home), false),
            None => (listed_home(&request.input), true),
        };
        let offered: Vec<OfferedFunction> = chosen(request)
            .map(|tool| OfferedFunction { name: tool.name.clone(), parameters: tool.parameters().cloned() })
            .collect();
        let is_required = request.tool_choice != ToolChoice::Auto;
        let names: Vec<&str> = offered.iter().map(|function| function.name.as_str()).collect();
        let scope = IntentScope { home: home.as_ref(), is_any_floor, only: is_required.then_some(&names) };
        let prompt = IntentPrompt::scoped(sentence(&request.input), &scope).ok_or_else(no_call)?;
        Ok(HomeIntent { prompt, functions: Some(Functions { offered, is_required }) })
    }
}

/// The home as the instructions list it.
fn listed_home(input: &Input) -> Option<Arc<Home>> {
    let Input::Messages(messages) = input else { return None };
    let mut instructions = messages.iter().filter(|message| message.role == Role::System);
    let names = instructions.find_map(|message| overview::names(&message.content))?;
    Some(Arc::new(Home::new(names, 0)))
}

/// The functions that the answer may call.
fn chosen(request: &Request) -> impl Iterator<Item = &Tool> {
    request.tools.iter().filter(|tool| match &request.tool_choice {
        ToolChoice::Named(name) => tool.name == *name,
        _ => true,
    })
}

fn no_call() -> Refusal {
    Refusal::new(Code::InvalidRequest, "tool_choice: the sentence is no command for the functions to call")
}

/// The sentence that is asked: the prompt, or the user's last message.
pub(super) fn sentence(input: &Input) -> &str {
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
        self.prompt.home_version()
    }

    /// The constraint of the answer. `unplanned`: why the memory plan has no place for a grammar, where it has none.
    pub fn constraint(&self, engine: &Engine, unplanned: Option<&str>) -> Result<Constraint, Refusal> {
        if let Some(why) = unplanned {
            return Err(Refusal::new(Code::BudgetExceeded, format!("home.enabled: {why}")));
        }
        let internal = |error| Refusal::new(Code::Internal, format!("the grammar of the home: {error}"));
        let grammars = engine.grammars().map_err(internal)?;
        grammars.compile_own(self.prompt.lark()).map_err(internal)
    }

    /// Replaces the text of a complete answer by what is sent: in the home's own names, or that nothing fits.
    /// `slot`: where it was decoded.
    pub fn finish(&self, engine: &Engine, session: &mut Session<'_>, slot: usize, answer: &mut Answer) {
        if answer.end != StopReason::Stop {
            return;
        }
        let log_probabilities = session.log_probabilities_of(slot, &answer.tokens);
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
        answer.text = self.prompt.decide(&answer.text, &tokens).text;
    }

    /// Whether a finished answer is that nothing fits.
    pub fn is_nothing(&self, answer: &Answer) -> bool {
        answer.end == StopReason::Stop && answer.text == NOTHING_FITS
    }

    /// The call that a finished answer is; `None` where no functions are offered, and the answer is the intent itself.
    pub fn function_answer(&self, answer: &Answer) -> Result<Option<FunctionAnswer>, Refusal> {
        let Some(Functions { offered, is_required }) = &self.functions else { return Ok(None) };
        // What a limit cut is no intent.
        if answer.end != StopReason::Stop {
            return Ok(Some(FunctionAnswer::Sentence("")));
        }
        match function_answer(&answer.text, offered) {
            FunctionAnswer::Sentence(_) if *is_required => Err(no_call()),
            call_or_sentence => Ok(Some(call_or_sentence)),
        }
    }
}
