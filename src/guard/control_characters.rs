//! Control characters other than line breaks and tabs: they have no use in a prompt, and can hide a text from people who
//! read it in a terminal.

/// The first control character of a text, with its place in bytes.
pub(super) fn first_control(text: &str) -> Option<(usize, char)> {
    text.char_indices().find(|(_, c)| is_unwanted(*c))
}

/// Removes all control characters.
pub(super) fn remove_controls(text: &mut String) {
    if first_control(text).is_some() {
        text.retain(|c| !is_unwanted(c));
    }
}

/// A carriage return is a line break, alone or before a line feed, as Windows writes it.
fn is_unwanted(c: char) -> bool {
    c.is_control() && !matches!(c, '\n' | '\r' | '\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_breaks_and_tabs_stay_and_all_other_control_characters_go() {
        let mut text: String = (0..=0xff_u8).map(char::from).chain("é厨\u{2028}".chars()).collect();
        assert_eq!(first_control(&text), Some((0, '\0')));
        remove_controls(&mut text);
        assert_eq!(first_control(&text), None);
        let kept: String = ("\t\n\r".chars())
            .chain((' '..='~').chain('\u{a0}'..='\u{ff}'))
            .chain("é厨\u{2028}".chars())
            .collect();
        assert_eq!(text, kept);
        assert_eq!(first_control("é\u{1b}[31m"), Some((2, '\u{1b}')));
    }
}
