//! `tojson` as Hugging Face has it: Python's `json.dumps`, in which nothing is escaped for HTML.

use super::fuel::{Fuel, RenderResult, fail};
use super::number;
use super::text::{Builder, Text};
use super::value::{Dict, SeqKind, Value, to_text};

pub(super) struct Style {
    /// What a level is indented by.
    pub indent: Option<Text>,
    pub comma: Text,
    pub colon: Text,
    pub ascii: bool,
    pub sorted: bool,
}

pub(super) fn write(
    value: &Value,
    style: &Style,
    level: usize,
    out: &mut Builder,
    fuel: &Fuel,
) -> RenderResult<()> {
    fuel.spend(1)?;
    match value {
        Value::None => out.push_str("null"),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Int(value) => out.push_str(&value.to_string()),
        Value::Float(value) => out.push_str(&float(*value)),
        Value::Str(text) => string(text, style, out, fuel)?,
        Value::Seq(seq) if matches!(seq.kind, SeqKind::List | SeqKind::Tuple) => {
            if seq.items.is_empty() {
                out.push_str("[]");
                return Ok(());
            }
            out.push_str("[");
            for (at, item) in seq.items.iter().enumerate() {
                next(at, level + 1, style, out, fuel)?;
                write(item, style, level + 1, out, fuel)?;
            }
            line(level, style, out, fuel)?;
            out.push_str("]");
        }
        Value::Dict(dict) => write_dict(dict, style, level, out, fuel)?,
        other => return fail(format!("a {} cannot be written as JSON", other.kind())),
    }
    Ok(())
}

fn write_dict(dict: &Dict, style: &Style, level: usize, out: &mut Builder, fuel: &Fuel) -> RenderResult<()> {
    let mut entries: Vec<_> = dict.entries.iter().collect();
    if style.sorted {
        if !entries.iter().all(|(key, _)| matches!(key, Value::Str(_))) {
            return fail("keys that are no texts cannot be sorted");
        }
        entries.sort_by_key(|(key, _)| match key {
            Value::Str(key) => key.as_str(),
            _ => "",
        });
    }
    if entries.is_empty() {
        out.push_str("{}");
        return Ok(());
    }
    out.push_str("{");
    for (at, (key, value)) in entries.into_iter().enumerate() {
        next(at, level + 1, style, out, fuel)?;
        let key = match key {
            Value::Str(text) => text.clone(),
            Value::None => Text::from("null"),
            Value::Bool(value) => Text::from(if *value { "true" } else { "false" }),
            Value::Float(value) => Text::from(float(*value)),
            other => to_text(other, fuel)?,
        };
        string(&key, style, out, fuel)?;
        out.push(&style.colon);
        write(value, style, level + 1, out, fuel)?;
    }
    line(level, style, out, fuel)?;
    out.push_str("}");
    Ok(())
}

fn float(value: f64) -> String {
    match number::repr(value).as_str() {
        "inf" => "Infinity".into(),
        "-inf" => "-Infinity".into(),
        "nan" => "NaN".into(),
        plain => plain.into(),
    }
}

fn next(at: usize, level: usize, style: &Style, out: &mut Builder, fuel: &Fuel) -> RenderResult<()> {
    if at > 0 {
        out.push(&style.comma);
    }
    line(level, style, out, fuel)
}

fn line(level: usize, style: &Style, out: &mut Builder, fuel: &Fuel) -> RenderResult<()> {
    let Some(indent) = &style.indent else { return Ok(()) };
    fuel.spend_bytes(indent.len().saturating_mul(level))?;
    out.push_str("\n");
    (0..level).for_each(|_| out.push(indent));
    Ok(())
}

fn string(text: &Text, style: &Style, out: &mut Builder, fuel: &Fuel) -> RenderResult<()> {
    fuel.spend_bytes(text.len().saturating_mul(6))?;
    out.push_str("\"");
    if text.is_empty() {
        out.push(text);
    }
    for (_, c, content) in text.marked_chars() {
        let escaped = match c {
            '"' => "\\\"".to_owned(),
            '\\' => "\\\\".into(),
            '\n' => "\\n".into(),
            '\r' => "\\r".into(),
            '\t' => "\\t".into(),
            '\u{8}' => "\\b".into(),
            '\u{c}' => "\\f".into(),
            c if (c as u32) < 0x20 || style.ascii && !(' '..='~').contains(&c) => {
                let mut units = [0; 2];
                c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect()
            }
            c => {
                out.push_char(c, content);
                continue;
            }
        };
        out.push_marked(&escaped, content);
    }
    out.push_str("\"");
    Ok(())
}
