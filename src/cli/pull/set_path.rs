//! Sets `[model] path` in a configuration file and leaves everything else in it as it is. The text is edited by hand, since
//! the library that reads TOML forgets comments; what comes out is read again and compared before it is written.

use crate::cli::{Failure, host};
use crate::config::{self, Config};
use crate::external_text;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use toml::{Table, Value};

/// Sets the path of the model in `file`, which is made where it is missing.
pub(super) fn set(file: &Path, model: &Path) -> Result<(), Failure> {
    let failed =
        |why: String| Failure::usage(format!("{}: {why}; set [model] path in it by hand", file.display()));
    // A link keeps being one: the file that it names is replaced.
    let file = &file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let model =
        model.to_str().ok_or_else(|| failed("the path of the model is no UTF-8, as TOML is".into()))?;
    let before = match file.try_exists() {
        Ok(false) => String::new(),
        _ => config::read_text(file).map_err(&failed)?,
    };
    external_text::utf8(before.as_bytes()).map_err(|why| failed(format!("the file {why}")))?;
    let after = edited(&before, model)
        .ok_or_else(|| failed("its form is not one that can be edited safely".into()))?;
    Config::parse(&after, &file.display().to_string(), &host::host())
        .map_err(|error| Failure::usage(error.to_string()))?;
    replace(file, &after)
        .map_err(|error| Failure::system(format!("{}: cannot be written: {error}", file.display())))
}

/// The text with the path set; `None` where that would change anything else.
fn edited(text: &str, model: &str) -> Option<String> {
    // JSON escapes what TOML escapes, and in the same way, except DEL, which the comparison finds.
    let line = format!("path = {}", serde_json::to_string(model).ok()?);
    let bare = text.trim_start_matches('\u{feff}');
    let wanted = {
        let mut table: Table = bare.parse().ok()?;
        let section = table.entry("model").or_insert_with(|| Value::Table(Table::new())).as_table_mut()?;
        section.insert("path".into(), Value::String(model.into()));
        table
    };
    let candidate = with_line(text, &line);
    let read: Table = candidate.trim_start_matches('\u{feff}').parse().ok()?;
    (read == wanted).then_some(candidate)
}

/// Replaces the line of the key, or the commented example of it, or adds one below the head of the section, or a section.
fn with_line(text: &str, line: &str) -> String {
    let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    let end = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let is_head = |line: &str| line.split('#').next().is_some_and(|head| head.trim() == "[model]");
    let Some(head) = lines.iter().position(|line| is_head(line.trim_start_matches('\u{feff}'))) else {
        if let Some(last) = lines.last_mut().filter(|last| !last.ends_with('\n')) {
            last.push_str(end);
        }
        let gap = if lines.is_empty() { "" } else { end };
        return format!("{}{gap}[model]{end}{line}{end}", lines.concat());
    };
    if !lines[head].ends_with('\n') {
        lines[head].push_str(end);
    }
    let section = head + 1
        ..lines[head + 1..]
            .iter()
            .position(|line| line.starts_with('['))
            .map_or(lines.len(), |at| head + 1 + at);
    let is_key = |line: &String| {
        line.trim_start().strip_prefix("path").is_some_and(|rest| rest.trim_start().starts_with('='))
    };
    let is_example = |line: &String| line.starts_with("#path = ");
    let of_section = |is: &dyn Fn(&String) -> bool| section.clone().find(|at| is(&lines[*at]));
    match of_section(&is_key).or_else(|| of_section(&is_example)) {
        Some(at) => lines[at] = format!("{line}{}{end}", comment_of(&lines[at])),
        None => lines.insert(head + 1, format!("{line}{end}")),
    }
    lines.concat()
}

/// What stands behind the value of a line, with the space before it.
fn comment_of(line: &str) -> String {
    let line = line.trim_end();
    let Some(start) = line.find(['"', '\'']) else { return String::new() };
    let quote = &line[start..=start];
    // Without escaped quotation marks; the comparison finds them.
    let Some(end) = line[start + 1..].find(quote) else { return String::new() };
    let rest = &line[start + 1 + end + 1..];
    if rest.trim_start().starts_with('#') { rest.to_owned() } else { String::new() }
}

