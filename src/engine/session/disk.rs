//! Blocks of the KV cache that are read from disk, and those that are still to be written to it.

use super::Session;
use crate::engine::prefix_cache::{Parent, PrefixCache};
use crate::engine::prefix_store::{BlockHash, PrefixStore};
use std::collections::VecDeque;

/// The store of a session.
#[derive(Debug)]
pub(super) struct DiskPrefixes {
    store: PrefixStore,
    /// What keys and values depend on besides the tokens.
    model: String,
    unwritten: VecDeque<UnwrittenBlock>,
}

/// A block that is not on disk.
#[derive(Debug, Clone, Copy)]
struct UnwrittenBlock {
    index: u32,
    /// Its contents in the prefix cache. Where they are gone there is nothing to write.
    contents: Parent,
    hash: BlockHash,
}

impl DiskPrefixes {
    pub fn new(store: PrefixStore, model: String) -> Self {
        DiskPrefixes { store, model, unwritten: VecDeque::new() }
    }

    /// What the first block of a text comes behind.
    pub fn root(&self, scope: u128) -> BlockHash {
        BlockHash::root(&self.model, scope)
    }

    /// A block of `blocks` is full, and others can find it in memory: it is written when there is time, unless it is on disk.
    pub fn note_full(&mut self, index: u32, contents: Parent, hash: BlockHash, blocks: &PrefixCache) {
        if self.store.contains(hash) {
            return;
        }
        // Where there is never time, most of those that were noted have other contents by now.
        if self.unwritten.len() >= 2 * blocks.blocks() {
            self.unwritten.retain(|noted| blocks.holds(noted.index, noted.contents));
        }
        self.unwritten.push_back(UnwrittenBlock { index, contents, hash });
    }
}

impl Session<'_> {
    /// Writes one block that is not on disk yet; `false` where there is none, or nothing is stored on disk. What is written
    /// is only the contents of the cache, which lasts milliseconds: for when nothing is to be computed.
    pub fn store_block(&mut self) -> bool {
        let Session { disk: Some(disk), blocks, state, .. } = self else { return false };
        while let Some(UnwrittenBlock { index, contents, hash }) = disk.unwritten.pop_front() {
            if blocks.holds(index, contents) {
                disk.store.store(hash, state.block_parts(index));
                return true;
            }
        }
        false
    }

    /// Forgets the blocks that are still to be written.
    pub fn forget_unwritten(&mut self) {
        self.disk.iter_mut().for_each(|disk| disk.unwritten.clear());
    }

    /// The first problem with the files of the prefix store since the last call: a sentence.
    pub fn take_store_problem(&mut self) -> Option<String> {
        self.disk.as_mut()?.store.take_problem()
    }

    /// Reads the next block of a slot's prompt from disk, where it is there.
    pub(super) fn load_next_block(&mut self, slot: usize) -> bool {
        let Session { disk: Some(disk), blocks, state, slots, .. } = self else { return false };
        let slot_state = &mut slots[slot];
        let hash = slot_state.next_hash();
        let Some(hash) = hash.filter(|hash| disk.store.contains(*hash)) else { return false };
        let block = blocks.allocate(state.blocks_of(slot).last().copied());
        if !disk.store.load(hash, state.block_parts_mut(block)) {
            blocks.release(&[block]);
            return false;
        }
        let parent = blocks.register(block, slot_state.parent, slot_state.findable, slot_state.next_block());
        slot_state.note_found(parent);
        state.push_full_block(slot, block);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use tempfile::TempDir;

    fn disk(folder: &Path) -> DiskPrefixes {
        DiskPrefixes::new(PrefixStore::open(folder, 1 << 20).expect("made"), "model".into())
    }

    #[test]
    fn what_is_noted_stays_bounded_where_there_is_never_time_to_write() {
        let folder = TempDir::with_prefix("bitnetd-").expect("a temporary folder");
        let (mut disk, mut blocks) = (disk(folder.path()), PrefixCache::new(4));
        let mut last = Vec::new();
        for text in 0..1000 {
            let index = blocks.allocate(None);
            let contents = blocks.register(index, Parent::Scope(0), 0, &[text]);
            let hash = disk.root(0).followed_by(&[text]);
            disk.note_full(index, contents, hash, &blocks);
            blocks.release(&[index]);
            last.push((index, hash));
            assert!(disk.unwritten.len() <= 8, "{} after {text}", disk.unwritten.len());
        }
        // Those whose contents are still there are among them.
        let noted: Vec<(u32, BlockHash)> =
            disk.unwritten.iter().map(|noted| (noted.index, noted.hash)).collect();
        assert!(last[996..].iter().all(|block| noted.contains(block)), "{noted:?}");
    }
}
