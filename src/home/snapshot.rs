//! The home at one moment: its names, and how they are found in a prompt.
//!
//! Deliberately knows nothing of how the names change.

use super::mention::MentionIndex;
use super::names::NameList;

/// All names of the home at one moment, with an index to find them in a prompt.
#[derive(Debug, Default)]
pub struct Home {
    names: NameList,
    index: MentionIndex,
    version: u64,
}

impl Home {
    /// The home with these names. `version` tells it from the homes before it.
    pub fn new(names: NameList, version: u64) -> Self {
        let names = names.deduplicated();
        Home { index: MentionIndex::new(&names), names, version }
    }

    /// Its names.
    pub fn names(&self) -> &NameList {
        &self.names
    }

    /// The number that changes with the names.
    pub fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn index(&self) -> &MentionIndex {
        &self.index
    }
}
