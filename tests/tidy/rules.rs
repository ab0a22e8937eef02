//! One function a rule: a file in, its violations out.
//!
//! No rule opens a file or looks at a second one, but for the configuration keys, which have two sides.

use std::fmt;

use crate::source::Source;
use crate::table::*;
use crate::{config_keys, imports};

pub struct File {
    /// From the top of the repository, with `/`.
    pub path: String,
    pub text: String,
    pub source: Source,
}

impl File {
    pub fn new(path: &str, text: &str) -> File {
        let source = if path.ends_with(".rs") { Source::new(text) } else { Source::new("") };
        File { path: path.into(), text: text.into(), source }
    }

    /// `engine/gguf/mod` for `src/engine/gguf/mod.rs`; nothing for a file outside `src`.
    pub fn stem(&self) -> Option<&str> {
        self.path.strip_prefix("src/")?.strip_suffix(".rs")
    }

    fn is_in(&self, places: &[&str]) -> bool {
        is_in(self, places)
    }

    /// A file under `src` that is not only tests.
    pub fn is_product(&self) -> bool {
        self.stem().is_some() && !self.is_test()
    }

    /// The module path: `["engine", "gguf"]`.
    pub fn module(&self) -> Vec<&str> {
        let stem = self.stem().unwrap_or_default();
        let stem = stem.strip_suffix("/mod").unwrap_or(stem);
        stem.split('/').filter(|name| !matches!(*name, "lib" | "main")).collect()
    }

    /// A file that only tests are in, as in `#[cfg(test)] mod tests;`.
    fn is_test(&self) -> bool {
        self.stem().is_none_or(|stem| stem.split('/').any(|part| part == "tests"))
    }

    pub fn found(&self, line: usize, rule: impl Into<String>) -> Violation {
        Violation { path: self.path.clone(), line, rule: rule.into() }
    }
}

/// Whether a file lies in one of `places`, which are paths under `src` as in the table.
pub fn is_in(file: &File, places: &[&str]) -> bool {
    file.stem().is_some_and(|stem| places.iter().any(|place| covers(place, stem)))
}

fn covers(place: &str, stem: &str) -> bool {
    stem.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

pub struct Violation {
    path: String,
    pub line: usize,
    rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.rule)
    }
}

pub fn imports_follow_the_table(file: &File) -> Vec<Violation> {
    let Some(stem) = file.stem().filter(|stem| !matches!(*stem, "lib" | "main")) else {
        return vec![];
    };
    let row = MAY_NAME.iter().filter(|(place, _)| covers(place, stem)).max_by_key(|(place, _)| place.len());
    let Some((place, may)) = row else {
        return vec![file.found(1, format!("`{stem}` has no row in the import table of tests/tidy/main.rs"))];
    };
    let own = place.trim_end_matches("/mod").replace('/', "::");
    let allowed = |path: &str| {
        may.iter().chain([&own.as_str()]).any(|module| {
            *module == EVERYTHING
                || path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        })
    };
    imports::paths(&file.source, &file.module())
        .into_iter()
        .filter(|path| path.segments[0] == "crate" && path.segments.len() > 1)
        .map(|path| (path.line, path.segments[1..].join("::")))
        .filter(|(_, path)| !allowed(path))
        .map(|(line, path)| {
            file.found(
                line,
                format!("`{place}` may not name `crate::{path}`; it may name its own and {may:?}"),
            )
        })
        .collect()
}

pub fn unsafe_stands_only_where_allowed(file: &File) -> Vec<Violation> {
    if file.stem().is_none() || file.is_in(MAY_BE_UNSAFE) {
        return vec![];
    }
    words(file, "unsafe")
        .map(|line| file.found(line, format!("`unsafe` stands only in {MAY_BE_UNSAFE:?}")))
        .collect()
}

pub fn unsafe_says_why_it_holds(file: &File) -> Vec<Violation> {
    let tokens = &file.source.tokens;
    (0..tokens.len())
        .filter(|&at| file.stem().is_some() && tokens[at].text == "unsafe")
        .filter_map(|at| {
            let line = tokens[at].line;
            match unsafe_kind(&file.source, at) {
                Unsafe::Other => None,
                Unsafe::Function if noted(&file.source, line, &["SAFETY:", "# Safety"]) => None,
                Unsafe::Block if noted(&file.source, line, &["SAFETY:"]) => None,
                Unsafe::Function => Some(file.found(line, "`unsafe fn` without a `# Safety` section")),
                Unsafe::Block => {
                    Some(file.found(line, "`unsafe` without a `// SAFETY:` note directly above"))
                }
            }
        })
        .collect()
}

