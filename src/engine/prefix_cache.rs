//! Which blocks of the KV cache belong to whom, and which of them hold the beginning of a text that may come again.
//!
//! A block is found by the block before it and its own tokens, so that two texts share exactly what they have in common
//! at their beginning, in whole blocks (as in vLLM's automatic prefix caching and SGLang's radix tree, arXiv 2312.07104).
//! Blocks that nobody uses keep their contents until their place is needed; the least recently used go first.
//!
//! Pure bookkeeping: deliberately knows no model and holds no keys and values.

use std::collections::HashMap;

/// Where a block comes behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Parent {
    /// The beginning of a text. Texts of different scopes share nothing.
    Scope(u128),
    /// The block with this serial number.
    Block(u64),
}

/// What identifies the contents of a block.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    parent: Parent,
    tokens: Box<[u32]>,
}

#[derive(Debug, Default)]
struct Block {
    /// Sequences that it is part of.
    users: u32,
    /// `None` where it holds nothing that can be found.
    key: Option<Key>,
    /// Identifies its contents for the blocks behind it; every registration has another.
    serial: u64,
    /// The time of its last use, in uses of the cache.
    last_used: u64,
    /// How many blocks come before it.
    depth: usize,
}

/// The blocks of a KV cache.
#[derive(Debug)]
pub struct PrefixCache {
    blocks: Vec<Block>,
    /// The blocks that can be found.
    by_key: HashMap<Key, u32>,
    serials: u64,
    uses: u64,
    /// How many blocks were ever given away, all of which come first.
    touched: usize,
}

