//! The request that the worker answers now: whether there is one, and how to cancel it.
//!
//! Deliberately knows neither the request's text nor its answer.

use crate::daemon::locked;
use crate::transport::Cancel;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;

/// The running request.
#[derive(Debug, Default)]
pub(in crate::daemon) struct RunningRequest {
    is_running: AtomicBool,
    /// Wakes the sampler, which samples more often while something is computed.
    begun: Notify,
    /// The cancel flag of the request that runs, or ran last.
    cancel: Mutex<Option<Cancel>>,
}

impl RunningRequest {
    /// A request begins.
    pub fn begin(&self, cancel: &Cancel) {
        self.is_running.store(true, Ordering::Relaxed);
        *locked(&self.cancel) = Some(cancel.clone());
        self.begun.notify_one();
    }

    /// The request has ended, if one ran.
    pub fn end(&self) {
        self.is_running.store(false, Ordering::Relaxed);
    }

    /// Whether a request runs.
    pub fn is_running(&self) -> bool {
        self.is_running.load(Ordering::Relaxed)
    }

    /// Waits until some request runs.
    pub async fn begun(&self) {
        while !self.is_running() {
            self.begun.notified().await;
        }
    }

    /// Cancels the running request; `false` where there is none.
    pub fn cancel(&self) -> bool {
        let cancel = locked(&self.cancel);
        cancel.as_ref().filter(|_| self.is_running()).map(Cancel::raise).is_some()
    }
}
