//! The state directory: opened once, locked, and checked, so that what is saved is where its owner looks for it.
//!
//! Files are opened relative to the open directory and never through a link. Several logs may share a directory,
//! each with a lock of its own name. All calls block. Deliberately knows nothing of what the files contain.

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::fs::{self, DirBuilder, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a daemon that is stopping may still hold the lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// Time between two attempts to take the lock.
const LOCK_RETRY: Duration = Duration::from_millis(20);
/// How often a lock file is created again that another process removes meanwhile.
const LOCK_TRIES: usize = 100;
/// All files are private.
const FILE_MODE: u32 = 0o600;

/// An open and locked directory.
#[derive(Debug)]
pub struct StateFolder {
    path: PathBuf,
    /// The directory itself, whatever happens to its name.
    open: fs::File,
    lock_name: String,
    /// Held as long as the directory is open; the data files are replaced and cannot be locked themselves.
    lock: fs::File,
}

impl StateFolder {
    /// Opens the directory at `path`, or creates it, private, and takes the lock of that name in it.
    pub fn open(path: &Path, lock_name: &str) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        // The directory itself may be a link: systemd's StateDirectory= is one with DynamicUser=.
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let open = fs::File::from(rustix::fs::open(path, flags, Mode::empty())?);
        let lock = take_lock(&open, lock_name)?;
        Ok(StateFolder { path: path.to_owned(), open, lock_name: lock_name.to_owned(), lock })
    }

    /// Checks that the names of the directory and of the lock still refer to what was opened. The error says what
    /// happened.
    pub fn check(&self) -> io::Result<()> {
        let found = fs::metadata(&self.path).map_err(|error| missing_error(&self.path, &error))?;
        if device_and_inode(&found) != device_and_inode(&self.open.metadata()?) {
            return Err(io::Error::other("the state folder was replaced by another while the daemon ran"));
        }
        self.check_file(&self.lock_name, &self.lock)
    }

    /// Checks that this name in the directory still refers to this open file.
    pub fn check_file(&self, name: &str, file: &fs::File) -> io::Result<()> {
        let path = self.path.join(name);
        let found = fs::symlink_metadata(&path).map_err(|error| missing_error(&path, &error))?;
        if device_and_inode(&found) == device_and_inode(&file.metadata()?) {
            return Ok(());
        }
        Err(io::Error::other(format!("{name} was replaced by another file while the daemon ran")))
    }

    /// Opens a file for reading and appending, or creates it. Anything but a regular file is removed first.
    pub fn append_to(&self, name: &str) -> io::Result<fs::File> {
        open_regular(&self.open, name, OFlags::RDWR | OFlags::APPEND)
    }

    /// Creates an empty file in place of whatever has the name.
    pub fn create(&self, name: &str) -> io::Result<fs::File> {
        self.remove(name)?;
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::EXCL;
        open_at(&self.open, name, flags)
    }

    /// Renames a file over whatever has the name, and waits until a power cut cannot undo that.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        rustix::fs::renameat(&self.open, from, &self.open, to)?;
        self.open.sync_all()
    }

    /// Gives a file a second name, in place of whatever has it: this needs no space on the disk.
    pub fn link(&self, from: &str, to: &str) -> io::Result<()> {
        self.remove(to)?;
        Ok(rustix::fs::linkat(&self.open, from, &self.open, to, AtFlags::empty())?)
    }

    /// Removes a file or a link, if it exists.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.open, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(name_error(name, error)),
        }
    }
}

fn missing_error(path: &Path, error: &io::Error) -> io::Error {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => io::Error::other(format!("{path} was removed while the daemon ran")),
        _ => io::Error::other(format!("{path}: {error}")),
    }
}

fn device_and_inode(found: &fs::Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

fn name_error(name: &str, error: Errno) -> io::Error {
    let error = io::Error::from(error);
    io::Error::new(error.kind(), format!("{name}: {error}"))
}

fn open_at(folder: &fs::File, name: &str, flags: OFlags) -> io::Result<fs::File> {
    // Opening a FIFO does not block; a link is refused.
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(FILE_MODE));
    opened.map(fs::File::from).map_err(|error| name_error(name, error))
}

