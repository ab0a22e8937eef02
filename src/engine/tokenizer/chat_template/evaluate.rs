//! Computes a template's expressions.

use super::arithmetic::arithmetic;
use super::call_args::CallArgs;
use super::fuel::{RenderResult, fail};
use super::interpreter::Interpreter;
use super::syntax::{Args, Arithmetic, Comparison, Expr};
use super::text::Builder;
use super::value::{SeqKind, Value, check_key, contains, equal, order, to_text};
use std::cmp::Ordering;
use std::rc::Rc;

/// Functions that templates may call by name.
const FUNCTIONS: &[&str] = &["range", "dict", "namespace", "raise_exception", "strftime_now"];
/// Names that Jinja2 gives a meaning to and that are not offered.
const NOT_OFFERED: &[&str] = &["lipsum", "cycler", "joiner", "self"];
/// What Jinja2's sandbox allows.
const LONGEST_RANGE: i128 = 100_000;
/// Attributes of Python's numbers and lists, which would be found there.
const PYTHON_ATTRIBUTES: &[&str] = &[
    "real",
    "imag",
    "numerator",
    "denominator",
    "conjugate",
    "bit_length",
    "bit_count",
    "to_bytes",
    "from_bytes",
    "as_integer_ratio",
    "is_integer",
    "hex",
    "fromhex",
    "append",
    "extend",
    "insert",
    "pop",
    "remove",
    "clear",
    "sort",
    "reverse",
    "copy",
    "start",
    "stop",
    "step",
    "update",
    "setdefault",
    "popitem",
    "fromkeys",
    "mapping",
    "isdisjoint",
    "send",
    "throw",
    "close",
];

impl<'t> Interpreter<'t> {
    /// An expression that is written: `safe` at its end means nothing there.
    pub fn eval_written(&mut self, expr: &'t Expr) -> RenderResult<Value> {
        match expr {
            Expr::Filter(inner, call) if call.name == "safe" => self.eval(inner),
            other => self.eval(other),
        }
    }

    pub fn eval(&mut self, expr: &'t Expr) -> RenderResult<Value> {
        self.fuel.spend(1)?;
        self.deeper(|this| match expr {
            Expr::None => Ok(Value::None),
            Expr::Bool(value) => Ok(Value::Bool(*value)),
            Expr::Int(value) => Ok(Value::Int(*value)),
            Expr::Float(value) => Ok(Value::Float(*value)),
            Expr::Str(text) => Ok(Value::Str(text.clone())),
            Expr::Name(name) => this.name(name),
            Expr::Not(inner) => Ok(Value::Bool(!this.eval(inner)?.is_true())),
            Expr::And(left, right) => {
                let left = this.eval(left)?;
                if left.is_true() { this.eval(right) } else { Ok(left) }
            }
            Expr::Or(left, right) => {
                let left = this.eval(left)?;
                if left.is_true() { Ok(left) } else { this.eval(right) }
            }
            Expr::If { test, then, otherwise } => match (this.eval(test)?.is_true(), otherwise) {
                (true, _) => this.eval(then),
                (false, Some(otherwise)) => this.eval(otherwise),
                (false, None) => Ok(Value::undefined("the other branch of an if")),
            },
            other => this.compound(other),
        })
    }

