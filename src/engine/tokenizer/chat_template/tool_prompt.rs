//! Prompts with functions that the model may call: through the template where it knows functions, calls and results,
//! and otherwise in a plain form, in which all of these are texts of ordinary turns.

use super::call_syntax::{CallSyntax, PROBE_KEY, PROBE_NAME, PROBE_VALUE};
use super::text::Text;
use super::{ChatCall, ChatMessage, ChatRole, Template};
use crate::external_text::JsonValue;

impl Template {
    /// The text of a conversation, ready for the model's next turn, and how the model is to write a call in it.
    /// `tools`: functions in OpenAI's form.
    pub fn prompt_with_tools(
        &self,
        messages: &[ChatMessage<'_>],
        tools: &[JsonValue],
    ) -> Result<(Text, CallSyntax), String> {
        if let Some(syntax) = self.own_call_syntax() {
            return self.render(messages, tools).map(|prompt| (prompt, syntax));
        }
        let syntax = CallSyntax::plain();
        let instructions = instructions(&syntax, tools);
        let prompt = self.render_plain(&syntax, messages, &instructions, ChatRole::System);
        // Some templates refuse a message of the system.
        prompt
            .or_else(|why| {
                self.render_plain(&syntax, messages, &instructions, ChatRole::User).map_err(|_| why)
            })
            .map(|prompt| (prompt, syntax))
    }

    /// How the template writes a call; `None` where it does not show functions, calls and results to the model.
    fn own_call_syntax(&self) -> Option<CallSyntax> {
        let tools = [JsonValue::parse(&format!(
            "{{\"type\":\"function\",\"function\":{{\"name\":\"{PROBE_NAME}\",\"description\":\"\",\"parameters\":\
             {{\"type\":\"object\",\"properties\":{{}}}}}}}}"
        ))
        .ok()?];
        let arguments = JsonValue::Object(vec![(PROBE_KEY.into(), JsonValue::Text(PROBE_VALUE.into()))]);
        let calls = [ChatCall { id: "call00001", name: PROBE_NAME, arguments: &arguments }];
        let user = ChatMessage::new(ChatRole::User, "Tango");
        let answered = ChatMessage::new(ChatRole::Assistant, "Hello.");
        let called = ChatMessage { tool_calls: &calls, ..ChatMessage::new(ChatRole::Assistant, "") };
        let result =
            ChatMessage { tool_call_id: Some("call00001"), ..ChatMessage::new(ChatRole::Tool, PROBE_VALUE) };
        let shows = |messages: &[ChatMessage<'_>], tools: &[JsonValue], word: &str| {
            self.render(messages, tools).is_ok_and(|prompt| prompt.as_str().contains(word))
        };
        if !shows(&[user], &tools, PROBE_NAME) || !shows(&[user, called, result], &[], PROBE_VALUE) {
            return None;
        }
        let [with_text, with_call] = [answered, called].map(|turn| self.render(&[user, turn], &[]));
        CallSyntax::learn(with_text.ok()?.as_str(), with_call.ok()?.as_str())
    }

    /// The conversation with calls and results as texts, and with the instructions in its first message, which gets
    /// `role` where it is a new one.
    fn render_plain(
        &self,
        syntax: &CallSyntax,
        messages: &[ChatMessage<'_>],
        instructions: &str,
        role: ChatRole,
    ) -> Result<Text, String> {
        let mut turns: Vec<(ChatRole, String)> = Vec::with_capacity(messages.len() + 1);
        for message in messages {
            let text = plain_text(syntax, message);
            match (message.role, turns.last_mut()) {
                // Results are the user's turn: several of them are one, since roles alternate in most templates.
                (ChatRole::Tool, Some((ChatRole::User, before))) => *before = format!("{before}\n{text}"),
                (ChatRole::Tool, _) => turns.push((ChatRole::User, text)),
                (role, _) => turns.push((role, text)),
            }
        }
        if !instructions.is_empty() {
            match turns.first_mut() {
                Some((first, text)) if *first == role => {
                    *text = match role {
                        ChatRole::System => format!("{text}\n\n{instructions}"),
                        _ => format!("{instructions}\n\n{text}"),
                    };
                }
                _ => turns.insert(0, (role, instructions.to_owned())),
            }
        }
        let turns: Vec<_> = turns.iter().map(|(role, text)| ChatMessage::new(*role, text)).collect();
        self.render(&turns, &[])
    }
}

/// What tells a model without a form of its own how to call functions; empty without any.
fn instructions(syntax: &CallSyntax, tools: &[JsonValue]) -> String {
    if tools.is_empty() {
        return String::new();
    }
    let CallSyntax { open, middle, close } = syntax;
    let mut text = String::from("You can call these functions, each described by one line of JSON:\n");
    for function in tools.iter().filter_map(|tool| tool.get("function")) {
        text.push_str(&function.to_string());
        text.push('\n');
    }
    text.push_str(&format!(
        "To call functions, write one line for each call and nothing else:\n{open}NAME{middle}{{ARGUMENTS}}{close}\n\
         Each result comes back as <tool_response>RESULT</tool_response>."
    ));
    text
}

/// A message as an ordinary text.
fn plain_text(syntax: &CallSyntax, message: &ChatMessage<'_>) -> String {
    if message.role == ChatRole::Tool {
        return format!("<tool_response>{}</tool_response>", message.text);
    }
    let CallSyntax { open, middle, close } = syntax;
    let calls =
        message.tool_calls.iter().map(|call| format!("{open}{}{middle}{}{close}", call.name, call.arguments));
    let texts = std::iter::once(message.text.to_owned()).filter(|text| !text.is_empty());
    texts.chain(calls).collect::<Vec<_>>().join("\n")
}