/// Writes a new file beside it and renames it, with the rights of the old one.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    let mode = fs::metadata(file).map_or(0o644, |about| about.permissions().mode());
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let new = folder.join(format!(".{name}.{}.new", std::process::id()));
    let written = (|| {
        let mut out = fs::OpenOptions::new().write(true).create_new(true).open(&new)?;
        out.set_permissions(fs::Permissions::from_mode(mode))?;
        if let Ok(about) = fs::metadata(file) {
            use std::os::unix::fs::{MetadataExt, fchown};
            // Only root may give a file away, and only root needs to.
            let _ = fchown(&out, Some(about.uid()), Some(about.gid()));
        }
        out.write_all(text.as_bytes())?;
        out.sync_all()?;
        fs::rename(&new, file)?;
        fs::File::open(folder)?.sync_all()
    })();
    written.inspect_err(|_| drop(fs::remove_file(&new)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_in(text: &str) -> String {
        edited(text, "/m.gguf").unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn the_shipped_example_keeps_every_comment() {
        let shipped = include_str!("../../../config/bitnetd.toml");
        let changed = set_in(shipped);
        let (before, after): (Vec<&str>, Vec<&str>) = (shipped.lines().collect(), changed.lines().collect());
        let differ: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
        assert_eq!((before.len(), differ.len()), (after.len(), 1), "{differ:?}");
        assert_eq!(*differ[0].1, "path = \"/m.gguf\"");
    }

    #[test]
    fn a_path_is_replaced_with_its_comment_kept() {
        assert_eq!(
            set_in("[model] # mine\npath = \"/old\"  # the old one\ncontext = 512\n[mqtt]\nhost = \"a\"\n"),
            "[model] # mine\npath = \"/m.gguf\"  # the old one\ncontext = 512\n[mqtt]\nhost = \"a\"\n"
        );
        assert_eq!(set_in("[model]\r\n  path='/old'\r\n"), "[model]\r\npath = \"/m.gguf\"\r\n");
    }

    #[test]
    fn a_missing_key_or_section_is_added() {
        assert_eq!(set_in(""), "[model]\npath = \"/m.gguf\"\n");
        assert_eq!(set_in("[mqtt]\nhost = \"a\""), "[mqtt]\nhost = \"a\"\n\n[model]\npath = \"/m.gguf\"\n");
        assert_eq!(set_in("[model]"), "[model]\npath = \"/m.gguf\"\n");
        assert_eq!(set_in("[model]\n[mqtt]\npath = 1\n"), "[model]\npath = \"/m.gguf\"\n[mqtt]\npath = 1\n");
    }

    #[test]
    fn what_cannot_be_edited_safely_is_left_alone() {
        for text in [
            "model.path = \"/old\"",
            "model = { path = \"/old\" }",
            "a = \"\"\"\n[model]\n\"\"\"\n",
            "[model",
            "[ model ]\npath = 1",
            "[model]\npath = \"\"\"\n/old\"\"\"\n",
        ] {
            assert_eq!(edited(text, "/m.gguf"), None, "{text}");
        }
        assert_eq!(edited("", "/\u{7f}"), None);
        assert!(edited("", "/a \"quoted\"\\\u{1}\n").is_some());
    }

    #[test]
    fn the_file_keeps_its_rights_and_a_link_stays_one() {
        let folder = tempfile::TempDir::with_prefix("bitnetd-").expect("a temporary folder");
        let (file, link) = (folder.path().join("real.toml"), folder.path().join("link.toml"));
        fs::write(&file, "[model]\n").expect("a temporary folder");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("a file");
        std::os::unix::fs::symlink(&file, &link).expect("a temporary folder");
        set(&link, Path::new("/m.gguf")).expect("sound");
        assert!(link.symlink_metadata().expect("a link").is_symlink());
        assert_eq!(fs::metadata(&file).expect("a file").permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_to_string(&file).expect("a file"), "[model]\npath = \"/m.gguf\"\n");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 2);
        fs::write(&file, "[model]\nnonsense = 1\n").expect("a file");
        assert_eq!(set(&file, Path::new("/m.gguf")).expect_err("an unknown key").code, 2);
    }
}
