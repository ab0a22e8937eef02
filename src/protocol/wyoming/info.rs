//! The answer to `describe`: what the server can do, and in which languages.

use super::{AnswerKind, replies};
use serde::Serialize;
use serde_json::{Value, json};

/// Languages of the built-in model.
const INTENT_LANGUAGES: &[&str] = &["en"];
/// Languages that a chat model may be asked in; how well it speaks them depends on the model. Home Assistant offers an
/// agent for no other languages than it names.
const CHAT_LANGUAGES: &[&str] = &[
    "ar", "bg", "ca", "cs", "da", "de", "el", "en", "es", "fi", "fr", "he", "hi", "hr", "hu", "id", "it",
    "ja", "ko", "nb", "nl", "pl", "pt", "ro", "ru", "sk", "sl", "sr", "sv", "tr", "uk", "vi", "zh",
];

/// The program, as Home Assistant lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramInfo {
    /// The name of the model.
    pub model: String,
    /// What its answers are.
    pub answers: AnswerKind,
}

/// Who made something.
#[derive(Serialize)]
struct Attribution {
    name: &'static str,
    url: &'static str,
}

const ATTRIBUTION: Attribution =
    Attribution { name: env!("CARGO_PKG_NAME"), url: "https://www.home-assistant.io/integrations/wyoming/" };

impl ProgramInfo {
    /// The event `info`. Home Assistant takes a list of intent recognition or of handling as one kind of conversation
    /// agent, and lets only the first control the home.
    pub fn event(&self) -> Vec<u8> {
        let (domain, languages, does) = match self.answers {
            AnswerKind::HomeIntents | AnswerKind::Intents => {
                ("intent", INTENT_LANGUAGES, "Turns sentences into intents of Home Assistant")
            }
            AnswerKind::Text => ("handle", CHAT_LANGUAGES, "Answers with the text of a language model"),
        };
        let mut model = self.artifact(&self.model, "Ternary language model");
        model["languages"] = json!(languages);
        let mut program = self.artifact(env!("CARGO_PKG_NAME"), does);
        program["models"] = json!([model]);
        if self.answers == AnswerKind::Text {
            program["supports_handled_streaming"] = json!(false);
            program["supports_home_control"] = json!(false);
        }
        let domains = ["asr", "tts", "handle", "intent", "wake", "mic", "snd"];
        let mut data: serde_json::Map<String, Value> =
            domains.iter().map(|domain| ((*domain).to_owned(), json!([]))).collect();
        data.insert(domain.into(), json!([program]));
        replies::event("info", &data)
    }

    /// What every entry has.
    fn artifact(&self, name: &str, description: &str) -> Value {
        json!({
            "name": name,
            "attribution": ATTRIBUTION,
            "installed": true,
            "description": description,
            "version": env!("CARGO_PKG_VERSION"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(answers: AnswerKind) -> Value {
        let event = ProgramInfo { model: "home-intents".into(), answers }.event();
        let end = event.iter().position(|byte| *byte == b'\n').expect("a header");
        serde_json::from_slice(&event[end + 1..]).expect("JSON")
    }

    #[test]
    fn the_built_in_model_is_intent_recognition_in_english() {
        for answers in [AnswerKind::Intents, AnswerKind::HomeIntents] {
            let info = data(answers);
            let program = &info["intent"][0];
            assert_eq!((&program["name"], &program["installed"]), (&json!("bitnetd"), &json!(true)));
            for entry in [program, &program["models"][0]] {
                for key in ["name", "attribution", "installed", "description", "version"] {
                    assert!(!entry[key].is_null(), "{key}: {entry}");
                }
                assert!(entry["attribution"]["url"].as_str().is_some_and(|url| url.starts_with("http")));
            }
            let model = &program["models"][0];
            assert_eq!((&model["name"], &model["languages"]), (&json!("home-intents"), &json!(["en"])));
            assert_eq!(info["handle"], json!([]));
        }
    }

    #[test]
    fn a_chat_model_handles_text_and_controls_nothing() {
        let info = data(AnswerKind::Text);
        assert_eq!((&info["intent"], &info["asr"]), (&json!([]), &json!([])));
        let program = &info["handle"][0];
        assert_eq!((&program["name"], &program["supports_home_control"]), (&json!("bitnetd"), &json!(false)));
        assert!(program["models"][0]["languages"].as_array().is_some_and(|all| all.contains(&json!("de"))));
    }
}
