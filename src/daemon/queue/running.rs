//! The request that the worker answers now: whether there is one, and how to cancel it.
//!
//! Deliberately knows neither the request's text nor its answer.

use crate::daemon::locked;
use crate::transport::Cancel;
use std::sync::Mutex;
use tokio::sync::watch;

/// The running request.
#[derive(Debug, Default)]
pub(in crate::daemon) struct RunningRequest {
    /// Whether there is one.
    is_running: watch::Sender<bool>,
    /// The cancel flag of the request that runs, or ran last.
    cancel: Mutex<Option<Cancel>>,
}

impl RunningRequest {
    /// A request begins.
    pub fn begin(&self, cancel: &Cancel) {
        *locked(&self.cancel) = Some(cancel.clone());
        self.is_running.send_replace(true);
    }

    /// The request has ended, if one ran.
    pub fn end(&self) {
        self.is_running.send_if_modified(std::mem::take);
    }

    /// Whether a request runs.
    pub fn is_running(&self) -> bool {
        *self.is_running.borrow()
    }

    /// Follows whether a request runs.
    pub fn subscribe(&self) -> watch::Receiver<bool> {
        self.is_running.subscribe()
    }

    /// Waits until some request runs.
    pub async fn begun(&self) {
        // An error would mean that the sender is gone, and it lives as long as `self`.
        let _ = self.is_running.subscribe().wait_for(|is_running| *is_running).await;
    }

    /// Cancels the running request; `false` where there is none.
    pub fn cancel(&self) -> bool {
        let cancel = locked(&self.cancel);
        cancel.as_ref().filter(|_| self.is_running()).map(Cancel::raise).is_some()
    }
}