    fn compound(&mut self, expr: &'t Expr) -> RenderResult<Value> {
        match expr {
            Expr::List(items) => self.items(SeqKind::List, items),
            Expr::Tuple(items) => self.items(SeqKind::Tuple, items),
            Expr::Dict(pairs) => {
                let mut entries = Vec::with_capacity(pairs.len());
                for (key, value) in pairs {
                    entries.push((self.eval(key)?, self.eval(value)?));
                }
                Value::dict(entries, &self.fuel)
            }
            Expr::Negative(inner) => {
                arithmetic(Arithmetic::Mul, &self.number(inner)?, &Value::Int(-1), &self.fuel)
            }
            Expr::Positive(inner) => {
                arithmetic(Arithmetic::Add, &self.number(inner)?, &Value::Int(0), &self.fuel)
            }
            Expr::Compare(first, rest) => self.compare(first, rest),
            Expr::Arithmetic(op, left, right) => {
                let left = self.eval(left)?;
                let right = self.eval(right)?;
                arithmetic(*op, &left, &right, &self.fuel)
            }
            Expr::Concat(parts) => self.concat(parts),
            Expr::Attribute(inner, name) => {
                let value = self.eval(inner)?;
                self.attribute(&value, name)
            }
            Expr::Item(inner, index) => {
                let value = self.eval(inner)?;
                let index = self.eval(index)?;
                self.item(&value, &index)
            }
            Expr::Slice(inner, bounds) => self.slice(inner, bounds),
            Expr::Call(callee, args) => {
                let callee = self.eval(callee)?;
                let args = self.args(args)?;
                self.call(&callee, args)
            }
            Expr::Filter(inner, call) => {
                let value = self.eval(inner)?;
                let args = self.args(&call.args)?;
                self.filter(&call.name, value, args)
            }
            Expr::Test(inner, call) => {
                let value = self.eval(inner)?;
                let args = self.args(&call.args)?;
                Ok(Value::Bool(self.test(&call.name, &value, args)?))
            }
            _ => fail("an expression is not offered to templates"),
        }
    }

    fn concat(&mut self, parts: &'t [Expr]) -> RenderResult<Value> {
        let mut out = Builder::default();
        for part in parts {
            let value = self.eval(part)?;
            let text = to_text(&value, &self.fuel)?;
            self.fuel.spend_bytes(text.len())?;
            out.push(&text);
        }
        Ok(Value::Str(out.finish()))
    }

    fn number(&mut self, expr: &'t Expr) -> RenderResult<Value> {
        match self.eval(expr)? {
            value if value.as_float().is_some() => Ok(value),
            other => fail(format!("a {} has no sign", other.kind())),
        }
    }

    fn items(&mut self, kind: SeqKind, items: &'t [Expr]) -> RenderResult<Value> {
        let items = items.iter().map(|item| self.eval(item)).collect::<RenderResult<Vec<_>>>()?;
        Value::seq(kind, items, &self.fuel)
    }

    fn name(&self, name: &str) -> RenderResult<Value> {
        if let Some(value) = self.lookup(name) {
            return Ok(value);
        }
        if NOT_OFFERED.contains(&name) {
            return fail(format!("{name} is not offered to templates"));
        }
        let function = FUNCTIONS.iter().find(|function| **function == name);
        Ok(function.map_or_else(|| Value::undefined(name), |function| Value::Function(function)))
    }

