//! The key of the names that clients have in logs and reports: made once, and kept in the state folder, so that a client has
//! the same name after a restart.
//!
//! Deliberately knows no client.

use crate::guard::CLIENT_KEY_BYTES;
use std::fs::{self, DirBuilder, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

type Key = [u8; CLIENT_KEY_BYTES];

const FILE: &str = "client-key";

/// A key of this process alone: SipHash under the 128 random bits that the standard library takes from the kernel.
pub(super) fn random() -> Key {
    let hasher = RandomState::new();
    let mut key = Key::default();
    for (at, part) in key.chunks_exact_mut(size_of::<u64>()).enumerate() {
        part.copy_from_slice(&hasher.hash_one(at).to_le_bytes());
    }
    key
}

/// The key of the state folder, which is made where there is none; a damaged one is replaced.
pub(super) fn stored(folder: &Path) -> io::Result<Key> {
    let path = folder.join(FILE);
    match fs::read(&path) {
        Ok(bytes) => {
            if let Ok(key) = Key::try_from(bytes) {
                return Ok(key);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let key = random();
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    // A file that is cut by a power failure never has the name.
    let unfinished = folder.join(format!("{FILE}.new"));
    let _ = fs::remove_file(&unfinished); // there is none as a rule
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    file.write_all(&key)?;
    file.sync_all()?;
    fs::rename(&unfinished, &path)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_key_is_made_once_for_its_owner_alone_and_a_damaged_one_is_replaced() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let state = folder.path().join("a/b");
        let key = stored(&state).expect("it can be written");
        assert_eq!(stored(&state).expect("it is there"), key);
        let path = state.join(FILE);
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        fs::write(&path, b"cut").expect("our own");
        let other = stored(&state).expect("it can be written");
        assert_ne!(other, key);
        assert_eq!(stored(&state).expect("it is there"), other);
        assert_ne!(random(), random());
    }
}
