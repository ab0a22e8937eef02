//! The log file: read once, appended to, and rewritten as a whole now and then.
//!
//! All calls block. A power cut at any moment leaves either the old file or the new one, and after the synced bytes
//! at most a part of a line. Deliberately knows nothing of when to rewrite.

use super::folder::StateFolder;
use super::record::{self, LogContents};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;

/// The open file.
#[derive(Debug)]
pub struct LogFile {
    folder: StateFolder,
    name: String,
    /// The name under which a new file is written before it replaces the old one.
    temporary_name: String,
    file: fs::File,
    /// Bytes reserved behind the end of the file.
    reserved: u64,
}

impl LogFile {
    /// Opens `path`, or creates it, and reads its records, at most `largest` bytes. A damaged file is copied to
    /// `.corrupt` beside it; then, as after a torn line, the caller must call [`LogFile::replace`] before it appends.
    pub fn open(path: &Path, largest: u64) -> io::Result<(Self, LogContents)> {
        let folder = path.parent().expect("a file in a folder");
        let named = |path: &Path| path.file_name().expect("a file").to_string_lossy().into_owned();
        let folder = StateFolder::open(folder, &named(&path.with_extension("lock")))?;
        let name = named(path);
        let mut file = folder.append_to(&name)?;
        let mut bytes = Vec::new();
        (&mut file).take(largest + 1).read_to_end(&mut bytes)?;
        let mut contents = record::parse_log(&bytes);
        if bytes.len() as u64 > largest {
            contents.damaged += 1;
        }
        if contents.damaged > 0 {
            let corrupt = named(&path.with_extension("corrupt"));
            // Best effort: the readable records matter more. Some file systems have no hard links.
            if folder.link(&name, &corrupt).is_err() {
                let _ = folder.create(&corrupt).and_then(|mut copy| copy.write_all(&bytes));
            }
        }
        let part = named(&path.with_extension("part"));
        let mut file = LogFile { folder, name, temporary_name: part, file, reserved: 0 };
        if file.reserve(0, contents.reserved_bytes()).is_ok() {
            file.reserved = contents.reserved_bytes();
        }
        Ok((file, contents))
    }

    /// Checks that the file is still where it was opened, and that the lock still protects it.
    pub fn check(&self) -> io::Result<()> {
        self.folder.check()?;
        self.folder.check_file(&self.name, &self.file)
    }

    /// Appends lines, and with `sync` waits until a power cut can no longer lose them. Behind them, `reserved` bytes
    /// are reserved for [`LogFile::append_reserved`]. If the disk has no space for both, nothing is written.
    pub fn append(&mut self, lines: &[u8], sync: bool, reserved: u64) -> io::Result<()> {
        if let Err(error) = self.reserve(lines.len() as u64, reserved) {
            // A failed attempt may have released what was reserved before.
            let _ = self.reserve(0, self.reserved);
            return Err(error);
        }
        self.reserved = reserved;
        self.write_whole(lines, sync)
    }

    /// Appends lines in the space that was reserved for them.
    pub fn append_reserved(&mut self, lines: &[u8]) -> io::Result<()> {
        self.reserved = self.reserved.saturating_sub(lines.len() as u64);
        self.write_whole(lines, false)
    }

    /// Writes all of the lines, or none of them: what is reported as not saved must not be found by the next process.
    fn write_whole(&mut self, lines: &[u8], sync: bool) -> io::Result<()> {
        let before = self.file.metadata()?.len();
        let written = self.file.write_all(lines);
        let written = if sync { written.and_then(|()| self.file.sync_data()) } else { written };
        if written.is_err() && self.file.set_len(before).is_ok() {
            // Truncating the file also released the space behind its end.
            let _ = self.reserve(0, self.reserved);
        }
        written
    }

    /// Reserves space for `lines` and `reserved` bytes behind the end of the file, whose length stays as it is.
    fn reserve(&self, lines: u64, reserved: u64) -> io::Result<()> {
        reserve_behind(&self.file, lines, reserved)
    }

