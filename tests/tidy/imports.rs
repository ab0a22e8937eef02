//! Which paths a file names, `use` groups opened out and `self` and `super` resolved.
//!
//! It does not resolve names that a `use` brought in: the `use` itself was already seen. Nor does it follow
//! re-exports: a path counts as what it is written as.

use crate::source::{Source, Token};

/// `crate::a::b` in the source is `["crate", "a", "b"]`; a path into another crate keeps that crate's name.
#[derive(Debug, PartialEq)]
pub struct Path {
    pub segments: Vec<String>,
    pub line: usize,
}

/// All paths in `source`, whose file is the module `module` (`["engine", "gguf"]`).
pub fn paths(source: &Source, module: &[&str]) -> Vec<Path> {
    let mut walk = Walk {
        tokens: &source.tokens,
        here: module.iter().map(|name| name.to_string()).collect(),
        found: vec![],
    };
    walk.module(0, source.tokens.len());
    walk.found
}

struct Walk<'a> {
    tokens: &'a [Token],
    /// The module that `self` means now; inline modules are added and taken off.
    here: Vec<String>,
    found: Vec<Path>,
}

impl Walk<'_> {
    fn word(&self, at: usize) -> &str {
        self.tokens.get(at).map_or("", |token| &token.text)
    }

    fn is_name(&self, at: usize) -> bool {
        self.word(at).starts_with(|c: char| c.is_alphabetic() || c == '_')
    }

    fn module(&mut self, mut at: usize, end: usize) {
        while at < end {
            at = match self.word(at) {
                "mod" if self.word(at + 2) == "{" => self.inline_module(at),
                // `use<'a>` in a return type is no import.
                "use" if self.word(at + 1) != "<" => self.tree(at + 1, &[]),
                _ if self.starts_path(at) => self.inline_path(at),
                _ => at + 1,
            };
        }
    }

    fn inline_module(&mut self, at: usize) -> usize {
        let end = crate::source::closing(self.tokens, at + 2);
        self.here.push(self.word(at + 1).to_string());
        self.module(at + 3, end);
        self.here.pop();
        end
    }

    fn starts_path(&self, at: usize) -> bool {
        let follows_name =
            at >= 2 && self.word(at - 1) == "::" && (self.is_name(at - 2) || self.word(at - 2) == ">");
        // `pub(in crate::engine)` says who may see, and names nothing.
        let visibility = at >= 2 && self.word(at - 1) == "in" && self.word(at - 2) == "(";
        self.is_name(at) && self.word(at + 1) == "::" && !follows_name && !visibility
    }

    fn inline_path(&mut self, start: usize) -> usize {
        let mut at = start;
        let mut segments = vec![self.word(at).to_string()];
        while self.word(at + 1) == "::" && self.is_name(at + 2) {
            at += 2;
            segments.push(self.word(at).to_string());
        }
        self.add(segments, start);
        at + 1
    }

    /// One branch of a `use`, with what stands before it. Gives back where it stopped.
    fn tree(&mut self, mut at: usize, before: &[String]) -> usize {
        let start = at;
        let mut segments = before.to_vec();
        loop {
            match self.word(at) {
                "::" => at += 1,
                "{" => return self.group(at + 1, &segments),
                "*" => at += 1,
                "as" => at += 2,
                _ if self.is_name(at) => {
                    segments.push(self.word(at).to_string());
                    at += 1;
                }
                _ => break,
            }
        }
        // `use a::b::{self}` names b.
        if segments.len() > 1 && segments.last().is_some_and(|last| last == "self") {
            segments.pop();
        }
        if segments.len() > before.len() || self.word(at - 1) == "*" || self.word(at - 1) == "self" {
            self.add(segments, start);
        }
        at
    }

    fn group(&mut self, mut at: usize, before: &[String]) -> usize {
        while at < self.tokens.len() && self.word(at) != "}" {
            at = self.tree(at, before);
            at += usize::from(self.word(at) == ",");
            if self.word(at) == ";" {
                return at;
            }
        }
        at + 1
    }

    fn add(&mut self, segments: Vec<String>, at: usize) {
        let line = self.tokens[at].line;
        self.found.push(Path { segments: self.resolve(segments), line });
    }

    fn resolve(&self, segments: Vec<String>) -> Vec<String> {
        let mut base = match segments[0].as_str() {
            "self" | "super" => self.here.clone(),
            _ => return segments,
        };
        let mut rest = segments.as_slice();
        while let [first, tail @ ..] = rest {
            match first.as_str() {
                "self" => {}
                "super" => drop(base.pop()),
                _ => break,
            }
            rest = tail;
        }
        base.insert(0, "crate".into());
        base.extend_from_slice(rest);
        base
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(module: &[&str], text: &str) -> Vec<String> {
        paths(&Source::new(text), module).iter().map(|path| path.segments.join("::")).collect()
    }

    #[test]
    fn groups_are_opened_out() {
        let found = named(&["daemon"], "use crate::{a::{b, c::{self, D}}, e as f, g::*};");
        assert_eq!(found, ["crate::a::b", "crate::a::c", "crate::a::c::D", "crate::e", "crate::g"]);
    }

    #[test]
    fn super_is_the_parent_of_the_file_and_of_an_inline_module() {
        let text = "use super::error::Bad; mod tests { use super::*; fn f() { super::super::quant::g() } } fn h() { self::x::y() }";
        let found = named(&["engine", "pool"], text);
        assert_eq!(
            found,
            [
                "crate::engine::error::Bad",
                "crate::engine::pool",
                "crate::engine::quant::g",
                "crate::engine::pool::x::y"
            ]
        );
    }

    #[test]
    fn paths_inside_code_and_macros_count() {
        let found = named(
            &[],
            "fn f() -> crate::a::B { m!(crate::c::D::<u8>::new()) } macro_rules! m { () => { $crate::e::F } }",
        );
        assert_eq!(found, ["crate::a::B", "crate::c::D", "crate::e::F"]);
    }

    #[test]
    fn visibility_and_capture_lists_name_nothing() {
        assert!(named(&[], "pub(in crate::engine) struct A; fn f<'a>() -> impl B + use<'a> {}").is_empty());
    }

    #[test]
    fn other_crates_keep_their_names() {
        assert_eq!(
            named(&[], "use ::std::{env, fs}; fn f() { std::env::var(x) }"),
            ["std::env", "std::fs", "std::env::var"]
        );
    }
}