enum Unsafe {
    /// A block, an `impl` or an `extern` block: someone vouches for something.
    Block,
    /// The caller has to vouch.
    Function,
    /// A function's type, or an attribute such as `#[unsafe(no_mangle)]` (which the list of files still covers).
    Other,
}

fn unsafe_kind(source: &Source, at: usize) -> Unsafe {
    let word = |n: usize| source.tokens.get(at + n).map_or("", |token| token.text.as_str());
    if word(1) == "(" {
        return Unsafe::Other;
    }
    // `unsafe extern "C" fn`: the string is one token.
    let next = (1..4).find(|&n| word(n) != "extern" && !word(n).starts_with('"')).unwrap_or(1);
    match (word(next), word(next + 1)) {
        ("fn", "(") => Unsafe::Other,
        ("fn" | "trait", _) => Unsafe::Function,
        _ => Unsafe::Block,
    }
}

/// Whether one of `marks` stands in a comment on `line`, or in those above the statement that `line` is part of.
fn noted(source: &Source, line: usize, marks: &[&str]) -> bool {
    let marked = |line: usize| marks.iter().any(|mark| source.comments[line - 1].contains(mark));
    if marked(line) {
        return true;
    }
    for above in (1..line).rev() {
        let code = source.lines[above - 1].trim();
        let is_blank = code.is_empty() && source.comments[above - 1].is_empty();
        let is_other_statement = code.ends_with([';', '{', '}', ',']);
        if is_blank || is_other_statement {
            return false;
        }
        if marked(above) {
            return true;
        }
    }
    false
}

/// A library that only one part of the program may name.
pub fn libraries_have_one_user(file: &File) -> Vec<Violation> {
    if file.stem().is_none() {
        return vec![];
    }
    let mut found = vec![];
    for (libraries, users) in LIBRARY_USERS.iter().filter(|(_, users)| !file.is_in(users)) {
        for name in *libraries {
            let named = words(file, name);
            found.extend(
                named.map(|line| file.found(line, format!("`{name}` is named only under {users:?}"))),
            );
        }
    }
    found
}

pub fn engine_keeps_to_itself(file: &File) -> Vec<Violation> {
    if !file.is_in(&["engine"]) || file.is_test() {
        return vec![];
    }
    let tokens = &file.source.tokens;
    let calls = (0..tokens.len())
        .filter(|&at| {
            ENGINE_NEVER_CALLS.iter().any(|name| file.source.reads(at, &[name, "!"])) && !tokens[at].in_test
        })
        .map(|at| file.found(tokens[at].line, format!("`{}!` under src/engine", tokens[at].text)));
    let in_test = |line: usize| tokens.iter().any(|token| token.line == line && token.in_test);
    let paths = imports::paths(&file.source, &file.module());
    let names = paths
        .into_iter()
        .filter(|path| {
            ENGINE_NEVER_NAMES.iter().any(|never| starts_with(&path.segments, never)) && !in_test(path.line)
        })
        .map(|path| file.found(path.line, format!("`{}` under src/engine", path.segments.join("::"))));
    calls.chain(names).collect()
}

fn starts_with(segments: &[String], start: &[&str]) -> bool {
    segments.len() >= start.len() && segments.iter().zip(start).all(|(a, b)| a == b)
}

pub fn nothing_is_unwrapped_barely(file: &File) -> Vec<Violation> {
    if file.is_test() {
        return vec![];
    }
    let tokens = &file.source.tokens;
    (0..tokens.len())
        .filter(|&at| file.source.reads(at, &[".", "unwrap", "(", ")"]) && !tokens[at].in_test)
        .map(|at| {
            file.found(tokens[at + 1].line, "bare `.unwrap()`: use `expect(\"why it holds\")` or an error")
        })
        .collect()
}

pub fn no_dead_code_is_allowed(file: &File) -> Vec<Violation> {
    words(file, "dead_code").map(|line| file.found(line, "dead code is removed, not allowed")).collect()
}

