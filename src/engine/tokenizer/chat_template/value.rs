//! Values as Python has them. Lists and dicts never change, so that none can hold itself.

use super::fuel::{Fuel, RenderResult, fail};
use super::number;
use super::text::{Builder, Text};
use std::cell::Cell;
use std::cmp::Ordering;
use std::rc::Rc;

/// Values in a list or dict, those counted that its members hold: what holds the same list twice counts it twice.
const MAX_HELD: usize = 1 << 16;
/// Lists in lists.
const MAX_DEPTH: usize = 50;

#[derive(Debug, Clone)]
pub(super) enum Value {
    /// A name or an attribute that is not there.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Text),
    Seq(Rc<Seq>),
    Dict(Rc<Dict>),
    /// By their numbers in the interpreter.
    Namespace(usize),
    Loop(usize),
    Macro(usize),
    /// A function that Jinja or Hugging Face offers.
    Function(&'static str),
    /// A method with what it belongs to.
    Method(Rc<(Value, String)>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SeqKind {
    List,
    Tuple,
    Range,
    /// The keys, values or items of a dict.
    View,
    /// What filters such as `map` give: it can be gone through once.
    Generator,
}

#[derive(Debug)]
pub(super) struct Seq {
    pub kind: SeqKind,
    pub items: Vec<Value>,
    used: Cell<bool>,
    size: Size,
}

#[derive(Debug)]
pub(super) struct Dict {
    pub entries: Vec<(Value, Value)>,
    size: Size,
}

/// How many values something holds, and how deep.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    held: usize,
    depth: usize,
}

impl Size {
    fn of<'v>(values: impl Iterator<Item = &'v Value>) -> RenderResult<Size> {
        let mut size = Size { held: 1, depth: 0 };
        for value in values {
            let inner = match value {
                Value::Seq(seq) => seq.size,
                Value::Dict(dict) => dict.size,
                Value::Method(method) => Size { depth: 1, ..Size::of(std::iter::once(&method.0))? },
                _ => Size { held: 1, depth: 0 },
            };
            size.held = size.held.saturating_add(inner.held);
            size.depth = size.depth.max(inner.depth);
        }
        size.depth += 1;
        if size.held > MAX_HELD || size.depth > MAX_DEPTH {
            return fail("a list holds too many values, or lists too deep inside each other");
        }
        Ok(size)
    }
}

impl Value {
    pub fn undefined(name: &str) -> Value {
        Value::Undefined(Rc::from(name))
    }

    pub fn str(text: &str) -> Value {
        Value::Str(Text::from(text))
    }

    pub fn seq(kind: SeqKind, items: Vec<Value>, fuel: &Fuel) -> RenderResult<Value> {
        fuel.spend(items.len() + 1)?;
        let size = Size::of(items.iter())?;
        Ok(Value::Seq(Rc::new(Seq { kind, items, used: Cell::new(false), size })))
    }

    pub fn list(items: Vec<Value>, fuel: &Fuel) -> RenderResult<Value> {
        Value::seq(SeqKind::List, items, fuel)
    }

    /// A dict; of equal keys the last gives the value, and the first the place.
    pub fn dict(pairs: Vec<(Value, Value)>, fuel: &Fuel) -> RenderResult<Value> {
        let mut entries: Vec<(Value, Value)> = Vec::with_capacity(pairs.len());
        fuel.spend(pairs.len() + 1)?;
        for (key, value) in pairs {
            check_key(&key)?;
            match position(&entries, &key, fuel)? {
                Some(at) => entries[at].1 = value,
                None => entries.push((key, value)),
            }
        }
        let size = Size::of(entries.iter().flat_map(|(key, value)| [key, value]))?;
        Ok(Value::Dict(Rc::new(Dict { entries, size })))
    }

