//! The template engine, with its limits, and what Hugging Face offers to templates beyond Jinja.
//!
//! Settings are those of transformers' `chat_template_utils.py`. `strftime_now` writes UTC.

use super::{Names, clock, screen, source_form};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Work and memory that a rendering may take: about one an instruction, one for 64 bytes. The longest
/// templates in use take some thousands.
const FUEL: u64 = 50_000;
/// And for each turn, which a template goes through once or twice.
const FUEL_A_TURN: u64 = 1_000;
/// And for each byte that is said: each may be looked at some 16 times.
const BYTES_A_FUEL: u64 = 4;
/// Loops in loops and macros in macros; they take stack.
const DEPTH: usize = 50;
/// Bytes that a template may write besides what was said, for each turn and for itself.
const MOST_WRITTEN: usize = 64 << 10;

/// Methods of Python's strings and mappings that templates may call. The others are not in use, or
/// `format`, whose width would order any amount of memory.
const METHODS: &[&str] = &[
    "strip",
    "lstrip",
    "rstrip",
    "startswith",
    "endswith",
    "split",
    "splitlines",
    "upper",
    "lower",
    "title",
    "capitalize",
    "find",
    "rfind",
    "count",
    "replace",
    "isdigit",
    "isalpha",
    "isalnum",
    "isspace",
    "isupper",
    "islower",
    "join",
    "get",
    "items",
    "keys",
    "values",
];

/// Filters and functions that no chat template uses and that make lists of lists, or any amount of text.
const NOT_OFFERED: &[&str] = &[
    "batch",
    "slice",
    "groupby",
    "zip",
    "chain",
    "sum",
    "format",
    "pprint",
    "urlencode",
    "indent",
    "dictsort",
];

/// A compiled template.
#[derive(Debug)]
pub(super) struct Engine(Environment<'static>);

impl Engine {
    pub fn new(source: String) -> Result<Self, String> {
        let source = source_form::normalized(&source);
        // What Jinja reads as a tag's line is gone without a trace, as transformers has it.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let syntax = syntax.map_err(|error| said(&error))?;
        screen::check(&source, syntax.clone())?;
        let source = source_form::without_generation(&source, syntax.clone());
        let mut jinja = Environment::new();
        jinja.set_syntax(syntax);
        jinja.set_recursion_limit(DEPTH);
        jinja.set_formatter(write);
        jinja.set_unknown_method_callback(method);
        for name in NOT_OFFERED {
            jinja.remove_filter(name);
        }
        // Jinja2 has no such filters.
        for name in ["bool", "lines", "split"] {
            jinja.remove_filter(name);
        }
        for name in ["debug", "dict"] {
            jinja.remove_global(name);
        }
        jinja.add_filter("tojson", to_json);
        jinja.add_function("raise_exception", |why: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, why))
        });
        jinja.add_function("strftime_now", |format: String| {
            clock::strftime(&format, clock::now()).map_err(|why| Error::new(ErrorKind::InvalidOperation, why))
        });
        jinja.add_template_owned("chat", source).map_err(|error| said(&error))?;
        Ok(Engine(jinja))
    }

    /// Renders it over messages of a role and a text.
    pub fn render<'m>(
        &self,
        messages: impl Iterator<Item = (&'static str, &'m str)>,
        names: &Names,
        parts: bool,
    ) -> Result<String, String> {
        let mut bytes = 0;
        let messages: Vec<Value> = messages
            .map(|(role, content)| {
                bytes += content.len();
                match parts {
                    true => context! { role, content => [context! { type => "text", text => content }] },
                    false => context! { role, content },
                }
            })
            .collect();
        let turns = messages.len();
        let mut jinja = self.0.clone();
        jinja.set_fuel(Some(FUEL + FUEL_A_TURN * turns as u64 + bytes as u64 / BYTES_A_FUEL));
        let template = jinja.get_template("chat").map_err(|error| said(&error))?;
        let text = template.render(variables(messages, names)).map_err(|error| said(&error))?;
        // One that repeats what was said once is odd, one that repeats it more often is an attack.
        if text.len() > MOST_WRITTEN * (turns + 1) + 2 * bytes {
            return Err(format!("it writes {} bytes, too many for {bytes} that were said", text.len()));
        }
        Ok(text)
    }
}

