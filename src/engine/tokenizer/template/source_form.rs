//! A template's source in the form that the template engine reads as Jinja2 reads the original.

use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;

/// With one kind of line end, which is what Jinja2 reads all of them as, and without the last one.
pub(super) fn normalized(source: &str) -> String {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    source
}

/// With `generation`, which marks what a model is trained on, as what it is when a prompt is made: a block with
/// variables of its own.
pub(super) fn without_generation(source: &str, syntax: SyntaxConfig) -> String {
    let mut out = String::with_capacity(source.len());
    let mut copied = 0;
    let mut in_block = false;
    for (token, span) in tokenize(source, false, syntax).map_while(Result::ok) {
        let instead = match token {
            Token::Ident("generation") if in_block => Some("with"),
            Token::Ident("endgeneration") if in_block => Some("endwith"),
            _ => None,
        };
        if let Some(instead) = instead {
            out.push_str(&source[copied..span.start_offset as usize]);
            out.push_str(instead);
            copied = span.end_offset as usize;
        }
        in_block = matches!(token, Token::BlockStart);
    }
    out.push_str(&source[copied..]);
    out
}
