//! The arguments with the prompt, shared by `ask` and `generate`. Deliberately knows neither daemon nor engine.

use super::Failure;
use crate::{config, external_text};
use std::path::PathBuf;

/// What to ask
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
pub(super) struct PromptArgs {
    /// Instructions to the model before the prompt, as a message of their own
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// A text file, up to 1 MiB, that follows the words of the prompt, or is the prompt
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// What to ask, in one or more words; `-` is standard input
    #[arg(value_name = "PROMPT")]
    pub words: Vec<String>,
}

impl PromptArgs {
    /// The prompt: its words, which `read` checks or reads from standard input, and the file.
    pub fn prompt(
        &self,
        read: impl FnOnce(Option<&str>) -> Result<String, Failure>,
    ) -> Result<String, Failure> {
        let words = (!self.words.is_empty()).then(|| self.words.join(" "));
        let file = self.file_text()?;
        let prompt = match (words, file) {
            (None, Some(file)) => file,
            (words, None) => read(words.as_deref())?,
            (words, Some(file)) => format!("{}\n\n{file}", read(words.as_deref())?),
        };
        match prompt.trim().is_empty() {
            true => Err(Failure::usage("the prompt is empty; give it as an argument or on standard input")),
            false => Ok(prompt),
        }
    }

    fn file_text(&self) -> Result<Option<String>, Failure> {
        let Some(path) = &self.file else { return Ok(None) };
        let failed = |why: String| Failure::usage(format!("--file {}: {why}", path.display()));
        let text = config::read_text(path).map_err(failed)?;
        let text = external_text::utf8(text.as_bytes()).map_err(|why| failed(format!("the file {why}")))?;
        Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(words: &[&str], file: Option<&str>, stdin: &str) -> Result<String, Failure> {
        let folder = tempfile::TempDir::with_prefix("bitnetd-").expect("a temporary folder");
        let path = folder.path().join("f");
        if let Some(text) = file {
            std::fs::write(&path, text).expect("a temporary folder");
        }
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        let args = PromptArgs { system: None, file: file.map(|_| path), words };
        args.prompt(|words| Ok(words.filter(|words| *words != "-").unwrap_or(stdin).to_owned()))
    }

    #[test]
    fn words_file_and_standard_input_make_one_prompt() {
        let ok = |text: &str| Ok(text.to_owned());
        assert_eq!(prompt(&["turn", "on", "the lights"], None, "in"), ok("turn on the lights"));
        assert_eq!(prompt(&[], None, "in"), ok("in"));
        assert_eq!(prompt(&[], Some("\u{feff}text\n"), "in"), ok("text"));
        assert_eq!(prompt(&["Sum up:"], Some("text\n"), "in"), ok("Sum up:\n\ntext"));
        assert_eq!(prompt(&["-"], Some("text"), "in"), ok("in\n\ntext"));
        assert_eq!(prompt(&[" "], None, "in").expect_err("empty").code, 2);
        assert_eq!(prompt(&[], Some("\n"), "in").expect_err("empty").code, 2);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let args = PromptArgs { file: Some("/nonexistent".into()), ..PromptArgs::default() };
        let failure = args.prompt(|_| Ok("a".into())).expect_err("no file");
        assert!(failure.code == 2 && failure.message.starts_with("--file /nonexistent: "), "{failure:?}");
    }
}