    /// What it is, in a message.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Undefined(_) => "undefined",
            Value::None => "none",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float",
            Value::Str(_) => "string",
            Value::Seq(seq) => match seq.kind {
                SeqKind::List => "list",
                SeqKind::Tuple => "tuple",
                SeqKind::Range => "range",
                SeqKind::View => "view of a dict",
                SeqKind::Generator => "generator",
            },
            Value::Dict(_) => "dict",
            Value::Namespace(_) => "namespace",
            Value::Loop(_) => "loop",
            Value::Macro(_) => "macro",
            Value::Function(_) => "function",
            Value::Method(_) => "method",
        }
    }

    pub fn is_true(&self) -> bool {
        match self {
            Value::Undefined(_) | Value::None => false,
            Value::Bool(value) => *value,
            Value::Int(value) => *value != 0,
            Value::Float(value) => *value != 0.0,
            Value::Str(text) => !text.is_empty(),
            Value::Seq(seq) => seq.kind == SeqKind::Generator || !seq.items.is_empty(),
            Value::Dict(dict) => !dict.entries.is_empty(),
            _ => true,
        }
    }

    /// As an integer where Python takes it for one.
    pub fn as_int(&self) -> Option<i128> {
        match self {
            Value::Bool(value) => Some(i128::from(*value)),
            Value::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// As a number where Python takes it for one.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Value::Float(value) => Some(*value),
            other => other.as_int().map(|value| value as f64),
        }
    }

    /// What `len` gives.
    pub fn len(&self) -> RenderResult<usize> {
        match self {
            Value::Undefined(_) => Ok(0),
            Value::Str(text) => Ok(text.chars()),
            Value::Seq(seq) if seq.kind != SeqKind::Generator => Ok(seq.items.len()),
            Value::Dict(dict) => Ok(dict.entries.len()),
            other => fail(format!("a {} has no length", other.kind())),
        }
    }

    /// What a loop over it goes through.
    pub fn iterate(&self, fuel: &Fuel) -> RenderResult<Vec<Value>> {
        match self {
            Value::Undefined(_) => Ok(Vec::new()),
            Value::Seq(seq) => {
                if seq.kind == SeqKind::Generator && seq.used.replace(true) {
                    return fail("a generator is gone through twice, which is not offered to templates");
                }
                fuel.spend(seq.items.len())?;
                Ok(seq.items.clone())
            }
            Value::Dict(dict) => {
                fuel.spend(dict.entries.len())?;
                Ok(dict.entries.iter().map(|(key, _)| key.clone()).collect())
            }
            Value::Str(text) => {
                // Each character becomes a text of its own.
                fuel.spend(text.chars().saturating_mul(2))?;
                let ends = text.as_str().char_indices().map(|(at, c)| at..at + c.len_utf8());
                Ok(ends.map(|part| Value::Str(text.slice(part))).collect())
            }
            other => fail(format!("a {} cannot be gone through", other.kind())),
        }
    }
}

/// Refuses what cannot be a key.
pub(super) fn check_key(key: &Value) -> RenderResult<()> {
    match key {
        Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Str(_) => Ok(()),
        other => fail(format!("a {} as a key is not offered to templates", other.kind())),
    }
}

