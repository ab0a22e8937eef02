//! The filter's file: one pattern a line. `/…/` is a regular expression, `/…/i` one that takes capital and small letters for
//! the same, and any other line is a text, for which they always are the same. `#` begins a comment.

use super::{Filter, MAX_PATTERNS};
use crate::config;
use crate::external_text::utf8;
use std::fmt;
use std::path::Path;

pub(super) const MATCHES_NOTHING: &str =
    "matches the empty text, so everything would be refused; let it match one character at least";
pub(super) const NEVER_MATCHES: &str = "can match no text; take it out";
pub(super) const TOO_LARGE: &str =
    "is too large for a pattern; shorten its repetitions, or use smaller classes than \\w in them";

/// An error in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterError {
    /// Where, from 1; `None` where it is about the whole file.
    pub line: Option<usize>,
    /// What is wrong, and a remedy.
    pub message: String,
}

impl FilterError {
    pub(super) fn at(line: usize, message: impl Into<String>) -> Self {
        FilterError { line: Some(line), message: message.into() }
    }

    pub(super) fn whole(message: impl Into<String>) -> Self {
        FilterError { line: None, message: message.into() }
    }
}

/// The line and the message, to be written after the name of the file.
impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, ":{line}: {}", self.message),
            None => write!(f, ": {}", self.message),
        }
    }
}

impl std::error::Error for FilterError {}

/// Reads and compiles a file; the error names the file and the line.
pub fn load(path: &Path) -> Result<Filter, String> {
    let name = path.display();
    let text = config::read_text(path).map_err(|message| format!("{name}: {message}"))?;
    let text = utf8(text.as_bytes()).map_err(|message| format!("{name}: {message}"))?;
    Filter::parse(text).map_err(|error| format!("{name}{error}"))
}

/// A pattern of the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    /// From 1.
    pub line: usize,
    /// As a regular expression.
    pub regex: String,
}

/// The patterns of a file's text.
pub(super) fn patterns(text: &str) -> Result<Vec<Pattern>, FilterError> {
    let mut patterns = Vec::new();
    for (line, pattern) in (1..).zip(text.lines().map(str::trim)) {
        if pattern.is_empty() || pattern.starts_with('#') {
            continue;
        }
        if patterns.len() == MAX_PATTERNS {
            return Err(FilterError::at(
                line,
                format!("is one more than the {MAX_PATTERNS} patterns there may be"),
            ));
        }
        patterns
            .push(Pattern { line, regex: regex_of(pattern).map_err(|text| FilterError::at(line, text))? });
    }
    Ok(patterns)
}

/// A line as a regular expression.
fn regex_of(line: &str) -> Result<String, &'static str> {
    let Some(rest) = line.strip_prefix('/') else { return Ok(format!("(?i:{})", regex::escape(line))) };
    if let Some(regex) = rest.strip_suffix('/') {
        Ok(regex.to_owned())
    } else if let Some(regex) = rest.strip_suffix("/i") {
        Ok(format!("(?i:{regex})"))
    } else {
        Err("begins with / and is a regular expression, so it has to end with / or /i")
    }
}

/// The library's error without its drawing of the place, which takes several lines.
pub(super) fn one_line_error(error: &str) -> String {
    let reason = error.lines().rev().find_map(|line| line.trim().strip_prefix("error: "));
    let reason = reason.unwrap_or_else(|| error.lines().next_back().unwrap_or_default().trim());
    format!("is no regular expression: {reason}")
}
