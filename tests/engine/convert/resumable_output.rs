//! Conversions that are interrupted and resumed.

use super::{folder, options};
use crate::data;
use bitnetd::engine::convert::resumable_output::{Progress, ResumableOutput, Stage};
use bitnetd::engine::convert::{ConvertError, ConvertOptions, ConvertPlan, WeightFormat};
use bitnetd::engine::gguf::{FileMap, Gguf};
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use tempfile::TempDir;

/// A temporary folder, removed when dropped.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Folder(TempDir::with_prefix("bitnetd-").expect("a temporary folder"))
    }

    fn out(&self) -> PathBuf {
        self.0.path().join("out.gguf")
    }

    fn part(&self) -> PathBuf {
        self.0.path().join("out.gguf.bitnetd-part")
    }

    fn journal(&self) -> PathBuf {
        self.0.path().join("out.gguf.bitnetd-part.json")
    }
}

fn plan() -> ConvertPlan {
    ConvertPlan::checkpoint(&folder("llama-tiny-packed"), &options()).expect("a sound checkpoint")
}

/// Opens the part file. Tests beside this one start programs, and between its fork and its exec such a child
/// holds the lock of a run that has just ended.
fn claim(folder: &Folder) -> ResumableOutput {
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        match ResumableOutput::open(&folder.out()) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                assert!(std::time::Instant::now() < patience, "{error}");
                std::thread::yield_now();
            }
            opened => return opened.expect("a new file"),
        }
    }
}

/// Runs a plan and gives how many tensors were found and how many written, but not the file its name.
fn run(folder: &Folder, plan: &ConvertPlan, origin: &str) -> (usize, usize) {
    let (mut found, mut written) = (0, std::collections::BTreeSet::new());
    let mut say = |progress: Progress<'_>| match progress.stage {
        Stage::Resuming => found += 1,
        Stage::Writing => drop(written.insert(progress.tensor.to_owned())),
        Stage::Checking => {}
    };
    let mut part = claim(folder);
    let checksum = part.write(plan, origin, &mut say).expect("a sound checkpoint");
    let bytes = fs::read(folder.part()).expect("just written");
    let sum: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(checksum, sum);
    assert!(bytes == plan.write(Vec::new()).expect("sound"));
    (found, written.len())
}

/// Leaves what a run would that was killed while it wrote tensor `tensors`.
fn kill(folder: &Folder, plan: &ConvertPlan, tensors: usize) {
    let journal = fs::read_to_string(folder.journal()).expect("a journal");
    let lines: Vec<&str> = journal.lines().take(1 + tensors).collect();
    // The next line was begun.
    fs::write(folder.journal(), lines.join("\n") + "\n{\"tens").expect("room");
    let place = &plan.draft().tensor_ranges()[tensors];
    let file = fs::OpenOptions::new().write(true).open(folder.part()).expect("there");
    file.set_len(place.start + (place.end - place.start) / 2).expect("shorter");
}

#[test]
fn a_run_that_was_killed_is_gone_on_with_after_the_last_whole_tensor() {
    let (folder, plan) = (Folder::new(), plan());
    let all = plan.draft().tensors().len();
    assert_eq!(run(&folder, &plan, "a"), (0, all));
    for resumed in [all - 1, 7, 0] {
        kill(&folder, &plan, resumed);
        assert_eq!(run(&folder, &plan, "a"), (resumed, all - resumed));
    }
    ResumableOutput::open(&folder.out()).and_then(|part| part.finish(false)).expect("a free name");
    assert!(folder.out().exists() && !folder.part().exists() && !folder.journal().exists());
}

#[test]
fn data_damaged_since_the_interruption_is_written_again() {
    let (folder, plan) = (Folder::new(), plan());
    let all = plan.draft().tensors().len();
    run(&folder, &plan, "a");
    let mut bytes = fs::read(folder.part()).expect("there");
    bytes[plan.draft().tensor_ranges()[5].start as usize] ^= 1;
    fs::write(folder.part(), &bytes).expect("room");
    assert_eq!(run(&folder, &plan, "a"), (5, all - 5));
    // The header is part of all that follows.
    let mut bytes = fs::read(folder.part()).expect("there");
    bytes[100] ^= 1;
    fs::write(folder.part(), &bytes).expect("room");
    assert_eq!(run(&folder, &plan, "a"), (0, all));
    let journal = fs::read(folder.journal()).expect("there");
    fs::write(folder.journal(), [&journal[..40], b"\xff\xfe no journal\n\n"].concat()).expect("room");
    assert_eq!(run(&folder, &plan, "a"), (0, all));
    fs::remove_file(folder.part()).expect("there");
    assert_eq!(run(&folder, &plan, "a"), (0, all));
}

#[test]
fn another_conversion_begins_anew() {
    let (folder, one) = (Folder::new(), plan());
    let all = one.draft().tensors().len();
    run(&folder, &one, "a");
    assert_eq!(run(&folder, &one, "the source changed"), (0, all));
    let other = ConvertOptions { weights: WeightFormat::Tq2, ..options() };
    let other = ConvertPlan::checkpoint(&super::folder("llama-tiny-packed"), &other).expect("sound");
    assert_eq!(run(&folder, &other, "the source changed").0, 0, "another header");
}

