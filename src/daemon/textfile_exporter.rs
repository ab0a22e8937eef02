//! Writes the text file for node_exporter with each report, on the blocking thread.
//!
//! One write at a time: while the disk hangs, reports are skipped. Deliberately knows nothing of what the text
//! says.

use super::locked;
use crate::telemetry::textfile::{self, StatusChange, WriteStatus};
use log::{info, warn};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};
use tokio::time::timeout;

/// A write that takes longer hangs; it is a few KiB, and even a slow, busy card takes less.
const HANG_TIMEOUT: Duration = Duration::from_secs(10);

/// The exported file and the write under way.
#[derive(Debug)]
pub(super) struct TextfileExporter {
    /// The configured path; a reload may change it.
    wanted: watch::Receiver<Option<PathBuf>>,
    /// The file that was written last.
    place: Option<OutputFile>,
    condition: Arc<Mutex<WriteStatus>>,
    /// The write under way, at most one.
    writing: JoinSet<()>,
}

/// An exported file. It is removed when dropped, since node_exporter would go on serving a stale file for ever.
#[derive(Debug)]
struct OutputFile {
    path: PathBuf,
    is_wanted: Arc<Mutex<bool>>,
}

impl OutputFile {
    fn new(path: PathBuf) -> Self {
        OutputFile { path, is_wanted: Arc::new(Mutex::new(true)) }
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        // From now on a write under way is not committed.
        *locked(&self.is_wanted) = false;
        // It may not exist.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Renames the temporary file to its path, unless the file was dropped while it was being written.
fn commit_if_wanted(part: textfile::TemporaryFile, is_wanted: &Mutex<bool>) -> io::Result<()> {
    let is_wanted = locked(is_wanted);
    if *is_wanted { part.commit() } else { Ok(()) }
}

impl TextfileExporter {
    pub fn new(wanted: watch::Receiver<Option<PathBuf>>) -> Self {
        TextfileExporter { wanted, place: None, condition: Arc::default(), writing: JoinSet::new() }
    }

    /// Waits until the configured path has changed and the last write has ended; before that nothing could be done
    /// about it.
    pub async fn path_changed(&mut self) {
        // Errors were logged by the task itself.
        while self.writing.join_next().await.is_some() {}
        if self.wanted.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Begins to write the file, if one is configured and the last write has ended.
    pub fn export(&mut self, render: impl FnOnce() -> String) {
        while self.writing.try_join_next().is_some() {}
        if !self.writing.is_empty() {
            return;
        }
        let left = self.adopt_path();
        let Some(OutputFile { path, is_wanted }) = &self.place else {
            if let Some(left) = left {
                let removing = on_the_disk(move || drop(left));
                self.writing.spawn(async { removing.await.unwrap_or_default() });
            }
            return;
        };
        let (path, is_wanted) = (path.clone(), Arc::clone(is_wanted));
        let (text, condition) = (render(), Arc::clone(&self.condition));
        let (begun, begins) = oneshot::channel();
        let (place, shown) = (path.clone(), Arc::clone(&condition));
        let writing = on_the_disk(move || {
            let _ = begun.send(()); // the receiver may be gone
            drop(left);
            let written = textfile::write(&path, &text).and_then(|part| commit_if_wanted(part, &is_wanted));
            let news = locked(&condition).record(&written);
            match news {
                None => {}
                Some(StatusChange::Recovered) => {
                    info!("telemetry.textfile: {} is written again", path.display())
                }
                Some(StatusChange::Failed(message)) => {
                    let way_out = "its folder must be there and writable (under systemd: ReadWritePaths=)";
                    warn!("telemetry.textfile: {message}; {way_out}");
                }
            }
        });
        self.writing.spawn(warn_if_hanging(writing, begins, place, shown));
    }

    /// Adopts the configured path. Returns the file at the old path, if that has changed.
    fn adopt_path(&mut self) -> Option<OutputFile> {
        let wanted = self.wanted.borrow_and_update().clone();
        if self.place.as_ref().map(|place| &place.path) == wanted.as_ref() {
            return None;
        }
        std::mem::replace(&mut self.place, wanted.map(OutputFile::new))
    }
}

/// Waits for the end of a write, and logs a warning if it hangs. The time counts from when the blocking thread
/// begins it.
async fn warn_if_hanging(
    mut writing: JoinHandle<()>,
    begins: oneshot::Receiver<()>,
    path: PathBuf,
    condition: Arc<Mutex<WriteStatus>>,
) {
    let _ = begins.await; // an error means that it has ended already
    if timeout(HANG_TIMEOUT, &mut writing).await.is_ok() {
        return;
    }
    if locked(&condition).record_hang() {
        let message = "broker look-ups and the store of answers wait for it too; put it on a local disk";
        warn!("telemetry.textfile: {} is not written after {HANG_TIMEOUT:?}; {message}", path.display());
    }
    let _ = writing.await; // it says itself how it went
}

#[expect(
    clippy::disallowed_methods,
    reason = "a few KiB, one writing at a time, on the thread that may block"
)]
fn on_the_disk(job: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    spawn_blocking(job)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use tempfile::TempDir;
    use tokio::sync::oneshot;

    struct Folder(TempDir);

    impl Folder {
        fn new() -> Self {
            Folder(TempDir::with_prefix("bitnetd-").expect("a temporary folder"))
        }

        fn has(&self) -> Vec<String> {
            let entries = std::fs::read_dir(self.0.path()).expect("ours");
            entries.map(|entry| entry.expect("ours").file_name().into_string().expect("UTF-8")).collect()
        }
    }

    fn part(path: &Path) -> textfile::TemporaryFile {
        textfile::write(path, "a").expect("room")
    }

    async fn written(exporter: &mut TextfileExporter) {
        exporter.writing.join_next().await.expect("there is something to do").expect("no fault");
    }

    /// Whether it ends at once.
    async fn is_moved(exporter: &mut TextfileExporter) -> bool {
        tokio::select! {
            biased;
            () = exporter.path_changed() => true,
            () = tokio::task::yield_now() => false,
        }
    }

    #[test]
    fn a_writing_that_outlives_the_daemon_puts_nothing_in_place() {
        let folder = Folder::new();
        let place = OutputFile::new(folder.0.path().join("bitnetd.prom"));
        let is_wanted = Arc::clone(&place.is_wanted);
        commit_if_wanted(part(&place.path), &is_wanted).expect("room");
        assert_eq!(folder.has(), ["bitnetd.prom"]);
        let late = part(&place.path);
        drop(place);
        commit_if_wanted(late, &is_wanted).expect("nothing is done");
        assert!(folder.has().is_empty(), "{:?}", folder.has());
    }

    #[tokio::test]
    async fn a_file_that_moves_while_it_is_written_is_written_elsewhere_as_soon_as_that_has_ended() {
        let folder = Folder::new();
        let (to, wanted) = tokio::sync::watch::channel(Some(folder.0.path().join("old.prom")));
        let mut exporter = TextfileExporter::new(wanted);
        exporter.export(|| "old".into());
        written(&mut exporter).await;
        assert_eq!(folder.has(), ["old.prom"]);
        let (disk, hangs) = oneshot::channel();
        exporter.writing.spawn(async { hangs.await.expect("it ends") });
        to.send_replace(Some(folder.0.path().join("new.prom")));
        assert!(!is_moved(&mut exporter).await, "nothing can be done yet");
        exporter.export(|| unreachable!("one writing at a time"));
        disk.send(()).expect("it is written still");
        exporter.path_changed().await;
        exporter.export(|| "new".into());
        written(&mut exporter).await;
        assert_eq!(folder.has(), ["new.prom"]);
        assert!(!is_moved(&mut exporter).await, "once");
        to.send_replace(None);
        assert!(is_moved(&mut exporter).await);
        exporter.export(|| unreachable!("there is no file"));
        written(&mut exporter).await;
        assert!(folder.has().is_empty(), "{:?}", folder.has());
    }
}
