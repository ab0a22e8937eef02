//! Rust source cut into tokens, so that a rule never trips over a comment or a string.
//!
//! It does not know Rust's grammar: only where comments, literals and words begin and end, and the lines.

use std::collections::VecDeque;

/// A word (`unsafe`, `crate`) or one punctuation character; `::` is one token. Literals are dropped, but for
/// the text of strings, which `serde(rename = "…")` needs: it stands as a token that begins with `"`.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    pub text: String,
    /// Counted from 1.
    pub line: usize,
    /// Within an item under `#[cfg(test)]`.
    pub in_test: bool,
}

/// One file's tokens, and its lines parted into code and comment.
pub struct Source {
    pub tokens: Vec<Token>,
    /// Each line with comments, and the insides of strings, taken out. `lines[0]` is line 1.
    pub lines: Vec<String>,
    /// Each line's comments.
    pub comments: Vec<String>,
}

impl Source {
    pub fn new(text: &str) -> Source {
        let mut lexer = Lexer::new(text);
        while lexer.step() {}
        mark_tests(&mut lexer.out.tokens);
        lexer.out
    }

    /// Whether the tokens from `at` on read as `words`.
    pub fn reads(&self, at: usize, words: &[&str]) -> bool {
        self.tokens.len() >= at + words.len()
            && self.tokens[at..].iter().zip(words).all(|(token, word)| token.text == *word)
    }
}

struct Lexer {
    rest: VecDeque<char>,
    out: Source,
}

impl Lexer {
    fn new(text: &str) -> Lexer {
        let out = Source { tokens: vec![], lines: vec![String::new()], comments: vec![String::new()] };
        Lexer { rest: text.chars().collect(), out }
    }

    fn peek(&self, ahead: usize) -> char {
        self.rest.get(ahead).copied().unwrap_or('\0')
    }

    /// Takes one character; `keep` says where its text belongs.
    fn take(&mut self, keep: Keep) -> char {
        let taken = self.rest.pop_front().unwrap_or('\0');
        if taken == '\n' {
            self.out.lines.push(String::new());
            self.out.comments.push(String::new());
            return taken;
        }
        let kept = match keep {
            Keep::Code => self.out.lines.last_mut(),
            Keep::Comment => self.out.comments.last_mut(),
            Keep::Nowhere => None,
        };
        if let Some(line) = kept {
            line.push(taken);
        }
        taken
    }

    fn push(&mut self, text: String, line: usize) {
        self.out.tokens.push(Token { text, line, in_test: false });
    }

    fn step(&mut self) -> bool {
        let line = self.out.lines.len();
        match (self.peek(0), self.peek(1)) {
            ('\0', _) if self.rest.is_empty() => return false,
            ('/', '/') => self.line_comment(),
            ('/', '*') => self.block_comment(),
            ('"', _) => self.string(line),
            ('\'', _) => self.quote(),
            (c, _) if c.is_alphanumeric() || c == '_' => self.word(line),
            (':', ':') => {
                self.take(Keep::Code);
                self.take(Keep::Code);
                self.push("::".into(), line);
            }
            (c, _) => {
                self.take(Keep::Code);
                if !c.is_whitespace() {
                    self.push(c.into(), line);
                }
            }
        }
        true
    }

    fn line_comment(&mut self) {
        while !self.rest.is_empty() && self.peek(0) != '\n' {
            self.take(Keep::Comment);
        }
    }

    fn block_comment(&mut self) {
        let mut depth = 0;
        while !self.rest.is_empty() {
            let pair = (self.peek(0), self.peek(1));
            depth += i32::from(pair == ('/', '*')) - i32::from(pair == ('*', '/'));
            self.take(Keep::Comment);
            if pair == ('/', '*') || pair == ('*', '/') {
                self.take(Keep::Comment);
            }
            if depth == 0 {
                return;
            }
        }
    }

    /// An ordinary string, where `\` lets the next character stand for something else.
    fn string(&mut self, line: usize) {
        self.quoted(line, |lexer| {
            if lexer.peek(0) == '\\' {
                lexer.take(Keep::Nowhere);
                return false;
            }
            lexer.peek(0) == '"'
        });
    }

