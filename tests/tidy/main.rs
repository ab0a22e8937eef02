//! Holds the source text to the architecture: who may name whom, where `unsafe` may stand, what a configuration
//! key needs, what the folders hold. The rules as data are in `table.rs`; change the architecture there.
//!
//! It reads text only: no build, no type information. Each rule is a function from one file to its violations, so
//! `proofs.rs` can show on a few lines of source that it does find what it is for. What the compiler or clippy can
//! check is not here.

mod config_keys;
mod imports;
mod names;
mod proofs;
mod rules;
mod source;
mod table;

use std::fs;
use std::path::Path;

use names::{imports_have_no_circle, old_words_stay_away, public_types_have_one_name};
use rules::*;
use table::TOP_LEVEL;

/// Every text file of the repository; large ones are data.
fn repository() -> Vec<File> {
    let mut files = vec![];
    walk(Path::new(env!("CARGO_MANIFEST_DIR")), "", &mut files);
    assert!(files.iter().any(|file| file.path == "src/lib.rs"), "the source was not found");
    files
}

fn walk(folder: &Path, prefix: &str, files: &mut Vec<File>) {
    for entry in fs::read_dir(folder).expect("a folder of the repository can be listed") {
        let entry = entry.expect("its entries too");
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}{name}");
        let kind = entry.file_type().expect("the kind of an entry is known");
        // `.git` is a file in a second work tree of the repository.
        if matches!(name.as_str(), ".git" | "target") {
            continue;
        }
        if kind.is_dir() {
            walk(&entry.path(), &format!("{path}/"), files);
        } else if kind.is_file() && entry.metadata().is_ok_and(|data| data.len() < 1 << 20) {
            // What is not UTF-8 is not text.
            files.extend(fs::read_to_string(entry.path()).ok().map(|text| File::new(&path, &text)));
        }
    }
}

fn check(rule: fn(&File) -> Vec<Violation>) {
    report(repository().iter().flat_map(rule).collect());
}

fn report(found: Vec<Violation>) {
    let lines: Vec<String> = found.iter().map(Violation::to_string).collect();
    assert!(lines.is_empty(), "{} found\n{}\n", lines.len(), lines.join("\n"));
}

macro_rules! hold {
    ($($test:ident: $rule:ident,)*) => { $(#[test] fn $test() { check($rule); })* };
}

hold! {
    the_import_table_holds: imports_follow_the_table,
    unsafe_is_only_where_it_may_be: unsafe_stands_only_where_allowed,
    every_unsafe_has_a_safety_note: unsafe_says_why_it_holds,
    libraries_are_named_where_they_are_used: libraries_have_one_user,
    the_engine_knows_no_runtime_environment_or_output: engine_keeps_to_itself,
    no_bare_unwrap: nothing_is_unwrapped_barely,
    no_dead_code: no_dead_code_is_allowed,
    no_file_is_too_long: files_are_not_too_long,
    no_file_is_called_nothing: names_say_something,
    every_folder_says_what_it_is: folders_say_what_they_are,
    the_development_machine_is_not_named: nothing_names_the_development_machine,
    no_word_of_the_old_idiom_comes_back: old_words_stay_away,
}

fn check_all(rule: fn(&[&File]) -> Vec<Violation>) {
    let files = repository();
    report(rule(&files.iter().collect::<Vec<_>>()));
}

#[test]
fn no_two_public_types_share_a_name() {
    check_all(public_types_have_one_name);
}

#[test]
fn no_imports_lead_in_a_circle() {
    check_all(imports_have_no_circle);
}

#[test]
fn every_source_folder_has_a_mod_file() {
    let files = repository();
    let missing = files.iter().filter_map(|file| {
        let (folder, _) = file.stem()?.rsplit_once('/')?;
        let mod_file = format!("src/{folder}/mod.rs");
        (!files.iter().any(|file| file.path == mod_file))
            .then(|| file.found(1, format!("no {mod_file} beside it")))
    });
    report(missing.collect());
}

#[test]
fn configuration_files_their_page_and_their_mirror_have_the_same_keys() {
    let files = repository();
    let complete = ["config/bitnetd.toml", "docs/configuration.md"];
    let is_toml = |path: &str| path.starts_with("config/") && path.ends_with(".toml");
    let shown: Vec<&File> =
        files.iter().filter(|file| is_toml(&file.path) || complete.contains(&file.path.as_str())).collect();
    let mirror = files
        .iter()
        .find(|file| file.path == "src/config/toml_schema/mod.rs")
        .expect("src/config/toml_schema/mod.rs exists");
    for path in complete {
        assert!(shown.iter().any(|file| file.path == path), "{path} exists");
    }
    report(config_keys_agree(&complete, &shown, mirror));
}

#[test]
fn files_that_the_documentation_names_exist() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = repository();
    let is_page = |path: &str| path == "README.md" || path.starts_with("docs/") && path.ends_with(".md");
    let pages = files.iter().filter(|file| is_page(&file.path));
    report(pages.flat_map(|page| named_paths_exist(page, |path| top.join(path).exists())).collect());
}

#[test]
fn the_top_level_holds_only_what_a_newcomer_expects() {
    let unexpected: Vec<String> = fs::read_dir(env!("CARGO_MANIFEST_DIR"))
        .expect("the repository can be listed")
        .map(|entry| entry.expect("its entries too").file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.') && !TOP_LEVEL.contains(&name.as_str()))
        .collect();
    assert!(unexpected.is_empty(), "not on the list: {unexpected:?}");
}
