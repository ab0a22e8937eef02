//! The files that the configuration names: certificates, keys, passwords, tokens. Read whole, whenever they are needed; a
//! byte-order mark at their beginning is skipped.
//!
//! Deliberately knows nothing of their contents, nor which key of the configuration names them.

use crate::external_text::{without_bom, wrong_head};
use rustix::fs::OFlags;
use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Maximum size of a file in bytes; a bundle of all public authorities has 230 KB.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Reads a file.
///
/// # Errors
/// What is wrong with it, without its path.
pub fn read(path: &Path) -> Result<Vec<u8>, String> {
    read_open(&open(path)?)
}

/// Reads a file that only its owner may be able to read. Files in `credentials` are excepted: systemd grants the
/// daemon access there by an access control list, which appears as a mode for the group.
///
/// # Errors
/// What is wrong with it, without its path.
pub fn read_secret(path: &Path, credentials: Option<&Path>) -> Result<Vec<u8>, String> {
    let file = open(path)?;
    let mode = file.metadata().map_err(text)?.permissions().mode();
    let is_systemds = credentials.is_some_and(|folder| path.starts_with(folder));
    if mode & 0o077 != 0 && !is_systemds {
        let mode = mode & 0o777;
        return Err(format!("others than its owner may use it (mode {mode:04o}): chmod 600"));
    }
    read_open(&file)
}

/// Opens without blocking: a pipe in the file's place would otherwise stop the daemon.
fn open(path: &Path) -> Result<File, String> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|error| match error.kind() {
        // The daemon does not run as root, who owns the files in /etc.
        ErrorKind::PermissionDenied => "permission denied; under systemd load it with LoadCredential=".into(),
        _ => text(error),
    })?;
    if file.metadata().map_err(text)?.is_file() { Ok(file) } else { Err("it is no file".into()) }
}

fn read_open(file: &File) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    match file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes) {
        Ok(_) if bytes.len() as u64 > MAX_FILE_BYTES => Err("it is longer than 1 MiB".into()),
        Ok(_) => match wrong_head(&bytes) {
            Some(wrong) => Err(format!("it {wrong}")),
            None => Ok(without_bom(&bytes).to_vec()),
        },
        Err(error) => Err(text(error)),
    }
}

fn text(error: impl Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use tempfile::TempDir;

    struct Folder(TempDir);

    impl Folder {
        fn new() -> Self {
            Folder(TempDir::with_prefix("bitnetd-").expect("a temporary folder"))
        }

        fn write(&self, mode: u32) -> PathBuf {
            let path = self.0.path().join("secret");
            std::fs::write(&path, "s3cret").expect("a temporary folder");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("ours");
            path
        }
    }

    #[test]
    fn a_secret_that_others_may_read_is_refused_with_the_way_out() {
        let folder = Folder::new();
        for mode in [0o604, 0o640, 0o660, 0o622] {
            let text = read_secret(&folder.write(mode), None).expect_err("open");
            assert!(text.contains("chmod 600"), "{text}");
            assert!(!text.contains("s3cret"), "{text}");
        }
        for mode in [0o600, 0o400] {
            assert_eq!(read_secret(&folder.write(mode), None).expect("private"), b"s3cret");
        }
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_file() {
        let folder = Folder::new();
        let path = folder.write(0o600);
        std::fs::write(&path, "\u{feff}s3cret").expect("a temporary folder");
        assert_eq!(read_secret(&path, None).expect("private"), b"s3cret");
    }

    #[test]
    fn systemd_s_credentials_pass_with_the_mode_that_its_access_list_shows() {
        let folder = Folder::new();
        let path = folder.write(0o440);
        assert_eq!(read_secret(&path, Some(folder.0.path())).expect("systemd's"), b"s3cret");
        assert!(read_secret(&path, Some("/elsewhere".as_ref())).is_err());
    }

    #[test]
    fn what_is_no_file_or_too_long_is_refused() {
        let folder = Folder::new();
        assert!(read(folder.0.path()).expect_err("a folder").contains("no file"));
        assert!(read(Path::new("/dev/zero")).expect_err("a device").contains("no file"));
        let long = folder.write(0o600);
        std::fs::write(&long, vec![b'x'; MAX_FILE_BYTES as usize + 1]).expect("a temporary folder");
        assert!(read(&long).expect_err("too long").contains("1 MiB"));
    }
}
