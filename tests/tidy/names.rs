//! Rules about names: one name for one type, no words of the old idiom, and no two files that import each other.
//!
//! It does not know what a name means: the words that may not come back are a list in `table.rs`.

use std::collections::{BTreeMap, BTreeSet};

use crate::imports;
use crate::rules::{File, Violation};
use crate::source::Token;
use crate::table::{OLD_PHRASES, OLD_WORDS, SHARED_TYPE_NAMES};

/// Two public types share a name only where the table says that a reader expects it.
pub fn public_types_have_one_name(files: &[&File]) -> Vec<Violation> {
    let mut places: BTreeMap<&str, Vec<(&File, usize)>> = BTreeMap::new();
    for file in files.iter().filter(|file| file.is_product()) {
        for (name, line) in public_types(&file.source.tokens) {
            places.entry(name).or_default().push((file, line));
        }
    }
    let shared = places
        .into_iter()
        .filter(|(name, places)| places.len() > 1 && !SHARED_TYPE_NAMES.contains(name))
        .flat_map(|(name, places)| places.into_iter().map(move |place| (name, place)));
    shared
        .map(|(name, (file, line))| {
            file.found(line, format!("`{name}` is the name of another public type too"))
        })
        .collect()
}

/// The types that a file shows to other files, each with its line.
fn public_types(tokens: &[Token]) -> impl Iterator<Item = (&str, usize)> {
    let word = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    (1..tokens.len()).filter_map(move |at| {
        let is_type = matches!(word(at), "struct" | "enum" | "trait" | "type");
        let is_public = word(at - 1) == "pub" || (word(at - 1) == ")" && is_visibility(tokens, at - 1));
        (is_type && is_public && !tokens[at].in_test).then(|| (word(at + 1), tokens[at].line))
    })
}

/// Whether the bracket that ends at `close` is that of `pub(…)`.
fn is_visibility(tokens: &[Token], close: usize) -> bool {
    let open = (0..close).rev().find(|at| tokens[*at].text == "(");
    open.and_then(|open| open.checked_sub(1)).is_some_and(|before| tokens[before].text == "pub")
}

/// A word of the old idiom in a name that the product gives, or in any comment. The comments of these rules name the
/// words.
pub fn old_words_stay_away(file: &File) -> Vec<Violation> {
    if file.path.starts_with("tests/tidy/") {
        return vec![];
    }
    let tokens = if file.is_product() { file.source.tokens.as_slice() } else { &[] };
    let names = given_names(tokens).flat_map(|token| {
        let words = words_of(&token.text);
        words.into_iter().filter(|word| OLD_WORDS.contains(&word.as_str())).map(|word| (token.line, word))
    });
    let comments = file.source.comments.iter().enumerate();
    let comments =
        comments.flat_map(|(at, comment)| old_words_in(comment).into_iter().map(move |word| (at + 1, word)));
    let found: BTreeSet<_> = names.chain(comments).collect();
    found
        .into_iter()
        .map(|(line, word)| file.found(line, format!("`{word}` is a word of the old idiom")))
        .collect()
}

/// The names that a file gives: those of its items, locals, fields and parameters.
fn given_names(tokens: &[Token]) -> impl Iterator<Item = &Token> {
    let word = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    (1..tokens.len())
        .filter(move |&at| {
            let follows = matches!(
                word(at - 1),
                "fn" | "struct" | "enum" | "trait" | "type" | "const" | "static" | "mod" | "let" | "mut"
            );
            let is_typed = word(at + 1) == ":";
            follows || is_typed
        })
        .map(|at| &tokens[at])
}

/// The words of `snake_case`, `SHOUTED` and `CamelCase` names, in small letters.
fn words_of(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut was_small = false;
    for c in name.chars() {
        if c == '_' || (c.is_uppercase() && was_small) {
            words.push(String::new());
        }
        if c != '_' {
            words.last_mut().expect("it is never empty").extend(c.to_lowercase());
        }
        was_small = c.is_lowercase() || c.is_ascii_digit();
    }
    words
}

fn old_words_in(comment: &str) -> Vec<String> {
    let text = comment.to_lowercase();
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| OLD_WORDS.contains(word));
    let phrases = OLD_PHRASES.iter().copied().filter(|phrase| text.contains(phrase));
    words.chain(phrases).map(str::to_owned).collect()
}

