//! How full the cache of answers is. Deliberately knows no answer.

use super::Counter;

/// The entries of the cache of answers and their bytes, as the cache last set them.
#[derive(Debug, Default)]
pub struct AnswerCacheSize {
    entries: Counter,
    bytes: Counter,
}

impl AnswerCacheSize {
    /// Sets both.
    pub fn set(&self, entries: usize, bytes: usize) {
        self.entries.set(entries as u64);
        self.bytes.set(bytes as u64);
    }

    /// Entries and bytes.
    pub fn get(&self) -> (u64, u64) {
        (self.entries.get(), self.bytes.get())
    }
}
