//! The file that node_exporter's textfile collector reads: written whole, so that it never reads half of one.
//!
//! Blocks on the disk. Deliberately knows nothing of what the text says, nor when to write it.

use rustix::fs::OFlags;
use std::ffi::OsString;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// node_exporter runs as a user of its own, and the systemd unit's umask would shut it out.
const MODE: u32 = 0o644;

/// A text beside the file whose place it is to take. Dropped before it has, it is removed: on a full disk it would take
/// the room that is needed.
#[derive(Debug)]
pub struct Part {
    part: PathBuf,
    path: PathBuf,
}

/// Writes `text` beside the file at `path`. The folder must be there. The error names the file.
pub fn write(path: &Path, text: &str) -> io::Result<Part> {
    let part = Part { part: part(path), path: path.to_owned() };
    fill(&part.part, text).map_err(|error| part.named(&error))?;
    Ok(part)
}

impl Part {
    /// Puts it in the file's place. The error names the file.
    pub fn put(self) -> io::Result<()> {
        fs::rename(&self.part, &self.path).map_err(|error| self.named(&error))
    }

    fn named(&self, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}: {error}", self.path.display()))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Once it is in its place, or was never made, there is none.
        let _ = fs::remove_file(&self.part);
    }
}

/// No crash may leave half a file behind, but a power cut may: the next report is written over it, and flushing each
/// one would wear out an SD card.
fn fill(part: &Path, text: &str) -> io::Result<()> {
    // Whatever has the name is not ours to write to: others may write to the folder, and put a link or a FIFO there.
    let _ = fs::remove_file(part);
    let with_care = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(MODE).custom_flags(with_care).open(part)?;
    // The umask took from it.
    file.set_permissions(Permissions::from_mode(MODE))?;
    file.write_all(text.as_bytes())
}

/// Beside the file, since a rename does not leave a file system; of an ending that node_exporter passes over.
fn part(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".part");
    name.into()
}

/// How the writing goes, so that a failure is said once, and once that it is over.
#[derive(Debug, Default)]
pub struct Condition {
    failing: bool,
}

/// What is to be said of the last writing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// It failed, and did not before.
    Failed(String),
    /// It works, and did not before.
    Works,
}

impl Condition {
    /// Takes note that it is unfinished after a long time. Whether that is to be said.
    pub fn hangs(&mut self) -> bool {
        !std::mem::replace(&mut self.failing, true)
    }

    /// Takes note of how it went.
    pub fn note(&mut self, written: &io::Result<()>) -> Option<News> {
        let was_failing = std::mem::replace(&mut self.failing, written.is_err());
        match written {
            Err(error) if !was_failing => Some(News::Failed(error.to_string())),
            Ok(()) if was_failing => Some(News::Works),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("bitnetd-textfile-{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).expect("a temporary folder");
            Folder(folder)
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).expect("ours");
            let name = |entry: io::Result<fs::DirEntry>| entry.expect("ours").file_name().into_string();
            entries.map(|entry| name(entry).expect("UTF-8")).collect()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_file_is_replaced_whole_and_everybody_may_read_it() {
        let folder = Folder::new("whole");
        let path = folder.0.join("bitnetd.prom");
        let put = |text| write(&path, text).and_then(Part::put);
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
        let folder = Folder::new("cannot");
        let missing = folder.0.join("missing/bitnetd.prom");
        assert!(write(&missing, "a").expect_err("no folder").to_string().contains("missing/bitnetd.prom"));
        // A folder of that name: the text can be written, and not renamed.
        let taken = folder.0.join("taken.prom");
        fs::create_dir(&taken).expect("a new name");
        write(&taken, "a").expect("room").put().expect_err("a folder");
        assert_eq!(folder.names(), ["taken.prom"]);
    }

    #[test]
    fn a_link_in_the_way_is_removed_and_its_target_left_alone() {
        let folder = Folder::new("link");
        let (path, secret) = (folder.0.join("bitnetd.prom"), folder.0.join("secret"));
        fs::write(&secret, "a password").expect("room");
        fs::set_permissions(&secret, Permissions::from_mode(0o600)).expect("ours");
        std::os::unix::fs::symlink(&secret, part(&path)).expect("a new name");
        write(&path, "a\n").and_then(Part::put).expect("room");
        assert_eq!(fs::read_to_string(&secret).expect("there"), "a password");
        assert_eq!(fs::metadata(&secret).expect("there").permissions().mode() & 0o777, 0o600);
        assert!(fs::symlink_metadata(&path).expect("there").is_file());
        assert_eq!(fs::read_to_string(&path).expect("there"), "a\n");
    }

    #[test]
    fn a_fifo_in_the_way_keeps_nobody_waiting() {
        let folder = Folder::new("fifo");
        let path = folder.0.join("bitnetd.prom");
        for name in [part(&path), path.clone()] {
            let _ = fs::remove_file(&name);
            let made = rustix::fs::mknodat(
                rustix::fs::CWD,
                &name,
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::from_raw_mode(0o600),
                0,
            );
            made.expect("a new name");
            write(&path, "a\n").and_then(Part::put).expect("room");
            assert_eq!(fs::read_to_string(&path).expect("a file"), "a\n");
        }
    }

    #[test]
    fn what_hangs_is_said_once_and_that_it_works_again() {
        let mut condition = Condition::default();
        assert!(condition.hangs());
        assert!(!condition.hangs());
        assert_eq!(condition.note(&Ok(())), Some(News::Works));
        assert!(condition.hangs());
    }

    #[test]
    fn a_failure_is_said_once_and_its_end_once() {
        let mut condition = Condition::default();
        let failure = || Err(io::Error::other("full"));
        assert_eq!(condition.note(&Ok(())), None);
        assert_eq!(condition.note(&failure()), Some(News::Failed("full".into())));
        assert_eq!(condition.note(&failure()), None);
        assert_eq!(condition.note(&Ok(())), Some(News::Works));
        assert_eq!(condition.note(&Ok(())), None);
    }
}
