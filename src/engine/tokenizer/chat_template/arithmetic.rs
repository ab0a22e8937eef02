//! Operators between values, and rounding, as Python computes them.

use super::format::percent;
use super::fuel::{Fuel, RenderResult, fail};
use super::syntax::Arithmetic;
use super::text::Builder;
use super::value::{SeqKind, Value};

/// An operator between two values.
pub(super) fn arithmetic(op: Arithmetic, left: &Value, right: &Value, fuel: &Fuel) -> RenderResult<Value> {
    match (op, left, right) {
        (Arithmetic::Add, Value::Str(a), Value::Str(b)) => {
            fuel.spend_bytes(a.len().saturating_add(b.len()))?;
            let mut out = Builder::default();
            out.push(a);
            out.push(b);
            return Ok(Value::Str(out.finish()));
        }
        (Arithmetic::Add, Value::Seq(a), Value::Seq(b)) if a.kind == b.kind => {
            if matches!(a.kind, SeqKind::List | SeqKind::Tuple) {
                fuel.spend(a.items.len().saturating_add(b.items.len()))?;
                return Value::seq(a.kind, a.items.iter().chain(&b.items).cloned().collect(), fuel);
            }
        }
        (Arithmetic::Mul, Value::Str(_) | Value::Seq(_), count) if count.as_int().is_some() => {
            return repeat(left, count.as_int().unwrap_or_default(), fuel);
        }
        (Arithmetic::Mul, count, Value::Str(_) | Value::Seq(_)) if count.as_int().is_some() => {
            return repeat(right, count.as_int().unwrap_or_default(), fuel);
        }
        (Arithmetic::Mod, Value::Str(format), args) => return percent(format, args, fuel),
        _ => {}
    }
    if let (Some(a), Some(b)) = (left.as_int(), right.as_int()) {
        return integers(op, a, b);
    }
    match (left.as_float(), right.as_float()) {
        (Some(a), Some(b)) => floats(op, a, b),
        _ => fail(format!("{} cannot be done with a {} and a {}", name(op), left.kind(), right.kind())),
    }
}

fn name(op: Arithmetic) -> &'static str {
    match op {
        Arithmetic::Add => "+",
        Arithmetic::Sub => "-",
        Arithmetic::Mul => "*",
        Arithmetic::Div => "/",
        Arithmetic::FloorDiv => "//",
        Arithmetic::Mod => "%",
        Arithmetic::Pow => "**",
    }
}

fn repeat(value: &Value, count: i128, fuel: &Fuel) -> RenderResult<Value> {
    let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
    match value {
        Value::Str(text) => {
            fuel.spend_bytes(text.len().saturating_mul(count))?;
            let count = if text.is_empty() { 1 } else { count };
            fuel.spend(count)?;
            let mut out = Builder::default();
            (0..count).for_each(|_| out.push(text));
            Ok(Value::Str(out.finish()))
        }
        Value::Seq(seq) if matches!(seq.kind, SeqKind::List | SeqKind::Tuple) => {
            let len = seq.items.len().saturating_mul(count);
            fuel.spend(len)?;
            Value::seq(seq.kind, seq.items.iter().cycle().take(len).cloned().collect(), fuel)
        }
        other => fail(format!("a {} cannot be repeated", other.kind())),
    }
}

fn integers(op: Arithmetic, a: i128, b: i128) -> RenderResult<Value> {
    let result = match op {
        Arithmetic::Add => a.checked_add(b),
        Arithmetic::Sub => a.checked_sub(b),
        Arithmetic::Mul => a.checked_mul(b),
        Arithmetic::Div => return floats(op, a as f64, b as f64),
        Arithmetic::Pow if b < 0 => return floats(op, a as f64, b as f64),
        Arithmetic::Pow => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
        Arithmetic::FloorDiv | Arithmetic::Mod if b == 0 => return fail("division by zero"),
        Arithmetic::FloorDiv => a.checked_div(b).map(|quotient| {
            let rest = a.wrapping_rem(b);
            if rest != 0 && (rest < 0) != (b < 0) { quotient - 1 } else { quotient }
        }),
        Arithmetic::Mod => {
            let rest = a.wrapping_rem(b);
            Some(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest })
        }
    };
    match result {
        Some(value) => Ok(Value::Int(value)),
        None => fail("a number becomes too large"),
    }
}

fn floats(op: Arithmetic, a: f64, b: f64) -> RenderResult<Value> {
    if b == 0.0 && matches!(op, Arithmetic::Div | Arithmetic::FloorDiv | Arithmetic::Mod) {
        return fail("division by zero");
    }
    let value = match op {
        Arithmetic::Add => a + b,
        Arithmetic::Sub => a - b,
        Arithmetic::Mul => a * b,
        Arithmetic::Div => a / b,
        Arithmetic::FloorDiv => divided(a, b).0,
        Arithmetic::Mod => divided(a, b).1,
        Arithmetic::Pow if a < 0.0 && b.fract() != 0.0 => return fail("a power is no real number"),
        Arithmetic::Pow if a == 0.0 && b < 0.0 => return fail("division by zero"),
        Arithmetic::Pow => a.powf(b),
    };
    if value.is_infinite() && a.is_finite() && b.is_finite() && op == Arithmetic::Pow {
        return fail("a number becomes too large");
    }
    Ok(Value::Float(value))
}

/// Quotient and rest as Python's `divmod` gives them.
fn divided(a: f64, b: f64) -> (f64, f64) {
    let mut rest = a % b;
    let mut quotient = (a - rest) / b;
    if rest == 0.0 {
        rest = 0.0_f64.copysign(b);
    } else if (rest < 0.0) != (b < 0.0) {
        rest += b;
        quotient -= 1.0;
    }
    let floored = if quotient == 0.0 { 0.0_f64.copysign(a / b) } else { quotient.floor() };
    (if quotient - floored > 0.5 { floored + 1.0 } else { floored }, rest)
}

/// Python's `round`.
pub(super) fn rounded(value: &Value, precision: i128, method: &str) -> RenderResult<Value> {
    let Some(number) = value.as_float() else { return fail(format!("a {} cannot be rounded", value.kind())) };
    let Some(places) = usize::try_from(precision).ok().filter(|places| *places <= 20) else {
        return fail("round to so many places is not offered to templates");
    };
    let factor = 10_f64.powi(places as i32);
    match (method, value) {
        ("common", Value::Int(_)) => Ok(value.clone()),
        ("common", Value::Bool(value)) => Ok(Value::Int(i128::from(*value))),
        ("common", _) => match format!("{number:.places$}").parse() {
            Ok(rounded) => Ok(Value::Float(rounded)),
            Err(_) => fail("a number cannot be rounded"),
        },
        ("ceil", _) => Ok(Value::Float((number * factor).ceil() / factor)),
        ("floor", _) => Ok(Value::Float((number * factor).floor() / factor)),
        _ => fail("method must be common, ceil or floor"),
    }
}
