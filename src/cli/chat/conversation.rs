//! The turns of a conversation. Deliberately knows nobody who answers.

use crate::cli::Failure;
use serde::Serialize;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;

/// A conversation; also the form of the messages of a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ChatHistory {
    system: Option<String>,
    turns: Vec<ConversationTurn>,
}

/// One turn, as a request has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct ConversationTurn {
    pub role: &'static str,
    pub content: String,
}

pub(super) const SYSTEM: &str = "system";
pub(super) const USER: &str = "user";
pub(super) const ASSISTANT: &str = "assistant";

impl ChatHistory {
    pub fn new(system: Option<String>) -> Self {
        ChatHistory { system: system.filter(|text| !text.is_empty()), turns: Vec::new() }
    }

    /// All turns, the system text first.
    pub fn messages(&self) -> Vec<ConversationTurn> {
        let system = self.system.clone().map(|content| ConversationTurn { role: SYSTEM, content });
        system.into_iter().chain(self.turns.iter().cloned()).collect()
    }

    /// A message of the user.
    pub fn ask(&mut self, message: &str) {
        self.turns.push(ConversationTurn { role: USER, content: message.to_owned() });
    }

    /// The answer to it. Without one the message is taken back: two messages in a row are no conversation.
    pub fn answered(&mut self, text: String) {
        match text.is_empty() {
            true => self.take_back(),
            false => self.turns.push(ConversationTurn { role: ASSISTANT, content: text }),
        }
    }

    /// Forgets the last message.
    pub fn take_back(&mut self) {
        if self.turns.last().is_some_and(|turn| turn.role == USER) {
            self.turns.pop();
        }
    }

    pub fn reset(&mut self) {
        self.turns.clear();
    }

    /// Sets the system text; an empty one is none.
    pub fn set_system(&mut self, text: &str) {
        self.system = Some(text.to_owned()).filter(|text| !text.is_empty());
    }

    /// Writes it as a request to a new file that only its owner may read.
    pub fn save(&self, path: &str) -> Result<(), Failure> {
        if path.is_empty() {
            return Err(Failure::usage("/save: no file; write /save FILE"));
        }
        let failed = |error: std::io::Error| match error.kind() {
            ErrorKind::AlreadyExists => {
                Failure::usage(format!("{path}: is there already; give another name"))
            }
            _ => Failure::system(format!("{path}: cannot be written: {error}")),
        };
        let messages = serde_json::json!({ "messages": self.messages() });
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        file.write_all(format!("{messages}\n").as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_alternate_behind_the_system_text() {
        let mut talk = ChatHistory::new(Some("brief".into()));
        talk.ask("a");
        talk.answered("b".into());
        talk.ask("c");
        talk.answered(String::new());
        talk.ask("d");
        talk.take_back();
        talk.take_back();
        talk.ask("e");
        let roles: Vec<String> =
            talk.messages().iter().map(|turn| format!("{} {}", turn.role, turn.content)).collect();
        assert_eq!(roles, ["system brief", "user a", "assistant b", "user e"]);
        talk.reset();
        talk.set_system("");
        assert_eq!(talk.messages(), []);
    }

    #[test]
    fn what_is_saved_can_be_sent_and_replaces_nothing() {
        let folder = tempfile::TempDir::with_prefix("bitnetd-").expect("a temporary folder");
        let path = folder.path().join("talk.json");
        let path = path.to_str().expect("UTF-8");
        let mut talk = ChatHistory::new(None);
        talk.ask("a\n\"b\"");
        talk.save(path).expect("a folder");
        let read = crate::protocol::json::request(&std::fs::read(path).expect("a file")).expect("a request");
        assert!(matches!(&read.input, crate::protocol::Input::Messages(all) if all[0].content == "a\n\"b\""));
        assert_eq!(talk.save(path).expect_err("it is there").code, 2);
        assert_eq!(talk.save("").expect_err("no name").code, 2);
    }
}
