//! A syntax tree out of tokens, by Jinja2's grammar: its tags, and those that Hugging Face adds.

use super::expression::TUPLE_ENDS;
use super::lexer::{Token, Wrong, tokens};
use super::syntax::{For, Macro, NamedCall, Stmt, StmtKind, Target};
use super::text::Text;

/// Bytes of a template; the longest in use have some 20 KB.
const MOST_BYTES: usize = 64 << 10;
/// Blocks in blocks and expressions in expressions: they take stack.
const MOST_DEPTH: usize = 100;
/// Branches of one `if`.
const MOST_BRANCHES: usize = 100;
/// Names that no template may give a value to.
const CONSTANTS: &[&str] = &["true", "false", "none", "True", "False", "None"];

/// Parses a template.
pub(super) fn parse(source: &str) -> Result<Vec<Stmt>, Wrong> {
    if source.len() > MOST_BYTES {
        return Err((format!("has {} bytes, where {MOST_BYTES} are allowed", source.len()), 1));
    }
    let tokens = tokens(source)?;
    let mut parser = Parser { tokens, at: 0, depth: 0, in_loop: false, leftovers: Vec::new() };
    let body = parser.statements(&[])?;
    match parser.peek() {
        None => Ok(body),
        Some(_) => parser.wrong("unexpected end of a block"),
    }
}

pub(super) struct Parser {
    tokens: Vec<(Token, usize)>,
    at: usize,
    depth: usize,
    in_loop: bool,
    /// For each macro that is open, whether it uses `varargs`, `kwargs` and `caller`.
    leftovers: Vec<[bool; 3]>,
}

pub(super) type Parsed<T> = Result<T, Wrong>;

impl Parser {
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

    fn expect_block_end(&mut self) -> Parsed<()> {
        match self.peek() {
            Some(Token::BlockEnd) => {
                self.at += 1;
                Ok(())
            }
            _ => self.unexpected("end of statement block"),
        }
    }

