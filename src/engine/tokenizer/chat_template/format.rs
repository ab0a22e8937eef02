//! Python's two ways to format a text, in their plain forms.

use super::call_args::CallArgs;
use super::fuel::{Fuel, RenderResult, fail};
use super::text::{Builder, Text};
use super::value::{SeqKind, Value, to_text};

/// `'…%s…' % args`.
pub(super) fn percent(format: &Text, args: &Value, fuel: &Fuel) -> RenderResult<Value> {
    let values = match args {
        Value::Seq(seq) if seq.kind == SeqKind::Tuple => seq.items.clone(),
        Value::Dict(_) => return fail("% with a dict is not offered to templates"),
        other => vec![other.clone()],
    };
    fuel.spend_bytes(format.len())?;
    let mut values = values.into_iter();
    let mut out = Builder::default();
    let mut chars = format.marked_chars();
    while let Some((_, c, content)) = chars.next() {
        if c != '%' {
            out.push_char(c, content);
            continue;
        }
        let code = chars.next().map(|(_, code, _)| code);
        if code == Some('%') {
            out.push_char('%', content);
            continue;
        }
        let Some(value) = values.next() else { return fail("too few values for a format") };
        match (code, value) {
            (Some('s'), Value::Undefined(_)) => {}
            (Some('s'), value) => {
                let text = to_text(&value, fuel)?;
                fuel.spend_bytes(text.len())?;
                out.push(&text);
            }
            (Some('d' | 'i'), value) => match (value.as_int(), value) {
                (Some(int), _) => out.push_str(&int.to_string()),
                (None, Value::Float(float)) if float.abs() < 1e15 => {
                    out.push_str(&(float as i64).to_string())
                }
                _ => return fail("a number is wanted by a format"),
            },
            _ => return fail("% with such a format is not offered to templates"),
        }
    }
    if values.next().is_some() {
        return fail("too many values for a format");
    }
    Ok(Value::Str(out.finish()))
}

/// `'…{}…'.format(args)`.
pub(super) fn braces(format: &Text, args: &CallArgs, fuel: &Fuel) -> RenderResult<Value> {
    if format.has_content() {
        return fail("format of a message's content is not offered to templates");
    }
    let mut out = Builder::default();
    let mut rest = format.as_str();
    let mut automatic = 0;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        let (brace, behind) = rest[at..].split_at(1);
        if let Some(behind) = behind.strip_prefix(brace) {
            out.push_str(brace);
            rest = behind;
            continue;
        }
        let field = behind.split_once('}').filter(|_| brace == "{");
        let Some((field, behind)) = field else { return fail("a single brace in a format") };
        let value = match field.parse::<usize>() {
            _ if field.is_empty() => {
                automatic += 1;
                args.positional.get(automatic - 1)
            }
            Ok(at) if automatic == 0 => args.positional.get(at),
            Ok(_) => return fail("numbered and automatic fields in one format"),
            Err(_) if field.contains(|c: char| !c.is_alphanumeric() && c != '_') => {
                return fail("such a format is not offered to templates");
            }
            Err(_) => args.named.iter().find(|(name, _)| name == field).map(|(_, value)| value),
        };
        let Some(value) = value else { return fail("too few values for a format") };
        let text = to_text(value, fuel)?;
        fuel.spend_bytes(text.len().saturating_add(at))?;
        out.push(&text);
        rest = behind;
    }
    out.push_str(rest);
    Ok(Value::Str(out.finish()))
}
