//! Keeps the text file for node_exporter up to date, on the thread that may block.
//!
//! One writing at a time: while the disk hangs, reports pass it by. Deliberately knows nothing of what the text says.

use crate::telemetry::textfile::{self, Condition, News};
use log::{info, warn};
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
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        // It may never have been written.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Exporter {
    pub fn new(wanted: watch::Receiver<Option<PathBuf>>) -> Self {
        Exporter { wanted, place: None, condition: Arc::default(), writing: JoinSet::new() }
    }

    /// Waits until the file is to be elsewhere, or nowhere.
    pub async fn is_moved(&mut self) {
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
        let wanted = self.wanted.borrow_and_update().clone();
        if self.place.as_ref().map(|place| &place.0) != wanted.as_ref() {
            self.place = wanted.clone().map(Place);
        }
        let Some(path) = wanted else { return };
        let (text, condition) = (render(), Arc::clone(&self.condition));
        let (begun, begins) = oneshot::channel();
        let (place, shown) = (path.clone(), Arc::clone(&condition));
        let writing = on_the_disk(move || {
            let _ = begun.send(()); // nobody has to watch
            let written = textfile::write(&path, &text);
            let news = super::locked(&condition).note(&written);
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
    if super::locked(&condition).hangs() {
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