pub fn files_are_not_too_long(file: &File) -> Vec<Violation> {
    let lines = file.text.lines().count();
    let too_long = file.stem().is_some() && lines > MAX_LINES;
    too_long
        .then(|| file.found(lines, format!("over {MAX_LINES} lines: make it a folder of the same name")))
        .into_iter()
        .collect()
}

pub fn names_say_something(file: &File) -> Vec<Violation> {
    let is_empty_name = |part: &str| part.split(['_', '.', '-']).any(|word| EMPTY_NAMES.contains(&word));
    let bad = file.path.ends_with(".rs") && file.path.split('/').any(is_empty_name);
    bad.then(|| file.found(1, "a name that says nothing of what is inside")).into_iter().collect()
}

pub fn folders_say_what_they_are(file: &File) -> Vec<Violation> {
    let is_first_file = file.stem().is_some_and(|stem| stem == "lib" || stem.ends_with("/mod"));
    let bad = is_first_file && !file.text.starts_with("//!");
    bad.then(|| file.found(1, "begins with `//!`: what it is, and what it does not know"))
        .into_iter()
        .collect()
}

pub fn nothing_names_the_development_machine(file: &File) -> Vec<Violation> {
    let names_it = |line: &str| FOREIGN_PATHS.iter().any(|path| line.contains(path));
    let lines = file.text.lines().enumerate().filter(|(_, line)| names_it(line));
    lines.map(|(at, _)| file.found(at + 1, "a path of the development machine")).collect()
}

fn words<'a>(file: &'a File, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    file.source.tokens.iter().filter(move |token| token.text == word).map(|token| token.line)
}

/// Every path below `src` and `tests` that a page names has to exist, as `exists` answers; `{a,b}` names several.
pub fn named_paths_exist(page: &File, exists: impl Fn(&str) -> bool) -> Vec<Violation> {
    let is_separator = |c: char| !(c.is_ascii_alphanumeric() || "_-./{},".contains(c));
    let mut found = vec![];
    for (at, line) in page.text.lines().enumerate() {
        let words = line.split(is_separator).map(|word| word.trim_end_matches(['.', ',']));
        let paths = words.map(|word| word.trim_start_matches("../")).flat_map(alternatives);
        let paths = paths.filter(|path| path.starts_with("src/") || path.starts_with("tests/"));
        let paths = paths.filter(|path| !MADE_BY_COMMANDS.iter().any(|made| path.starts_with(made)));
        let missing = paths.filter(|path| !exists(path));
        found.extend(missing.map(|path| page.found(at + 1, format!("`{path}` does not exist"))));
    }
    found
}

/// `a/b.rs` and `a/c.rs` for `a/{b,c}.rs`.
fn alternatives(path: &str) -> Vec<String> {
    let parts = path.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?)));
    match parts {
        Some((before, (names, behind))) => {
            names.split(',').map(|name| format!("{before}{name}{behind}")).collect()
        }
        None => vec![path.to_owned()],
    }
}

/// The files in `complete` have to show every key, and no file may show one that is not read. A page is to explain each
/// key once.
pub fn config_keys_agree(complete: &[&str], files: &[&File], mirror: &File) -> Vec<Violation> {
    let read = config_keys::in_mirror(&mirror.source);
    let mut found = vec![];
    if read.is_empty() {
        found.push(mirror.found(1, "no `struct File` with keys in it"));
    }
    for file in files {
        let (shown, again) = match file.path.ends_with(".md") {
            true => config_keys::in_page(&file.text),
            false => (config_keys::in_toml(&file.text), config_keys::Keys::new()),
        };
        let unread = shown.iter().filter(|(key, _)| !read.contains_key(*key));
        found.extend(
            unread.map(|(key, line)| {
                file.found(*line, format!("`{key}` is read by nothing in {}", mirror.path))
            }),
        );
        found
            .extend(again.iter().map(|(key, line)| file.found(*line, format!("`{key}` is explained twice"))));
        if complete.contains(&file.path.as_str()) {
            let unshown = read.iter().filter(|(key, _)| !shown.contains_key(*key));
            found
                .extend(unshown.map(|(key, line)| {
                    mirror.found(*line, format!("`{key}` is not shown in {}", file.path))
                }));
        }
    }
    found
}
