//! The file of answers: read once, appended to, replaced whole now and then.
//!
//! Blocks, so it is called on the thread for that. A power cut at any moment leaves either the old
//! file or the new one, and behind what was synced at most a piece of a line.

use super::record::{self, Contents};
use std::fs::{self, DirBuilder, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// No file of ours is larger; reading it takes as much memory.
const LARGEST: u64 = 16 << 20;

/// How long a daemon that is ending may still have the file.
const HANDOVER: Duration = Duration::from_secs(1);
/// Between two looks at it.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The open file.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    file: fs::File,
    /// Held while we live; the file itself is replaced and cannot carry a lock.
    _lock: fs::File,
}

impl File {
    /// Opens `path`, or makes it, and reads what it says. What is damaged is set aside beside it, as
    /// `.corrupt`; then, as after a torn line, the caller is to [`File::replace`] before it appends.
    pub fn open(path: &Path) -> io::Result<(Self, Contents)> {
        let folder = path.parent().expect("a file in a folder");
        // Answers are private; so is the folder, where nobody made it for us.
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let lock = lock(&path.with_extension("lock"))?;
        let mut file = options().read(true).append(true).create(true).open(path)?;
        let mut bytes = Vec::new();
        (&mut file).take(LARGEST + 1).read_to_end(&mut bytes)?;
        let mut contents = record::read(&bytes);
        if bytes.len() as u64 > LARGEST {
            contents.damaged += 1;
        }
        if contents.damaged > 0 {
            // Best effort: where the disk is full, what can be read matters more.
            let _ = fs::copy(path, path.with_extension("corrupt"));
        }
        Ok((File { path: path.to_owned(), file, _lock: lock }, contents))
    }

    /// Writes at the end, and with `sync` waits until a power cut can no longer take it.
    pub fn append(&mut self, lines: &[u8], sync: bool) -> io::Result<()> {
        self.file.write_all(lines)?;
        if sync { self.file.sync_data() } else { Ok(()) }
    }

    /// Puts a new file in the place of the old one.
    pub fn replace(&mut self, lines: &[u8]) -> io::Result<()> {
        let part = self.path.with_extension("part");
        let mut file = options().write(true).create(true).truncate(true).open(&part)?;
        let written = file.write_all(lines).and_then(|()| file.sync_all());
        if let Err(error) = written.and_then(|()| fs::rename(&part, &self.path)) {
            // On a full disk it would take the room that is needed.
            let _ = fs::remove_file(&part);
            return Err(error);
        }
        // The name as well as the bytes must outlive a power cut.
        fs::File::open(self.path.parent().expect("a file in a folder"))?.sync_all()?;
        self.file = options().append(true).open(&self.path)?;
        Ok(())
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

#[expect(clippy::disallowed_methods, reason = "this is the thread that may block")]
fn lock(path: &Path) -> io::Result<fs::File> {
    let file = options().write(true).create(true).truncate(false).open(path)?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if start.elapsed() < HANDOVER => sleep(LOOK_AGAIN),
            Err(TryLockError::WouldBlock) => {
                let said = "another daemon of this device uses it; give each a device.id of its own";
                return Err(io::Error::other(said));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::mqtt::store::record::Record;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("bitnetd-store-{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).expect("a temporary folder");
            Folder(folder)
        }

        fn file(&self) -> PathBuf {
            self.0.join("below/answers")
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn open(folder: &Folder) -> (File, Contents) {
        File::open(&folder.file()).expect("opens")
    }

    #[test]
    fn what_is_appended_and_replaced_is_there_after_opening_again() {
        let folder = Folder::new("again");
        let (mut file, contents) = open(&folder);
        assert_eq!(contents, Contents::default());
        file.append(&Record::Session(1).line(), true).expect("room");
        file.replace(&Record::Session(2).line()).expect("room");
        drop(file);
        let (mut file, contents) = open(&folder);
        assert_eq!(contents.session, Some(2));
        file.append(&Record::Session(3).line(), false).expect("room");
        drop(file);
        assert_eq!(open(&folder).1.session, Some(3));
    }

    #[test]
    fn a_second_daemon_is_kept_out_until_the_first_is_gone() {
        let folder = Folder::new("lock");
        let first = open(&folder);
        let said = File::open(&folder.file()).expect_err("locked").to_string();
        assert!(said.contains("another daemon") && said.contains("device.id"), "{said}");
        drop(first);
        open(&folder);
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_what_is_sound_in_it_is_read() {
        let folder = Folder::new("corrupt");
        drop(open(&folder));
        let bytes = [b"rubbish\n".as_slice(), &Record::Session(4).line()].concat();
        fs::write(folder.file(), &bytes).expect("a temporary folder");
        let (_, contents) = open(&folder);
        assert_eq!((contents.session, contents.damaged), (Some(4), 1));
        assert_eq!(fs::read(folder.file().with_extension("corrupt")).expect("set aside"), bytes);
    }

    #[test]
    fn nobody_else_may_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let folder = Folder::new("private");
        let (mut file, _) = open(&folder);
        file.replace(b"").expect("room");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o077;
        assert_eq!((mode(&folder.file()), mode(&folder.0.join("below"))), (0, 0));
    }

    #[test]
    fn a_folder_that_is_a_file_is_an_error() {
        let folder = Folder::new("file");
        fs::write(folder.0.join("below"), "").expect("a temporary folder");
        File::open(&folder.file()).expect_err("no folder");
    }

    #[test]
    fn a_full_disk_leaves_the_old_file() {
        let folder = Folder::new("full");
        let (mut file, _) = open(&folder);
        file.append(&Record::Session(5).line(), true).expect("room");
        // The device of every write error.
        file.file = options().append(true).open("/dev/full").expect("Linux has it");
        file.append(&Record::Session(6).line(), true).expect_err("full");
        drop(file);
        assert_eq!(open(&folder).1.session, Some(5));
    }
}
