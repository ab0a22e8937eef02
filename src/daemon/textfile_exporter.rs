//! Keeps the text file for node_exporter up to date, on the thread that may block.
//!
//! One writing at a time: while the disk hangs, reports pass it by. Deliberately knows nothing of what the text says.

use super::locked;
use crate::telemetry::textfile::{self, Condition, News};
use log::{info, warn};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};
use tokio::time::timeout;

/// A writing that takes longer hangs: a few KiB, on a slow card that others write to as well.
const HANGS: Duration = Duration::from_secs(10);

/// The file, and the writing of it.
#[derive(Debug)]
pub(super) struct Exporter {
    /// Where it is to be; it may change.
    wanted: watch::Receiver<Option<PathBuf>>,
    /// Where it was written last.
    place: Option<Place>,
    condition: Arc<Mutex<Condition>>,
    /// At most one.
    writing: JoinSet<()>,
}

/// A file of ours. Dropped, it is removed: what nobody writes any more would be read as news for ever.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    is_wanted: Arc<Mutex<bool>>,
}

impl Place {
    fn new(path: PathBuf) -> Self {
        Place { path, is_wanted: Arc::new(Mutex::new(true)) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A writing under way puts nothing there from now on.
        *locked(&self.is_wanted) = false;
        // It may never have been written.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Puts the text into its file, if that is wanted still: the daemon may have stopped while the disk took its time.
fn put(part: textfile::Part, is_wanted: &Mutex<bool>) -> io::Result<()> {
    let is_wanted = locked(is_wanted);
    if *is_wanted { part.put() } else { Ok(()) }
}

impl Exporter {
    pub fn new(wanted: watch::Receiver<Option<PathBuf>>) -> Self {
        Exporter { wanted, place: None, condition: Arc::default(), writing: JoinSet::new() }
    }

    /// Waits until the file is to be elsewhere, or nowhere, and the last writing has ended: before that nothing
    /// could be done about it.
    pub async fn is_moved(&mut self) {
        // What went wrong is said by then.
        while self.writing.join_next().await.is_some() {}
        if self.wanted.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Has the file written, if there is to be one and the last writing has ended.
    pub fn export(&mut self, render: impl FnOnce() -> String) {
        while self.writing.try_join_next().is_some() {}
        if !self.writing.is_empty() {
            return;
        }
        let left = self.moved();
        let Some(Place { path, is_wanted }) = &self.place else {
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
            let _ = begun.send(()); // nobody has to watch
            drop(left);
            let written = textfile::write(&path, &text).and_then(|part| put(part, &is_wanted));
            let news = locked(&condition).note(&written);
            match news {
                None => {}
                Some(News::Works) => info!("telemetry.textfile: {} is written again", path.display()),
                Some(News::Failed(said)) => {
                    let way_out = "its folder must be there and writable (under systemd: ReadWritePaths=)";
                    warn!("telemetry.textfile: {said}; {way_out}");
                }
            }
        });
        self.writing.spawn(watch_over(writing, begins, place, shown));
    }

    /// Takes over where the file is to be. Says where it was, if it is not to be there any more.
    fn moved(&mut self) -> Option<Place> {
        let wanted = self.wanted.borrow_and_update().clone();
        if self.place.as_ref().map(|place| &place.path) == wanted.as_ref() {
            return None;
        }
        std::mem::replace(&mut self.place, wanted.map(Place::new))
    }
}

/// Waits for the end of a writing, and says so where that does not come. The thread may be busy with something else first.
async fn watch_over(
    mut writing: JoinHandle<()>,
    begins: oneshot::Receiver<()>,
    path: PathBuf,
    condition: Arc<Mutex<Condition>>,
) {
    let _ = begins.await; // or it is over already
    if timeout(HANGS, &mut writing).await.is_ok() {
        return;
    }
    if locked(&condition).hangs() {
        let said = "broker look-ups and the store of answers wait for it too; put it on a local disk";
        warn!("telemetry.textfile: {} is not written after {HANGS:?}; {said}", path.display());
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
    use tokio::sync::oneshot;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("bitnetd-export-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&folder).expect("a temporary folder");
            Folder(folder)
        }

        fn has(&self) -> Vec<String> {
            let entries = std::fs::read_dir(&self.0).expect("ours");
            entries.map(|entry| entry.expect("ours").file_name().into_string().expect("UTF-8")).collect()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn part(path: &Path) -> textfile::Part {
        textfile::write(path, "a").expect("room")
    }

    async fn written(exporter: &mut Exporter) {
        exporter.writing.join_next().await.expect("there is something to do").expect("no fault");
    }

    /// Whether it ends at once.
    async fn is_moved(exporter: &mut Exporter) -> bool {
        tokio::select! {
            biased;
            () = exporter.is_moved() => true,
            () = tokio::task::yield_now() => false,
        }
    }

    #[test]
    fn a_writing_that_outlives_the_daemon_puts_nothing_in_place() {
        let folder = Folder::new("stop");
        let place = Place::new(folder.0.join("bitnetd.prom"));
        let is_wanted = Arc::clone(&place.is_wanted);
        put(part(&place.path), &is_wanted).expect("room");
        assert_eq!(folder.has(), ["bitnetd.prom"]);
        let late = part(&place.path);
        drop(place);
        put(late, &is_wanted).expect("nothing is done");
        assert!(folder.has().is_empty(), "{:?}", folder.has());
    }

    #[tokio::test]
    async fn a_file_that_moves_while_it_is_written_is_written_elsewhere_as_soon_as_that_has_ended() {
        let folder = Folder::new("move");
        let (to, wanted) = tokio::sync::watch::channel(Some(folder.0.join("old.prom")));
        let mut exporter = Exporter::new(wanted);
        exporter.export(|| "old".into());
        written(&mut exporter).await;
        assert_eq!(folder.has(), ["old.prom"]);
        let (disk, hangs) = oneshot::channel();
        exporter.writing.spawn(async { hangs.await.expect("it ends") });
        to.send_replace(Some(folder.0.join("new.prom")));
        assert!(!is_moved(&mut exporter).await, "nothing can be done yet");
        exporter.export(|| unreachable!("one writing at a time"));
        disk.send(()).expect("it is written still");
        exporter.is_moved().await;
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
