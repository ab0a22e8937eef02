//! The words of a text, and how two of them are compared.
//!
//! Deliberately knows no language: case and a final `s` make no difference, whatever the language.

use std::ops::Range;

/// A word with its place in the text, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// In lower case, without a final `s`.
    pub stem: String,
    pub place: Range<usize>,
}

/// The words of a text: runs of letters and digits, with apostrophes between them.
pub fn words(text: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut start = None;
    for (at, c) in text.char_indices().chain([(text.len(), ' ')]) {
        let is_part = c.is_alphanumeric() || (start.is_some() && is_apostrophe(c)) || is_mark(c);
        match (start, is_part) {
            (None, true) => start = Some(at),
            (Some(from), false) => {
                let word = text[from..at].trim_end_matches(is_apostrophe);
                words.push(Word { stem: stem(word), place: from..from + word.len() });
                start = None;
            }
            _ => {}
        }
    }
    words
}

/// Whether the text has characters of a script that is written without spaces between words.
pub fn is_unspaced(text: &str) -> bool {
    text.chars().any(|c| {
        matches!(u32::from(c), 0x0e00..=0x0eff | 0x1000..=0x109f | 0x1780..=0x17ff | 0x3040..=0x30ff
            | 0x3400..=0x9fff | 0xf900..=0xfaff | 0x20000..=0x3ffff)
    })
}

fn is_apostrophe(c: char) -> bool {
    matches!(c, '\'' | '’')
}

/// Vowel signs and accents that are characters of their own.
fn is_mark(c: char) -> bool {
    matches!(u32::from(c), 0x0300..=0x036f | 0x0900..=0x0dff | 0x0e31..=0x0e4e)
}

fn stem(word: &str) -> String {
    let lower = word.to_lowercase().replace('’', "'");
    match lower.strip_suffix('s') {
        Some(rest) if rest.chars().count() >= 3 => rest.trim_end_matches('\'').to_owned(),
        _ => lower,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stems(text: &str) -> Vec<String> {
        words(text).into_iter().map(|word| word.stem).collect()
    }

    #[test]
    fn words_are_compared_without_case_and_final_s() {
        assert_eq!(stems("Turn on the Kitchen LIGHTS, please!"), stems("turn on the kitchen light please"));
        assert_eq!(stems("Anna’s gas"), ["anna", "gas"]);
        assert_eq!(stems("Küche_2 tv's"), ["küche", "2", "tv"]);
        assert_eq!(stems("''"), Vec::<String>::new());
    }

    #[test]
    fn the_place_of_a_word_is_its_bytes() {
        let text = "die Küche, bitte";
        let places: Vec<&str> = words(text).into_iter().map(|word| &text[word.place]).collect();
        assert_eq!(places, ["die", "Küche", "bitte"]);
    }
}
