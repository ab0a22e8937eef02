//! Methods of Python's texts, lists and dicts.

use super::call_args::CallArgs;
use super::fuel::{Fuel, RenderResult, fail};
use super::text::{Builder, Text, is_space};
use super::value::{SeqKind, Value, equal};

const TEXT: &[&str] = &[
    "strip",
    "lstrip",
    "rstrip",
    "startswith",
    "endswith",
    "split",
    "rsplit",
    "splitlines",
    "upper",
    "lower",
    "title",
    "capitalize",
    "swapcase",
    "find",
    "rfind",
    "index",
    "rindex",
    "count",
    "replace",
    "isdigit",
    "isalpha",
    "isalnum",
    "isspace",
    "isupper",
    "islower",
    "isnumeric",
    "isdecimal",
    "isascii",
    "join",
    "format",
    "ljust",
    "rjust",
    "center",
    "zfill",
    "partition",
    "rpartition",
    "removeprefix",
    "removesuffix",
];
/// Those of a text that are not offered.
pub(super) const UNOFFERED: &[&str] = &[
    "casefold",
    "encode",
    "expandtabs",
    "format_map",
    "isidentifier",
    "isprintable",
    "istitle",
    "maketrans",
    "translate",
];
const DICT: &[&str] = &["get", "items", "keys", "values"];
const LIST: &[&str] = &["index", "count"];

/// The methods that a value has.
pub(super) fn names(value: &Value) -> &'static [&'static str] {
    match value {
        Value::Str(_) => TEXT,
        Value::Dict(_) => DICT,
        Value::Seq(seq) if matches!(seq.kind, SeqKind::List | SeqKind::Tuple | SeqKind::Range) => LIST,
        _ => &[],
    }
}

pub(super) fn call(value: &Value, name: &str, args: CallArgs, fuel: &Fuel) -> RenderResult<Value> {
    match value {
        Value::Str(text) => text_method(text, name, args, fuel),
        Value::Dict(dict) if name == "get" => {
            let [key, default] = args.bind(name, ["key", "default"])?;
            let Some(key) = key else { return fail("get takes a key") };
            super::value::check_key(&key)?;
            Ok(dict.get(&key, fuel)?.or(default).unwrap_or(Value::None))
        }
        Value::Dict(dict) => {
            args.bind(name, [])?;
            let mut items = Vec::with_capacity(dict.entries.len());
            for (key, value) in &dict.entries {
                items.push(match name {
                    "keys" => key.clone(),
                    "values" => value.clone(),
                    _ => Value::seq(SeqKind::Tuple, vec![key.clone(), value.clone()], fuel)?,
                });
            }
            Value::seq(SeqKind::View, items, fuel)
        }
        Value::Seq(seq) => {
            let [Some(wanted)] = args.bind(name, ["value"])? else {
                return fail(format!("{name} takes a value"));
            };
            let mut found = Vec::new();
            for (at, item) in seq.items.iter().enumerate() {
                if equal(item, &wanted, fuel)? {
                    found.push(at);
                }
            }
            match (name, found.first()) {
                ("count", _) => Ok(Value::Int(found.len() as i128)),
                (_, Some(first)) => Ok(Value::Int(*first as i128)),
                _ => fail("the value is not in the list"),
            }
        }
        other => fail(format!("a {} has no methods", other.kind())),
    }
}

fn no_text<T>(name: &str) -> RenderResult<T> {
    fail(format!("{name} is called otherwise than is offered to templates"))
}

fn as_text(value: Option<Value>, name: &str) -> RenderResult<Text> {
    match value {
        Some(Value::Str(text)) => Ok(text),
        _ => no_text(name),
    }
}

