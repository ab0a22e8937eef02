//! Prompts out of turns: the chat template of the file, or the form its family was trained on.
//!
//! A message's content never becomes a special token. The template is rendered with the contents, which gives
//! the prompt's text, and again with placeholders for them: where the second, filled in, gives the same text, it
//! tells which parts of the first are content, and those are encoded as plain text. A template that asks what
//! is in a content, or changes it, gives two texts that differ. It is rendered again with the contents, in which
//! each character that a special token can begin or end with stands between two sentinels: what a template
//! asks and does is the same then, and no special token is looked for across a sentinel. Where even that
//! gives another text, as when a template counts characters, the request fails.
//!
//! A template is a program from a stranger. `screen` refuses what would get round the engine's limits,
//! `jinja` sets those. Deliberately knows no token ids.

mod choice;
mod clock;
mod family;
mod jinja;
mod place;
mod screen;
mod source_form;

pub use choice::ChatTemplate;
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
    /// Names of further tokens as templates call them, with their texts.
    pub others: Vec<(&'static str, String)>,
    /// The characters that special tokens begin and end with.
    pub edges: String,
}

/// A template that has been tried.
#[derive(Debug)]
pub(super) struct Template {
    engine: Engine,
    names: Names,
    /// Whether it takes contents as lists of parts only, as templates of models that see pictures do.
    parts: bool,
}

/// A conversation of each kind, with all that is likely to be touched by a template.
const SAMPLES: [&[Turn<'_>]; 3] = [
    &[Turn { role: Role::User, text: "\n Is 'it' <|on|>?\r\n\tReally?  " }],
    &[
        Turn { role: Role::User, text: "  a\n\n\"b\"" },
        Turn { role: Role::Assistant, text: "<think>C</think>\n\n d {{ e }} " },
        Turn { role: Role::User, text: "Foxtrot" },
    ],
    &[
        Turn { role: Role::System, text: "\nBe Brief.  \n" },
        Turn { role: Role::User, text: "g \\ h" },
        Turn { role: Role::Assistant, text: "" },
        Turn { role: Role::User, text: " India" },
    ],
];

impl Template {
    /// Compiles a template and tries it; the error says in a few words what is wrong with it.
    pub fn new(source: String, names: Names) -> Result<Self, String> {
        let mut template = Template { engine: Engine::new(source)?, names, parts: false };
        let Err(why) = template.try_samples() else { return Ok(template) };
        template.parts = true;
        template.try_samples().map(|()| template).map_err(|_| why)
    }

    fn try_samples(&self) -> Result<(), String> {
        // What is in a content may decide whether it is left out: one sample that is not is enough.
        let mut heeded = false;
        for (at, sample) in SAMPLES.iter().enumerate() {
            match self.prompt(sample) {
                Ok(prompt) => heeded |= self.heeds_last(&prompt, sample),
                // To refuse a conversation of several turns is a template's right, one question is not.
                // What cannot be followed there fails with the request that asks for it.
                Err(_) if at > 0 => {}
                Err(failure) => return Err(failure.to_string()),
            }
        }
        heeded.then_some(()).ok_or_else(|| "leaves out what the user says".into())
    }

    /// Whether the content of the last of the sample's turns is in its prompt: another gives another prompt.
    fn heeds_last(&self, prompt: &Prompt, sample: &[Turn<'_>]) -> bool {
        let mut contents: Vec<&str> = sample.iter().map(|turn| turn.text).collect();
        contents.pop();
        let other = self.render(sample, contents.into_iter().chain(["Zulu"]));
        other.is_ok_and(|other| other != prompt.text)
    }

    /// The text of a conversation, ready for the model's next turn.
    pub fn prompt(&self, turns: &[Turn<'_>]) -> Result<Prompt, Failure> {
        let contents: Vec<&str> = turns.iter().map(|turn| turn.text).collect();
        let written = self.render(turns, contents.iter().copied())?;
        let places: Vec<String> = (0..turns.len()).map(place::placeholder).collect();
        // A template that asks what is in a content may refuse a placeholder.
        let placed = self.render(turns, places.iter().map(String::as_str)).ok();
        let filled = placed.and_then(|placed| place::fill(&placed, &contents));
        if let Some(prompt) = filled.filter(|prompt| prompt.text == written) {
            return Ok(prompt);
        }
        [true, false]
            .into_iter()
            .find_map(|outer| self.fenced(turns, &written, outer))
            .ok_or(Failure::Changed)
    }

    /// The prompt by way of sentinels in the contents; `None` where it is not `written`.
    fn fenced(&self, turns: &[Turn<'_>], written: &str, outer: bool) -> Option<Prompt> {
        let fence = |turn: &Turn<'_>| place::fenced(turn.text, &self.names.edges, outer);
        let contents: Vec<String> = turns.iter().map(fence).collect::<Option<_>>()?;
        let rendered = self.render(turns, contents.iter().map(String::as_str)).ok()?;
        let prompt = place::unfenced(&rendered);
        (prompt.text == written).then_some(prompt)
    }

    fn render<'s>(&self, turns: &[Turn<'_>], said: impl Iterator<Item = &'s str>) -> Result<String, Failure> {
        let messages = turns.iter().zip(said).map(|(turn, text)| (name(turn.role), text));
        self.engine.render(messages, &self.names, self.parts).map_err(Failure::Refused)
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
    /// It changes a content so that nobody can tell what of the text is content.
    Changed,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Refused(why) => f.write_str(why),
            Failure::Changed => f.write_str(
                "changes a message in a way that cannot be followed, such as by counting its characters",
            ),
        }
    }
}