/// Opens a regular file or creates it; a link, a FIFO or a device of that name is removed.
fn open_regular(folder: &fs::File, name: &str, flags: OFlags) -> io::Result<fs::File> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(io::Error::other(format!("{name} is a folder; move it away"))),
            _ => rustix::fs::unlinkat(folder, name, AtFlags::empty())
                .map_err(|error| name_error(name, error))?,
        },
        Err(Errno::NOENT) => {}
        Err(error) => return Err(name_error(name, error)),
    }
    open_at(folder, name, flags | OFlags::CREATE)
}

#[expect(clippy::disallowed_methods, reason = "this is the thread that may block")]
fn take_lock(folder: &fs::File, name: &str) -> io::Result<fs::File> {
    let start = Instant::now();
    for _ in 0..LOCK_TRIES {
        let file = open_regular(folder, name, OFlags::RDWR)?;
        while let Err(error) = file.try_lock() {
            match error {
                TryLockError::WouldBlock if start.elapsed() < LOCK_TIMEOUT => sleep(LOCK_RETRY),
                TryLockError::WouldBlock => {
                    let text = "another daemon of this device uses it; give each a device.id of its own";
                    return Err(io::Error::other(text));
                }
                TryLockError::Error(error) => return Err(error),
            }
        }
        // Somebody may have removed it between the two calls; then the lock excludes nobody.
        let locked = file.metadata()?;
        match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if found.st_ino == locked.ino() => return Ok(file),
            _ => {}
        }
    }
    Err(io::Error::other(format!("{name} is removed by another program again and again")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    struct Temporary(TempDir);

    impl Temporary {
        fn new() -> Self {
            Temporary(TempDir::with_prefix("bitnetd-").expect("a temporary folder"))
        }

        fn state(&self) -> PathBuf {
            self.0.path().join("state")
        }
    }

    #[test]
    fn a_folder_that_is_removed_or_replaced_is_noticed() {
        let temporary = Temporary::new();
        let folder = StateFolder::open(&temporary.state(), "a.lock").expect("opens");
        folder.check().expect("it is there");
        fs::remove_dir_all(temporary.state()).expect("ours");
        assert!(folder.check().expect_err("removed").to_string().contains("was removed"));
        let other = StateFolder::open(&temporary.state(), "a.lock").expect("a new folder with a new lock");
        assert!(folder.check().expect_err("replaced").to_string().contains("replaced"));
        other.check().expect("the new one is there");
        fs::remove_file(temporary.state().join("a.lock")).expect("ours");
        assert!(other.check().expect_err("no lock").to_string().contains("a.lock was removed"));
    }

    #[test]
    fn no_link_is_followed_and_none_is_in_the_way() {
        let temporary = Temporary::new();
        let secret = temporary.0.path().join("secret");
        fs::write(&secret, "keep me").expect("room");
        fs::create_dir(temporary.state()).expect("a new name");
        for name in ["a.lock", "a.answers", "a.part"] {
            symlink(&secret, temporary.state().join(name)).expect("a new name");
        }
        let folder = StateFolder::open(&temporary.state(), "a.lock").expect("opens");
        let file = folder.append_to("a.answers").expect("made anew");
        folder.check_file("a.answers", &file).expect("there");
        fs::write(temporary.state().join("a.part"), "through the link").expect("the link is there still");
        fs::write(&secret, "keep me").expect("room");
        folder.create("a.part").expect("made anew");
        folder.link("a.part", "a.corrupt").expect("a second name");
        assert_eq!(fs::read_to_string(&secret).expect("there"), "keep me");
        for name in ["a.lock", "a.answers", "a.part", "a.corrupt"] {
            let found = fs::symlink_metadata(temporary.state().join(name)).expect("there");
            assert!(found.is_file() && found.mode() & 0o077 == 0, "{name}");
        }
    }

    #[test]
    fn a_file_that_is_replaced_is_noticed_and_a_folder_in_its_place_is_an_error() {
        let temporary = Temporary::new();
        let folder = StateFolder::open(&temporary.state(), "a.lock").expect("opens");
        let file = folder.append_to("a.answers").expect("made");
        fs::remove_file(temporary.state().join("a.answers")).expect("ours");
        folder.check_file("a.answers", &file).expect_err("removed");
        fs::create_dir(temporary.state().join("a.answers")).expect("a new name");
        let error = folder.append_to("a.answers").expect_err("a folder").to_string();
        assert!(error.contains("a.answers is a folder"), "{error}");
    }
}