    fn compare(&mut self, first: &'t Expr, rest: &'t [(Comparison, Expr)]) -> RenderResult<Value> {
        let mut left = self.eval(first)?;
        for (op, right) in rest {
            let right = self.eval(right)?;
            let holds = match op {
                Comparison::Eq => equal(&left, &right, &self.fuel)?,
                Comparison::Ne => !equal(&left, &right, &self.fuel)?,
                Comparison::In => contains(&right, &left, &self.fuel)?,
                Comparison::NotIn => !contains(&right, &left, &self.fuel)?,
                sized => {
                    let order = order(&left, &right, &self.fuel)?;
                    match sized {
                        Comparison::Lt => order == Some(Ordering::Less),
                        Comparison::Le => order.is_some_and(Ordering::is_le),
                        Comparison::Gt => order == Some(Ordering::Greater),
                        _ => order.is_some_and(Ordering::is_ge),
                    }
                }
            };
            if !holds {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    pub fn args(&mut self, args: &'t Args) -> RenderResult<CallArgs> {
        let mut made = CallArgs::default();
        for value in &args.positional {
            made.positional.push(self.eval(value)?);
        }
        for (name, value) in &args.named {
            let value = self.eval(value)?;
            made.named.push((name.clone(), value));
        }
        if let Some(list) = &args.list {
            let list = self.eval(list)?;
            made.positional.extend(list.iterate(&self.fuel)?);
        }
        if let Some(dict) = &args.dict {
            let Value::Dict(dict) = self.eval(dict)? else { return fail("what follows ** is no dict") };
            for (key, value) in &dict.entries {
                let Value::Str(key) = key else { return fail("an argument's name is no text") };
                made.named.push((key.as_str().to_owned(), value.clone()));
            }
        }
        Ok(made)
    }

    /// `value.name`: an attribute, else an item.
    pub fn attribute(&mut self, value: &Value, name: &str) -> RenderResult<Value> {
        if name.starts_with('_') {
            return fail(format!("the attribute {name} is not offered to templates"));
        }
        match self.own_attribute(value, name)? {
            Some(found) => Ok(found),
            None => match value {
                Value::Dict(dict) => {
                    let found = dict.get(&Value::str(name), &self.fuel)?;
                    Ok(found.unwrap_or_else(|| Value::undefined(name)))
                }
                _ => Ok(Value::undefined(name)),
            },
        }
    }

    fn own_attribute(&mut self, value: &Value, name: &str) -> RenderResult<Option<Value>> {
        match value {
            Value::Undefined(what) => return fail(format!("{what} is undefined")),
            Value::Namespace(id) => {
                let found = self.namespaces[*id].iter().find(|(found, _)| found == name);
                return Ok(found.map(|(_, value)| value.clone()));
            }
            Value::Loop(id) => return self.loop_attribute(*id, name).map(Some),
            Value::Macro(_) | Value::Function(_) | Value::Method(_) => {
                return fail(format!("attributes of a {} are not offered to templates", value.kind()));
            }
            _ => {}
        }
        if super::methods::names(value).contains(&name) {
            self.fuel.spend(1)?;
            // What a chain of methods holds is bounded as a list is.
            Value::list(vec![value.clone()], &self.fuel)?;
            return Ok(Some(Value::Method(Rc::new((value.clone(), name.to_owned())))));
        }
        let numeric = value.as_float().is_some();
        if super::methods::UNOFFERED.contains(&name) && matches!(value, Value::Str(_))
            || PYTHON_ATTRIBUTES.contains(&name)
                && (numeric || matches!(value, Value::Seq(_) | Value::Dict(_)))
        {
            return fail(format!("{name} of a {} is not offered to templates", value.kind()));
        }
        Ok(None)
    }

    fn loop_attribute(&self, id: usize, name: &str) -> RenderResult<Value> {
        let state = &self.loops[id];
        let int = |value: usize| Ok(Value::Int(value as i128));
        let (index, length) = (state.index, state.items.len());
        match name {
            "index" => int(index + 1),
            "index0" => int(index),
            "revindex" => int(length - index),
            "revindex0" => int(length - index - 1),
            "first" => Ok(Value::Bool(index == 0)),
            "last" => Ok(Value::Bool(index + 1 == length)),
            "length" => int(length),
            "depth" => int(state.depth + 1),
            "depth0" => int(state.depth),
            "previtem" | "nextitem" => {
                let at = if name == "previtem" { index.checked_sub(1) } else { Some(index + 1) };
                let item = at.and_then(|at| state.items.get(at)).cloned();
                Ok(item.unwrap_or_else(|| Value::undefined("there is no such item of the loop, which")))
            }
            "cycle" | "changed" => Ok(Value::Method(Rc::new((Value::Loop(id), name.to_owned())))),
            _ => Ok(Value::undefined(name)),
        }
    }

    /// `value[index]`: an item, else an attribute.
    pub fn item(&mut self, value: &Value, index: &Value) -> RenderResult<Value> {
        match (value, index) {
            (Value::Undefined(what), _) => return fail(format!("{what} is undefined")),
            // Nothing is found by what cannot be a key.
            (Value::Dict(dict), key) if check_key(key).is_ok() => {
                if let Some(found) = dict.get(key, &self.fuel)? {
                    return Ok(found);
                }
            }
            (Value::Seq(seq), index) if index.as_int().is_some() => {
                if matches!(seq.kind, SeqKind::View | SeqKind::Generator) {
                    return fail(format!("an item of a {} is not offered to templates", value.kind()));
                }
                let at = position(index.as_int().unwrap_or_default(), seq.items.len());
                return Ok(
                    at.map_or_else(|| Value::undefined("an item beyond a list"), |at| seq.items[at].clone())
                );
            }
            (Value::Str(text), index) if index.as_int().is_some() => {
                self.fuel.spend_bytes(text.len())?;
                let at = position(index.as_int().unwrap_or_default(), text.chars());
                return Ok(match at {
                    Some(at) => Value::Str(text.pick(std::iter::once(at))),
                    None => Value::undefined("a character beyond a text"),
                });
            }
            _ => {}
        }
        match index {
            Value::Str(name) if name.as_str().starts_with('_') => {
                fail("an attribute is not offered to templates")
            }
            Value::Str(name) => {
                let found = self.own_attribute(value, name.as_str())?;
                Ok(found.unwrap_or_else(|| Value::undefined(name.as_str())))
            }
            _ => Ok(Value::undefined("an item")),
        }
    }

    fn slice(&mut self, inner: &'t Expr, bounds: &'t [Option<Expr>; 3]) -> RenderResult<Value> {
        let value = self.eval(inner)?;
        let mut limits = [None; 3];
        for (limit, bound) in limits.iter_mut().zip(bounds) {
            let Some(bound) = bound else { continue };
            *limit = match self.eval(bound)? {
                Value::None => None,
                bound => match bound.as_int() {
                    Some(int) => Some(int),
                    None => return fail("a slice goes from a number to a number"),
                },
            };
        }
        match &value {
            Value::Undefined(what) => fail(format!("{what} is undefined")),
            Value::Str(text) => {
                self.fuel.spend_bytes(text.len().saturating_mul(8))?;
                Ok(Value::Str(text.pick(indices(text.chars(), limits)?)))
            }
            Value::Seq(seq) if matches!(seq.kind, SeqKind::List | SeqKind::Tuple) => {
                let items = indices(seq.items.len(), limits)?.map(|at| seq.items[at].clone()).collect();
                Value::seq(seq.kind, items, &self.fuel)
            }
            other => fail(format!("a slice of a {} is not offered to templates", other.kind())),
        }
    }

    pub fn call(&mut self, callee: &Value, args: CallArgs) -> RenderResult<Value> {
        match callee {
            Value::Macro(id) => self.call_macro(*id, args),
            Value::Loop(id) => self.call_loop(*id, args),
            Value::Function(name) => self.function(name, args),
            Value::Method(method) => match &method.0 {
                Value::Loop(id) => self.loop_method(*id, &method.1, args),
                value => super::methods::call(value, &method.1, args, &self.fuel),
            },
            Value::Undefined(what) => fail(format!("{what} is undefined")),
            other => fail(format!("a {} cannot be called", other.kind())),
        }
    }

    fn loop_method(&mut self, id: usize, name: &str, args: CallArgs) -> RenderResult<Value> {
        if name == "cycle" {
            let values = args.positional;
            return match values.is_empty() {
                true => fail("cycle takes what it goes through"),
                false => Ok(values[self.loops[id].index % values.len()].clone()),
            };
        }
        let now = Value::seq(SeqKind::Tuple, args.positional, &self.fuel)?;
        let changed = match &self.loops[id].changed {
            Some(before) => !equal(before, &now, &self.fuel)?,
            None => true,
        };
        self.loops[id].changed = Some(now);
        Ok(Value::Bool(changed))
    }

    fn function(&mut self, name: &str, args: CallArgs) -> RenderResult<Value> {
        match name {
            "range" => self.range(args),
            "dict" | "namespace" => {
                let mut pairs = Vec::new();
                for value in args.positional {
                    let Value::Dict(dict) = value else { return fail(format!("{name} takes a dict")) };
                    pairs.extend(dict.entries.iter().cloned());
                }
                pairs.extend(args.named.into_iter().map(|(name, value)| (Value::str(&name), value)));
                if name == "dict" {
                    return Value::dict(pairs, &self.fuel);
                }
                let mut names = Vec::new();
                self.fuel.spend(pairs.len() + 1)?;
                for (key, value) in pairs {
                    match (key, value) {
                        (_, Value::Namespace(_)) => {
                            return fail("a namespace in a namespace is not offered to templates");
                        }
                        (Value::Str(key), value) => names.push((key.as_str().to_owned(), value)),
                        _ => return fail("a namespace's names are texts"),
                    }
                }
                self.namespaces.push(names);
                Ok(Value::Namespace(self.namespaces.len() - 1))
            }
            "strftime_now" => {
                let [Some(Value::Str(format))] = args.bind(name, ["format"])? else {
                    return fail("strftime_now takes a format");
                };
                match (self.strftime)(format.as_str()) {
                    Ok(text) => Ok(Value::Str(super::text::Text::from(text))),
                    Err(why) => fail(why),
                }
            }
            _ => {
                let [message] = args.bind(name, ["message"])?;
                let message =
                    message.map_or(Ok(super::text::Text::default()), |value| to_text(&value, &self.fuel))?;
                fail(message.as_str())
            }
        }
    }

    fn range(&mut self, args: CallArgs) -> RenderResult<Value> {
        let numbers = args.positional.iter().map(Value::as_int).collect::<Option<Vec<_>>>();
        let (start, stop, step) = match numbers.as_deref().filter(|_| args.named.is_empty()) {
            Some([stop]) => (0, *stop, 1),
            Some([start, stop]) => (*start, *stop, 1),
            Some([start, stop, step]) if *step != 0 => (*start, *stop, *step),
            _ => return fail("range takes one to three numbers"),
        };
        let span = if step > 0 { stop.saturating_sub(start) } else { start.saturating_sub(stop) };
        let len = if span <= 0 { 0 } else { (span - 1) / step.saturating_abs() + 1 };
        if len > LONGEST_RANGE {
            return fail("a range is too long");
        }
        self.fuel.spend(len as usize)?;
        Value::seq(SeqKind::Range, (0..len).map(|at| Value::Int(start + at * step)).collect(), &self.fuel)
    }
}

/// Where the item with Python's index is.
pub(super) fn position(index: i128, len: usize) -> Option<usize> {
    let index = if index < 0 { index.saturating_add(len as i128) } else { index };
    usize::try_from(index).ok().filter(|at| *at < len)
}

/// The places that Python's slice gives, from, to and by `limits`.
pub(super) fn indices(len: usize, limits: [Option<i128>; 3]) -> RenderResult<impl Iterator<Item = usize>> {
    let len = len as i128;
    let [start, stop, step] = limits;
    let step = step.unwrap_or(1);
    if step == 0 {
        return fail("a slice has no step");
    }
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let clamp = |at: i128| if at < 0 { at.saturating_add(len).max(low) } else { at.min(high) };
    let start = start.map_or(if step > 0 { 0 } else { len - 1 }, clamp);
    let stop = stop.map_or(if step > 0 { len } else { -1 }, clamp);
    let mut at = start;
    Ok(std::iter::from_fn(move || {
        let here = at;
        let inside = if step > 0 { here < stop } else { here > stop };
        at = at.saturating_add(step);
        inside.then_some(here as usize)
    }))
}
