//! Each rule finds what it is for, and nothing in what only looks like it.

use crate::rules::*;
use crate::table::FOREIGN_PATHS;

/// The lines on which `rule` finds something.
fn lines(rule: fn(&File) -> Vec<Violation>, path: &str, text: &str) -> Vec<usize> {
    rule(&File::new(path, text)).iter().map(|violation| violation.line).collect()
}

#[test]
fn an_import_against_the_flow_is_found() {
    let rule = imports_follow_the_table;
    let text = "use crate::config::Settings;\nuse crate::{protocol, engine::Engine};\nfn f() { crate::daemon::run() }\n";
    assert_eq!(lines(rule, "src/guard/rate.rs", text), [2, 3]);
    assert_eq!(lines(rule, "src/cli/serve.rs", text), [0; 0]);
    assert_eq!(lines(rule, "src/main.rs", text), [0; 0]);
    assert_eq!(
        lines(rule, "src/engine/thread_pool.rs", "use super::*;\n"),
        [1],
        "the facade is above the pool"
    );
}

#[test]
fn super_cannot_go_round_the_table() {
    let rule = imports_follow_the_table;
    assert_eq!(
        lines(rule, "src/engine/thread_pool.rs", "use super::quant;\nuse super::session::Session;\n"),
        [2]
    );
    assert_eq!(
        lines(
            rule,
            "src/engine/gguf/parse.rs",
            "use super::map;\nuse super::super::error;\nuse super::super::ops;\n"
        ),
        [3]
    );
}

#[test]
fn the_daemon_meets_the_engine_in_three_files() {
    let rule = imports_follow_the_table;
    let text = "use crate::engine::Engine;\n";
    for file in ["mod", "worker", "memory_plan", "worker/step"] {
        assert_eq!(lines(rule, &format!("src/daemon/{file}.rs"), text), [0; 0], "{file}");
    }
    assert_eq!(lines(rule, "src/daemon/answer_cache.rs", text), [1]);
    assert_eq!(lines(rule, "src/transport/unix.rs", text), [1]);
}

#[test]
fn a_module_without_a_row_is_found() {
    assert_eq!(lines(imports_follow_the_table, "src/engine/extra.rs", ""), [1]);
    assert_eq!(lines(imports_follow_the_table, "src/configuration/mod.rs", ""), [1]);
}

#[test]
fn comments_and_strings_name_nothing() {
    let text = "// crate::engine\n/* crate::engine /* crate::engine */ */\nconst A: &str = r#\"crate::engine \"unsafe\" \"#;\n\
                const B: (char, &str, u8) = ('\"', \"\\\"crate::engine\", b'\"');\nfn f<'a>(x: &'a str) { crate::engine::g('\\'') }\n";
    assert_eq!(lines(imports_follow_the_table, "src/guard/mod.rs", text), [5]);
    assert_eq!(lines(unsafe_stands_only_where_allowed, "src/guard/mod.rs", text), [0; 0]);
}

#[test]
fn unsafe_in_the_wrong_file_is_found() {
    let text = "fn f() {\n    // SAFETY: none\n    unsafe { g() }\n}\n";
    assert_eq!(lines(unsafe_stands_only_where_allowed, "src/engine/ops.rs", text), [3]);
    assert_eq!(
        lines(unsafe_stands_only_where_allowed, "src/engine/kernels/aarch64/neon/gemv.rs", text),
        [0; 0]
    );
    assert_eq!(lines(unsafe_stands_only_where_allowed, "src/engine/thread_pooling.rs", text), [3]);
}

#[test]
fn unsafe_without_a_note_is_found() {
    let rule = unsafe_says_why_it_holds;
    let path = "src/engine/thread_pool.rs";
    assert_eq!(lines(rule, path, "// SAFETY: x\nlet a =\n    unsafe { b() };\n"), [0; 0]);
    assert_eq!(lines(rule, path, "// SAFETY: x\nlet a = 1;\nlet b = unsafe { c() };\n"), [3]);
    assert_eq!(lines(rule, path, "// SAFETY: x\n\nunsafe { c() }\n"), [3]);
    assert_eq!(
        lines(rule, path, "// SAFETY: x\nunsafe impl Send for A {}\nunsafe impl Sync for A {}\n"),
        [3]
    );
    assert_eq!(lines(rule, path, "// SAFETY: x\n#[cfg(test)]\nunsafe impl Send for A {}\n"), [0; 0]);
}

#[test]
fn unsafe_functions_tell_their_callers() {
    let rule = unsafe_says_why_it_holds;
    let path = "src/engine/kernels/aarch64/neon/gemv.rs";
    assert_eq!(
        lines(
            rule,
            path,
            "/// # Safety\n/// NEON.\n#[target_feature(enable = \"neon\")]\npub unsafe fn f() {}\n"
        ),
        [0; 0]
    );
    assert_eq!(lines(rule, path, "/// Adds.\nunsafe extern \"C\" fn f() {}\n"), [2]);
    assert_eq!(lines(rule, path, "struct Table {\n    dot: unsafe fn(*const i8) -> i32,\n}\n"), [0; 0]);
}

