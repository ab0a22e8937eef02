//! The parser's state: its position among the tokens, and the depth of nesting.
//!
//! It bounds the length and the depth of a template. Deliberately knows no grammar: that is in `expression` and
//! `statement`, which add their methods to the parser.

use super::lexer::{Token, Wrong, tokens};

/// Bytes of a template; the longest in use have some 20 KB.
const MAX_BYTES: usize = 64 << 10;
/// Blocks in blocks and expressions in expressions: they take stack.
const MAX_DEPTH: usize = 100;
/// The operators that end a tuple without brackets; the end of a tag ends it too.
pub(super) const TUPLE_ENDS: &[&str] = &[")"];

pub(super) struct Parser {
    /// The tokens, each with its line.
    tokens: Vec<(Token, usize)>,
    at: usize,
    depth: usize,
    /// Whether `break` and `continue` are allowed here.
    pub in_loop: bool,
    /// For each macro that is open, whether it uses `varargs`, `kwargs` and `caller`.
    pub leftovers: Vec<[bool; 3]>,
}

pub(super) type Parsed<T> = Result<T, Wrong>;

impl Parser {
    /// A parser at the first token of a template.
    pub fn new(source: &str) -> Parsed<Self> {
        if source.len() > MAX_BYTES {
            return Err((format!("has {} bytes, where {MAX_BYTES} are allowed", source.len()), 1));
        }
        Ok(Parser { tokens: tokens(source)?, at: 0, depth: 0, in_loop: false, leftovers: Vec::new() })
    }

    pub fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(token, _)| token)
    }

    pub fn look(&self) -> Option<&Token> {
        self.tokens.get(self.at + 1).map(|(token, _)| token)
    }

    pub fn line(&self) -> usize {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |(_, line)| *line)
    }

    pub fn wrong<T>(&self, what: impl Into<String>) -> Parsed<T> {
        Err((what.into(), self.line()))
    }

    pub fn unexpected<T>(&self, expected: &str) -> Parsed<T> {
        let found = match self.peek() {
            None => "end of input".to_owned(),
            Some(Token::Name(name)) => name.clone(),
            Some(Token::Op(op)) => (*op).to_owned(),
            Some(Token::Data(_)) => "text".into(),
            Some(Token::VariableEnd) => "end of variable block".into(),
            Some(Token::BlockEnd) => "end of statement block".into(),
            Some(_) => "constant".into(),
        };
        self.wrong(format!("unexpected {found}, expected {expected}"))
    }

    pub fn next(&mut self) -> Option<Token> {
        let token = self.peek().cloned();
        self.at += usize::from(token.is_some());
        token
    }

    /// Goes past so many tokens that were looked at before.
    pub fn skip(&mut self, tokens: usize) {
        self.at += tokens;
    }

    pub fn step_back(&mut self) {
        self.at = self.at.saturating_sub(1);
    }

    pub fn is_op(&self, op: &str) -> bool {
        matches!(self.peek(), Some(Token::Op(found)) if *found == op)
    }

    pub fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Some(Token::Name(found)) if found == name)
    }

    pub fn skip_op(&mut self, op: &str) -> bool {
        let found = self.is_op(op);
        self.at += usize::from(found);
        found
    }

    pub fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.at += usize::from(found);
        found
    }

    pub fn expect_op(&mut self, op: &str) -> Parsed<()> {
        if self.skip_op(op) { Ok(()) } else { self.unexpected(op) }
    }

    pub fn expect_name(&mut self) -> Parsed<String> {
        match self.peek() {
            Some(Token::Name(name)) => {
                let name = name.clone();
                self.at += 1;
                Ok(name)
            }
            _ => self.unexpected("a name"),
        }
    }

    /// Parses with a deeper level counted.
    pub fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth == MAX_DEPTH {
            return self.wrong(format!("has more than {MAX_DEPTH} levels inside each other"));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    /// Notes that a macro's body uses a name that takes what is left over of its call.
    pub fn note_name(&mut self, name: &str) {
        let Some(which) = ["varargs", "kwargs", "caller"].iter().position(|one| *one == name) else { return };
        for open in &mut self.leftovers {
            open[which] = true;
        }
    }
}
