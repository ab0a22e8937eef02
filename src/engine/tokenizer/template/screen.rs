//! What a template must not have, told from its tokens before it is compiled.
//!
//! Fuel bounds the instructions of a rendering and the memory of most, but not two things: how deep an
//! expression is, which takes stack when it is compiled and dropped, and lists that are made of the same
//! list several times, which take a few instructions to make and 2^n steps to compare, count or write.
//! So tags and templates have a length, containers hold nothing but plain constants, nothing is
//! multiplied, and a sum that is kept has a text or a number in it, which makes it one.

use super::place::RESERVED;
use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;

/// Bytes of a template; the longest in use have some 20 KB.
const MOST_BYTES: usize = 64 << 10;
/// Tokens in one tag: an expression is at most that deep. The longest in use have about 100.
const MOST_IN_TAG: usize = 300;
/// Tags of `elif`, each of which lies in the one before.
const MOST_ELIF: usize = 100;

const STATEMENTS: &[&str] = &[
    "for",
    "endfor",
    "if",
    "elif",
    "else",
    "endif",
    "set",
    "endset",
    "macro",
    "endmacro",
    "break",
    "continue",
    "with",
    "endwith",
    "filter",
    "endfilter",
    "call",
    "endcall",
    "generation",
    "endgeneration",
];
const CONSTANTS: &[&str] = &["true", "false", "none", "True", "False", "None"];
/// Words after which a bracket begins a list and a parenthesis a group.
const KEYWORDS: &[&str] = &["in", "not", "and", "or", "if", "else", "elif", "is", "set", "for"];

/// An open bracket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    /// Of a call, or of a macro's arguments.
    Call,
    /// Around a part of an expression.
    Group,
    /// Of a list or a mapping.
    Container,
    /// Of an index or a slice.
    Index,
}

/// Says what is wrong with a template, if something is.
pub(super) fn check(source: &str, syntax: SyntaxConfig) -> Result<(), String> {
    if source.len() > MOST_BYTES {
        return Err(format!("has {} bytes, where {MOST_BYTES} are allowed", source.len()));
    }
    if source.contains(RESERVED) {
        return Err("holds characters that are reserved".into());
    }
    let mut tags: Vec<Vec<Token<'_>>> = Vec::new();
    let mut inside = false;
    for token in tokenize(source, false, syntax) {
        let (token, _) = token.map_err(|error| error.to_string().escape_debug().to_string())?;
        match token {
            Token::TemplateData(_) => {}
            Token::VariableStart | Token::BlockStart => {
                inside = true;
                tags.push(vec![token]);
            }
            Token::VariableEnd | Token::BlockEnd => inside = false,
            token => match tags.last_mut() {
                Some(tag) if inside => tag.push(token),
                _ => {}
            },
        }
    }
    let spaces = namespaces(&tags);
    let elifs = tags.iter().filter(|tag| ident(tag.get(1)) == Some("elif")).count();
    if elifs > MOST_ELIF {
        return Err(format!("has {elifs} tags of elif, where {MOST_ELIF} are allowed"));
    }
    tags.iter().try_for_each(|tag| check_tag(tag, &spaces))
}

fn ident<'t>(token: Option<&Token<'t>>) -> Option<&'t str> {
    match token {
        Some(Token::Ident(name)) => Some(name),
        _ => None,
    }
}

/// The name that a tag makes a namespace of: `set NAME = namespace(…)`.
fn namespace_of<'t>(tag: &[Token<'t>]) -> Option<&'t str> {
    match tag {
        [
            Token::BlockStart,
            Token::Ident("set"),
            Token::Ident(name),
            Token::Assign,
            Token::Ident("namespace"),
            Token::ParenOpen,
            ..,
            Token::ParenClose,
        ] => Some(name),
        _ => None,
    }
}

fn namespaces<'t>(tags: &[Vec<Token<'t>>]) -> Vec<&'t str> {
    tags.iter().filter_map(|tag| namespace_of(tag)).collect()
}