    /// Replaces the file with a new one, and reserves space behind it.
    pub fn replace(&mut self, lines: &[u8], reserved: u64) -> io::Result<()> {
        let mut file = self.folder.create(&self.temporary_name)?;
        let written = reserve_behind(&file, lines.len() as u64, reserved)
            .and_then(|()| file.write_all(lines))
            .and_then(|()| file.sync_all());
        // The name as well as the bytes must survive a power cut.
        if let Err(error) = written.and_then(|()| self.folder.rename(&self.temporary_name, &self.name)) {
            // On a full disk it would take the space that is needed.
            let _ = self.folder.remove(&self.temporary_name);
            return Err(error);
        }
        (self.file, self.reserved) = (file, reserved);
        Ok(())
    }
}

/// Reserves space behind the end of a file. A file system that cannot do that is no error: a full disk is then noticed
/// at the write.
fn reserve_behind(file: &fs::File, lines: u64, reserved: u64) -> io::Result<()> {
    if reserved == 0 {
        return Ok(());
    }
    let end = file.metadata()?.len();
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, end, lines + reserved) {
        Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::mqtt::delivery::answer_log::record::Record;
    use std::path::PathBuf;
    use tempfile::TempDir;

    struct Folder(TempDir);

    impl Folder {
        fn new() -> Self {
            Folder(TempDir::with_prefix("bitnetd-").expect("a temporary folder"))
        }

        fn file(&self) -> PathBuf {
            self.0.path().join("below/answers")
        }
    }

    fn open(folder: &Folder) -> (LogFile, LogContents) {
        LogFile::open(&folder.file(), 1 << 20).expect("opens")
    }

    #[test]
    fn what_is_appended_and_replaced_is_read_after_reopening() {
        let folder = Folder::new();
        let (mut file, contents) = open(&folder);
        assert_eq!(contents, LogContents::default());
        file.append(&Record::Session(1).line(), true, 0).expect("room");
        file.replace(&Record::Session(2).line(), 0).expect("room");
        drop(file);
        let (mut file, contents) = open(&folder);
        assert_eq!(contents.session, Some(2));
        file.append(&Record::Session(3).line(), false, 0).expect("room");
        drop(file);
        assert_eq!(open(&folder).1.session, Some(3));
    }

    #[test]
    fn a_second_daemon_is_locked_out_until_the_first_has_ended() {
        let folder = Folder::new();
        let first = open(&folder);
        let text = LogFile::open(&folder.file(), 1 << 20).expect_err("locked").to_string();
        assert!(text.contains("another daemon") && text.contains("device.id"), "{text}");
        drop(first);
        open(&folder);
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_what_is_sound_in_it_is_read() {
        let folder = Folder::new();
        drop(open(&folder));
        let bytes = [b"rubbish\n".as_slice(), &Record::Session(4).line()].concat();
        fs::write(folder.file(), &bytes).expect("a temporary folder");
        let (_, contents) = open(&folder);
        assert_eq!((contents.session, contents.damaged), (Some(4), 1));
        assert_eq!(fs::read(folder.file().with_extension("corrupt")).expect("set aside"), bytes);
    }

    #[test]
    fn it_is_readable_by_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let folder = Folder::new();
        let (mut file, _) = open(&folder);
        file.replace(b"", 0).expect("room");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o077;
        assert_eq!((mode(&folder.file()), mode(&folder.0.path().join("below"))), (0, 0));
    }

    #[test]
    fn a_folder_that_is_a_file_is_an_error() {
        let folder = Folder::new();
        fs::write(folder.0.path().join("below"), "").expect("a temporary folder");
        LogFile::open(&folder.file(), 1 << 20).expect_err("no folder");
    }

    #[test]
    fn a_full_disk_leaves_the_old_file() {
        let folder = Folder::new();
        let (mut file, _) = open(&folder);
        file.append(&Record::Session(5).line(), true, 0).expect("room");
        // The device of every write error.
        file.file = fs::OpenOptions::new().append(true).open("/dev/full").expect("Linux has it");
        file.append(&Record::Session(6).line(), true, 0).expect_err("full");
        drop(file);
        assert_eq!(open(&folder).1.session, Some(5));
    }
}