fn text_method(text: &Text, name: &str, args: CallArgs, fuel: &Fuel) -> RenderResult<Value> {
    fuel.spend_bytes(text.len())?;
    let plain = text.as_str();
    match name {
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = args.bind(name, ["chars"])?;
            trim(text, name != "rstrip", name != "lstrip", chars)
        }
        "split" | "rsplit" => split(text, name, args, fuel),
        "splitlines" => {
            args.bind(name, [])?;
            texts(lines(text), fuel)
        }
        "startswith" | "endswith" => {
            let [affix] = args.bind(name, ["prefix"])?;
            let affixes = match affix {
                Some(Value::Seq(seq)) if seq.kind == SeqKind::Tuple => seq.items.clone(),
                other => other.into_iter().collect(),
            };
            let mut found = affixes.is_empty();
            for affix in affixes {
                let affix = as_text(Some(affix), name)?;
                let ends = if name == "startswith" {
                    plain.starts_with(affix.as_str())
                } else {
                    plain.ends_with(affix.as_str())
                };
                found |= ends;
            }
            Ok(Value::Bool(found))
        }
        "find" | "rfind" | "index" | "rindex" | "count" => find(plain, name, args),
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"])?;
            let (old, new) = (as_text(old, name)?, as_text(new, name)?);
            replace(text, &old, &new, count, fuel)
        }
        _ => parts_method(text, name, args, fuel),
    }
}

fn parts_method(text: &Text, name: &str, args: CallArgs, fuel: &Fuel) -> RenderResult<Value> {
    let plain = text.as_str();
    match name {
        "join" => {
            let [Some(items)] = args.bind(name, ["iterable"])? else { return no_text(name) };
            let items = items.iterate(fuel)?;
            let items =
                items.into_iter().map(|item| as_text(Some(item), name)).collect::<RenderResult<Vec<_>>>()?;
            join(text, &items, fuel)
        }
        "format" => super::format::braces(text, &args, fuel),
        "ljust" | "rjust" | "center" | "zfill" => pad(text, name, args, fuel),
        "partition" | "rpartition" => {
            let [separator] = args.bind(name, ["sep"])?;
            let separator = as_text(separator, name)?;
            if separator.is_empty() {
                return fail("an empty separator");
            }
            let at = if name == "partition" {
                plain.find(separator.as_str())
            } else {
                plain.rfind(separator.as_str())
            };
            let parts = match at {
                Some(at) => {
                    vec![text.slice(0..at), separator.clone(), text.slice(at + separator.len()..text.len())]
                }
                None if name == "partition" => vec![text.clone(), Text::default(), Text::default()],
                None => vec![Text::default(), Text::default(), text.clone()],
            };
            Value::seq(SeqKind::Tuple, parts.into_iter().map(Value::Str).collect(), fuel)
        }
        "removeprefix" | "removesuffix" => {
            let [affix] = args.bind(name, ["affix"])?;
            let affix = as_text(affix, name)?;
            let rest = match name {
                "removeprefix" => plain.strip_prefix(affix.as_str()),
                _ => plain.strip_suffix(affix.as_str()),
            };
            Ok(Value::Str(rest.map_or_else(|| text.clone(), |rest| text.part(rest))))
        }
        "upper" | "lower" | "title" | "capitalize" | "swapcase" => {
            args.bind(name, [])?;
            Ok(Value::Str(case(text, name)?))
        }
        _ => {
            args.bind(name, [])?;
            Ok(Value::Bool(is_all(plain, name)?))
        }
    }
}

/// A list of texts.
fn texts(parts: Vec<Text>, fuel: &Fuel) -> RenderResult<Value> {
    fuel.spend(parts.len())?;
    Value::list(parts.into_iter().map(Value::Str).collect(), fuel)
}

/// Python's `strip` and its like.
pub(super) fn trim(text: &Text, left: bool, right: bool, chars: Option<Value>) -> RenderResult<Value> {
    Ok(Value::Str(match chars {
        None | Some(Value::None) => text.trim(left, right, is_space),
        Some(Value::Str(chars)) => text.trim(left, right, |c| chars.as_str().contains(c)),
        Some(_) => return no_text("strip"),
    }))
}