fn check_tag(tag: &[Token<'_>], namespaces: &[&str]) -> Result<(), String> {
    if tag.len() > MOST_IN_TAG {
        return Err(format!("has a tag of {} words, where {MOST_IN_TAG} are allowed", tag.len()));
    }
    let is_block = matches!(tag[0], Token::BlockStart);
    let statement = ident(tag.get(1)).filter(|_| is_block);
    if is_block && !statement.is_some_and(|name| STATEMENTS.contains(&name)) {
        let name = statement.unwrap_or("nothing").escape_debug();
        return Err(format!("has the statement {name}, which is not offered to templates"));
    }
    // The names a loop gives may be several, and so may those before `in`.
    let mut in_targets = statement == Some("for");
    let mut open = Vec::new();
    for at in 1..tag.len() {
        in_targets &= ident(tag.get(at)) != Some("in");
        check_token(tag, at, &mut open, in_targets)?;
        check_namespace(tag, at, namespaces)?;
    }
    check_sums(tag)
}

/// Follows the brackets, and looks at what stands in them.
fn check_token(tag: &[Token<'_>], at: usize, open: &mut Vec<Open>, in_targets: bool) -> Result<(), String> {
    let container = open.last() == Some(&Open::Container);
    let behind_value = follows_value(&tag[at - 1]);
    match &tag[at] {
        Token::BraceOpen | Token::BracketOpen if container => return Err(lists_in_lists()),
        Token::BraceOpen => open.push(Open::Container),
        Token::BracketOpen => open.push(if behind_value { Open::Index } else { Open::Container }),
        Token::ParenOpen if container => return Err(lists_in_lists()),
        Token::ParenOpen => open.push(if behind_value { Open::Call } else { Open::Group }),
        Token::BraceClose | Token::BracketClose | Token::ParenClose => drop(open.pop()),
        Token::Comma => match open.last() {
            Some(Open::Call | Open::Container) => {}
            // The names that `with` gives values to are told apart by commas.
            None if in_targets || ident(tag.get(1)) == Some("with") => {}
            _ => return Err("holds a list without brackets, which is not offered to templates".into()),
        },
        Token::Mul | Token::Pow => return Err("multiplies, which is not offered to templates".into()),
        Token::Ident(name) if container && !CONSTANTS.contains(name) => return Err(lists_in_lists()),
        Token::Ident(_) | Token::Str(_) | Token::String(_) | Token::Int(_) | Token::Float(_) => {}
        Token::Colon | Token::Minus => {}
        _ if container => return Err(lists_in_lists()),
        _ => {}
    }
    Ok(())
}

fn lists_in_lists() -> String {
    "holds a list or a mapping of other things than plain constants, which is not offered to templates".into()
}

fn follows_value(token: &Token<'_>) -> bool {
    match token {
        Token::Ident(name) => !KEYWORDS.contains(name),
        Token::ParenClose | Token::BracketClose | Token::BraceClose | Token::Str(_) | Token::String(_) => {
            true
        }
        _ => false,
    }
}

/// A namespace is made by `set`, and used by its attributes: it could hold itself otherwise.
fn check_namespace(tag: &[Token<'_>], at: usize, namespaces: &[&str]) -> Result<(), String> {
    let Some(name) = ident(tag.get(at)) else { return Ok(()) };
    let made_here = namespace_of(tag).is_some() && (at == 2 || at == 4);
    let attribute = matches!(tag[at - 1], Token::Dot);
    let used = matches!(tag.get(at + 1), Some(Token::Dot));
    let is_one = name == "namespace" || namespaces.contains(&name);
    if is_one && !made_here && !attribute && (name == "namespace" || !used) {
        return Err(format!("uses {} otherwise than by its attributes", name.escape_debug()));
    }
    Ok(())
}

/// The names of tokens: texts, and never anything else.
const TEXTS: &[&str] = &["bos_token", "eos_token"];

/// A sum in the making: whether it has a plus, and whether one of its terms is a text or a number.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    plus: bool,
    text: bool,
    call: bool,
}

/// Refuses sums that may be of lists, but where the sum is only written: a list is never written.
fn check_sums(tag: &[Token<'_>]) -> Result<(), String> {
    let written = matches!(tag[0], Token::VariableStart);
    let mut sums = vec![Sum::default()];
    for at in 1..=tag.len() {
        let Some(sum) = sums.last_mut() else { break };
        let token = tag.get(at);
        if token.is_none_or(ends_sum) {
            let free = written && !sum.call;
            if sum.plus && !sum.text && !free {
                return Err("adds two things of which none is plainly a text or a number".into());
            }
            *sum = Sum { call: sum.call, ..Sum::default() };
        }
        sum.plus |= matches!(token, Some(Token::Plus));
        sum.text |= is_text(tag, at);
        match token {
            Some(Token::ParenOpen | Token::BracketOpen | Token::BraceOpen) => {
                let call = sum.call || follows_value(&tag[at - 1]);
                sums.push(Sum { call, ..Sum::default() });
            }
            Some(Token::ParenClose | Token::BracketClose | Token::BraceClose) => drop(sums.pop()),
            _ => {}
        }
        check_text_name(tag, at)?;
    }
    Ok(())
}

fn ends_sum(token: &Token<'_>) -> bool {
    match token {
        Token::Ident(name) => KEYWORDS.contains(name),
        Token::Eq | Token::Ne | Token::Gt | Token::Gte | Token::Lt | Token::Lte => true,
        Token::ParenClose | Token::BracketClose | Token::BraceClose => true,
        Token::Comma | Token::Colon | Token::Assign | Token::Tilde => true,
        _ => false,
    }
}

/// Whether a term of a sum is plainly a text or a number: with a plus beside it, and nothing done to it.
fn is_text(tag: &[Token<'_>], at: usize) -> bool {
    let (before, behind) = (&tag[at - 1], tag.get(at + 1));
    let plain = match tag.get(at) {
        Some(Token::Str(_) | Token::String(_) | Token::Int(_) | Token::Float(_)) => true,
        Some(Token::Ident(name)) => TEXTS.contains(name),
        _ => false,
    };
    let done_to = matches!(behind, Some(Token::Dot | Token::BracketOpen | Token::ParenOpen | Token::Pipe));
    let part = matches!(before, Token::Dot | Token::Pipe);
    let added = matches!(before, Token::Plus) || matches!(behind, Some(Token::Plus));
    plain && added && !done_to && !part
}

/// The names of tokens stay texts: no template gives them another value.
fn check_text_name(tag: &[Token<'_>], at: usize) -> Result<(), String> {
    let named = ident(tag.get(at)).is_some_and(|name| TEXTS.contains(&name));
    let given = matches!(tag.get(at + 1), Some(Token::Assign)) || ident(tag.get(1)) == Some("macro");
    let target = ident(tag.get(1)) == Some("for") && at == 2 || ident(tag.get(at + 1)) == Some("in");
    if named && (given || target) {
        return Err("gives another value to the name of a token".into());
    }
    Ok(())
}
