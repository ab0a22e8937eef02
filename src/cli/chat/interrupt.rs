//! Ctrl-C while an answer is written. The line editor takes it as a key, so that it never gets here while a line is edited.

use crate::cli::Failure;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use tokio::signal::unix::{SignalKind, signal};

/// Whether the user wants the answer to stop.
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Catches SIGINT from now on, on a thread that sleeps until one comes.
    pub fn catch() -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::system(format!("Ctrl-C cannot be caught: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
        let mut signals = runtime.block_on(async { signal(SignalKind::interrupt()) }).map_err(failed)?;
        let flag = Arc::new(AtomicBool::new(false));
        let caught = Arc::clone(&flag);
        thread::spawn(move || {
            runtime.block_on(async {
                while signals.recv().await.is_some() {
                    caught.store(true, Ordering::Relaxed);
                }
            });
        });
        Ok(Interrupt(flag))
    }

    /// Leaves SIGINT as it is.
    pub fn never() -> Self {
        Interrupt(Arc::default())
    }

    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Forgets one that came between two answers.
    pub fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
