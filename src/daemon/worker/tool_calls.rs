//! Functions that the model may call: the prompt that shows them, the grammar of the answer, and the calls in it.
//! Deliberately knows no queue and no clients.

use super::request_options::{role, tokenize};
use crate::daemon::structured;
use crate::engine::Engine;
use crate::engine::error::PromptError;
use crate::engine::grammar::{
    Callable, Constraint, GrammarSource, OtherAnswer, arguments_schema, check_schema, tool_grammar,
};
use crate::engine::tokenizer::{CallSyntax, ChatCall, ChatMessage, ChatRole, Turn};
use crate::protocol::{
    Code, Input, Message, Refusal, Request, ResponseFormat, Role, Tool, ToolCall, ToolChoice,
};

/// Why an answer cannot be either a call or JSON.
const NOT_DISTINCT: &str = "response_format: this model writes its calls as JSON, which could not be told from an answer in \
    JSON; leave response_format or tools out, or give tool_choice required";

/// A prompt as tokens.
pub(super) struct Prompt {
    pub tokens: Vec<u32>,
    /// How the model is to write a call; `None` where it may call no function.
    pub calls: Option<CallSyntax>,
}

/// The prompt of a request, chat template and functions included.
pub(super) fn prompt(engine: &Engine, request: &Request) -> Result<Prompt, PromptError> {
    let is_offered = request.offers_tools();
    let user;
    let messages = match &request.input {
        Input::Messages(messages) => messages.as_slice(),
        Input::Prompt(_) if !is_offered => &[],
        Input::Prompt(text) => {
            let (content, tool_calls) = (text.clone(), Vec::new());
            user = [Message { role: Role::User, content, tool_calls, tool_call_id: None }];
            &user
        }
    };
    let is_call = |message: &Message| message.tool_call_id.is_some() || !message.tool_calls.is_empty();
    let has_result = |message: &Message| message.role == Role::Tool;
    if !is_offered && !messages.iter().any(|message| is_call(message) || has_result(message)) {
        return Ok(Prompt { tokens: tokenize(engine, &request.input)?, calls: None });
    }
    let calls: Vec<Vec<ChatCall<'_>>> = messages.iter().map(chat_calls).collect();
    let messages: Vec<ChatMessage<'_>> = messages
        .iter()
        .zip(&calls)
        .map(|(message, calls)| ChatMessage {
            role: role(message.role),
            text: &message.content,
            tool_calls: calls,
            tool_call_id: message.tool_call_id.as_deref(),
        })
        .collect();
    let tools: Vec<_> =
        request.tools.iter().filter(|_| is_offered).map(|tool| tool.definition.clone()).collect();
    let (tokens, syntax) = engine.tokenizer().prompt_with_tools(&messages, &tools)?;
    Ok(Prompt { tokens, calls: is_offered.then_some(syntax) })
}

/// The prompt of a single sentence, for answers that are intents.
pub(super) fn sentence_prompt(engine: &Engine, sentence: &str) -> Result<Prompt, PromptError> {
    let tokens = engine.tokenizer().prompt_chat(&[Turn { role: ChatRole::User, text: sentence }])?;
    Ok(Prompt { tokens, calls: None })
}

fn chat_calls(message: &Message) -> Vec<ChatCall<'_>> {
    let calls = message.tool_calls.iter();
    calls.map(|call| ChatCall { id: &call.id, name: &call.name, arguments: &call.arguments }).collect()
}

