//! The file that remembers that the owner deleted the device in Home Assistant.
//!
//! Its existence is all that counts. It is written and removed in the background, so that a card that hangs stops nothing.
//! Deliberately knows nothing of MQTT.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

const TEXT: &str = "This device was deleted in Home Assistant, so bitnetd does not announce it again. Remove this file to \
                    have it announced at the next start, or start once with mqtt.discovery = false.\n";

/// The file, if there is a directory for it.
#[derive(Debug)]
pub struct DeletionFile {
    path: Option<PathBuf>,
}

impl DeletionFile {
    /// The file at this path; nothing is remembered where there is none.
    pub fn new(path: Option<PathBuf>) -> Self {
        DeletionFile { path }
    }

    /// Whether the device was deleted.
    pub fn exists(&self) -> bool {
        self.path.as_ref().is_some_and(|path| path.symlink_metadata().is_ok())
    }

    /// Begins to write the file. Returns the end of the sentence that tells the owner how to undo the deletion.
    pub fn create(&self) -> String {
        let Some(path) = self.path.clone() else {
            return " (without device.state_dir, until the next start)".into();
        };
        let text = format!(", or remove {} and start again", path.display());
        run(path, |path| {
            let mut file = fs::OpenOptions::new().write(true).create_new(true).open(path)?;
            file.write_all(TEXT.as_bytes())?;
            file.sync_all()
        });
        text
    }

    /// Begins to remove the file: discovery is switched off.
    pub fn remove(&self) {
        if let Some(path) = self.path.clone().filter(|_| self.exists()) {
            run(path, |path| fs::remove_file(path));
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "one short job in months, so others only wait for it")]
fn run(path: PathBuf, job: impl FnOnce(&Path) -> io::Result<()> + Send + 'static) {
    // The result is logged by the job itself; the daemon does not wait for it.
    drop(tokio::task::spawn_blocking(move || match job(&path) {
        Err(error) if !matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) => {
            log::warn!("{}: {error}; so a deletion in Home Assistant is remembered wrongly", path.display());
        }
        _ => {}
    }));
}
