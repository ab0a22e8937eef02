//! The requests that the worker answers now: whether there are any, and how to cancel them.
//!
//! Deliberately knows neither the requests' texts nor their answers.

use super::locked;
use crate::telemetry::Telemetry;
use crate::transport::Cancel;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// The running requests.
#[derive(Debug)]
pub(super) struct RunningRequests {
    /// Has their number at any time.
    telemetry: Arc<Telemetry>,
    /// Whether there are any.
    is_running: watch::Sender<bool>,
    /// Their cancel flags, each with its number.
    cancels: Mutex<Vec<(u64, Cancel)>>,
}

/// A request runs until this is dropped.
#[derive(Debug)]
pub(super) struct Running {
    requests: Arc<RunningRequests>,
    number: u64,
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut cancels = locked(&self.requests.cancels);
        cancels.retain(|(number, _)| *number != self.number);
        self.requests.publish(cancels.len());
    }
}

impl RunningRequests {
    /// None yet.
    pub fn new(telemetry: Arc<Telemetry>) -> Self {
        RunningRequests { telemetry, is_running: watch::Sender::default(), cancels: Mutex::default() }
    }

    /// A request begins.
    pub fn begin(self: &Arc<Self>, cancel: &Cancel) -> Running {
        let mut cancels = locked(&self.cancels);
        let number = cancels.last().map_or(0, |(number, _)| number + 1);
        cancels.push((number, cancel.clone()));
        self.publish(cancels.len());
        Running { requests: Arc::clone(self), number }
    }

    fn publish(&self, count: usize) {
        self.telemetry.set_running(count);
        self.is_running
            .send_if_modified(|is_running| std::mem::replace(is_running, count > 0) != (count > 0));
    }

    /// How many requests run.
    pub fn count(&self) -> usize {
        locked(&self.cancels).len()
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

    /// Cancels all running requests, and returns how many there were.
    pub fn cancel(&self) -> usize {
        let cancels = locked(&self.cancels);
        cancels.iter().for_each(|(_, cancel)| cancel.raise());
        cancels.len()
    }
}
