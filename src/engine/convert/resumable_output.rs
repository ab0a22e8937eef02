//! The output file under a temporary name: written tensor by tensor, resumed after an interruption, read back, and
//! renamed on success.
//!
//! Beside `OUT.bitnetd-part` lies `OUT.bitnetd-part.json`, one JSON text a line: first what the file is made of,
//! then, after each tensor, the SHA-256 of the file up to there. What does not agree with it is written again.

use super::output_lock::{JOURNAL_START, lock_output};
use super::{ConvertError, ConvertPlan};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The progress of a conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The current stage.
    pub stage: Stage,
    /// The current tensor.
    pub tensor: &'a str,
    /// Bytes of the file that are done.
    pub done: u64,
    /// Bytes of the whole file.
    pub total: u64,
}

/// The stages of a conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Verifying what an interrupted run left.
    Resuming,
    /// Writing.
    Writing,
    /// Reading the file back.
    Checking,
}

/// A callback for progress.
pub type OnProgress<'a> = dyn FnMut(Progress<'_>) + 'a;

/// A temporary file, renamed on success.
#[derive(Debug)]
pub struct ResumableOutput {
    out: PathBuf,
    path: PathBuf,
    journal_path: PathBuf,
    file: File,
    journal: File,
}

/// A number in hexadecimal.
type Checksum = String;

/// Bytes between two reports of progress, and of a read.
const STEP: u64 = 4 << 20;

impl ResumableOutput {
    /// Opens or creates `OUT.bitnetd-part` and its journal, and locks them for this process. Refuses files there
    /// that were not left by an interrupted run.
    pub fn open(out: &Path) -> io::Result<Self> {
        let (path, journal_path) = (path(out), journal_path(out));
        let (file, journal) = lock_output(&path, &journal_path)?;
        Ok(ResumableOutput { out: out.to_owned(), path, journal_path, file, journal })
    }

    /// Its temporary name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes what is missing of a plan's file, reads all of it back, and returns its SHA-256. `origin` identifies
    /// the conversion: sources, options, version.
    pub fn write(
        &mut self,
        plan: &ConvertPlan,
        origin: &str,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<Checksum, ConvertError> {
        let ends = ends(plan);
        // The header is part of what identifies the file.
        let origin = &format!("{origin} {}", hex(Sha256::new_with_prefix(plan.draft().header())));
        let resumed = self.find_resume_point(plan, origin, &ends, on_progress)?;
        let written = self.write_rest(plan, origin, &ends, resumed, on_progress)?;
        self.file.sync_all()?;
        let read = self.read_back(plan, on_progress)?;
        match read == written {
            true => Ok(read),
            false => Err(ConvertError::Output(io::Error::new(
                io::ErrorKind::InvalidData,
                "what is read back is not what was written; the disk or the memory is failing",
            ))),
        }
    }

    /// Renames the file to OUT and removes the journal. Without `replace`, a file that has appeared there meanwhile
    /// stays; a device or a link stays in any case.
    pub fn finish(self, replace: bool) -> io::Result<()> {
        match fs::symlink_metadata(&self.out) {
            Ok(there) if !there.is_file() => {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "is no regular file"));
            }
            _ if replace => fs::rename(&self.path, &self.out)?,
            _ => rename_no_replace(&self.path, &self.out)?,
        }
        remove(&self.journal_path)?;
        // So that the new name is on the disk too.
        let folder = self.out.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }

    /// Removes the file and its journal, because resuming them would fail in the same way.
    pub fn discard(self) -> io::Result<()> {
        remove(&self.path)?;
        remove(&self.journal_path)
    }

    /// How far an interrupted run of the same conversion came, as far as its data is sound.
    fn find_resume_point(
        &mut self,
        plan: &ConvertPlan,
        origin: &str,
        ends: &[u64],
        on_progress: &mut OnProgress<'_>,
    ) -> io::Result<ResumePoint> {
        let nothing = ResumePoint::default();
        let journal = read_journal(&self.journal)?;
        let Some((first, checksums)) = journal.split_first() else { return Ok(nothing) };
        if *first != origin_line(origin) {
            return Ok(nothing);
        }
        self.file.seek(SeekFrom::Start(0))?;
        let mut reader = BufReader::with_capacity(STEP as usize, &self.file);
        let mut resumed = ResumePoint::default();
        let mut digest = Sha256::new();
        let mut at = 0;
        for (index, (line, end)) in checksums.iter().zip(ends).enumerate() {
            let name = &plan.draft().tensors()[index].name;
            let copied = io::copy(&mut (&mut reader).take(end - at), &mut HashSink(&mut digest))?;
            at += copied;
            let checksum = hex(digest.clone());
            if at != *end || *line != tensor_line(name, &checksum) {
                break;
            }
            resumed = ResumePoint {
                tensors: index + 1,
                bytes: at,
                digest: digest.clone(),
                lines: checksums[..=index].to_vec(),
            };
            on_progress(Progress { stage: Stage::Resuming, tensor: name, done: at, total: total(ends) });
        }
        Ok(resumed)
    }

    /// Writes header and tensors from the resume point on; returns the checksum of the whole file.
    fn write_rest(
        &mut self,
        plan: &ConvertPlan,
        origin: &str,
        ends: &[u64],
        resumed: ResumePoint,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<Checksum, ConvertError> {
        let mut journal = &self.journal;
        let lines = std::iter::once(origin_line(origin)).chain(resumed.lines).map(|line| line + "\n");
        write_journal_start(journal, &lines.collect::<String>())?;
        self.file.set_len(resumed.bytes)?;
        self.file.seek(SeekFrom::Start(resumed.bytes))?;
        let total = total(ends);
        let mut out = HashingWriter {
            file: &self.file,
            buffer: Vec::new(),
            digest: resumed.digest,
            at: resumed.bytes,
            on_progress,
            total,
            tensor: "",
        };
        if resumed.tensors == 0 {
            out.write_all(&plan.draft().header())?;
        }
        let mut writer = plan.draft().resume(&mut out, resumed.tensors);
        for (index, tensor) in plan.draft().tensors().iter().enumerate().skip(resumed.tensors) {
            writer.get_mut().tensor = &tensor.name;
            plan.write_tensor(index, &mut writer)?;
            writer.end_tensor()?;
            writer.flush()?;
            let checksum = hex(writer.get_mut().digest.clone());
            journal.write_all((tensor_line(&tensor.name, &checksum) + "\n").as_bytes())?;
        }
        writer.finish()?;
        Ok(hex(out.digest))
    }

    fn read_back(&mut self, plan: &ConvertPlan, on_progress: &mut OnProgress<'_>) -> io::Result<Checksum> {
        self.file.seek(SeekFrom::Start(0))?;
        let total = plan.draft().file_bytes();
        let mut digest = Sha256::new();
        let mut piece = vec![0; STEP as usize];
        let mut done = 0;
        loop {
            let len = self.file.read(&mut piece)?;
            if len == 0 {
                return Ok(hex(digest));
            }
            digest.update(&piece[..len]);
            done += len as u64;
            on_progress(Progress { stage: Stage::Checking, tensor: "", done, total });
        }
    }
}

