//! A template's source as tokens, as Jinja2's lexer reads it with `trim_blocks` and `lstrip_blocks`.

use super::text::is_space;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    Data(String),
    VariableBegin,
    VariableEnd,
    BlockBegin,
    BlockEnd,
    Name(String),
    Str(String),
    Int(i128),
    Float(f64),
    /// An operator or a bracket.
    Op(&'static str),
}

/// Tokens in one tag: an expression is at most that deep. The longest in use have about 100.
const MAX_IN_TAG: usize = 300;

/// Longer ones before those that they begin with.
const OPERATORS: &[&str] = &[
    "**", "//", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",", ";",
];

/// What is wrong, and in which line.
pub(super) type Wrong = (String, usize);

/// The tokens of a source, each with its line.
pub(super) fn tokens(source: &str) -> Result<Vec<(Token, usize)>, Wrong> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { source: &source, at: 0, line: 1, line_starts: true, tokens: Vec::new() };
    while lexer.at < source.len() {
        lexer.root()?;
    }
    Ok(lexer.tokens)
}

struct Lexer<'s> {
    source: &'s str,
    at: usize,
    line: usize,
    /// Whether what was read last ended a line.
    line_starts: bool,
    tokens: Vec<(Token, usize)>,
}

fn skip_spaces(text: &str) -> &str {
    text.trim_start_matches(is_space)
}

/// What follows the sign and the name of a tag such as `raw`, and the sign.
fn tag<'t>(text: &'t str, name: &str) -> Option<(&'t str, Option<char>)> {
    let text = text.strip_prefix("{%")?;
    let sign = text.chars().next().filter(|c| matches!(c, '-' | '+'));
    let text = skip_spaces(&text[sign.map_or(0, char::len_utf8)..]);
    Some((skip_spaces(text.strip_prefix(name)?), sign))
}

