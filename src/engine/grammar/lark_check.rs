//! Checks a grammar in Lark's form before it is compiled: its size, its nesting, the schemas in it, and that it names
//! no special token.

use super::{GrammarError, schema_check, unset_compact};
use serde_json::Value;

/// Rules and terminals of a grammar. Each that leads to the next takes some of the stack.
const MAX_DEFINITIONS: usize = 500;
/// How deep groups may be nested.
const MAX_DEPTH: usize = 32;

/// Checks a whole grammar.
pub(super) fn check(text: &str) -> Result<(), GrammarError> {
    let mut scan = Scan { text, at: 0, depth: 0, definitions: 0 };
    while scan.at < text.len() {
        scan.step()?;
    }
    Ok(())
}

struct Scan<'t> {
    text: &'t str,
    at: usize,
    depth: usize,
    definitions: usize,
}

impl<'t> Scan<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn error<T>(&self, message: impl Into<String>) -> Result<T, GrammarError> {
        let before = &self.text[..self.at];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        Err(GrammarError::new(format!("line {line}, column {column}"), message))
    }

    /// Reads one token of the language, as far as that is needed to know where the next begins.
    fn step(&mut self) -> Result<(), GrammarError> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(()) };
        if first == '#' || rest.starts_with("//") {
            self.at += rest.find('\n').unwrap_or(rest.len());
            return Ok(());
        }
        match first {
            '"' | '/' => self.skip_quoted(first),
            '%' => return self.directive(),
            '<' => return self.error("special tokens cannot be named"),
            '(' | '[' | '{' => {
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return self.error(format!("more than {MAX_DEPTH} groups inside one another"));
                }
                self.at += 1;
            }
            ')' | ']' | '}' => {
                self.depth = self.depth.saturating_sub(1);
                self.at += 1;
            }
            ':' => {
                self.definitions += 1;
                if self.definitions > MAX_DEFINITIONS {
                    return self.error(format!("more than {MAX_DEFINITIONS} rules and terminals"));
                }
                self.at += 1;
            }
            other => self.at += other.len_utf8(),
        }
        Ok(())
    }

    /// Skips a string or a regular expression; one without an end is the library's to refuse.
    fn skip_quoted(&mut self, quote: char) {
        let mut is_escaped = false;
        let mut inner = self.rest().char_indices().skip(1);
        let end = inner.find(|(_, c)| {
            let ends = !is_escaped && (*c == quote || *c == '\n');
            is_escaped = !is_escaped && *c == '\\';
            ends
        });
        self.at = end.map_or(self.text.len(), |(at, c)| self.at + at + c.len_utf8());
    }

    fn directive(&mut self) -> Result<(), GrammarError> {
        let rest = self.rest();
        let name_len = rest[1..].find(|c: char| !c.is_ascii_alphabetic()).map_or(rest.len(), |at| at + 1);
        let name = &rest[..name_len];
        let has_json = matches!(name, "%json" | "%llguidance" | "%regex");
        if !has_json {
            self.at += name_len;
            return Ok(());
        }
        let mut values = serde_json::Deserializer::from_str(&rest[name_len..]).into_iter::<Value>();
        let mut value = match values.next() {
            Some(Ok(value)) => value,
            _ => return self.error(format!("{name}: no JSON behind it")),
        };
        match name {
            "%json" => {
                unset_compact(&mut value);
                if let Err(error) = schema_check::check(&value) {
                    return self.error(format!("%json {error}"));
                }
            }
            "%llguidance" if value.get("allow_invalid_utf8").is_some() => {
                return self.error("allow_invalid_utf8 is not supported");
            }
            _ => {}
        }
        self.at += name_len + values.byte_offset();
        Ok(())
    }
}
