//! The files that the configuration names for the link: certificates, keys, passwords. Read at each connect.
//!
//! Deliberately knows nothing of their contents.

use crate::transport::mqtt::link::Disconnect;
use crate::transport::named_file;
use std::path::Path;

/// What is wrong with a file, and the configuration key that names it.
pub fn file_error(path: &Path, key: &str, what: impl std::fmt::Display) -> Disconnect {
    Disconnect {
        kind: format!("{key}: {what}"),
        text: format!("{}: {what}; {key} names it", path.display()),
        unreadable: false,
    }
}

/// Reads a file.
pub fn read(path: &Path, key: &str) -> Result<Vec<u8>, Disconnect> {
    named_file::read(path).map_err(|what| file_error(path, key, what))
}

/// Reads a file that only its owner may be able to read, or that is one of systemd's `credentials`.
pub fn read_secret(path: &Path, key: &str, credentials: Option<&Path>) -> Result<Vec<u8>, Disconnect> {
    named_file::read_secret(path, credentials).map_err(|what| file_error(path, key, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_file_and_its_key() {
        let error = read(Path::new("/dev/zero"), "mqtt.key_file").expect_err("a device");
        assert_eq!(error.text, "/dev/zero: it is no file; mqtt.key_file names it");
    }
}
