//! Prompts out of turns: the chat template of the file, or the form its family was trained on.
//!
//! What is said in a turn never becomes a special token. The template is rendered twice, once with
//! what was said and once with placeholders for it: the second tells which parts of the first were
//! said, and those are encoded as plain text. A template that does more with what is said than to place
//! it, trimmed or not, gives two texts that differ and is not used.
//!
//! A template is a program from a stranger. `screen` refuses what would get round the engine's limits,
//! `jinja` sets those. Deliberately knows no token ids.

mod family;
mod jinja;
mod place;
mod screen;

pub(super) use family::Family;
pub(super) use place::Prompt;

use jinja::Engine;

/// Who speaks in a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Standing instructions.
    System,
    /// The asker.
    User,
    /// The model.
    Assistant,
}

/// One turn of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn<'a> {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub text: &'a str,
}

/// The texts of the tokens that templates may write by name.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    pub bos: Option<String>,
    pub eos: Option<String>,
}

/// A template that has been tried.
#[derive(Debug)]
pub(super) struct Template {
    engine: Engine,
    names: Names,
}

/// A conversation of each kind, with all that is likely to be touched by a template.
const SAMPLES: [&[Turn<'_>]; 3] = [
    &[Turn { role: Role::User, text: "\n Is 'it' <|on|>?\r\n\tReally?  " }],
    &[
        Turn { role: Role::User, text: "  a\n\n\"b\"" },
        Turn { role: Role::Assistant, text: "<think>C</think>\n\n d {{ e }} " },
        Turn { role: Role::User, text: "f" },
    ],
    &[
        Turn { role: Role::System, text: "\nBe Brief.  \n" },
        Turn { role: Role::User, text: "g \\ h" },
        Turn { role: Role::Assistant, text: "" },
        Turn { role: Role::User, text: " i" },
    ],
];

impl Template {
    /// Compiles a template and tries it; the error says in a few words what is wrong with it.
    pub fn new(source: String, names: Names) -> Result<Self, String> {
        let template = Template { engine: Engine::new(source)?, names };
        for (at, sample) in SAMPLES.iter().enumerate() {
            match template.prompt(sample) {
                Ok(prompt) if prompt.holds_last(sample) => {}
                Ok(_) => return Err("leaves out what the user says".into()),
                // To refuse a conversation of several turns is a template's right, one question is not.
                Err(Failure::Refused(_)) if at > 0 => {}
                Err(failure) => return Err(failure.to_string()),
            }
        }
        Ok(template)
    }

    /// The text of a conversation, ready for the model's next turn.
    pub fn prompt(&self, turns: &[Turn<'_>]) -> Result<Prompt, Failure> {
        let said: Vec<&str> = turns.iter().map(|turn| turn.text).collect();
        let places: Vec<String> = (0..turns.len()).map(place::placeholder).collect();
        let hold = places.iter().map(String::as_str);
        let written = self.render(turns, said.iter().copied())?;
        let placed = self.render(turns, hold)?;
        match place::fill(&placed, &said) {
            Some(prompt) if prompt.text == written => Ok(prompt),
            _ => Err(Failure::Changed),
        }
    }

    fn render<'s>(&self, turns: &[Turn<'_>], said: impl Iterator<Item = &'s str>) -> Result<String, Failure> {
        let messages = turns.iter().zip(said).map(|(turn, text)| (name(turn.role), text));
        self.engine.render(messages, &self.names).map_err(Failure::Refused)
    }
}

fn name(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    }
}

/// Why a template gives no prompt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It failed, or said itself that it does not take the conversation.
    Refused(String),
    /// It changes what is said, so that nobody can tell what was said.
    Changed,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Refused(why) => f.write_str(why),
            Failure::Changed => f.write_str("changes what is said in a turn by more than its white space"),
        }
    }
}
