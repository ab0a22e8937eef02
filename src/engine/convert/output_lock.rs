//! Opens and locks the two temporary files beside OUT, only where nothing of another program is lost.
//!
//! A file under one of these names belongs to bitnetd if the journal begins as its journals do. An empty file may
//! be taken over: a run that was killed early leaves it. Every other file stays as it is.

use crate::engine::error::escaped;
use rustix::fs::OFlags;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// How each journal begins.
pub(super) const JOURNAL_START: &str = "{\"origin\":\"";

/// Opens or creates the file and its journal, and locks them for this process.
pub(super) fn lock_output(path: &Path, journal: &Path) -> io::Result<(File, File)> {
    // Before anything is created, so that a refusal leaves nothing behind.
    check_owner(path, journal)?;
    let file = open(path)?;
    check_lock(file.try_lock(), path)?;
    // The previous holder of the lock may have begun to write, or have renamed the file.
    check_same(&file, path)?;
    check_owner(path, journal)?;
    Ok((file, open(journal)?))
}

/// No link is followed, and a pipe is not waited for.
fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).custom_flags(flags);
    let file = options.open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(refused(path, NOT_REGULAR)),
    }
}

/// Some network file systems have no locks. There the caller must ensure that nobody else writes, and reading the
/// file back detects it.
fn check_lock(lock: Result<(), TryLockError>, path: &Path) -> io::Result<()> {
    match lock {
        Err(TryLockError::WouldBlock) => {
            let message = format!("{}: another conversion writes it", file_name(path));
            Err(io::Error::new(io::ErrorKind::WouldBlock, message))
        }
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
    }
}

fn check_same(file: &File, path: &Path) -> io::Result<()> {
    let opened = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) if (named.dev(), named.ino()) == (opened.dev(), opened.ino()) => Ok(()),
        _ => Err(refused(path, "another conversion has just ended with it; try again")),
    }
}

/// Checks that neither file belongs to another program.
fn check_owner(path: &Path, journal: &Path) -> io::Result<()> {
    const FOREIGN: &str = "not left by bitnetd, and in its way; move it, or give another OUT";
    let (written, noted) = (size(path)?, size(journal)?);
    let is_owned = noted > 0 && is_marked(journal)?;
    if noted > 0 && !is_owned {
        return Err(refused(journal, FOREIGN));
    }
    if written > 0 && !is_owned {
        return Err(refused(path, FOREIGN));
    }
    Ok(())
}

const NOT_REGULAR: &str = "no regular file, and in the way; move it, or give another OUT";

/// Bytes of a regular file; 0 where there is none.
fn size(path: &Path) -> io::Result<u64> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Ok(metadata) if !metadata.is_file() => Err(refused(path, NOT_REGULAR)),
        metadata => Ok(metadata?.len()),
    }
}

fn is_marked(journal: &Path) -> io::Result<bool> {
    let mut begin = Vec::new();
    open(journal)?.take(JOURNAL_START.len() as u64).read_to_end(&mut begin)?;
    Ok(begin == JOURNAL_START.as_bytes())
}

/// The file name only, because OUT, which lies beside it, has been named before.
fn file_name(path: &Path) -> String {
    escaped(&path.file_name().unwrap_or_default().to_string_lossy())
}

fn refused(path: &Path, message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::AlreadyExists, format!("{}: {message}", file_name(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_without_locks_is_not_taken_for_another_conversion() {
        let path = Path::new("out");
        check_lock(Err(TryLockError::Error(io::ErrorKind::Unsupported.into())), path)
            .expect("no lock is needed");
        let error = check_lock(Err(TryLockError::WouldBlock), path).expect_err("another has it");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