/// The constraint of an answer; `None` where any text will do. `unplanned`: why the memory plan has no place for a
/// grammar, where it has none.
pub(super) fn constraint(
    engine: &Engine,
    request: &Request,
    calls: Option<&CallSyntax>,
    unplanned: Option<&str>,
) -> Result<Option<Constraint>, Refusal> {
    let Some(syntax) = calls else {
        return structured::constraint(engine, &request.response_format, unplanned);
    };
    if let Some(why) = unplanned {
        return Err(Refusal::new(Code::BudgetExceeded, format!("tools: {why}")));
    }
    let is_chosen = |tool: &&Tool| match &request.tool_choice {
        ToolChoice::Named(name) => tool.name == *name,
        _ => true,
    };
    let functions: Vec<Callable<'_>> = request.tools.iter().filter(is_chosen).map(callable).collect();
    let other = match (&request.tool_choice, &request.response_format) {
        (ToolChoice::Required | ToolChoice::Named(_), _) => OtherAnswer::None,
        (_, ResponseFormat::JsonObject) => OtherAnswer::Json(r#"{"type":"object"}"#.into()),
        (_, ResponseFormat::JsonSchema(schema)) => OtherAnswer::Json(schema.clone()),
        _ => OtherAnswer::Text,
    };
    if matches!(other, OtherAnswer::Json(_)) && !syntax.differs_from_compact_json() {
        return Err(Refusal::new(Code::InvalidRequest, NOT_DISTINCT));
    }
    let once = !request.parallel_tool_calls || matches!(request.tool_choice, ToolChoice::Named(_));
    let invalid = |error: String| Refusal::new(Code::InvalidRequest, format!("tools{error}"));
    let grammars = engine.grammars().map_err(|error| invalid(format!(": {error}")))?;
    let lark = tool_grammar(syntax, &functions, &other, once);
    let compiled = grammars.compile(&GrammarSource::Lark(lark));
    compiled.map(Some).map_err(|error| {
        // The place in the whole grammar means nothing to the client: the function and the place in its schema do.
        let wrong = request.tools.iter().enumerate().find_map(|(index, tool)| {
            let schema = arguments_schema(tool.parameters()).to_string();
            check_schema(&schema).err().map(|error| (index, error))
        });
        match wrong {
            Some((index, error)) => invalid(format!("[{index}].function.parameters: {error}")),
            None => invalid(format!(": {error}")),
        }
    })
}

fn callable(tool: &Tool) -> Callable<'_> {
    Callable { name: &tool.name, parameters: tool.parameters() }
}

/// The calls that an answer consists of, with ids that begin with `prefix`; none where it is a text.
pub(super) fn written_calls(syntax: &CallSyntax, answer: &str, prefix: &str) -> Vec<ToolCall> {
    let calls = syntax.parse(answer).unwrap_or_default().into_iter().enumerate();
    calls
        .map(|(index, call)| ToolCall {
            id: format!("{prefix}{index}"),
            name: call.name,
            arguments: call.arguments,
        })
        .collect()
}

/// Text that is not streamed because it may become a call.
pub(super) struct HeldText {
    /// What every call begins with.
    begin: String,
    text: String,
}

impl HeldText {
    /// Holds what begins like a call in this form.
    pub fn new(syntax: &CallSyntax) -> Self {
        // JSON begins with the same character as calls in JSON.
        let begin = if syntax.allows_several() { syntax.mark() } else { &syntax.open };
        HeldText { begin: begin.to_owned(), text: String::new() }
    }

    /// Adds a piece of text; returns all of it once it is clear that it is no call.
    pub fn push(&mut self, text: &str) -> Option<String> {
        self.text.push_str(text);
        let is_open = self.text.starts_with(&self.begin) || self.begin.starts_with(&self.text);
        (!is_open).then(|| std::mem::take(&mut self.text))
    }

    /// What is held.
    pub fn into_text(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_begins_like_a_call_is_held() {
        let held = || HeldText::new(&CallSyntax::plain());
        assert_eq!(held().push("Hello"), Some("Hello".into()));
        let mut text = held();
        assert_eq!([text.push("<too"), text.push("l")], [None, None]);
        assert_eq!(text.push("s"), Some("<tools".into()));
        let mut call = held();
        assert_eq!([call.push("<tool_call>"), call.push("{\"name")], [None, None]);
        assert_eq!(call.into_text(), "<tool_call>{\"name");
        let json = CallSyntax {
            open: "{\"name\": \"".into(),
            middle: "\", \"parameters\": ".into(),
            close: "}".into(),
        };
        let mut answer = HeldText::new(&json);
        assert_eq!([answer.push("{\"na"), answer.push("me\":")], [None, None]);
        assert_eq!(answer.push("1}"), Some("{\"name\":1}".into()));
    }
}
