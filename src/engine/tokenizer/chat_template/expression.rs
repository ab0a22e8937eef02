//! Expressions out of tokens, by the precedence that Jinja2's parser has.

use super::lexer::Token;
use super::parser::{Parsed, Parser, TUPLE_ENDS};
use super::syntax::{Args, Arithmetic, Comparison, Expr, NamedCall};
use super::text::Text;

impl Parser {
    /// An expression, or several with commas between them, which make a tuple.
    pub fn tuple(&mut self, conditional: bool, ends: &[&str]) -> Parsed<Expr> {
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            let ended = match self.peek() {
                Some(Token::BlockEnd | Token::VariableEnd) => true,
                Some(Token::Op(op)) => TUPLE_ENDS.contains(op),
                Some(Token::Name(name)) => ends.contains(&name.as_str()),
                _ => false,
            };
            if ended {
                break;
            }
            items.push(self.expression(conditional)?);
            if !self.skip_op(",") {
                break;
            }
            is_tuple = true;
        }
        match items.pop() {
            None => self.unexpected("an expression"),
            Some(one) if !is_tuple => Ok(one),
            Some(last) => {
                items.push(last);
                Ok(Expr::Tuple(items))
            }
        }
    }

    pub fn expression(&mut self, conditional: bool) -> Parsed<Expr> {
        self.deeper(|parser| if conditional { parser.conditional() } else { parser.or() })
    }

    fn conditional(&mut self) -> Parsed<Expr> {
        let mut value = self.or()?;
        while self.skip_name("if") {
            let test = Box::new(self.or()?);
            let otherwise = match self.skip_name("else") {
                true => Some(Box::new(self.deeper(Self::conditional)?)),
                false => None,
            };
            value = Expr::If { test, then: Box::new(value), otherwise };
        }
        Ok(value)
    }

    fn or(&mut self) -> Parsed<Expr> {
        let mut left = self.and()?;
        while self.skip_name("or") {
            left = Expr::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Parsed<Expr> {
        let mut left = self.not()?;
        while self.skip_name("and") {
            left = Expr::And(Box::new(left), Box::new(self.not()?));
        }
        Ok(left)
    }

    fn not(&mut self) -> Parsed<Expr> {
        match self.skip_name("not") {
            true => Ok(Expr::Not(Box::new(self.deeper(Self::not)?))),
            false => self.compare(),
        }
    }

    fn compare(&mut self) -> Parsed<Expr> {
        let first = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let op = match self.peek() {
                Some(Token::Op("==")) => Comparison::Eq,
                Some(Token::Op("!=")) => Comparison::Ne,
                Some(Token::Op("<")) => Comparison::Lt,
                Some(Token::Op("<=")) => Comparison::Le,
                Some(Token::Op(">")) => Comparison::Gt,
                Some(Token::Op(">=")) => Comparison::Ge,
                Some(Token::Name(name)) if name == "in" => Comparison::In,
                Some(Token::Name(name)) if name == "not" => match self.look() {
                    Some(Token::Name(name)) if name == "in" => {
                        self.next();
                        Comparison::NotIn
                    }
                    _ => break,
                },
                _ => break,
            };
            self.next();
            rest.push((op, self.sum()?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Compare(Box::new(first), rest) })
    }

    fn chain(&mut self, ops: &[(&str, Arithmetic)], part: fn(&mut Self) -> Parsed<Expr>) -> Parsed<Expr> {
        let mut left = part(self)?;
        loop {
            let Some((_, op)) = ops.iter().find(|(op, _)| self.is_op(op)) else { return Ok(left) };
            self.next();
            left = Expr::Arithmetic(*op, Box::new(left), Box::new(part(self)?));
        }
    }

    fn sum(&mut self) -> Parsed<Expr> {
        self.chain(&[("+", Arithmetic::Add), ("-", Arithmetic::Sub)], Self::concat)
    }

    fn concat(&mut self) -> Parsed<Expr> {
        let first = self.product()?;
        if !self.is_op("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_op("~") {
            parts.push(self.product()?);
        }
        Ok(Expr::Concat(parts))
    }

    fn product(&mut self) -> Parsed<Expr> {
        let ops = [
            ("*", Arithmetic::Mul),
            ("/", Arithmetic::Div),
            ("//", Arithmetic::FloorDiv),
            ("%", Arithmetic::Mod),
        ];
        self.chain(&ops, Self::power)
    }

    fn power(&mut self) -> Parsed<Expr> {
        self.chain(&[("**", Arithmetic::Pow)], |parser| parser.unary(true))
    }

    fn unary(&mut self, filters: bool) -> Parsed<Expr> {
        let value = match self.peek() {
            Some(Token::Op("-")) => {
                self.next();
                Expr::Negative(Box::new(self.deeper(|parser| parser.unary(false))?))
            }
            Some(Token::Op("+")) => {
                self.next();
                Expr::Positive(Box::new(self.deeper(|parser| parser.unary(false))?))
            }
            _ => self.primary()?,
        };
        let value = self.postfix(value)?;
        if filters { self.filtered(value) } else { Ok(value) }
    }

    fn primary(&mut self) -> Parsed<Expr> {
        let Some(token) = self.peek().cloned() else { return self.unexpected("an expression") };
        if matches!(
            token,
            Token::VariableEnd | Token::BlockEnd | Token::Data(_) | Token::VariableBegin | Token::BlockBegin
        ) {
            return self.unexpected("an expression");
        }
        self.next();
        Ok(match token {
            Token::Name(name) => match name.as_str() {
                "true" | "True" => Expr::Bool(true),
                "false" | "False" => Expr::Bool(false),
                "none" | "None" => Expr::None,
                _ => {
                    self.note_name(&name);
                    Expr::Name(name)
                }
            },
            Token::Str(mut text) => {
                while let Some(Token::Str(more)) = self.peek() {
                    text.push_str(more);
                    self.next();
                }
                Expr::Str(Text::from(text))
            }
            Token::Int(value) => Expr::Int(value),
            Token::Float(value) => Expr::Float(value),
            Token::Op("(") => {
                let inner = match self.is_op(")") {
                    true => Expr::Tuple(Vec::new()),
                    false => self.tuple(true, &[])?,
                };
                self.expect_op(")")?;
                inner
            }
            Token::Op("[") => Expr::List(self.items("]", |parser| parser.expression(true))?),
            Token::Op("{") => Expr::Dict(self.items("}", |parser| {
                let key = parser.expression(true)?;
                parser.expect_op(":")?;
                Ok((key, parser.expression(true)?))
            })?),
            _ => {
                // The token that does not fit is named.
                self.step_back();
                return self.unexpected("an expression");
            }
        })
    }

    fn items<T>(&mut self, end: &str, mut item: impl FnMut(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        let mut items = Vec::new();
        while !self.skip_op(end) {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.skip_op(end) {
                    break;
                }
            }
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn postfix(&mut self, mut value: Expr) -> Parsed<Expr> {
        loop {
            if self.skip_op(".") {
                value = match self.next() {
                    Some(Token::Name(name)) => Expr::Attribute(Box::new(value), name),
                    Some(Token::Int(index)) => Expr::Item(Box::new(value), Box::new(Expr::Int(index))),
                    _ => return self.wrong("expected a name or a number after a dot"),
                };
            } else if self.skip_op("[") {
                value = self.subscript(value)?;
            } else if self.is_op("(") {
                value = Expr::Call(Box::new(value), Box::new(self.args()?));
            } else {
                return Ok(value);
            }
        }
    }

    fn subscript(&mut self, value: Expr) -> Parsed<Expr> {
        let first = if self.is_op(":") { None } else { Some(self.expression(true)?) };
        if !self.is_op(":") {
            let Some(index) = first else { return self.unexpected("an index") };
            if self.is_op(",") {
                return self.wrong("has an index of several parts, which is not offered to templates");
            }
            self.expect_op("]")?;
            return Ok(Expr::Item(Box::new(value), Box::new(index)));
        }
        let mut bounds = [first, None, None];
        for bound in &mut bounds[1..] {
            if !self.skip_op(":") {
                break;
            }
            if !self.is_op("]") && !self.is_op(":") {
                *bound = Some(self.expression(true)?);
            }
        }
        self.expect_op("]")?;
        Ok(Expr::Slice(Box::new(value), Box::new(bounds)))
    }

    fn args(&mut self) -> Parsed<Args> {
        self.expect_op("(")?;
        let mut args = Args::default();
        let mut first = true;
        while !self.is_op(")") {
            if !first {
                self.expect_op(",")?;
                if self.is_op(")") {
                    break;
                }
            }
            first = false;
            if self.skip_op("*") {
                args.list = Some(Box::new(self.expression(true)?));
            } else if self.skip_op("**") {
                args.dict = Some(Box::new(self.expression(true)?));
            } else if let (Some(Token::Name(name)), Some(Token::Op("="))) = (self.peek(), self.look()) {
                let name = name.clone();
                self.next();
                self.next();
                args.named.push((name, self.expression(true)?));
            } else if args.named.is_empty() && args.list.is_none() && args.dict.is_none() {
                args.positional.push(self.expression(true)?);
            } else {
                return self.wrong("an argument without a name follows one with a name");
            }
        }
        self.expect_op(")")?;
        Ok(args)
    }

    fn filtered(&mut self, mut value: Expr) -> Parsed<Expr> {
        loop {
            if self.skip_op("|") {
                value = Expr::Filter(Box::new(value), Box::new(self.named_call()?));
            } else if self.skip_name("is") {
                value = self.test(value)?;
            } else if self.is_op("(") {
                value = Expr::Call(Box::new(value), Box::new(self.args()?));
            } else {
                return Ok(value);
            }
        }
    }

    fn dotted_name(&mut self) -> Parsed<String> {
        let mut name = self.expect_name()?;
        while self.skip_op(".") {
            name.push('.');
            name.push_str(&self.expect_name()?);
        }
        Ok(name)
    }

    /// A filter's name and its arguments.
    pub fn named_call(&mut self) -> Parsed<NamedCall> {
        let name = self.dotted_name()?;
        let args = if self.is_op("(") { self.args()? } else { Args::default() };
        Ok(NamedCall { name, args })
    }

    fn test(&mut self, value: Expr) -> Parsed<Expr> {
        let negated = self.skip_name("not");
        let name = self.dotted_name()?;
        let takes_value = match self.peek() {
            Some(Token::Name(name)) => !matches!(name.as_str(), "else" | "or" | "and"),
            Some(Token::Str(_) | Token::Int(_) | Token::Float(_)) => true,
            Some(Token::Op(op)) => matches!(*op, "[" | "{"),
            _ => false,
        };
        let args = if self.is_op("(") {
            self.args()?
        } else if takes_value {
            if self.is_name("is") {
                return self.wrong("tests with is cannot be chained");
            }
            let one = self.primary()?;
            Args { positional: vec![self.postfix(one)?], ..Args::default() }
        } else {
            Args::default()
        };
        let test = Expr::Test(Box::new(value), Box::new(NamedCall { name, args }));
        Ok(if negated { Expr::Not(Box::new(test)) } else { test })
    }
}