/// What follows the end of a block's tag or a comment.
fn after_end<'t>(text: &'t str, end: &str) -> Option<&'t str> {
    if let Some(rest) = text.strip_prefix('+') {
        return rest.strip_prefix(end);
    }
    if let Some(rest) = text.strip_prefix('-') {
        return rest.strip_prefix(end).map(skip_spaces);
    }
    text.strip_prefix(end).map(|rest| rest.strip_prefix('\n').unwrap_or(rest))
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn wrong<T>(&self, what: impl Into<String>) -> Result<T, Wrong> {
        Err((what.into(), self.line))
    }

    /// Goes on where `rest`, an end of the source, begins.
    fn go_to(&mut self, rest: &str) {
        let at = self.source.len() - rest.len();
        self.line += self.source[self.at..at].matches('\n').count();
        self.at = at;
        self.line_starts = self.source[..self.at].ends_with('\n');
    }

    fn push(&mut self, token: Token) {
        self.tokens.push((token, self.line));
    }

    /// The text before a tag with this sign.
    fn data(&mut self, text: &str, sign: Option<char>, variable: bool) {
        let line_start = text.rfind('\n').map_or(0, |at| at + 1);
        let starts = line_start > 0 || self.line_starts;
        let kept = match sign {
            Some('-') => text.trim_end_matches(is_space),
            None if !variable && starts && text[line_start..].chars().all(is_space) => &text[..line_start],
            _ => text,
        };
        if !kept.is_empty() {
            self.push(Token::Data(kept.to_owned()));
        }
    }

    /// Text, and the tag behind it.
    fn root(&mut self) -> Result<(), Wrong> {
        let rest = self.rest();
        let begin = rest.match_indices('{').find(|(at, _)| rest[at + 1..].starts_with(['{', '%', '#']));
        let Some((begin, _)) = begin else {
            self.push(Token::Data(rest.to_owned()));
            self.at = self.source.len();
            return Ok(());
        };
        let (text, rest) = rest.split_at(begin);
        let sign = rest[2..].chars().next().filter(|c| matches!(c, '-' | '+'));
        let inner = &rest[2 + sign.map_or(0, char::len_utf8)..];
        self.data(text, sign, rest.starts_with("{{"));
        self.go_to(rest);
        if let Some((behind, _)) = tag(rest, "raw") {
            let raw = behind.strip_prefix("-%}").map(skip_spaces).or_else(|| behind.strip_prefix("%}"));
            if let Some(raw) = raw {
                return self.raw(raw);
            }
        }
        match &rest[..2] {
            "{#" => {
                let end = (0..inner.len()).filter(|at| inner.is_char_boundary(*at)).find_map(|at| {
                    inner[at..].starts_with(['+', '-', '#']).then(|| after_end(&inner[at..], "#}")).flatten()
                });
                let Some(end) = end else { return self.wrong("unexpected end of comment") };
                self.go_to(end);
                Ok(())
            }
            "{{" => {
                self.push(Token::VariableBegin);
                self.go_to(inner);
                self.inside(Token::VariableEnd)
            }
            _ => {
                self.push(Token::BlockBegin);
                self.go_to(inner);
                self.inside(Token::BlockEnd)
            }
        }
    }

    fn raw(&mut self, raw: &'s str) -> Result<(), Wrong> {
        self.go_to(raw);
        for (at, _) in raw.match_indices("{%") {
            let Some((behind, sign)) = tag(&raw[at..], "endraw") else { continue };
            let Some(behind) = after_end(behind, "%}") else { continue };
            self.data(&raw[..at], sign, false);
            self.go_to(behind);
            return Ok(());
        }
        self.wrong("missing end of raw block")
    }

    /// The tokens of a tag, and its end.
    fn inside(&mut self, end: Token) -> Result<(), Wrong> {
        let mut open: Vec<&'static str> = Vec::new();
        let first = self.tokens.len();
        loop {
            self.go_to(skip_spaces(self.rest()));
            let rest = self.rest();
            let behind = match end {
                Token::VariableEnd => {
                    rest.strip_prefix("-}}").map(skip_spaces).or_else(|| rest.strip_prefix("}}"))
                }
                _ => after_end(rest, "%}"),
            };
            if let Some(behind) = behind.filter(|_| open.is_empty()) {
                self.push(end);
                self.go_to(behind);
                return Ok(());
            }
            if rest.is_empty() {
                let kind = if end == Token::VariableEnd { "variable" } else { "statement" };
                return self.wrong(format!("expected end of {kind} block"));
            }
            if self.tokens.len() - first > MAX_IN_TAG {
                return self.wrong(format!("has a tag of more than {MAX_IN_TAG} words, which is too many"));
            }
            self.token(&mut open)?;
        }
    }

    fn token(&mut self, open: &mut Vec<&'static str>) -> Result<(), Wrong> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(()) };
        if first.is_ascii_digit() {
            let after_dot = self.source[..self.at].ends_with('.');
            return self.number(rest, after_dot);
        }
        if first.is_alphanumeric() || first == '_' {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            self.push(Token::Name(rest[..end].to_owned()));
            self.go_to(&rest[end..]);
            return Ok(());
        }
        if matches!(first, '\'' | '"') {
            return self.string(rest, first);
        }
        let Some(op) = OPERATORS.iter().find(|op| rest.starts_with(**op)) else {
            return self.wrong(format!("unexpected character {first:?}"));
        };
        match *op {
            "(" => open.push(")"),
            "[" => open.push("]"),
            "{" => open.push("}"),
            ")" | "]" | "}" => match open.pop() {
                None if *op == "}" => return self.wrong("unexpected '}', expected end of variable block"),
                closes if closes != Some(*op) => return self.wrong(format!("unexpected '{op}'")),
                _ => {}
            },
            _ => {}
        }
        self.push(Token::Op(op));
        self.go_to(&rest[op.len()..]);
        Ok(())
    }

    fn number(&mut self, rest: &'s str, after_dot: bool) -> Result<(), Wrong> {
        if let Some(len) = float_len(rest).filter(|_| !after_dot) {
            let Ok(value) = rest[..len].replace('_', "").parse() else {
                return self.wrong("a number cannot be read");
            };
            self.push(Token::Float(value));
            self.go_to(&rest[len..]);
            return Ok(());
        }
        let radix = match rest.get(..2).map(str::to_ascii_lowercase).as_deref() {
            Some("0b") => 2,
            Some("0o") => 8,
            Some("0x") => 16,
            _ => 10,
        };
        let digits = if radix == 10 { rest } else { &rest[2..] };
        let mut len = digits_len(digits, radix);
        if radix == 10 && digits.starts_with('0') {
            // Python's zero may be written with more zeros, and no other number begins with one.
            len = digits.len() - digits.trim_start_matches('0').len();
        }
        let Some(value) = i128::from_str_radix(&digits[..len].replace('_', ""), radix).ok() else {
            return self.wrong("a number cannot be read");
        };
        self.push(Token::Int(value));
        self.go_to(&digits[len..]);
        Ok(())
    }

    fn string(&mut self, rest: &'s str, quote: char) -> Result<(), Wrong> {
        let mut escaped = false;
        let end = rest.char_indices().skip(1).find(|(_, c)| {
            let ends = *c == quote && !escaped;
            escaped = *c == '\\' && !escaped;
            ends
        });
        let Some((end, _)) = end else { return self.wrong("unexpected end of string") };
        match unescaped(&rest[1..end]) {
            Ok(text) => self.push(Token::Str(text)),
            Err(what) => return self.wrong(what),
        }
        self.go_to(&rest[end + 1..]);
        Ok(())
    }
}