fn variables(messages: Vec<Value>, names: &Names) -> Value {
    let none = Value::from(());
    let name = |name: &Option<String>| name.as_deref().map_or(Value::UNDEFINED, Value::from);
    let others = names.others.iter().map(|(name, text)| (*name, Value::from(text.as_str())));
    context! {
        ..others.collect::<Value>(),
        ..context! {
        messages,
        add_generation_prompt => true,
        bos_token => name(&names.bos),
        eos_token => name(&names.eos),
        tools => none.clone(),
        documents => none,
        }
    }
}

/// What is wrong, in one line.
fn said(error: &Error) -> String {
    /// Enough for what templates say when they refuse a conversation.
    const MOST: usize = 160;
    let what = match error.kind() {
        ErrorKind::OutOfFuel => "it takes too much time or memory".to_owned(),
        kind => error.detail().map_or_else(|| kind.to_string(), str::to_owned),
    };
    let what: String = what.chars().take(MOST).flat_map(char::escape_debug).collect();
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

/// Writes a value as Jinja2 does. Lists and mappings look different in Python, and no template that
/// means it writes them.
fn write(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => out.write_str("None").map_err(Error::from),
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }).map_err(Error::from),
        ValueKind::Undefined | ValueKind::Number | ValueKind::String => {
            minijinja::escape_formatter(out, state, value)
        }
        kind => Err(Error::new(ErrorKind::InvalidOperation, format!("a {kind} cannot be written"))),
    }
}

/// Calls a method of Python's, once its work is paid for: the library's own charge comes after it.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if !METHODS.contains(&name) {
        return Err(Error::new(ErrorKind::UnknownMethod, format!("{name} is not offered to templates")));
    }
    let text = value.as_str().unwrap_or_default();
    let arg = |at: usize| args.get(at).and_then(Value::as_str).unwrap_or_default();
    let pieces = match name {
        "split" if args.is_empty() => text.split_whitespace().count(),
        "split" | "replace" if arg(0).is_empty() => text.len() + 1,
        "split" | "replace" => text.matches(arg(0)).count() + 1,
        "splitlines" => text.lines().count(),
        _ => 0,
    };
    // A piece of a list takes about as much as an instruction; a text in place of another its bytes.
    let bytes = text.len() + if name == "replace" { pieces.saturating_mul(arg(1).len()) } else { 0 };
    state.consume_fuel(pieces as u64 + bytes as u64 / 64)?;
    unknown_method_callback(state, value, name, args)
}

/// JSON as Python writes it: nothing is escaped for HTML, which the library's own does.
fn to_json(value: &Value, indent: Option<usize>, options: Kwargs) -> Result<Value, Error> {
    const WIDEST: usize = 8;
    let indent = indent.or(options.get("indent")?);
    // transformers takes them; templates that do use the defaults.
    let defaults = [("ensure_ascii", false), ("sort_keys", false)];
    let changed = defaults.iter().find_map(|(name, default)| {
        let wanted = options.get::<Option<bool>>(name).ok()?;
        wanted.filter(|wanted| wanted != default).map(|_| *name)
    });
    let separators = options.get::<Option<Value>>("separators")?.filter(|given| !given.is_none());
    if let Some(name) = changed.or(separators.map(|_| "separators")) {
        let what = format!("{name} of tojson is not offered to templates");
        return Err(Error::new(ErrorKind::InvalidOperation, what));
    }
    options.assert_all_used()?;
    let indent = indent.map(|indent| Value::from(indent.min(WIDEST)));
    let json = minijinja::filters::tojson(value, indent, Kwargs::from_iter(Vec::<(&str, Value)>::new()))?;
    Ok(Value::from(unescaped(json.as_str().unwrap_or_default())))
}

/// Takes back `\u003c` and its three like. A backslash before anything else keeps what follows it.
fn unescaped(json: &str) -> String {
    const ESCAPED: [(&str, char); 4] = [("u003c", '<'), ("u003e", '>'), ("u0026", '&'), ("u0027", '\'')];
    let mut text = String::with_capacity(json.len());
    let mut rest = json;
    while let Some((before, behind)) = rest.split_once('\\') {
        text.push_str(before);
        match ESCAPED.iter().find(|(code, _)| behind.starts_with(code)) {
            Some((code, c)) => {
                text.push(*c);
                rest = &behind[code.len()..];
            }
            None => {
                let kept = behind.chars().next().map_or(0, char::len_utf8);
                text.push('\\');
                text.push_str(&behind[..kept]);
                rest = &behind[kept..];
            }
        }
    }
    text + rest
}
