//! What only the whole command does: detecting the layout of a file's weights.

use crate::damaged::command::{Folder, bitnetd};
use crate::few;
use crate::i2s_layouts::saved_in;
use bitnetd::engine::model::Layout;
use std::path::Path;

/// Converts, and returns the file's bytes and the text on standard error.
fn convert(input: &Path, layout: &str) -> (Vec<u8>, String) {
    let output = input.with_extension("out");
    let mut command = bitnetd();
    let ended =
        command.args(["convert", "--force", "--from-layout", layout]).arg(input).arg(&output).output();
    let ended = ended.expect("the program was built with its tests");
    let message = String::from_utf8(ended.stderr).expect("UTF-8");
    assert_eq!(ended.status.code(), Some(0), "{message}");
    (std::fs::read(&output).expect("written"), message)
}

#[test]
fn a_trained_model_in_another_layout_is_recognised_and_mended() {
    let folder = Folder::new();
    let (want, _) = convert(&folder.file("128", &saved_in(Layout::Blocks128)), "128");
    for layout in Layout::ALL.into_iter().rev().take(few(1)) {
        let input = folder.file(layout.name(), &saved_in(layout));
        let (found, message) = convert(&input, "auto");
        assert!(found == want, "{message}");
        assert_eq!(
            message.contains(&format!("layout {}", layout.name())),
            layout != Layout::Blocks128,
            "{message}"
        );
        assert!(convert(&input, layout.name()).0 == want, "named");
    }
}

#[test]
fn the_checksum_line_holds_no_control_character_of_the_outputs_name() {
    let folder = Folder::new();
    let input = folder.file("in", &saved_in(Layout::Blocks128));
    let output = input.with_file_name("a\x1b[31m\nb.gguf");
    let mut command = bitnetd();
    let ended = command.args(["convert", "--from-layout", "128"]).arg(&input).arg(&output).output();
    let ended = ended.expect("the program was built with its tests");
    assert_eq!(ended.status.code(), Some(0), "{}", String::from_utf8_lossy(&ended.stderr));
    let line = String::from_utf8(ended.stdout).expect("UTF-8");
    let name = line.strip_suffix('\n').expect("a line").split_once("  ").expect("a checksum and a name").1;
    assert!(name.ends_with("a?[31m?b.gguf") && !name.contains(char::is_control), "{line:?}");
}