/// Digits with single underscores between them.
fn digits_len(text: &str, radix: u32) -> usize {
    let mut len = 0;
    for (at, c) in text.char_indices() {
        match c {
            '_' if at == len && (at > 0 || radix != 10) => {}
            c if c.is_digit(radix) => len = at + 1,
            _ => break,
        }
    }
    len
}

fn float_len(text: &str) -> Option<usize> {
    let mut len = digits_len(text, 10);
    let mut is_float = false;
    if let Some(fraction) =
        text[len..].strip_prefix('.').map(|rest| digits_len(rest, 10)).filter(|len| *len > 0)
    {
        len += 1 + fraction;
        is_float = true;
    }
    if let Some(rest) = text[len..].strip_prefix(['e', 'E']) {
        let sign = usize::from(rest.starts_with(['+', '-']));
        let digits = digits_len(&rest[sign..], 10);
        if digits > 0 {
            len += 1 + sign + digits;
            is_float = true;
        }
    }
    is_float.then_some(len)
}

/// A string's text without its escapes, as Python's `unicode-escape` reads them.
fn unescaped(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('\\') {
        out.push_str(before);
        let Some(code) = behind.chars().next() else { return Err("unexpected end of string".into()) };
        rest = &behind[code.len_utf8()..];
        match code {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(code),
            'a' => out.push('\u{7}'),
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\u{b}'),
            '0'..='7' => {
                let len = behind.bytes().take(3).take_while(|b| (b'0'..=b'7').contains(b)).count();
                out.push(character(&behind[..len], 8)?);
                rest = &behind[len..];
            }
            'x' | 'u' | 'U' => {
                let len = [('x', 2), ('u', 4), ('U', 8)]
                    .iter()
                    .find(|(c, _)| *c == code)
                    .map_or(0, |(_, len)| *len);
                let Some(digits) = rest.get(..len) else { return Err("a string has half an escape".into()) };
                out.push(character(digits, 16)?);
                rest = &rest[len..];
            }
            'N' => return Err("a string names a character, which is not offered to templates".into()),
            c if c.is_ascii() => {
                out.push('\\');
                out.push(c);
            }
            _ => return Err("a string has a backslash before a letter beyond ASCII".into()),
        }
    }
    Ok(out + rest)
}

fn character(digits: &str, radix: u32) -> Result<char, String> {
    let code = u32::from_str_radix(digits, radix).ok().filter(|_| !digits.starts_with('+'));
    code.and_then(char::from_u32).ok_or_else(|| "a string has an escape that is no character".into())
}
