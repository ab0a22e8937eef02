//! The same faults on the command line, as the owner of a device sees them.

use crate::fixtures;
use rustix::fs::{FileType, Mode};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// `bitnetd`, under the emulator of a foreign build where one is named.
pub fn bitnetd() -> Command {
    let runner = std::env::var("BITNETD_RUNNER").unwrap_or_default();
    let mut words = runner.split_whitespace().chain([env!("CARGO_BIN_EXE_bitnetd")]);
    let mut command = Command::new(words.next().expect("at least the program itself"));
    command.args(words);
    command
}

/// A temporary folder, removed when dropped.
pub struct Folder(TempDir);

impl Folder {
    pub fn new() -> Self {
        Folder(TempDir::with_prefix("bitnetd-").expect("a temporary folder"))
    }

    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).expect("room for a small file");
        path
    }
}

fn generate(model: &Path) -> Output {
    let mut command = bitnetd();
    command.args(["generate", "--threads", "1", "--model"]).arg(model).arg("x");
    command.output().expect("the program was built with its tests")
}

#[track_caller]
fn check(model: &Path, wanted: &str) {
    let Output { status, stdout, stderr } = generate(model);
    let message = String::from_utf8(stderr).expect("UTF-8");
    assert_eq!(status.code(), Some(3), "{message}");
    assert!(stdout.is_empty());
    assert!(message.ends_with('\n') && message.lines().count() == 1, "{message:?}");
    assert!(message.contains(wanted), "{wanted:?} is not in {message:?}");
}

#[test]
fn a_damaged_model_ends_the_program_with_3_and_one_line_that_names_the_file() {
    let folder = Folder::new();
    let whole = fixtures::small().bytes();
    check(&folder.file("cut.gguf", &whole[..whole.len() / 2]), "cut.gguf: tensor ");
    check(&folder.file("empty.gguf", &[]), "empty.gguf: byte 0: no GGUF file");
    let mut file = fixtures::small();
    file.tensor("blk.0.attn_norm.weight").data.fill(0xff);
    check(&folder.file("nan.gguf", &file.bytes()), "nan.gguf: tensor blk.0.attn_norm.weight: ");
    check(&folder.file("two\nlines.gguf", b"x"), "lines.gguf: byte 0: ");
}

#[test]
fn a_path_that_is_not_a_regular_file_gives_the_same_exit_code() {
    let folder = Folder::new();
    check(folder.0.path(), "not a regular file");
    check(&folder.0.path().join("nowhere.gguf"), "nowhere.gguf: cannot be read: ");
    check(Path::new("/dev/null"), "/dev/null: cannot be read: not a regular file");
    let pipe = folder.0.path().join("pipe.gguf");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).expect("a pipe");
    check(&pipe, "pipe.gguf: cannot be read: not a regular file");
}

#[test]
fn a_sound_model_of_the_same_kind_answers_until_its_context_is_used_up() {
    let folder = Folder::new();
    let Output { status, stdout, stderr } = generate(&folder.file("sound.gguf", &fixtures::small().bytes()));
    let message = String::from_utf8(stderr).expect("UTF-8");
    assert_eq!((status.code(), stdout.is_empty()), (Some(5), false), "{message}");
    assert!(message.contains("[cut off: "), "{message}");
}

#[test]
fn a_prompt_that_the_models_template_does_not_take_ends_it_with_5() {
    let folder = Folder::new();
    let mut file = fixtures::small();
    let template = "{% if messages[-1].content == 'x' %}{{ raise_exception('no x here') }}{% endif %}\
                    {{ messages[-1].content }}<|eot_id|>";
    file.set("tokenizer.chat_template", fixtures::text(template));
    let Output { status, stdout, stderr } = generate(&folder.file("m.gguf", &file.bytes()));
    let message = String::from_utf8(stderr).expect("UTF-8");
    assert_eq!((status.code(), stdout.is_empty(), message.lines().count()), (Some(5), true, 1), "{message}");
    assert!(message.contains("messages: the model's chat template says: no x here"), "{message}");
}

#[test]
fn json_of_inspect_holds_no_name_that_a_terminal_obeys_and_none_that_is_endless() {
    let folder = Folder::new();
    let mut file = fixtures::small();
    let evil = format!("\u{1b}]0;x\u{7}\u{9b}31m\u{202e}{}", "é".repeat(3_000));
    file.set("general.name", fixtures::text(&evil));
    file.set(&format!("x.{evil}"), fixtures::text(&evil));
    let model = folder.file("m.gguf", &file.bytes());
    let output = bitnetd().args(["inspect", "--json"]).arg(model).output().expect("the program was built");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(!text.trim_end().contains(|c: char| c.is_control() || c == '\u{202e}'), "{text}");
    let read: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let name = read["name"].as_str().expect("a text");
    assert!(name.starts_with("\u{1b}]0;x\u{7}\u{9b}31m\u{202e}é") && name.ends_with("é…"), "{name}");
    assert_eq!(name.chars().count(), 201);
    let entries = read["metadata"].as_array().expect("a list");
    let entry = entries.iter().find(|entry| entry["key"].as_str().is_some_and(|key| key.starts_with("x.")));
    let entry = entry.expect("it is listed");
    for text in [&entry["key"], &entry["value"]] {
        assert_eq!(text.as_str().map(|text| text.chars().count()), Some(201), "{text}");
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_prompt_argument() {
    let folder = Folder::new();
    let model = folder.file("m.gguf", &fixtures::small().bytes());
    let answer = |prompt: &str| {
        let mut command = bitnetd();
        command.args(["generate", "--threads", "1", "--max-tokens", "4", "--model"]).arg(&model).arg(prompt);
        command.output().expect("the program was built")
    };
    let plain = answer("x");
    assert_eq!(
        (answer("\u{feff}x").stdout, plain.status.code()),
        (plain.stdout, Some(5)),
        "cut off at --max-tokens"
    );
    let twice = answer("\u{feff}\u{feff}x");
    let message = String::from_utf8(twice.stderr).expect("UTF-8");
    assert_eq!(twice.status.code(), Some(2), "{message}");
    assert!(message.contains("second byte-order mark"), "{message}");
}
