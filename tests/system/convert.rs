//! `bitnetd convert`, as the owner of a device uses it.

use crate::daemon::{Ended, finish, run, words};
use crate::support::output;
use crate::{Folder, data, text};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A checkpoint of `tests/data` with its tokenizer.
fn checkpoint(folder: &Folder, name: &str) -> PathBuf {
    let path = folder.path(name);
    fs::create_dir(&path).expect("a new folder");
    fs::copy(data("reference/tokenizer.json"), path.join("tokenizer.json")).expect("room");
    for entry in fs::read_dir(data(&format!("checkpoints/{name}"))).expect("test data") {
        let entry = entry.expect("test data");
        fs::copy(entry.path(), path.join(entry.file_name())).expect("room");
    }
    path
}

async fn convert(args: &[&str]) -> Ended {
    run(&[&["convert"], args].concat()).await
}

/// The whole command line under a limit on the size of files, in blocks of 512 bytes; `trap` decides
/// what the limit does: a signal, or an error.
async fn convert_limited(trap: &str, blocks: u32, args: &[&str]) -> Ended {
    let script = format!("{trap} ulimit -f {blocks}; exec \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh"]).args(words()).arg("convert").args(args);
    finish(&mut command, "").await
}

fn names(folder: &Folder) -> Vec<String> {
    let entries = fs::read_dir(folder.path(".")).expect("there");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("there").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_checkpoint_becomes_a_model_that_answers_and_its_checksum_is_printed() {
    let folder = Folder::new();
    let (checkpoint, out) = (checkpoint(&folder, "b158-tiny"), folder.path("out.gguf"));
    let ended = convert(&[text(&checkpoint), text(&out)]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let (sum, name) = ended.out.trim_end().split_once("  ").expect("as sha256sum writes it");
    assert!(sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit()), "{ended:?}");
    assert_eq!(name, text(&out));
    assert!(ended.err.contains("100 % of 2 MiB checked"), "{ended:?}");
    assert_eq!(names(&folder), ["b158-tiny", "out.gguf"]);
    let args = ["generate", "--model", text(&out), "--max-tokens", "4", "--json", "go"];
    assert_eq!(run(&args).await.json()["completion_tokens"], 4);
    let again = convert(&["--force", "--weights", "tq2_0", text(&checkpoint), text(&out)]).await;
    assert_eq!(again.code, Some(0), "{again:?}");
    assert_ne!(again.out, ended.out);
}

#[tokio::test]
async fn wrong_names_are_wrong_usage_and_nothing_is_written() {
    let folder = Folder::new();
    let (model, there) = (data("reference/b158-tiny.i2_s.gguf"), folder.write("there.gguf", "mine"));
    let (model, nowhere) = (text(&model), folder.path("no/where.gguf"));
    let link = folder.path("link.gguf");
    std::os::unix::fs::symlink("nowhere", &link).expect("a free name");
    let pipe = folder.path("pipe");
    assert!(output(Command::new("mkfifo").arg(&pipe)).expect("coreutils").status.success());
    let part = folder.write("begun.gguf.bitnetd-part", "another's");
    for (args, wanted) in [
        (&[model, text(&there)][..], "--force"),
        (&[text(&there), text(&there), "--force"], "is IN too"),
        (&[text(&part), text(&folder.path("begun.gguf"))], "is IN too"),
        (&[model, text(&folder.path("model.safetensors"))], "part of a checkpoint"),
        (&[model, text(&folder.path("."))], "a folder"),
        (&[model, text(&link)], "no regular file"),
        (&[model, text(&link), "--force"], "no regular file"),
        // As a device is: root could replace it.
        (&[model, text(&pipe), "--force"], "no regular file"),
        (&[model, text(&nowhere)], "its folder does not exist"),
        (&[model], "OUT"),
        (&[model, "x.gguf", "--weights", "q4_0"], "--weights"),
        (&[model, "x.gguf", "--head", "f32"], "--head"),
        (&[model, "x.gguf", "--from-layout", "65"], "--from-layout"),
    ] {
        let ended = convert(args).await;
        assert_eq!((ended.code, ended.out.as_str()), (Some(2), ""), "{ended:?}");
        assert!(ended.error_line().contains(wanted), "{wanted}: {ended:?}");
    }
    assert_eq!(names(&folder), ["begun.gguf.bitnetd-part", "link.gguf", "pipe", "there.gguf"]);
    assert_eq!(fs::read_to_string(there).expect("there"), "mine");
}

#[tokio::test]
async fn what_cannot_be_used_ends_with_3_and_leaves_nothing() {
    let folder = Folder::new();
    let (empty, out) = (folder.path("empty"), folder.path("out.gguf"));
    fs::create_dir(&empty).expect("a new folder");
    let junk = folder.write("junk.gguf", "junk");
    let damaged = checkpoint(&folder, "b158-tiny-packed");
    let weights = damaged.join("model.safetensors");
    let mut bytes = fs::read(&weights).expect("there");
    // The last matrix: the damage is noticed when most of the file is written.
    let last = bytes.len() - 2000;
    bytes[last..last + 1000].fill(0xff);
    fs::write(&weights, bytes).expect("room");
    for (input, wanted) in [
        (folder.path("gone"), "gone: cannot be read"),
        (empty, "empty: config.json: missing"),
        (junk, "junk.gguf: byte 0"),
        (damaged, "b158-tiny-packed: tensor model."),
    ] {
        let ended = convert(&[text(&input), text(&out)]).await;
        assert_eq!((ended.code, ended.out.as_str()), (Some(3), ""), "{ended:?}");
        assert!(ended.err.lines().last().is_some_and(|line| line.contains(wanted)), "{wanted}: {ended:?}");
    }
    assert_eq!(names(&folder), ["b158-tiny-packed", "empty", "junk.gguf"]);
}

#[tokio::test]
async fn an_interrupted_conversion_goes_on_where_it_was() {
    let folder = Folder::new();
    let (model, out, whole) =
        (data("reference/b158-tiny.f16.gguf"), folder.path("out.gguf"), folder.path("w.gguf"));
    let args = [text(&model), text(&out)];
    assert_eq!(convert(&[text(&model), text(&whole)]).await.code, Some(0));
    // Killed in the middle by the signal of the limit; then a disk that is full a little later.
    let killed = convert_limited("", 2400, &args).await;
    assert_eq!(killed.code, None, "{killed:?}");
    let full = convert_limited("trap '' XFSZ;", 2600, &args).await;
    assert_eq!(full.code, Some(1), "{full:?}");
    assert!(full.err.contains("found") && full.err.contains("the same command goes on"), "{full:?}");
    assert!(
        !out.exists() && names(&folder).contains(&"out.gguf.bitnetd-part".into()),
        "{:?}",
        names(&folder)
    );
    let ended = convert(&args).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.err.contains("found"), "{ended:?}");
    assert!(read(&out) == read(&whole));
    assert_eq!(names(&folder), ["out.gguf", "w.gguf"]);
}

#[tokio::test]
async fn a_conversion_into_the_checkpoints_own_folder_goes_on_too() {
    let folder = Folder::new();
    let checkpoint = checkpoint(&folder, "b158-tiny");
    let out = checkpoint.join("out.gguf");
    let args = [text(&checkpoint), text(&out)];
    let killed = convert_limited("", 2400, &args).await;
    assert_eq!(killed.code, None, "{killed:?}");
    fs::write(checkpoint.join("notes.txt"), "not read").expect("room");
    let ended = convert(&args).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.err.contains("found"), "{ended:?}");
    // A file that is read makes another model of it.
    fs::remove_file(&out).expect("there");
    assert_eq!(convert_limited("", 2400, &args).await.code, None);
    let config = checkpoint.join("config.json");
    fs::write(&config, fs::read_to_string(&config).expect("there") + "\n").expect("room");
    let anew = convert(&args).await;
    assert!(anew.code == Some(0) && !anew.err.contains("found"), "{anew:?}");
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).expect("written")
}