#[test]
fn the_engine_is_told_off_outside_its_tests() {
    let text = "use std::{env, fs};\nfn f(x: f32) { log::info!(\"\"); println!(\"{}\", x.log(2.0)); }\n\
                #[cfg(test)]\nmod tests {\n    fn t() { println!(\"{:?}\", std::env::temp_dir()) }\n}\nuse tokio::spawn;\n";
    let mut found = lines(engine_keeps_to_itself, "src/engine/ops.rs", text);
    found.sort_unstable();
    assert_eq!(found, [1, 2, 2, 7]);
    assert_eq!(lines(engine_keeps_to_itself, "src/cli/ask.rs", text), [0; 0]);
}

#[test]
fn a_bare_unwrap_is_found_outside_tests() {
    let rule = nothing_is_unwrapped_barely;
    let text = "fn f() { a.unwrap(); b.unwrap_or(1); }\n#[cfg(test)]\nmod tests { fn t() { c.unwrap() } }\nfn g() {\n    d\n        .unwrap()\n}\n";
    assert_eq!(lines(rule, "src/protocol/json.rs", text), [1, 6]);
    assert_eq!(lines(rule, "src/protocol/tests.rs", text), [0; 0]);
    assert_eq!(lines(rule, "src/a.rs", "#[cfg(not(test))]\nfn f() { a.unwrap() }\n"), [2]);
}

#[test]
fn the_other_words_are_found() {
    assert_eq!(lines(libraries_have_one_user, "src/transport/mqtt/link.rs", "use rumqttc::Event;\n"), [1]);
    assert_eq!(lines(libraries_have_one_user, "src/transport/mqtt/link.rs", "use rustls::Error;\n"), [1]);
    assert_eq!(
        lines(libraries_have_one_user, "src/transport/mqtt/client/v5.rs", "use rumqttc::Event;\n"),
        [0; 0]
    );
    assert_eq!(lines(libraries_have_one_user, "src/engine/session.rs", "use llguidance::Matcher;\n"), [1]);
    assert_eq!(
        lines(libraries_have_one_user, "src/engine/grammar/mod.rs", "use llguidance::Matcher;\n"),
        [0; 0]
    );
    assert_eq!(lines(libraries_have_one_user, "src/transport/unix/mod.rs", "use hyper::Method;\n"), [1]);
    assert_eq!(lines(libraries_have_one_user, "src/transport/http/call.rs", "use hyper::Method;\n"), [0; 0]);
    assert_eq!(lines(no_dead_code_is_allowed, "src/a.rs", "#[allow(unused, dead_code)]\nfn f() {}\n"), [1]);
    assert_eq!(
        lines(nothing_names_the_development_machine, "README.md", &format!("x\n{}y\n", FOREIGN_PATHS[0])),
        [2]
    );
}

#[test]
fn files_that_are_too_long_or_badly_named_are_found() {
    assert_eq!(lines(files_are_not_too_long, "src/a.rs", &"\n".repeat(601)), [601]);
    assert_eq!(lines(files_are_not_too_long, "src/a.rs", &"\n".repeat(600)), [0; 0]);
    assert_eq!(lines(names_say_something, "src/engine/string_utils.rs", ""), [1]);
    assert_eq!(lines(names_say_something, "tests/common/mod.rs", ""), [1]);
    assert_eq!(lines(names_say_something, "src/telemetry/governor.rs", ""), [0; 0]);
    assert_eq!(lines(folders_say_what_they_are, "src/guard/mod.rs", "use x;\n//! Late\n"), [1]);
}

#[test]
fn a_path_that_does_not_exist_is_found_in_a_page() {
    let text = "In `src/a.rs` and [b](../src/b.rs).\nSee `tests/x/{a,c}.rs`, `tests/run STEP`.\n`tests/fuzz/corpus/json`\n";
    let exists = |path: &str| matches!(path, "src/a.rs" | "tests/x/a.rs" | "tests/run");
    let found = named_paths_exist(&File::new("docs/a.md", text), exists);
    let found: Vec<String> = found.iter().map(Violation::to_string).collect();
    assert_eq!(
        found,
        ["docs/a.md:1: `src/b.rs` does not exist", "docs/a.md:2: `tests/x/c.rs` does not exist"]
    );
}

#[test]
fn a_key_that_only_one_side_has_is_found() {
    let mirror = File::new(
        "src/config/toml_schema/mod.rs",
        "struct File { log: Log }\nstruct Log {\n    level: String,\n    colour: bool,\n}\n",
    );
    let example = File::new("config/bitnetd.toml", "[log]\nlevel = \"info\"\n# format = \"short\"\n");
    let page = File::new(
        "docs/configuration.md",
        "## [log]\n| `colour` | x |\n| `format` | x |\n| `colour` | x |\n",
    );
    let found: Vec<String> = config_keys_agree(&[&example.path, &page.path], &[&example, &page], &mirror)
        .iter()
        .map(Violation::to_string)
        .collect();
    let expected = [
        "config/bitnetd.toml:3: `log.format`",
        "src/config/toml_schema/mod.rs:4: `log.colour`",
        "docs/configuration.md:3: `log.format`",
        "docs/configuration.md:4: `log.colour` is explained twice",
        "src/config/toml_schema/mod.rs:3: `log.level`",
    ];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}");
    }
}
