//! The file for node_exporter's textfile collector, replaced atomically so that the collector never reads half a
//! file.
//!
//! It blocks on the disk. Deliberately knows nothing of what the text says, nor when to write it.

use rustix::fs::OFlags;
use std::ffi::OsString;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Readable by all: node_exporter runs as another user, which the umask of the systemd unit would shut out.
const MODE: u32 = 0o644;

/// A temporary file, renamed on success. Dropped before that, it is removed, since on a full disk it would take
/// space that is needed.
#[derive(Debug)]
pub struct TemporaryFile {
    path_of_temporary: PathBuf,
    path: PathBuf,
}

/// Writes `text` to a temporary file beside `path`, whose folder must exist. The error names the file.
pub fn write(path: &Path, text: &str) -> io::Result<TemporaryFile> {
    let part = TemporaryFile { path_of_temporary: temporary_path(path), path: path.to_owned() };
    write_new(&part.path_of_temporary, text).map_err(|error| part.with_path(&error))?;
    Ok(part)
}

impl TemporaryFile {
    /// Renames the temporary file to its final path. The error names the file.
    pub fn commit(self) -> io::Result<()> {
        fs::rename(&self.path_of_temporary, &self.path).map_err(|error| self.with_path(&error))
    }

    fn with_path(&self, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}: {error}", self.path.display()))
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // After the rename, or where it was never created, there is nothing to remove.
        let _ = fs::remove_file(&self.path_of_temporary);
    }
}

/// It is not synced: a power cut may leave half a file, but the next report replaces it, and a sync for each report
/// would wear out an SD card.
fn write_new(part: &Path, text: &str) -> io::Result<()> {
    // Other users may write to the folder and put a link or a FIFO there, so an existing file is removed, never
    // opened.
    let _ = fs::remove_file(part);
    let with_care = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(MODE).custom_flags(with_care).open(part)?;
    // The umask may have removed permissions.
    file.set_permissions(Permissions::from_mode(MODE))?;
    file.write_all(text.as_bytes())
}

/// The path of the temporary file: in the same folder, since a rename cannot cross file systems, and with an
/// extension that node_exporter ignores.
fn temporary_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".part");
    name.into()
}

/// Whether writing fails, so that only changes are logged.
#[derive(Debug, Default)]
pub struct WriteStatus {
    failing: bool,
}

/// A change that is to be logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatusChange {
    /// Writing fails, and did not before.
    Failed(String),
    /// Writing works, and did not before.
    Recovered,
}

impl WriteStatus {
    /// Records that a write has hung. Returns whether that is a change to log.
    pub fn record_hang(&mut self) -> bool {
        !std::mem::replace(&mut self.failing, true)
    }

    /// Records the outcome of a write. Returns the change to log, if there is one.
    pub fn record(&mut self, written: &io::Result<()>) -> Option<StatusChange> {
        let was_failing = std::mem::replace(&mut self.failing, written.is_err());
        match written {
            Err(error) if !was_failing => Some(StatusChange::Failed(error.to_string())),
            Ok(()) if was_failing => Some(StatusChange::Recovered),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use tempfile::TempDir;

    struct Folder(TempDir);

    impl Folder {
        fn new() -> Self {
            Folder(TempDir::with_prefix("bitnetd-").expect("a temporary folder"))
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(self.0.path()).expect("ours");
            let name = |entry: io::Result<fs::DirEntry>| entry.expect("ours").file_name().into_string();
            entries.map(|entry| name(entry).expect("UTF-8")).collect()
        }
    }

    #[test]
    fn a_file_is_replaced_whole_and_everybody_may_read_it() {
        let folder = Folder::new();
        let path = folder.0.path().join("bitnetd.prom");
        let put = |text| write(&path, text).and_then(TemporaryFile::commit);
        put("a long first text\n").expect("room");
        let reader = File::open(&path).expect("there");
        put("b\n").expect("room");
        assert_eq!(io::read_to_string(reader).expect("open still"), "a long first text\n");
        assert_eq!(fs::read_to_string(&path).expect("there"), "b\n");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o644);
        assert_eq!(folder.names(), ["bitnetd.prom"]);
    }

    #[test]
    fn what_cannot_be_written_names_the_file_and_leaves_nothing() {
        let folder = Folder::new();
        let missing = folder.0.path().join("missing/bitnetd.prom");
        assert!(write(&missing, "a").expect_err("no folder").to_string().contains("missing/bitnetd.prom"));
        // A folder of that name: the text can be written, and not renamed.
        let taken = folder.0.path().join("taken.prom");
        fs::create_dir(&taken).expect("a new name");
        write(&taken, "a").expect("room").commit().expect_err("a folder");
        assert_eq!(folder.names(), ["taken.prom"]);
    }

    #[test]
    fn a_link_in_the_way_is_removed_and_its_target_left_alone() {
        let folder = Folder::new();
        let (path, secret) = (folder.0.path().join("bitnetd.prom"), folder.0.path().join("secret"));
        fs::write(&secret, "a password").expect("room");
        fs::set_permissions(&secret, Permissions::from_mode(0o600)).expect("ours");
        std::os::unix::fs::symlink(&secret, temporary_path(&path)).expect("a new name");
        write(&path, "a\n").and_then(TemporaryFile::commit).expect("room");
        assert_eq!(fs::read_to_string(&secret).expect("there"), "a password");
        assert_eq!(fs::metadata(&secret).expect("there").permissions().mode() & 0o777, 0o600);
        assert!(fs::symlink_metadata(&path).expect("there").is_file());
        assert_eq!(fs::read_to_string(&path).expect("there"), "a\n");
    }

    #[test]
    fn a_fifo_at_the_temporary_path_does_not_block() {
        let folder = Folder::new();
        let path = folder.0.path().join("bitnetd.prom");
        for name in [temporary_path(&path), path.clone()] {
            let _ = fs::remove_file(&name);
            let made = rustix::fs::mknodat(
                rustix::fs::CWD,
                &name,
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::from_raw_mode(0o600),
                0,
            );
            made.expect("a new name");
            write(&path, "a\n").and_then(TemporaryFile::commit).expect("room");
            assert_eq!(fs::read_to_string(&path).expect("a file"), "a\n");
        }
    }

    #[test]
    fn a_hang_is_logged_once_and_so_is_its_end() {
        let mut condition = WriteStatus::default();
        assert!(condition.record_hang());
        assert!(!condition.record_hang());
        assert_eq!(condition.record(&Ok(())), Some(StatusChange::Recovered));
        assert!(condition.record_hang());
    }

    #[test]
    fn a_failure_is_logged_once_and_so_is_its_end() {
        let mut condition = WriteStatus::default();
        let failure = || Err(io::Error::other("full"));
        assert_eq!(condition.record(&Ok(())), None);
        assert_eq!(condition.record(&failure()), Some(StatusChange::Failed("full".into())));
        assert_eq!(condition.record(&failure()), None);
        assert_eq!(condition.record(&Ok(())), Some(StatusChange::Recovered));
        assert_eq!(condition.record(&Ok(())), None);
    }
}
