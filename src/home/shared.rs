//! The home as it is shared: transports and reloads change its names, the worker reads the latest snapshot.
//!
//! One way only: who changes the names learns nothing of who reads them. Deliberately knows no channel of any runtime.

use super::names::NameList;
use super::snapshot::Home;
use super::store::{HomeNames, NameTopics};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The names, and the latest snapshot of them. Each lock is held for one call only.
#[derive(Debug)]
pub struct SharedHome {
    topics: NameTopics,
    /// Whether all answers of the built-in model keep to the names.
    is_constrained: AtomicBool,
    names: Mutex<HomeNames>,
    current: Mutex<Arc<Home>>,
}

impl SharedHome {
    /// The names of the owner's file, to which those on `topics` are added.
    pub fn new(file: NameList, topics: NameTopics) -> Self {
        let mut names = HomeNames::new(file, topics.clone());
        let current = Mutex::new(Arc::new(names.snapshot()));
        let is_constrained = AtomicBool::new(true);
        SharedHome { topics, is_constrained, names: Mutex::new(names), current }
    }

    /// The topics from which names are read.
    pub fn topics(&self) -> &NameTopics {
        &self.topics
    }

    /// The home as it was published last.
    pub fn current(&self) -> Arc<Home> {
        Arc::clone(&locked(&self.current))
    }

    /// Whether all answers of the built-in model keep to the names, also where a request does not ask for it.
    pub fn is_constrained(&self) -> bool {
        self.is_constrained.load(Ordering::Relaxed)
    }

    /// Changes whether they do.
    pub fn set_constrained(&self, is_constrained: bool) {
        self.is_constrained.store(is_constrained, Ordering::Relaxed);
    }

    /// Replaces the names of the owner's file, and publishes the home.
    pub fn set_file(&self, file: NameList) {
        locked(&self.names).set_file(file);
        self.publish();
    }

    /// Reads a message, as [`HomeNames::on_message`] does. Returns whether there is something to publish.
    ///
    /// # Errors
    /// The problem to report, returned once.
    pub fn on_message(&self, topic: &str, payload: &[u8], skipped_bytes: usize) -> Result<bool, String> {
        let mut names = locked(&self.names);
        names.on_message(topic, payload, skipped_bytes)?;
        Ok(names.is_changed())
    }

    /// Notes that all retained messages are about to be delivered again.
    pub fn delivery_began(&self) {
        locked(&self.names).delivery_began();
    }

    /// Notes that they were. Returns whether there is something to publish.
    pub fn delivery_ended(&self) -> bool {
        let mut names = locked(&self.names);
        names.delivery_ended();
        names.is_changed()
    }

    /// Publishes the home, if its names have changed.
    pub fn publish(&self) {
        let mut names = locked(&self.names);
        if names.is_changed() {
            let home = Arc::new(names.snapshot());
            *locked(&self.current) = home;
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_see_changes_once_they_are_published() {
        let home = SharedHome::new(NameList::default(), NameTopics { discovery_prefix: "ha".into() });
        let before = home.current();
        let changed = home.on_message("ha/light/a/config", br#"{"name":"Lamp","uniq_id":"a"}"#, 0);
        assert_eq!(changed, Ok(true));
        assert_eq!(home.current().version(), before.version());
        home.publish();
        assert_eq!(home.current().names().devices.len(), 1);
        assert!(home.current().version() > before.version());
        assert!(before.names().devices.is_empty());
    }
}
