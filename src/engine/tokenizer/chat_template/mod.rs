//! Turns a conversation into a prompt, with the chat template of the file or the one that its model family was trained
//! with.
//!
//! Templates are read as Jinja2 reads them in Hugging Face's environment; `tests/support/jinja-cases` compares the two. A
//! template is an untrusted program: `parser` bounds its length and depth, `fuel` the work and memory that a rendering
//! takes, `value` how much a list can hold. Whatever is not supported is refused by its name.
//!
//! A message's content never becomes a special token: `text` marks the bytes that came from one, whatever the
//! template does with them, and special tokens are looked for only in what lies between those.
//!
//! Deliberately knows no token ids, and reads no clock: the caller gives the time.

mod arithmetic;
mod call_args;
mod call_syntax;
mod choice;
mod clock;
mod evaluate;
mod expression;
mod family;
mod filters;
mod format;
mod fuel;
mod interpreter;
mod jinja;
mod json;
mod lexer;
mod methods;
mod number;
mod parser;
mod predicates;
mod statement;
mod syntax;
mod text;
mod tool_prompt;
mod value;

pub use call_syntax::{CallSyntax, WrittenCall};
pub use choice::ChatTemplate;
pub use clock::LocalClock;
pub(super) use family::TemplateFamily;
pub(in crate::engine::tokenizer) use text::Text;

use crate::external_text::JsonValue;
use jinja::ParsedTemplate;

/// The author of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChatRole {
    /// Instructions for the whole conversation.
    System,
    /// The user of the model.
    User,
    /// The model.
    Assistant,
    /// A function that the model called.
    Tool,
}

/// One turn of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn<'a> {
    /// Its author.
    pub role: ChatRole,
    /// Its content.
    pub text: &'a str,
}

/// One message of a conversation in which functions are called.
#[derive(Debug, Clone, Copy)]
pub struct ChatMessage<'a> {
    /// Its author.
    pub role: ChatRole,
    /// Its text.
    pub text: &'a str,
    /// The functions that the model called in it.
    pub tool_calls: &'a [ChatCall<'a>],
    /// The call whose result it is.
    pub tool_call_id: Option<&'a str>,
}

impl<'a> ChatMessage<'a> {
    /// A message of a text alone.
    pub fn new(role: ChatRole, text: &'a str) -> Self {
        ChatMessage { role, text, tool_calls: &[], tool_call_id: None }
    }
}

/// A call of a function.
#[derive(Debug, Clone, Copy)]
pub struct ChatCall<'a> {
    /// Tells calls apart.
    pub id: &'a str,
    /// The function.
    pub name: &'a str,
    /// Its arguments, an object.
    pub arguments: &'a JsonValue,
}

/// The texts of the tokens that templates may write by name.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    pub bos: Option<String>,
    pub eos: Option<String>,
    /// Names of further tokens as templates call them, with their texts.
    pub others: Vec<(&'static str, String)>,
}

/// A template that has been tried.
#[derive(Debug)]
pub(super) struct Template {
    parsed: ParsedTemplate,
    names: Names,
    clock: LocalClock,
    /// Whether it takes contents as lists of parts only, as templates of models that see pictures do.
    parts: bool,
}

/// A conversation of each kind, with all that is likely to be touched by a template.
const SAMPLES: [&[Turn<'_>]; 3] = [
    &[Turn { role: ChatRole::User, text: "\n Is 'it' <|on|>?\r\n\tReally?  " }],
    &[
        Turn { role: ChatRole::User, text: "  a\n\n\"b\"" },
        Turn { role: ChatRole::Assistant, text: "<think>C</think>\n\n d {{ e }} " },
        Turn { role: ChatRole::User, text: "Foxtrot" },
    ],
    &[
        Turn { role: ChatRole::System, text: "\nBe Brief.  \n" },
        Turn { role: ChatRole::User, text: "g \\ h" },
        Turn { role: ChatRole::Assistant, text: "" },
        Turn { role: ChatRole::User, text: " India" },
    ],
];

impl Template {
    /// Compiles a template and tries it; the error says in a few words what is wrong with it.
    pub fn new(source: &str, names: Names) -> Result<Self, String> {
        let parsed = ParsedTemplate::new(source)?;
        let mut template = Template { parsed, names, clock: LocalClock::default(), parts: false };
        let Err(why) = template.try_samples() else { return Ok(template) };
        template.parts = true;
        template.try_samples().map(|()| template).map_err(|_| why)
    }

    /// The same with another clock for templates that write the date.
    pub fn with_clock(self, clock: LocalClock) -> Self {
        Template { clock, ..self }
    }

    fn try_samples(&self) -> Result<(), String> {
        // What is in a content may decide whether it is left out: one sample that is not is enough.
        let mut used = false;
        for (at, sample) in SAMPLES.iter().enumerate() {
            match self.prompt(sample) {
                Ok(prompt) => used |= self.uses_last(&prompt, sample),
                // To refuse a conversation of several turns is a template's right, one question is not.
                Err(_) if at > 0 => {}
                Err(why) => return Err(why),
            }
        }
        used.then_some(()).ok_or_else(|| "leaves out what the user says".into())
    }

    /// Whether the content of the last of the sample's turns is in its prompt: with another in its place the
    /// prompt holds another content.
    fn uses_last(&self, prompt: &Text, sample: &[Turn<'_>]) -> bool {
        let mut other = sample.to_vec();
        if let Some(last) = other.last_mut() {
            last.text = "Zulu";
        }
        let contents = |prompt: &Text| {
            prompt.content_ranges().iter().map(|range| &prompt.as_str()[range.clone()]).collect::<String>()
        };
        self.prompt(&other).is_ok_and(|other| contents(&other) != contents(prompt))
    }

    /// The text of a conversation, ready for the model's next turn.
    pub fn prompt(&self, turns: &[Turn<'_>]) -> Result<Text, String> {
        let messages: Vec<_> = turns.iter().map(|turn| ChatMessage::new(turn.role, turn.text)).collect();
        self.render(&messages, &[])
    }

    fn render(&self, messages: &[ChatMessage<'_>], tools: &[JsonValue]) -> Result<Text, String> {
        self.parsed.render(messages, tools, &self.names, self.parts, &|format| self.clock.strftime(format))
    }

    /// Text of a template that looks like a special token, which is worth a note where the vocabulary lacks it.
    pub fn special_looking(prompt: &Text) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        let mut at = 0;
        let end = prompt.len()..prompt.len();
        for range in prompt.content_ranges().iter().chain([&end]) {
            for part in prompt.as_str()[at..range.start].split("<|").skip(1) {
                let Some((name, _)) = part.split_once("|>") else { continue };
                let sound =
                    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
                let name = format!("<|{name}|>");
                if sound && !found.contains(&name) {
                    found.push(name);
                }
            }
            at = range.end;
        }
        found
    }

    /// The texts that the samples give.
    pub fn samples(&self) -> impl Iterator<Item = Text> {
        SAMPLES.iter().filter_map(|sample| self.prompt(sample).ok())
    }
}

impl ChatRole {
    /// What templates call it.
    fn name(self) -> &'static str {
        match self {
            ChatRole::System => "system",
            ChatRole::User => "user",
            ChatRole::Assistant => "assistant",
            ChatRole::Tool => "tool",
        }
    }
}
