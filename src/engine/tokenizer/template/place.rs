//! Placeholders for what is said in a turn, and what was said in their place again.

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

/// `content` with every character of `edges` between `OPEN` and `CLOSE`, and with `outer` also what is left of
/// it without the white space around it. An edge is the first or last character of a special token: none of
/// them can be found across a sentinel. `None` where the content holds a sentinel of its own.
pub(super) fn fenced(content: &str, edges: &str, outer: bool) -> Option<String> {
    if content.contains([OPEN, CLOSE]) {
        return None;
    }
    let inner = content.trim();
    let before = content.len() - content.trim_start().len();
    let mut text = String::with_capacity(content.len() + 16);
    text.push_str(&content[..before]);
    let outer = outer && !inner.is_empty();
    text.extend(outer.then_some(OPEN));
    for c in inner.chars() {
        match edges.contains(c) {
            true => text.extend([OPEN, c, CLOSE]),
            false => text.push(c),
        }
    }
    text.extend(outer.then_some(CLOSE));
    text.push_str(&content[before + inner.len()..]);
    Some(text)
}

/// Takes the sentinels out of a text that was rendered from fenced contents. Each of them becomes a place that
/// no special token may reach across, and the character that two of them enclose is content.
pub(super) fn unfenced(rendered: &str) -> Prompt {
    let mut prompt = Prompt::default();
    let mut opened = None;
    for c in rendered.chars() {
        let at = prompt.text.len();
        match c {
            OPEN => {
                prompt.said.push((at..at, 0));
                opened = Some(at);
            }
            CLOSE => {
                let start = opened.take().unwrap_or(at);
                let one = prompt.text[start..].chars().nth(1).is_none();
                prompt.said.push((if one { start } else { at }..at, 0));
            }
            c => prompt.text.push(c),
        }
    }
    prompt
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
    fn fences_keep_special_tokens_of_contents_apart() {
        for outer in [true, false] {
            let text = fenced(" <|x|> y ", "<>", outer).expect("no sentinel in it");
            let prompt = unfenced(&format!("<s>{text}</s>"));
            assert_eq!(prompt.text, "<s> <|x|> y </s>");
            let enclosed: Vec<_> = prompt.said.iter().filter(|(range, _)| !range.is_empty()).collect();
            assert_eq!(enclosed, [&(4..5, 0), &(8..9, 0)]);
        }
        assert_eq!(fenced(&OPEN.to_string(), "<", true), None);
    }

    #[test]
    fn cut_placeholders_are_noticed() {
        let cut = |a: &str, _: &str| a.chars().take(3).collect::<String>();
        assert_eq!(filled(cut, ["a", "b"]), None);
        assert_eq!(filled(|_, _| format!("{OPEN}7{CLOSE}"), ["a", "b"]), None);
    }
}
