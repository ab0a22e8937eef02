//! The file of the history in the state folder.
//!
//! It is replaced as a whole: written under another name, synced, renamed. So a power cut at any moment leaves the file
//! before or the file after. All calls block. Deliberately knows not when to write.

use super::HistorySteps;
use super::format::{self, MAX_FILE};
use rustix::fs::OFlags;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The file, which need not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryFile {
    path: PathBuf,
}

impl HistoryFile {
    /// The file of a device in a folder, so that two daemons may share the folder.
    pub fn of_device(folder: &Path, device: &str) -> Self {
        let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let plain: String = device.chars().filter(is_plain).take(32).collect();
        let number = crc32fast::hash(device.as_bytes());
        HistoryFile { path: folder.join(format!("{plain}-{number:08x}.history")) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it contains; nothing where there is none. What cannot be used is set aside as `.corrupt` and named in a
    /// sentence.
    pub fn load(&self) -> (HistorySteps, Option<String>) {
        let reason = match read(&self.path) {
            Ok(Some(bytes)) => match format::parse(&bytes) {
                Ok(steps) => return (steps, None),
                Err(reason) => reason,
            },
            Ok(None) => return (HistorySteps::default(), None),
            Err(error) => error.to_string(),
        };
        let aside = self.path.with_extension("corrupt");
        // A link or a folder of that name is renamed itself; nothing is followed.
        let what = match fs::rename(&self.path, &aside) {
            Ok(()) => format!("it was set aside as {}", aside.display()),
            Err(error) => format!("and it cannot be set aside: {error}"),
        };
        let problem = format!("{}: {reason}; {what}, and the history begins anew", self.path.display());
        (HistorySteps::default(), Some(problem))
    }

    /// Replaces the file by these bytes, which survive a power cut from then on.
    pub fn save(&self, bytes: &[u8]) -> io::Result<()> {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", self.path.display()));
        self.replace(bytes).map_err(named)
    }

    fn replace(&self, bytes: &[u8]) -> io::Result<()> {
        let folder = self.path.parent().expect("a file in a folder");
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let part = self.path.with_extension("history-part");
        let written = write_new(&part, bytes).and_then(|()| fs::rename(&part, &self.path));
        if written.is_err() {
            // On a full disk it would take the space that is needed.
            let _ = fs::remove_file(&part);
        }
        // The name has to survive a power cut as well.
        written.and_then(|()| File::open(folder)?.sync_all())
    }
}

/// The bytes of a regular file; `None` where there is none.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    // No link is followed, and a pipe is not waited for.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no regular file"));
    }
    let mut bytes = Vec::new();
    let length = file.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes)?;
    if length > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is longer than any history"));
    }
    Ok(Some(bytes))
}

/// Writes a new file. What has its name already, such as a part that a power cut left, is removed and never opened.
fn write_new(part: &Path, bytes: &[u8]) -> io::Result<()> {
    let _ = fs::remove_file(part);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(part)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::super::column::StepColumn as C;
    use super::super::record::tests::step;
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use tempfile::TempDir;

    fn folder() -> TempDir {
        TempDir::with_prefix("bitnetd-").expect("a temporary folder")
    }

    fn file(folder: &TempDir) -> HistoryFile {
        HistoryFile::of_device(&folder.path().join("state"), "cellar")
    }

    fn steps(count: u32) -> HistorySteps {
        let mut steps = HistorySteps::default();
        (0..count).for_each(|at| steps.minutes.add(step(100 + at, &[(C::Completed, 1.0)]), None));
        steps
    }

    #[test]
    fn what_was_saved_is_loaded_and_readable_by_its_owner_only() {
        let folder = folder();
        let file = file(&folder);
        assert_eq!(file.load(), (HistorySteps::default(), None), "none yet is no problem");
        for count in [3, 5] {
            file.save(&format::encode(&steps(count))).expect("space");
            assert_eq!(file.load(), (steps(count), None));
        }
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o077;
        assert_eq!((mode(file.path()), mode(file.path().parent().expect("a folder"))), (0, 0));
        assert_eq!(fs::read_dir(folder.path().join("state")).expect("there").count(), 1, "no part is left");
    }

    #[test]
    fn devices_that_share_a_folder_have_their_own_files() {
        let of = |device| HistoryFile::of_device(Path::new("/s"), device).path().display().to_string();
        assert_eq!(of("cellar"), format!("/s/cellar-{:08x}.history", crc32fast::hash(b"cellar")));
        assert_ne!(of("a b"), of("ab"));
        assert_eq!(of(&"../".repeat(40)).matches('/').count(), 2, "no way into another folder");
    }

    #[test]
    fn a_power_cut_while_it_is_written_leaves_what_was_there() {
        let folder = folder();
        let file = file(&folder);
        file.save(&format::encode(&steps(3))).expect("space");
        let next = format::encode(&steps(4));
        let part = file.path().with_extension("history-part");
        for end in 0..=next.len() {
            fs::write(&part, &next[..end]).expect("space");
            assert_eq!(file.load(), (steps(3), None));
        }
        file.save(&next).expect("the part is no obstacle");
        assert_eq!(file.load(), (steps(4), None));
    }

    #[test]
    fn a_file_with_any_byte_missing_or_wrong_is_set_aside_and_named_once() {
        let folder = folder();
        let file = file(&folder);
        let sound = format::encode(&steps(3));
        let mut damaged: Vec<Vec<u8>> = (0..sound.len()).map(|end| sound[..end].to_vec()).collect();
        damaged.extend((0..sound.len()).map(|at| {
            let mut bytes = sound.clone();
            bytes[at] ^= 0x10;
            bytes
        }));
        damaged.push(b"[device]\nid = \"cellar\"\n".to_vec());
        damaged.push(vec![0; MAX_FILE + 1]);
        fs::create_dir(folder.path().join("state")).expect("a new name");
        for bytes in damaged {
            fs::write(file.path(), &bytes).expect("space");
            let (loaded, problem) = file.load();
            assert_eq!(loaded, HistorySteps::default());
            let problem = problem.expect("named");
            assert!(problem.contains(".corrupt") && problem.contains("begins anew"), "{problem}");
            assert_eq!(fs::read(file.path().with_extension("corrupt")).expect("set aside"), bytes);
            assert_eq!(file.load(), (HistorySteps::default(), None), "once");
        }
    }

    #[test]
    fn a_link_or_a_folder_of_its_name_is_set_aside_and_never_followed() {
        let folder = folder();
        let file = file(&folder);
        fs::create_dir_all(file.path()).expect("a new name");
        assert!(file.load().1.expect("named").contains("no regular file"));
        fs::remove_dir(file.path().with_extension("corrupt")).expect("set aside");
        let secret = folder.path().join("secret");
        fs::write(&secret, "keep me").expect("space");
        symlink(&secret, file.path()).expect("a new name");
        assert!(file.load().1.is_some());
        symlink(&secret, file.path()).expect("a new name");
        symlink(&secret, file.path().with_extension("history-part")).expect("a new name");
        file.save(&format::encode(&steps(1))).expect("space");
        assert_eq!((fs::read(&secret).expect("there"), file.load()), (b"keep me".to_vec(), (steps(1), None)));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error_that_names_the_file() {
        let folder = folder();
        fs::write(folder.path().join("state"), "a file").expect("space");
        let error = file(&folder).save(b"").expect_err("no folder").to_string();
        assert!(error.contains("cellar-"), "{error}");
    }
}