/// Where an interrupted run is resumed.
#[derive(Default)]
struct ResumePoint {
    tensors: usize,
    bytes: u64,
    digest: Sha256,
    lines: Vec<String>,
}

/// Where each tensor ends, including its padding.
fn ends(plan: &ConvertPlan) -> Vec<u64> {
    let ranges = plan.draft().tensor_ranges();
    let starts = ranges.iter().skip(1).map(|range| range.start);
    starts.chain([plan.draft().file_bytes()]).collect()
}

fn total(ends: &[u64]) -> u64 {
    ends.last().copied().unwrap_or(0)
}

/// The temporary name of `out`.
pub fn path(out: &Path) -> PathBuf {
    beside(out, ".bitnetd-part")
}

/// The journal beside it.
pub fn journal_path(out: &Path) -> PathBuf {
    beside(out, ".bitnetd-part.json")
}

fn beside(out: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(out);
    name.push(suffix);
    name.into()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Renames, unless the target exists.
fn rename_no_replace(from: &Path, to: &Path) -> io::Result<()> {
    let taken = || io::Error::new(io::ErrorKind::AlreadyExists, "was written by another meanwhile");
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => Err(taken()),
        // Some file systems cannot do this in one step.
        Err(Errno::INVAL | Errno::NOSYS) => match fs::symlink_metadata(to) {
            Ok(_) => Err(taken()),
            Err(_) => fs::rename(from, to),
        },
        Err(error) => Err(error.into()),
    }
}

/// Overwrites the first lines of a journal. It is never empty in between, or the data written so far would be taken
/// for another program's. Synchronised to disk before any data is written.
fn write_journal_start(mut journal: &File, lines: &str) -> io::Result<()> {
    journal.seek(SeekFrom::Start(0))?;
    journal.write_all(lines.as_bytes())?;
    journal.set_len(lines.len() as u64)?;
    journal.sync_data()
}

/// The complete lines of a journal.
fn read_journal(mut file: &File) -> io::Result<Vec<String>> {
    // Some 200 bytes a tensor.
    const MAX_JOURNAL_BYTES: u64 = 16 << 20;
    file.seek(SeekFrom::Start(0))?;
    let mut text = Vec::new();
    file.take(MAX_JOURNAL_BYTES).read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    Ok(whole.lines().map(str::to_owned).collect())
}

fn origin_line(origin: &str) -> String {
    let line = serde_json::json!({ "origin": origin }).to_string();
    debug_assert!(line.starts_with(JOURNAL_START), "the mark by which a journal is recognised");
    line
}

fn tensor_line(name: &str, checksum: &str) -> String {
    serde_json::json!({ "tensor": name, "sha256": checksum }).to_string()
}

/// A checksum as `sha256sum` writes it.
pub fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A sink that only hashes.
struct HashSink<'a>(&'a mut Sha256);

impl Write for HashSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The file, with a buffer, the checksum so far, and a report of progress whenever the buffer is full.
struct HashingWriter<'a, 'b> {
    file: &'a File,
    buffer: Vec<u8>,
    digest: Sha256,
    at: u64,
    on_progress: &'a mut OnProgress<'b>,
    total: u64,
    tensor: &'a str,
}

impl Write for HashingWriter<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // At most one step at a time; the rest comes with the next call.
        let bytes = &bytes[..bytes.len().min(STEP as usize)];
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() as u64 >= STEP {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.buffer)?;
        self.digest.update(&self.buffer);
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        (self.on_progress)(Progress {
            stage: Stage::Writing,
            tensor: self.tensor,
            done: self.at,
            total: self.total,
        });
        Ok(())
    }
}