    fn raw_string(&mut self, hashes: usize, line: usize) {
        for _ in 0..hashes {
            self.take(Keep::Code);
        }
        self.quoted(line, |lexer| lexer.peek(0) == '"' && (1..=hashes).all(|n| lexer.peek(n) == '#'));
        for _ in 0..hashes {
            self.take(Keep::Code);
        }
    }

    /// `ends` looks at what is next, before it is taken.
    fn quoted(&mut self, line: usize, ends: impl Fn(&mut Lexer) -> bool) {
        self.take(Keep::Code);
        let mut text = String::from("\"");
        while !self.rest.is_empty() && !ends(self) {
            text.push(self.take(Keep::Nowhere));
        }
        self.take(Keep::Code);
        self.push(text, line);
    }

    /// A character literal, or a lifetime.
    fn quote(&mut self) {
        self.take(Keep::Code);
        let is_char = self.peek(0) == '\\' || self.peek(1) == '\'';
        if !is_char {
            return;
        }
        if self.take(Keep::Nowhere) == '\\' {
            self.take(Keep::Nowhere);
        }
        // The rest of `\x7f` or `\u{1F600}`.
        while !self.rest.is_empty() && self.take(Keep::Nowhere) != '\'' {}
    }

    /// A word, a number, or the prefix of a literal: r"", br#""#, b'', c"".
    fn word(&mut self, line: usize) {
        let mut word = String::new();
        while self.peek(0).is_alphanumeric() || self.peek(0) == '_' {
            word.push(self.take(Keep::Code));
        }
        let raw = matches!(word.as_str(), "r" | "br" | "cr");
        let hashes = (0..).take_while(|&n| self.peek(n) == '#').count();
        if raw && self.peek(hashes) == '"' {
            return self.raw_string(hashes, line);
        }
        if raw && hashes == 1 {
            // r#type: the word alone, without the mark.
            self.take(Keep::Code);
            return;
        }
        let prefix = matches!(word.as_str(), "b" | "c") && matches!(self.peek(0), '"' | '\'');
        if !prefix {
            self.push(word, line);
        }
    }
}

#[derive(Clone, Copy)]
enum Keep {
    Code,
    Comment,
    Nowhere,
}

/// Marks each item that stands under `#[cfg(test)]` (or `cfg(all(test, …))`), to its closing brace or `;`.
fn mark_tests(tokens: &mut [Token]) {
    let mut at = 0;
    while at < tokens.len() {
        let Some((end, inner)) = test_attribute(tokens, at) else {
            at += 1;
            continue;
        };
        let end = if inner { tokens.len() } else { item_end(tokens, end) };
        tokens[at..end].iter_mut().for_each(|token| token.in_test = true);
        at = end;
    }
}

/// Where the attribute at `at` ends, if it is a `cfg` that asks for `test`, and whether it is `#![…]`.
fn test_attribute(tokens: &[Token], at: usize) -> Option<(usize, bool)> {
    let word = |n: usize| tokens.get(at + n).map_or("", |token| token.text.as_str());
    let inner = word(1) == "!";
    let open = 1 + usize::from(inner);
    if word(0) != "#" || word(open) != "[" || word(open + 1) != "cfg" {
        return None;
    }
    let end = closing(tokens, at + open);
    let inside = &tokens[at + open..end];
    let has = |text: &str| inside.iter().any(|token| token.text == text);
    (has("test") && !has("not") && !has("any")).then_some((end, inner))
}

/// Past the item that begins at `at`: its other attributes, and its braces or semicolon.
fn item_end(tokens: &[Token], mut at: usize) -> usize {
    while at < tokens.len() {
        match tokens[at].text.as_str() {
            ";" => return at + 1,
            "{" => return closing(tokens, at),
            "(" | "[" => at = closing(tokens, at),
            _ => at += 1,
        }
    }
    at
}

/// Past the bracket that closes the one at `open`.
pub fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    tokens.len()
}