/// The lines of a text, as Python's `splitlines` cuts them.
pub(super) fn lines(text: &Text) -> Vec<Text> {
    let plain = text.as_str();
    let ends = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut start = 0;
    while let Some((at, c)) = plain[start..].char_indices().find(|(_, c)| ends(*c)) {
        lines.push(text.slice(start..start + at));
        start += at + c.len_utf8();
        if c == '\r' && plain[start..].starts_with('\n') {
            start += 1;
        }
    }
    if start < plain.len() {
        lines.push(text.slice(start..plain.len()));
    }
    lines
}

fn split(text: &Text, name: &str, args: CallArgs, fuel: &Fuel) -> RenderResult<Value> {
    let [separator, most] = args.bind(name, ["sep", "maxsplit"])?;
    let most = match most {
        None => usize::MAX,
        Some(most) => match most.as_int() {
            Some(most) => usize::try_from(most).unwrap_or(usize::MAX),
            None => return no_text(name),
        },
    };
    let plain = text.as_str();
    let parts: Vec<&str> = match separator {
        None | Some(Value::None) => {
            if most != usize::MAX {
                return no_text(name);
            }
            fuel.spend(plain.split(is_space).count())?;
            plain.split(is_space).filter(|part| !part.is_empty()).collect()
        }
        Some(separator) => {
            let separator = as_text(Some(separator), name)?;
            if separator.is_empty() {
                return fail("an empty separator");
            }
            fuel.spend(plain.matches(separator.as_str()).count().min(most))?;
            if name == "split" {
                plain.splitn(most.saturating_add(1), separator.as_str()).collect()
            } else {
                let mut parts: Vec<&str> =
                    plain.rsplitn(most.saturating_add(1), separator.as_str()).collect();
                parts.reverse();
                parts
            }
        }
    };
    texts(parts.into_iter().map(|part| text.part(part)).collect(), fuel)
}

fn find(plain: &str, name: &str, args: CallArgs) -> RenderResult<Value> {
    let [part] = args.bind(name, ["sub"])?;
    let part = as_text(part, name)?;
    if name == "count" {
        return Ok(Value::Int(plain.matches(part.as_str()).count() as i128));
    }
    let found = if name.starts_with('r') { plain.rfind(part.as_str()) } else { plain.find(part.as_str()) };
    match found {
        Some(at) => Ok(Value::Int(plain[..at].chars().count() as i128)),
        None if name.ends_with("find") => Ok(Value::Int(-1)),
        None => fail("the text is not in the other"),
    }
}

/// Python's `replace`.
pub(super) fn replace(
    text: &Text,
    old: &Text,
    new: &Text,
    count: Option<Value>,
    fuel: &Fuel,
) -> RenderResult<Value> {
    let most = match count {
        None | Some(Value::None) => usize::MAX,
        Some(count) => match count.as_int() {
            Some(count) => usize::try_from(count).unwrap_or(usize::MAX),
            None => return no_text("replace"),
        },
    };
    let count = text.as_str().matches(old.as_str()).take(most).count();
    fuel.spend(count)?;
    fuel.spend_bytes(text.len().saturating_add(count.saturating_mul(new.len())))?;
    Ok(Value::Str(text.replace(old.as_str(), new, most)))
}

/// Texts with another between them.
pub(super) fn join(between: &Text, items: &[Text], fuel: &Fuel) -> RenderResult<Value> {
    let bytes = items.iter().fold(0_usize, |sum, item| sum.saturating_add(item.len()));
    fuel.spend_bytes(bytes.saturating_add(between.len().saturating_mul(items.len())))?;
    let mut out = Builder::default();
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push(between);
        }
        out.push(item);
    }
    Ok(Value::Str(out.finish()))
}