impl PrefixCache {
    /// A cache of so many blocks, all of which are free.
    pub fn new(blocks: usize) -> Self {
        PrefixCache {
            blocks: (0..blocks).map(|_| Block::default()).collect(),
            by_key: HashMap::new(),
            serials: 0,
            uses: 0,
            touched: 0,
        }
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// How many blocks were ever written: the first ones.
    pub fn touched(&self) -> usize {
        self.touched
    }

    /// A block for a sequence, whose contents are lost. `after`: the block behind which it is to lie if that is free, since
    /// neighbours are read faster.
    ///
    /// # Panics
    /// When all blocks are in use, which the owner rules out.
    pub fn allocate(&mut self, after: Option<u32>) -> u32 {
        let is_empty = |block: &Block| block.users == 0 && block.key.is_none();
        let next = after.map(|block| block as usize + 1);
        let next = next.filter(|at| self.blocks.get(*at).is_some_and(is_empty));
        let index = next
            .or_else(|| self.blocks.iter().position(is_empty))
            .or_else(|| self.least_recently_used())
            .expect("a block for every token of every sequence");
        let block = &mut self.blocks[index];
        if let Some(key) = block.key.take() {
            self.by_key.remove(&key);
        }
        block.users = 1;
        self.touched = self.touched.max(index + 1);
        index as u32
    }

    /// The block that has been unused for longest; of blocks of one text the last, because the others lead to it.
    fn least_recently_used(&self) -> Option<usize> {
        let unused = self.blocks.iter().enumerate().filter(|(_, block)| block.users == 0);
        unused.min_by_key(|(_, block)| (block.last_used, usize::MAX - block.depth)).map(|(index, _)| index)
    }

    /// The block with these tokens behind `parent`, which one more sequence uses from now on.
    pub fn find(&mut self, parent: Parent, tokens: &[u32]) -> Option<(u32, Parent)> {
        let index = *self.by_key.get(&Key { parent, tokens: tokens.into() })?;
        let block = &mut self.blocks[index as usize];
        block.users += 1;
        Some((index, Parent::Block(block.serial)))
    }

    /// Makes a block that is full of these tokens behind `parent` one that can be found. Returns what the next block comes
    /// behind: this one, or one with the same contents that was there before.
    pub fn register(&mut self, index: u32, parent: Parent, depth: usize, tokens: &[u32]) -> Parent {
        let key = Key { parent, tokens: tokens.into() };
        if let Some(known) = self.by_key.get(&key) {
            return Parent::Block(self.blocks[*known as usize].serial);
        }
        self.serials += 1;
        let block = &mut self.blocks[index as usize];
        (block.key, block.serial, block.depth) = (Some(key.clone()), self.serials, depth);
        self.by_key.insert(key, index);
        Parent::Block(self.serials)
    }

    /// Whether a block still has the contents that were registered as `parent`.
    pub fn holds(&self, index: u32, parent: Parent) -> bool {
        let block = &self.blocks[index as usize];
        block.key.is_some() && Parent::Block(block.serial) == parent
    }

    /// A sequence ends, and uses these blocks no more.
    pub fn release(&mut self, blocks: &[u32]) {
        self.uses += 1;
        for index in blocks {
            let block = &mut self.blocks[*index as usize];
            block.users -= 1;
            block.last_used = self.uses;
        }
    }

    /// Forgets everything: all blocks are free. What was registered before is never taken for what is registered later.
    pub fn clear(&mut self) {
        let PrefixCache { touched, serials, .. } = *self;
        *self = PrefixCache { touched, serials, ..PrefixCache::new(self.blocks.len()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Parent = Parent::Scope(0);

    /// The blocks of a text whose blocks are so many single tokens, found or made.
    fn read(cache: &mut PrefixCache, scope: Parent, text: &[u32]) -> (Vec<u32>, usize) {
        let (mut blocks, mut parent, mut found) = (Vec::new(), scope, 0);
        for (depth, token) in text.iter().enumerate() {
            let tokens = std::slice::from_ref(token);
            let block = match cache.find(parent, tokens) {
                Some((block, next)) => {
                    found += 1;
                    parent = next;
                    block
                }
                None => {
                    let block = cache.allocate(blocks.last().copied());
                    parent = cache.register(block, parent, depth, tokens);
                    block
                }
            };
            blocks.push(block);
        }
        (blocks, found)
    }

    #[test]
    fn texts_share_what_they_have_in_common_at_their_beginning_and_no_more() {
        let mut cache = PrefixCache::new(16);
        let (first, _) = read(&mut cache, START, &[1, 2, 3, 4]);
        assert_eq!(first, [0, 1, 2, 3]);
        let (second, found) = read(&mut cache, START, &[1, 2, 9, 4]);
        assert_eq!((found, &second[..2]), (2, &first[..2]));
        assert_eq!(read(&mut cache, START, &[2, 3, 4]).1, 0, "the same tokens elsewhere");
        assert_eq!(read(&mut cache, Parent::Scope(1), &[1, 2, 3, 4]).1, 0, "another scope");
    }

    #[test]
    fn the_least_recently_used_text_goes_first_and_its_beginning_last() {
        let mut cache = PrefixCache::new(6);
        let [old, new] = [[1, 2, 3], [4, 5, 6]].map(|text| {
            let (blocks, _) = read(&mut cache, START, &text);
            cache.release(&blocks);
            text
        });
        // Two blocks more: the end of the older text makes place.
        let (blocks, _) = read(&mut cache, START, &[7, 8]);
        cache.release(&blocks);
        let (blocks, found) = read(&mut cache, START, &old[..1]);
        assert_eq!(found, 1);
        cache.release(&blocks);
        assert_eq!(read(&mut cache, START, &new).1, 3);
    }

    #[test]
    fn blocks_in_use_are_never_given_away() {
        let mut cache = PrefixCache::new(3);
        let (held, _) = read(&mut cache, START, &[1, 2]);
        for token in 10..20 {
            let (blocks, found) = read(&mut cache, START, &[token]);
            assert_eq!((found, held.contains(&blocks[0])), (0, false));
            cache.release(&blocks);
        }
        let (again, found) = read(&mut cache, START, &[1, 2]);
        assert_eq!((found, &again), (2, &held));
    }

    #[test]
    fn a_text_that_was_made_twice_at_the_same_time_is_found_once() {
        let mut cache = PrefixCache::new(4);
        let blocks = [cache.allocate(None), cache.allocate(None)];
        let parents = blocks.map(|block| cache.register(block, START, 0, &[1]));
        assert_eq!(parents[0], parents[1]);
        cache.release(&blocks);
        assert_eq!(cache.find(START, &[1]).map(|(block, _)| block), Some(blocks[0]));
    }

    #[test]
    fn a_block_whose_parent_is_gone_is_not_found_behind_another() {
        let mut cache = PrefixCache::new(2);
        let (blocks, _) = read(&mut cache, START, &[1, 2]);
        cache.release(&blocks);
        // The child goes first, then its parent; the place of the parent is taken by another text.
        let (others, found) = read(&mut cache, START, &[5, 2]);
        assert_eq!(found, 0);
        cache.release(&others);
        assert_eq!(read(&mut cache, START, &[1]).1, 0);
        cache.clear();
        assert_eq!(read(&mut cache, START, &[5]).1, 0);
    }

    #[test]
    fn contents_from_before_everything_was_forgotten_are_not_taken_for_later_ones() {
        let mut cache = PrefixCache::new(2);
        let before = cache.allocate(None);
        let contents = cache.register(before, START, 0, &[1]);
        cache.clear();
        let after = cache.allocate(None);
        cache.register(after, START, 0, &[2]);
        assert_eq!((before, cache.holds(after, contents)), (after, false));
    }
}