fn position(entries: &[(Value, Value)], key: &Value, fuel: &Fuel) -> RenderResult<Option<usize>> {
    for (at, (found, _)) in entries.iter().enumerate() {
        if equal(found, key, fuel)? {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

impl Dict {
    pub fn get(&self, key: &Value, fuel: &Fuel) -> RenderResult<Option<Value>> {
        Ok(position(&self.entries, key, fuel)?.map(|at| self.entries[at].1.clone()))
    }
}

/// Python's `==`.
pub(super) fn equal(left: &Value, right: &Value, fuel: &Fuel) -> RenderResult<bool> {
    fuel.spend(1)?;
    Ok(match (left, right) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Str(a), Value::Str(b)) => {
            fuel.spend_bytes(a.len().min(b.len()))?;
            a.as_str() == b.as_str()
        }
        (Value::Seq(a), Value::Seq(b)) => {
            let comparable =
                [a.kind, b.kind].iter().all(|kind| *kind != SeqKind::Generator && *kind != SeqKind::View);
            if !comparable {
                return fail("views and generators cannot be compared");
            }
            if a.kind != b.kind || a.items.len() != b.items.len() {
                return Ok(false);
            }
            for (a, b) in a.items.iter().zip(&b.items) {
                if !equal(a, b, fuel)? {
                    return Ok(false);
                }
            }
            true
        }
        (Value::Dict(a), Value::Dict(b)) => {
            if a.entries.len() != b.entries.len() {
                return Ok(false);
            }
            for (key, value) in &a.entries {
                match b.get(key, fuel)? {
                    Some(other) if equal(value, &other, fuel)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Value::Namespace(a), Value::Namespace(b)) | (Value::Loop(a), Value::Loop(b)) => a == b,
        (Value::Macro(a), Value::Macro(b)) => a == b,
        (Value::Function(a), Value::Function(b)) => a == b,
        (Value::Method(_), Value::Method(_)) => return fail("methods cannot be compared"),
        _ => compare_numbers(left, right) == Some(Ordering::Equal),
    })
}

/// The order of two numbers; `None` where one is none, or not a number.
fn compare_numbers(left: &Value, right: &Value) -> Option<Ordering> {
    match (left.as_int(), right.as_int()) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        _ => left.as_float()?.partial_cmp(&right.as_float()?),
    }
}

/// Python's `<`.
pub(super) fn less(left: &Value, right: &Value, fuel: &Fuel) -> RenderResult<bool> {
    Ok(order(left, right, fuel)? == Some(Ordering::Less))
}

/// The order of two values that Python can order; `None` beside a number that is none.
pub(super) fn order(left: &Value, right: &Value, fuel: &Fuel) -> RenderResult<Option<Ordering>> {
    fuel.spend(1)?;
    match (left, right) {
        (Value::Str(a), Value::Str(b)) => {
            fuel.spend_bytes(a.len().min(b.len()))?;
            Ok(Some(a.as_str().cmp(b.as_str())))
        }
        (Value::Seq(a), Value::Seq(b))
            if a.kind == b.kind && matches!(a.kind, SeqKind::List | SeqKind::Tuple) =>
        {
            for (a, b) in a.items.iter().zip(&b.items) {
                if !equal(a, b, fuel)? {
                    return order(a, b, fuel);
                }
            }
            Ok(Some(a.items.len().cmp(&b.items.len())))
        }
        (a, b) if a.as_float().is_some() && b.as_float().is_some() => Ok(compare_numbers(a, b)),
        (a, b) => fail(format!("a {} and a {} cannot be compared by size", a.kind(), b.kind())),
    }
}

/// Python's `in`.
pub(super) fn contains(holder: &Value, value: &Value, fuel: &Fuel) -> RenderResult<bool> {
    match (holder, value) {
        (Value::Str(text), Value::Str(part)) => {
            fuel.spend_bytes(text.len().saturating_add(part.len()))?;
            Ok(text.as_str().contains(part.as_str()))
        }
        (Value::Str(_), other) => fail(format!("a string cannot hold a {}", other.kind())),
        (Value::Dict(_), Value::Undefined(_)) => Ok(false),
        (Value::Dict(dict), key) => {
            check_key(key)?;
            Ok(dict.get(key, fuel)?.is_some())
        }
        (holder, value) => {
            for item in holder.iterate(fuel)? {
                if equal(&item, value, fuel)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
    }
}

/// Python's `str`, as `{{ }}` writes it.
pub(super) fn to_text(value: &Value, fuel: &Fuel) -> RenderResult<Text> {
    match value {
        Value::Str(text) => Ok(text.clone()),
        Value::Undefined(_) => Ok(Text::default()),
        other => {
            let mut out = Builder::default();
            repr(other, &mut out, fuel)?;
            Ok(out.finish())
        }
    }
}

/// Python's `repr`. Contents are refused in it, since it writes them otherwise than they are.
pub(super) fn repr(value: &Value, out: &mut Builder, fuel: &Fuel) -> RenderResult<()> {
    fuel.spend(1)?;
    match value {
        Value::None => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Int(value) => out.push_str(&value.to_string()),
        Value::Float(value) => out.push_str(&number::repr(*value)),
        Value::Undefined(_) => out.push_str("Undefined"),
        Value::Str(text) => {
            fuel.spend_bytes(text.len().saturating_mul(4))?;
            out.push_str(&repr_of_text(text)?);
        }
        Value::Seq(seq) if matches!(seq.kind, SeqKind::List | SeqKind::Tuple) => {
            let is_list = seq.kind == SeqKind::List;
            out.push_str(if is_list { "[" } else { "(" });
            for (at, item) in seq.items.iter().enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                repr(item, out, fuel)?;
            }
            out.push_str(match seq.items.len() {
                _ if is_list => "]",
                1 => ",)",
                _ => ")",
            });
        }
        Value::Dict(dict) => {
            out.push_str("{");
            for (at, (key, value)) in dict.entries.iter().enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                repr(key, out, fuel)?;
                out.push_str(": ");
                repr(value, out, fuel)?;
            }
            out.push_str("}");
        }
        other => return fail(format!("a {} cannot be written", other.kind())),
    }
    Ok(())
}

fn repr_of_text(text: &Text) -> RenderResult<String> {
    if text.has_content() {
        return fail("a list or dict with a message's content cannot be written, but by tojson");
    }
    let text = text.as_str();
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if c.is_ascii() || c.is_alphanumeric() => out.push(c),
            // Which of the others Python prints depends on its table of characters.
            c => return fail(format!("the character {c:?} in a list or dict cannot be written")),
        }
    }
    out.push(quote);
    Ok(out)
}