/// No file imports another that imports it, directly or through others. A `mod.rs` and what lies in its folder may
/// name each other: the one declares the other.
pub fn imports_have_no_circle(files: &[&File]) -> Vec<Violation> {
    let modules: BTreeMap<Vec<&str>, &File> =
        files.iter().filter(|file| file.is_product()).map(|file| (file.module(), *file)).collect();
    let edges: BTreeMap<&Vec<&str>, BTreeSet<Vec<&str>>> =
        modules.iter().map(|(module, file)| (module, imported(module, file, &modules))).collect();
    let reaches = |from: &Vec<&str>, to: &Vec<&str>| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(module) = open.pop() {
            let next = edges.get(&module).into_iter().flatten();
            open.extend(next.filter(|next| seen.insert((*next).clone())).cloned());
        }
        seen.contains(to)
    };
    let in_circle = modules.iter().filter(|(module, _)| reaches(module, module));
    in_circle.map(|(_, file)| file.found(1, "its imports lead back to it")).collect()
}

/// The modules that a file imports outside its tests.
fn imported<'a>(
    module: &[&'a str],
    file: &'a File,
    modules: &BTreeMap<Vec<&'a str>, &'a File>,
) -> BTreeSet<Vec<&'a str>> {
    let tested: BTreeSet<usize> =
        file.source.tokens.iter().filter(|token| token.in_test).map(|token| token.line).collect();
    let paths = imports::paths(&file.source, module).into_iter();
    let named = paths.filter(|path| path.segments[0] == "crate" && !tested.contains(&path.line));
    let targets = named.filter_map(|path| {
        let segments: Vec<&str> = path.segments[1..].iter().map(String::as_str).collect();
        let ends = (1..=segments.len()).rev();
        let mut found = ends.filter_map(|end| modules.keys().find(|module| module[..] == segments[..end]));
        found.next().cloned()
    });
    targets.filter(|target| !target.starts_with(module) && !module.starts_with(target)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(found: Vec<Violation>) -> Vec<usize> {
        found.iter().map(|violation| violation.line).collect()
    }

    #[test]
    fn a_type_name_that_two_files_show_is_found_unless_it_is_expected() {
        let text = "pub struct Twin;\npub(in crate::daemon) enum Error {}\nstruct Private;\n";
        let other = "struct Private;\npub(super) type Twin = u8;\npub enum Error {}\n#[cfg(test)]\npub struct Twin;\n";
        let files = [File::new("src/daemon/a.rs", text), File::new("src/daemon/b.rs", other)];
        assert_eq!(lines(public_types_have_one_name(&files.iter().collect::<Vec<_>>())), [1, 2]);
    }

    #[test]
    fn old_words_are_found_in_names_and_comments_and_not_elsewhere() {
        let text = "/// The desk of it.\nfn open_door(farewell: u8) {\n    // a door\n    outdoor(\"door\");\n    Door::new();\n}\n";
        assert_eq!(lines(old_words_stay_away(&File::new("src/daemon/a.rs", text))), [1, 2, 2, 3]);
        assert_eq!(
            lines(old_words_stay_away(&File::new("tests/a.rs", text))),
            [1, 3],
            "names in tests are free"
        );
        assert_eq!(lines(old_words_stay_away(&File::new("tests/tidy/a.rs", text))), [0; 0]);
    }

    #[test]
    fn a_circle_of_three_files_is_found_and_a_folder_with_its_own_is_none() {
        let file = |name: &str, text: &str| File::new(&format!("src/daemon/{name}.rs"), text);
        let files = [
            file("a", "use super::b::B;\n"),
            file("b", "use crate::daemon::c::C;\n"),
            file("c", "use super::a::A;\n"),
            file("d", "#[cfg(test)]\nmod tests { use super::super::e::E; }\n"),
            file("e", "use super::d::D;\n"),
            file("mod", "mod f;\nuse f::F;\n"),
            file("f", "use super::Daemon;\n"),
        ];
        let found = imports_have_no_circle(&files.iter().collect::<Vec<_>>());
        let names: Vec<String> = found.iter().map(Violation::to_string).collect();
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(
            names.iter().zip(["a", "b", "c"]).all(|(found, name)| found.contains(&format!("/{name}.rs")))
        );
    }
}
