//! The unfinished file: `NAME.part`, and `NAME.part.json` beside it, which says which version of which file it is the beginning
//! of. Deliberately knows no HTTP.

use crate::engine::convert::resumable_output::hex;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Bytes between two synchronisations with the disk: what a power cut may cost.
const SYNC_STEP: u64 = 32 << 20;
const BUFFER: usize = 128 << 10;
/// Everybody may read a model; the daemon runs under an account of its own.
const MODE: u32 = 0o644;
const MAX_NOTE: u64 = 64 << 10;

/// What the unfinished file is the beginning of.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PartNote {
    pub url: String,
    /// The version as the server named it.
    pub version: Option<String>,
    pub sha256: Option<String>,
    /// Bytes of the whole file.
    pub length: Option<u64>,
    /// Bytes that certainly reached the disk.
    pub synced: u64,
}

/// An unfinished file, locked for this process.
pub(super) struct Part {
    path: PathBuf,
    file: File,
    note: PartNote,
    /// Of all bytes so far.
    digest: Sha256,
    length: u64,
}

/// `NAME.part` of a file.
pub(super) fn path_of(target: &Path) -> PathBuf {
    with_end(target, ".part")
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(end);
    name.into()
}

impl Part {
    /// Opens or creates the unfinished file of `target`. What is there is kept where its note names the same address and can
    /// be distinguished from another version.
    pub fn open(target: &Path, url: &str, sha256: Option<&str>) -> io::Result<Self> {
        let path = path_of(target);
        if path.symlink_metadata().is_ok_and(|about| !about.is_file()) {
            return Err(io::Error::other("is there, and no regular file; remove it"));
        }
        // A file of that name that somebody else has made is not emptied.
        if !note_path(&path).exists() && fs::metadata(&path).is_ok_and(|about| about.len() > 0) {
            return Err(io::Error::other("is there, and no download that was cut; move it away"));
        }
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(MODE).open(&path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| io::Error::other("another `bitnetd pull` writes it; wait for its end"))?;
        // It may have become the finished file between the two.
        if fs::metadata(&path).ok().map(|about| about.ino()) != Some(file.metadata()?.ino()) {
            return Err(io::Error::other("another `bitnetd pull` has just finished it"));
        }
        let note = read_note(&path).filter(|note| {
            let is_same = note.url == url && (sha256.is_none() || note.sha256.as_deref() == sha256);
            is_same && (note.version.is_some() || note.sha256.is_some())
        });
        let mut part = Part { path, file, note: PartNote::default(), digest: Sha256::new(), length: 0 };
        match note {
            Some(note) => part.keep(note)?,
            None => part.restart(PartNote { url: url.to_owned(), ..PartNote::default() })?,
        }
        Ok(part)
    }

    /// Goes on from what is there. Without a checksum that would show it, nothing is kept that a power cut may have damaged.
    fn keep(&mut self, note: PartNote) -> io::Result<()> {
        let there = self.file.metadata()?.len();
        let kept = if note.sha256.is_some() { there } else { there.min(note.synced) };
        let kept = note.length.map_or(kept, |length| kept.min(length));
        self.file.set_len(kept)?;
        self.file.seek(SeekFrom::Start(0))?;
        let mut buffer = vec![0; BUFFER];
        loop {
            match self.file.read(&mut buffer)? {
                0 => break,
                read => self.digest.update(&buffer[..read]),
            }
        }
        let synced = note.synced.min(kept);
        (self.note, self.length) = (PartNote { synced, ..note }, kept);
        Ok(())
    }