    /// Parses with a deeper level counted.
    pub fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth == MOST_DEPTH {
            return self.wrong(format!("has more than {MOST_DEPTH} levels inside each other"));
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

    /// Statements up to a tag with one of the names `ends`, which stays.
    fn statements(&mut self, ends: &[&str]) -> Parsed<Vec<Stmt>> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            let kind = match self.peek() {
                None if ends.is_empty() => return Ok(body),
                None => return self.unexpected(ends[0]),
                Some(Token::Data(text)) => {
                    let kind = StmtKind::Data(Text::from(text.as_str()));
                    self.at += 1;
                    kind
                }
                Some(Token::VariableBegin) => {
                    self.at += 1;
                    let value = self.tuple(true, &[])?;
                    if self.peek() != Some(&Token::VariableEnd) {
                        return self.unexpected("end of variable block");
                    }
                    self.at += 1;
                    StmtKind::Emit(value)
                }
                Some(_) => {
                    let Some(Token::Name(name)) = self.look() else {
                        self.at += 1;
                        return self.unexpected("a statement");
                    };
                    if ends.contains(&name.as_str()) {
                        return Ok(body);
                    }
                    self.at += 1;
                    let kind = self.deeper(Self::statement)?;
                    self.expect_block_end()?;
                    kind
                }
            };
            body.push(Stmt { line, kind });
        }
    }

    /// A block's body and its last tag up to the end of that, which stays.
    fn body(&mut self, end: &str) -> Parsed<Vec<Stmt>> {
        self.expect_block_end()?;
        let body = self.statements(&[end])?;
        self.at += 2;
        Ok(body)
    }

    fn statement(&mut self) -> Parsed<StmtKind> {
        let name = self.expect_name()?;
        match name.as_str() {
            "for" => self.for_loop(),
            "if" => self.condition(),
            "set" => self.set(),
            "with" => self.with(),
            "filter" => {
                let filters = self.filters(true)?;
                Ok(StmtKind::FilterBlock { filters, body: self.body("endfilter")? })
            }
            "macro" => {
                let name = self.assigned_name()?;
                let params = self.params()?;
                Ok(StmtKind::Macro(self.macro_body(name, params, "endmacro")?))
            }
            "call" => self.call_block(),
            "generation" => {
                let in_loop = std::mem::replace(&mut self.in_loop, false);
                let body = self.body("endgeneration")?;
                self.in_loop = in_loop;
                Ok(StmtKind::Scope(body))
            }
            "break" | "continue" if !self.in_loop => self.wrong(format!("{name} stands outside a loop")),
            "break" => Ok(StmtKind::Break),
            "continue" => Ok(StmtKind::Continue),
            "include" | "extends" | "import" | "from" | "block" | "print" | "autoescape" => {
                self.wrong(format!("has the statement {name}, which is not offered to templates"))
            }
            name => self.wrong(format!("has the unknown statement {name}")),
        }
    }

    fn for_loop(&mut self) -> Parsed<StmtKind> {
        let target = self.target(false, Some("in"))?;
        if !self.skip_name("in") {
            return self.unexpected("in");
        }
        let items = self.tuple(false, &["recursive"])?;
        let filter = if self.skip_name("if") { Some(self.expression(true)?) } else { None };
        let recursive = self.skip_name("recursive");
        self.expect_block_end()?;
        let in_loop = std::mem::replace(&mut self.in_loop, true);
        let body = self.statements(&["endfor", "else"])?;
        self.in_loop = in_loop;
        self.at += 1;
        let otherwise = match self.skip_name("else") {
            true => self.body("endfor")?,
            false => {
                self.at += 1;
                Vec::new()
            }
        };
        Ok(StmtKind::For(Box::new(For { target, items, filter, recursive, body, otherwise })))
    }

    fn condition(&mut self) -> Parsed<StmtKind> {
        let mut branches = Vec::new();
        loop {
            let test = self.tuple(false, &[])?;
            self.expect_block_end()?;
            let body = self.statements(&["elif", "else", "endif"])?;
            self.at += 1;
            branches.push((test, body));
            if branches.len() > MOST_BRANCHES {
                return self.wrong(format!("has an if of more than {MOST_BRANCHES} branches"));
            }
            if self.skip_name("elif") {
                continue;
            }
            if self.skip_name("else") {
                let otherwise = self.body("endif")?;
                return Ok(StmtKind::If { branches, otherwise });
            }
            self.at += 1;
            return Ok(StmtKind::If { branches, otherwise: Vec::new() });
        }
    }

    fn set(&mut self) -> Parsed<StmtKind> {
        let target = self.target(true, None)?;
        if self.skip_op("=") {
            let value = self.tuple(true, &[])?;
            return Ok(StmtKind::Set { target, value });
        }
        let filters = self.filters(false)?;
        Ok(StmtKind::SetBlock { target, filters, body: self.body("endset")? })
    }

    fn with(&mut self) -> Parsed<StmtKind> {
        let mut values = Vec::new();
        while self.peek() != Some(&Token::BlockEnd) {
            if !values.is_empty() {
                self.expect_op(",")?;
            }
            let target = self.target_of_one(false)?;
            self.expect_op("=")?;
            values.push((target, self.expression(true)?));
        }
        Ok(StmtKind::With { values, body: self.body("endwith")? })
    }

    fn call_block(&mut self) -> Parsed<StmtKind> {
        let params = if self.is_op("(") { self.params()? } else { Vec::new() };
        let call = self.expression(true)?;
        let super::syntax::Expr::Call(callee, args) = call else { return self.wrong("expected a call") };
        let caller = self.macro_body("caller".into(), params, "endcall")?;
        Ok(StmtKind::CallBlock { callee: *callee, args: *args, caller })
    }

    fn macro_body(
        &mut self,
        name: String,
        params: Vec<(String, Option<super::syntax::Expr>)>,
        end: &str,
    ) -> Parsed<Macro> {
        let in_loop = std::mem::replace(&mut self.in_loop, false);
        self.leftovers.push([false; 3]);
        let body = self.body(end)?;
        self.in_loop = in_loop;
        let [uses_varargs, uses_kwargs, uses_caller] = self.leftovers.pop().unwrap_or_default();
        Ok(Macro { name, params, body, uses_varargs, uses_kwargs, uses_caller })
    }

    fn params(&mut self) -> Parsed<Vec<(String, Option<super::syntax::Expr>)>> {
        let mut params: Vec<(String, Option<super::syntax::Expr>)> = Vec::new();
        self.expect_op("(")?;
        while !self.is_op(")") {
            if !params.is_empty() {
                self.expect_op(",")?;
            }
            let name = self.assigned_name()?;
            let default = if self.skip_op("=") { Some(self.expression(true)?) } else { None };
            if default.is_none() && params.last().is_some_and(|(_, default)| default.is_some()) {
                return self.wrong("a parameter without a default follows one with a default");
            }
            if matches!(name.as_str(), "caller" | "varargs" | "kwargs") {
                return self.wrong(format!("has a parameter {name}, which is not offered to templates"));
            }
            params.push((name, default));
        }
        self.expect_op(")")?;
        Ok(params)
    }

    /// Filters with a `|` before each, but for the first where `inline`.
    fn filters(&mut self, inline: bool) -> Parsed<Vec<NamedCall>> {
        let mut filters = Vec::new();
        while inline && filters.is_empty() || self.skip_op("|") {
            filters.push(self.named_call()?);
        }
        Ok(filters)
    }

    fn assigned_name(&mut self) -> Parsed<String> {
        let name = self.expect_name()?;
        if CONSTANTS.contains(&name.as_str()) || name == "loop" {
            return self.wrong(format!("cannot assign to {name}"));
        }
        Ok(name)
    }

    /// What is given a value, up to the word `end`.
    fn target(&mut self, attributes: bool, end: Option<&str>) -> Parsed<Target> {
        let mut targets = Vec::new();
        let mut is_tuple = false;
        loop {
            let ended = match self.peek() {
                Some(Token::BlockEnd | Token::VariableEnd) => true,
                Some(Token::Op(op)) => TUPLE_ENDS.contains(op),
                Some(Token::Name(name)) => Some(name.as_str()) == end,
                _ => false,
            };
            if ended {
                break;
            }
            targets.push(self.target_of_one(attributes)?);
            if !self.skip_op(",") {
                break;
            }
            is_tuple = true;
        }
        match targets.pop() {
            None => self.unexpected("a name"),
            Some(one) if !is_tuple => Ok(one),
            Some(last) => {
                targets.push(last);
                Ok(Target::Tuple(targets))
            }
        }
    }

    fn target_of_one(&mut self, attributes: bool) -> Parsed<Target> {
        if self.skip_op("(") {
            let target = self.deeper(|parser| parser.target(attributes, None))?;
            self.expect_op(")")?;
            return Ok(target);
        }
        let name = self.assigned_name()?;
        if attributes && self.skip_op(".") {
            return Ok(Target::Attribute(name, self.expect_name()?));
        }
        Ok(Target::Name(name))
    }
}