#[test]
fn two_runs_at_once_are_one_too_many() {
    let folder = Folder::new();
    let one = ResumableOutput::open(&folder.out()).expect("a new file");
    let other = ResumableOutput::open(&folder.out()).expect_err("the first has it");
    assert!(other.to_string().contains("another conversion"), "{other}");
    one.discard().expect("its own");
    assert!(!folder.part().exists());
    ResumableOutput::open(&folder.out()).expect("free again");
}

#[test]
fn a_name_that_was_taken_meanwhile_is_not_replaced_unasked() {
    let folder = Folder::new();
    let part = ResumableOutput::open(&folder.out()).expect("a new file");
    fs::write(folder.out(), "another's").expect("room");
    part.finish(false).expect_err("it is another's");
    assert_eq!(fs::read(folder.out()).expect("there"), b"another's");
    ResumableOutput::open(&folder.out()).and_then(|part| part.finish(true)).expect("asked for");
    assert_eq!(fs::read(folder.out()).expect("there"), b"");
}

#[test]
fn a_link_that_leads_nowhere_is_a_name_that_is_taken() {
    let folder = Folder::new();
    for replace in [false, true] {
        let part = ResumableOutput::open(&folder.out()).expect("a new file");
        let _ = fs::remove_file(folder.out()); // the link of the first turn
        symlink("nowhere", folder.out()).expect("a free name");
        part.finish(replace).expect_err("it is another's");
        assert!(fs::symlink_metadata(folder.out()).expect("there").is_symlink(), "{replace}");
    }
}

/// Puts something of another's under one of the two names, and sees that it stays as it is.
#[track_caller]
fn left_alone(put: impl Fn(&Folder), wanted: &str) {
    let folder = Folder::new();
    put(&folder);
    let before = listing(&folder);
    for _ in 0..2 {
        let error = ResumableOutput::open(&folder.out()).expect_err("not ours").to_string();
        assert!(error.contains(wanted) && error.contains("move it"), "{wanted}: {error}");
        assert_eq!(listing(&folder), before, "{wanted}");
    }
}

/// Name, kind and content of all that a folder has.
fn listing(folder: &Folder) -> Vec<(String, fs::FileType, Vec<u8>)> {
    let entries = fs::read_dir(folder.0.path()).expect("there").map(|entry| entry.expect("there"));
    let mut all: Vec<_> = entries
        .map(|entry| {
            let kind = entry.file_type().expect("there");
            let bytes = if kind.is_file() { fs::read(entry.path()).expect("there") } else { Vec::new() };
            (entry.file_name().to_string_lossy().into_owned(), kind, bytes)
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

#[test]
fn files_of_others_under_the_temporary_names_are_neither_followed_nor_changed() {
    let write = |path: PathBuf| fs::write(path, "another's").expect("room");
    let fifo = |path: PathBuf| {
        let made = std::process::Command::new("mkfifo").arg(path).status().expect("coreutils");
        assert!(made.success());
    };
    left_alone(|folder| write(folder.part()), "out.gguf.bitnetd-part: not left by bitnetd");
    left_alone(|folder| write(folder.journal()), "part.json: not left by bitnetd");
    left_alone(|folder| fs::create_dir(folder.journal()).expect("room"), "part.json: no regular");
    left_alone(|folder| fifo(folder.part()), "bitnetd-part: no regular file");
    left_alone(|folder| fifo(folder.journal()), "part.json: no regular file");
    let linked = |link: fn(&Folder) -> PathBuf| {
        move |folder: &Folder| {
            write(folder.0.path().join("precious"));
            symlink("precious", link(folder)).expect("room");
        }
    };
    left_alone(linked(Folder::part), "bitnetd-part: no regular file");
    left_alone(linked(Folder::journal), "part.json: no regular file");
}

#[test]
fn a_source_that_cannot_be_used_leaves_a_file_that_can_be_discarded() {
    let folder = Folder::new();
    let mut bytes = fs::read(data("reference/b158-tiny.i2_s.gguf")).expect("data");
    let file = Gguf::parse(FileMap::from(bytes.clone())).expect("sound");
    let last = file.tensor("blk.1.ffn_down.weight").expect("there").bytes.start;
    bytes[last] = 0xff;
    let plan = ConvertPlan::file(&Gguf::parse(FileMap::from(bytes)).expect("sound"), &options())
        .expect("sound so far");
    let mut part = ResumableOutput::open(&folder.out()).expect("a new file");
    let failure = part.write(&plan, "a", &mut |_| {}).expect_err("a code 3");
    assert!(matches!(failure, ConvertError::Source(_)), "{failure}");
    part.discard().expect("its own");
    assert_eq!(fs::read_dir(folder.0.path()).expect("there").count(), 0);
}