    /// Empties it, to become another version.
    pub fn restart(&mut self, note: PartNote) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.digest = Sha256::new();
        self.length = 0;
        self.note = PartNote { synced: 0, ..note };
        self.write_note()
    }

    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.digest.update(bytes);
        self.length += bytes.len() as u64;
        if self.length - self.note.synced >= SYNC_STEP { self.sync() } else { Ok(()) }
    }

    /// Writes everything to the disk.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.note.synced = self.length;
        self.write_note()
    }

    /// Renames it to `target`, for everybody to read.
    pub fn finish(self, target: &Path) -> io::Result<()> {
        self.file.set_permissions(Permissions::from_mode(MODE))?;
        self.file.sync_all()?;
        fs::rename(&self.path, target)?;
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
        remove_if_there(&note_path(&self.path))
    }

    /// Removes it.
    pub fn discard(self) -> io::Result<()> {
        remove_if_there(&note_path(&self.path))?;
        remove_if_there(&self.path)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn note(&self) -> &PartNote {
        &self.note
    }

    /// Bytes that are there.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The checksum of what is there.
    pub fn sha256(&self) -> String {
        hex(self.digest.clone())
    }

    /// The first bytes of the file.
    pub fn first_bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(&self.path)?.take(4).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn write_note(&self) -> io::Result<()> {
        let path = note_path(&self.path);
        let new = with_end(&path, ".new");
        // What was left there may be a link to elsewhere.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&new)?;
        file.write_all(&serde_json::to_vec(&self.note)?)?;
        fs::rename(new, path)
    }
}

fn note_path(part: &Path) -> PathBuf {
    with_end(part, ".json")
}

/// The note beside an unfinished file; `None` where it is missing or is not one.
fn read_note(part: &Path) -> Option<PartNote> {
    let mut text = Vec::new();
    File::open(note_path(part)).ok()?.take(MAX_NOTE).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The checksum of a file.
pub(super) fn sha256_of(path: &Path) -> io::Result<String> {
    let (mut file, mut digest, mut buffer) = (File::open(path)?, Sha256::new(), vec![0; BUFFER]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(digest)),
            read => digest.update(&buffer[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://a.example/m.gguf";

    fn note(version: Option<&str>, sha256: Option<&str>) -> PartNote {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        PartNote {
            url: URL.into(),
            version: owned(version),
            sha256: owned(sha256),
            length: Some(9),
            synced: 0,
        }
    }

    fn written(target: &Path, note: PartNote, synced: bool) {
        let mut part = Part::open(target, URL, None).expect("a folder");
        part.restart(note).expect("a file");
        part.append(b"abc").expect("a file");
        if synced {
            part.sync().expect("a file");
        }
    }

    #[test]
    fn what_is_there_is_kept_only_for_the_same_version_of_the_same_file() {
        let folder = tempfile::TempDir::with_prefix("bitnetd-").expect("a temporary folder");
        let target = folder.path().join("m.gguf");
        let kept =
            |url: &str, sha256| Part::open(&target, url, sha256).map(|part| part.length()).expect("a file");
        written(&target, note(Some("\"1\""), None), true);
        assert_eq!(kept(URL, None), 3);
        assert_eq!(kept("https://b.example/m.gguf", None), 0);
        // Not known to have reached the disk.
        written(&target, note(Some("\"1\""), None), false);
        assert_eq!(kept(URL, None), 0);
        // The checksum will show what a power cut did.
        written(&target, note(None, Some("ab")), false);
        assert_eq!(kept(URL, Some("ab")), 3);
        assert_eq!(kept(URL, Some("cd")), 0);
        // Nothing tells it from another version.
        written(&target, note(None, None), true);
        assert_eq!(kept(URL, None), 0);
    }

    #[test]
    fn two_processes_do_not_write_one_file() {
        let folder = tempfile::TempDir::with_prefix("bitnetd-").expect("a temporary folder");
        let target = folder.path().join("m.gguf");
        let first = Part::open(&target, URL, None).expect("a folder");
        let second = Part::open(&target, URL, None).err().expect("it is locked");
        assert!(second.to_string().contains("another"), "{second}");
        first.discard().expect("a file");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
    }

    #[test]
    fn a_finished_file_is_whole_and_readable_by_everybody() {
        let folder = tempfile::TempDir::with_prefix("bitnetd-").expect("a temporary folder");
        let target = folder.path().join("m.gguf");
        let mut part = Part::open(&target, URL, None).expect("a folder");
        part.append(b"abc").expect("a file");
        assert_eq!(part.sha256(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        part.finish(&target).expect("a folder");
        assert_eq!(sha256_of(&target).expect("a file").get(..8), Some("ba7816bf"));
        assert_eq!(fs::metadata(&target).expect("a file").permissions().mode() & 0o777, MODE);
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }
}
