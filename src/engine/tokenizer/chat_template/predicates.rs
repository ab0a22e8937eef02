//! Jinja2's tests, as `is defined`.

use super::call_args::CallArgs;
use super::fuel::{RenderResult, fail};
use super::interpreter::Interpreter;
use super::value::{SeqKind, Value, contains, equal, order};
use std::cmp::Ordering;

/// The tests that take a value to compare with.
const WITH_VALUE: &[&str] = &[
    "divisibleby",
    "eq",
    "equalto",
    "==",
    "ne",
    "!=",
    "lt",
    "lessthan",
    "<",
    "le",
    "<=",
    "gt",
    "greaterthan",
    ">",
    "ge",
    ">=",
    "in",
    "sameas",
];

impl Interpreter<'_> {
    pub fn test(&mut self, name: &str, value: &Value, args: CallArgs) -> RenderResult<bool> {
        if WITH_VALUE.contains(&name) {
            let [Some(other)] = args.bind(name, ["other"])? else {
                return fail(format!("{name} takes a value"));
            };
            return self.compared(name, value, &other);
        }
        args.bind(name, [])?;
        Ok(match name {
            "defined" => !matches!(value, Value::Undefined(_)),
            "undefined" => matches!(value, Value::Undefined(_)),
            "none" => matches!(value, Value::None),
            "boolean" => matches!(value, Value::Bool(_)),
            "true" => matches!(value, Value::Bool(true)),
            "false" => matches!(value, Value::Bool(false)),
            "integer" => matches!(value, Value::Int(_)),
            "float" => matches!(value, Value::Float(_)),
            "number" => value.as_float().is_some(),
            "string" => matches!(value, Value::Str(_)),
            "mapping" => matches!(value, Value::Dict(_)),
            "sequence" => match value {
                Value::Seq(seq) => seq.kind != SeqKind::Generator && seq.kind != SeqKind::View,
                Value::Str(_) | Value::Dict(_) => true,
                Value::Undefined(_) => {
                    return fail("whether an undefined is a sequence is not offered to templates");
                }
                _ => false,
            },
            "iterable" => {
                matches!(
                    value,
                    Value::Seq(_) | Value::Dict(_) | Value::Str(_) | Value::Undefined(_) | Value::Loop(_)
                )
            }
            "callable" => matches!(
                value,
                Value::Macro(_)
                    | Value::Function(_)
                    | Value::Method(_)
                    | Value::Loop(_)
                    | Value::Undefined(_)
            ),
            "lower" | "upper" => match value {
                Value::Str(text) => {
                    let [lower, upper] =
                        [char::is_lowercase, char::is_uppercase].map(|is| text.as_str().chars().any(is));
                    if name == "lower" { lower && !upper } else { upper && !lower }
                }
                _ => return fail(format!("{name} of what is no text is not offered to templates")),
            },
            "odd" | "even" => match value {
                value if value.as_int().is_some() => {
                    (value.as_int().unwrap_or_default().rem_euclid(2) == 1) == (name == "odd")
                }
                Value::Float(float) => float.rem_euclid(2.0) == f64::from(u8::from(name == "odd")),
                other => return fail(format!("a {} is neither odd nor even", other.kind())),
            },
            _ => return fail(format!("the test {name} is not known, or not offered to templates")),
        })
    }

    fn compared(&mut self, name: &str, value: &Value, other: &Value) -> RenderResult<bool> {
        match name {
            "eq" | "equalto" | "==" => equal(value, other, &self.fuel),
            "ne" | "!=" => Ok(!equal(value, other, &self.fuel)?),
            "in" => contains(other, value, &self.fuel),
            "divisibleby" => match (value.as_int(), other.as_int()) {
                (Some(value), Some(other)) if other != 0 => Ok(value.checked_rem(other) == Some(0)),
                _ => fail("only numbers are divisible"),
            },
            "sameas" => match (value, other) {
                (Value::None, Value::None) => Ok(true),
                (Value::Bool(a), Value::Bool(b)) => Ok(a == b),
                (Value::None | Value::Bool(_), _) | (_, Value::None | Value::Bool(_)) => Ok(false),
                _ => fail("sameas of such values is not offered to templates"),
            },
            _ => {
                let order = order(value, other, &self.fuel)?;
                Ok(match name {
                    "lt" | "lessthan" | "<" => order == Some(Ordering::Less),
                    "le" | "<=" => order.is_some_and(Ordering::is_le),
                    "gt" | "greaterthan" | ">" => order == Some(Ordering::Greater),
                    _ => order.is_some_and(Ordering::is_ge),
                })
            }
        }
    }
}
