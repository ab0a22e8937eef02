//! Statements out of tokens, by Jinja2's grammar: its tags, and those that Hugging Face adds.

use super::lexer::{Token, Wrong};
use super::parser::{Parsed, Parser, TUPLE_ENDS};
use super::syntax::{Expr, For, Macro, NamedCall, Stmt, StmtKind, Target};
use super::text::Text;

/// Branches of one `if`.
const MAX_BRANCHES: usize = 100;
/// Names that no template may give a value to.
const CONSTANTS: &[&str] = &["true", "false", "none", "True", "False", "None"];

/// Parses a template.
pub(super) fn parse(source: &str) -> Result<Vec<Stmt>, Wrong> {
    let mut parser = Parser::new(source)?;
    let body = parser.statements(&[])?;
    match parser.peek() {
        None => Ok(body),
        Some(_) => parser.wrong("unexpected end of a block"),
    }
}

impl Parser {
    fn expect_block_end(&mut self) -> Parsed<()> {
        match self.peek() {
            Some(Token::BlockEnd) => {
                self.skip(1);
                Ok(())
            }
            _ => self.unexpected("end of statement block"),
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
                    self.skip(1);
                    kind
                }
                Some(Token::VariableBegin) => {
                    self.skip(1);
                    let value = self.tuple(true, &[])?;
                    if self.peek() != Some(&Token::VariableEnd) {
                        return self.unexpected("end of variable block");
                    }
                    self.skip(1);
                    StmtKind::Emit(value)
                }
                Some(_) => {
                    let Some(Token::Name(name)) = self.look() else {
                        self.skip(1);
                        return self.unexpected("a statement");
                    };
                    if ends.contains(&name.as_str()) {
                        return Ok(body);
                    }
                    self.skip(1);
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
        self.skip(2);
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
        self.skip(1);
        let otherwise = match self.skip_name("else") {
            true => self.body("endfor")?,
            false => {
                self.skip(1);
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
            self.skip(1);
            branches.push((test, body));
            if branches.len() > MAX_BRANCHES {
                return self.wrong(format!("has an if of more than {MAX_BRANCHES} branches"));
            }
            if self.skip_name("elif") {
                continue;
            }
            if self.skip_name("else") {
                let otherwise = self.body("endif")?;
                return Ok(StmtKind::If { branches, otherwise });
            }
            self.skip(1);
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
        let Expr::Call(callee, args) = call else { return self.wrong("expected a call") };
        let caller = self.macro_body("caller".into(), params, "endcall")?;
        Ok(StmtKind::CallBlock { callee: *callee, args: *args, caller })
    }

    fn macro_body(&mut self, name: String, params: Vec<(String, Option<Expr>)>, end: &str) -> Parsed<Macro> {
        let in_loop = std::mem::replace(&mut self.in_loop, false);
        self.leftovers.push([false; 3]);
        let body = self.body(end)?;
        self.in_loop = in_loop;
        let [uses_varargs, uses_kwargs, uses_caller] = self.leftovers.pop().unwrap_or_default();
        Ok(Macro { name, params, body, uses_varargs, uses_kwargs, uses_caller })
    }

    fn params(&mut self) -> Parsed<Vec<(String, Option<Expr>)>> {
        let mut params: Vec<(String, Option<Expr>)> = Vec::new();
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