fn pad(text: &Text, name: &str, args: CallArgs, fuel: &Fuel) -> RenderResult<Value> {
    let [width, fill] = args.bind(name, ["width", "fillchar"])?;
    let Some(width) = width.and_then(|width| width.as_int()) else { return no_text(name) };
    let fill = match fill {
        None if name == "zfill" => Text::from("0"),
        None => Text::from(" "),
        Some(_) if name == "zfill" => return no_text(name),
        fill => as_text(fill, name)?,
    };
    if fill.chars() != 1 {
        return no_text(name);
    }
    padded(text, name, width, &fill, fuel)
}

/// A text made as wide as `width`: `how` is `ljust`, `rjust`, `center` or `zfill`.
pub(super) fn padded(text: &Text, how: &str, width: i128, fill: &Text, fuel: &Fuel) -> RenderResult<Value> {
    let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
    let missing = width.saturating_sub(text.chars());
    fuel.spend(missing)?;
    let left = match how {
        "ljust" => 0,
        "center" => missing / 2 + (missing & width & 1),
        _ => missing,
    };
    let sign = usize::from(how == "zfill" && text.as_str().starts_with(['+', '-']));
    let mut out = Builder::default();
    out.push(&text.slice(0..sign));
    (0..left).for_each(|_| out.push(fill));
    out.push(&text.slice(sign..text.len()));
    (left..missing).for_each(|_| out.push(fill));
    Ok(Value::Str(out.finish()))
}

/// Python's changes of case.
pub(super) fn case(text: &Text, name: &str) -> RenderResult<Text> {
    // The last letter of a Greek word, and letters whose title case is one of its own.
    if text.as_str().contains(['Σ', 'ǅ', 'ǈ', 'ǋ', 'ǲ', 'Ǆ', 'Ǉ', 'Ǌ', 'Ǳ', 'ǆ', 'ǉ', 'ǌ', 'ǳ'])
    {
        return fail(format!("{name} of such letters is not offered to templates"));
    }
    let mut odd = false;
    let mut first = |c: char| {
        let upper: Vec<char> = c.to_uppercase().collect();
        odd |= upper.len() > 1;
        upper
    };
    let cased = |c: char| c.is_lowercase() || c.is_uppercase();
    let made = text.map_chars(|before, c| match name {
        "upper" => c.to_uppercase().collect(),
        "swapcase" if c.is_lowercase() => c.to_uppercase().collect(),
        "capitalize" if before.is_none() => first(c),
        "title" if !before.is_some_and(cased) => first(c),
        "swapcase" if !c.is_uppercase() => vec![c],
        _ => c.to_lowercase().collect(),
    });
    if odd { fail(format!("{name} of such letters is not offered to templates")) } else { Ok(made) }
}

/// Python's questions about all characters of a text.
fn is_all(plain: &str, name: &str) -> RenderResult<bool> {
    match name {
        "isascii" => return Ok(plain.is_ascii()),
        "isspace" => return Ok(!plain.is_empty() && plain.chars().all(is_space)),
        "islower" => {
            return Ok(plain.chars().any(char::is_lowercase) && !plain.chars().any(char::is_uppercase));
        }
        "isupper" => {
            return Ok(plain.chars().any(char::is_uppercase) && !plain.chars().any(char::is_lowercase));
        }
        _ => {}
    }
    let mut all = !plain.is_empty();
    for c in plain.chars() {
        all &= match (name, c) {
            ("isalpha", c) if c.is_ascii() => c.is_ascii_alphabetic(),
            ("isalnum", c) if c.is_ascii() => c.is_ascii_alphanumeric(),
            (_, c) if c.is_ascii() => c.is_ascii_digit(),
            (_, c) if !c.is_alphanumeric() => false,
            ("isalpha" | "isalnum", '\u{c0}'..='\u{24f}' | '\u{4e00}'..='\u{9fff}') => true,
            // Python asks its table of characters, which is another than ours.
            _ => return fail(format!("{name} of such characters is not offered to templates")),
        };
    }
    Ok(all)
}
