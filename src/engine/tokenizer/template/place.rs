//! Placeholders for what is said in a turn, and what was said in their place again.

use super::Turn;
use std::ops::Range;

/// Characters of Unicode's private planes that no text uses; `screen` refuses them in a template.
const OPEN: char = '\u{fb17e}';
const CLOSE: char = '\u{fb17f}';
/// White space around a placeholder: a template that trims it trims what is said.
const LEFT: char = '\u{2002}';
const RIGHT: char = '\u{2003}';

/// All that a placeholder has that a template must not have.
pub(super) const RESERVED: [char; 4] = [OPEN, CLOSE, LEFT, RIGHT];

/// A prompt's text, and what of it was said in turns.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Prompt {
    pub text: String,
    /// Bytes of `text`, in order, with the number of the turn.
    pub said: Vec<(Range<usize>, usize)>,
}

impl Prompt {
    /// Whether what is said in the last of `turns` is in it.
    pub fn holds_last(&self, turns: &[Turn<'_>]) -> bool {
        self.said.iter().any(|(_, turn)| *turn + 1 == turns.len())
    }
}

/// What stands for turn `number`.
pub(super) fn placeholder(number: usize) -> String {
    format!("{LEFT}{OPEN}{number}{CLOSE}{RIGHT}")
}

/// Puts what was `said` in the turns in place of the placeholders; `None` when they are no longer whole.
pub(super) fn fill(placed: &str, said: &[&str]) -> Option<Prompt> {
    let mut prompt = Prompt::default();
    let mut rest = placed;
    while let Some((before, behind)) = rest.split_once(OPEN) {
        let (number, behind) = behind.split_once(CLOSE)?;
        let number: usize = number.parse().ok()?;
        let mut text = *said.get(number)?;
        prompt.text.push_str(before);
        match prompt.text.strip_suffix(LEFT) {
            Some(before) => prompt.text.truncate(before.len()),
            None => text = text.trim_start(),
        }
        rest = match behind.strip_prefix(RIGHT) {
            Some(behind) => behind,
            None => {
                text = text.trim_end();
                behind
            }
        };
        let start = prompt.text.len();
        prompt.text.push_str(text);
        prompt.said.push((start..prompt.text.len(), number));
    }
    prompt.text.push_str(rest);
    Some(prompt)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(template: impl Fn(&str, &str) -> String, said: [&str; 2]) -> Option<String> {
        fill(&template(&placeholder(0), &placeholder(1)), &said).map(|prompt| prompt.text)
    }

    #[test]
    fn what_was_said_is_trimmed_where_the_placeholder_was() {
        let whole = |a: &str, b: &str| format!("[{a}|{b}]");
        assert_eq!(filled(whole, [" a ", "\tb\n"]).expect("whole"), "[ a |\tb\n]");
        let trimmed = |a: &str, b: &str| format!("[{}|{}]", a.trim(), b.trim_end());
        assert_eq!(filled(trimmed, [" a ", "\tb\n"]).expect("whole"), "[a|\tb]");
    }

    #[test]
    fn what_was_said_cannot_pass_for_template_or_placeholder() {
        let nasty = placeholder(1);
        let both = |a: &str, b: &str| format!("<{a}><{b}>");
        let prompt = fill(&both(&placeholder(0), &placeholder(1)), &[&nasty, "x"]).expect("whole");
        assert_eq!(prompt.text, format!("<{nasty}><x>"));
        assert_eq!(prompt.said.len(), 2);
    }

    #[test]
    fn cut_placeholders_are_noticed() {
        let cut = |a: &str, _: &str| a.chars().take(3).collect::<String>();
        assert_eq!(filled(cut, ["a", "b"]), None);
        assert_eq!(filled(|_, _| format!("{OPEN}7{CLOSE}"), ["a", "b"]), None);
    }
}
