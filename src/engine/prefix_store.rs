//! Blocks of the KV cache on disk, so that the beginnings of prompts need not be read again after a restart either.
//!
//! A block is a file whose name is a hash of everything that its keys and values depend on: the model, the format of the
//! cache, who may find it, and all tokens from the beginning of the text to its last one. A file is written under a
//! temporary name and then renamed, and ends with a checksum: one that is cut, damaged or something else is removed and
//! never used. Nothing waits for the disk to write, because what a power failure takes away is only computed again.
//!
//! Deliberately knows no model and no session: it stores bytes.

use crc32fast::Hasher;
use rustix::fs::OFlags;
use sha2::{Digest, Sha256};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The first bytes of each file. The number is that of the format.
const MAGIC: &[u8; 16] = b"bitnetd block 1\n";
/// Bytes of a file besides the keys and values: [`MAGIC`], the hash and the checksum.
const OVERHEAD: u64 = 16 + 32 + 4;
/// How the name of a file ends.
const SUFFIX: &str = "kv";
/// How often the time of a file's last use is written at most: a flash card wears out.
const TOUCH_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// A temporary file of this age is abandoned.
const STALE_AFTER: Duration = Duration::from_secs(3600);
/// The most blocks that are remembered, so that the list of them stays below 4 MiB.
const MAX_ENTRIES: usize = 32_768;

/// Identifies the contents of a block: a hash of the model, the format, the scope and all tokens up to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockHash {
    hash: [u8; 32],
    /// How many blocks come before the end of this one.
    depth: u32,
}

impl BlockHash {
    /// What the first block of a text comes behind. `model` names all that keys and values depend on besides the tokens;
    /// texts of different scopes share nothing.
    pub fn root(model: &str, scope: u128) -> Self {
        let mut hash = Sha256::new();
        hash.update(env!("CARGO_PKG_VERSION").len().to_le_bytes());
        // Another version may round differently.
        hash.update(env!("CARGO_PKG_VERSION"));
        hash.update(model.len().to_le_bytes());
        hash.update(model);
        hash.update(scope.to_le_bytes());
        BlockHash { hash: hash.finalize().into(), depth: 0 }
    }

    /// The block with these tokens behind this one.
    pub fn followed_by(self, tokens: &[u32]) -> Self {
        let mut hash = Sha256::new();
        hash.update(self.hash);
        tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
        BlockHash { hash: hash.finalize().into(), depth: self.depth + 1 }
    }

    fn name(self) -> String {
        let hex: String = self.hash.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{hex}-{}.{SUFFIX}", self.depth)
    }

    fn from_name(name: &str) -> Option<Self> {
        let (hex, depth) = name.strip_suffix(SUFFIX)?.strip_suffix('.')?.split_once('-')?;
        let is_hex = hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let mut hash = [0; 32];
        for (at, byte) in hash.iter_mut().enumerate().take_while(|_| is_hex) {
            *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
        }
        // Only the name that would be written, so that no two files are one block.
        let found = BlockHash { hash, depth: depth.parse().ok()? };
        (is_hex && found.name() == name).then_some(found)
    }
}

/// A block in a file.
#[derive(Debug, Clone, Copy)]
struct StoredBlock {
    /// Bytes of the file.
    bytes: u64,
    /// In uses of the store; files that were there at the start come first, in the order of their times.
    last_used: u64,
    /// When its time was written.
    touched: SystemTime,
}

/// The blocks of one model in a folder.
#[derive(Debug)]
pub struct PrefixStore {
    folder: PathBuf,
    /// Bytes that all files may take together.
    limit: u64,
    /// Bytes that they take.
    bytes: u64,
    blocks: HashMap<BlockHash, StoredBlock>,
    /// Texts that were read or written so far, and the depth of the last block.
    uses: u64,
    last_depth: u32,
    problem: Option<String>,
}

impl PrefixStore {
    /// The store in `folder`, which is made; its files take up to `limit` bytes.
    ///
    /// # Errors
    /// A folder that cannot be made or read.
    pub fn open(folder: &Path, limit: u64) -> io::Result<Self> {
        // The keys and values tell what was asked.
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        if !fs::symlink_metadata(folder)?.is_dir() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the folder is a link; remove it"));
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(folder)?.flatten() {
            let (name, Ok(about)) = (entry.file_name(), entry.metadata()) else { continue };
            let modified = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let is_stale = modified.elapsed().is_ok_and(|age| age > STALE_AFTER);
            match name.to_str().and_then(BlockHash::from_name) {
                Some(hash) if about.is_file() => found.push((modified, hash, about.len())),
                None if is_stale && name.to_string_lossy().ends_with(".part") => {
                    let _ = fs::remove_file(entry.path());
                }
                _ => {}
            }
        }
        // Those of one hour are taken for one text, whose last blocks are removed first.
        let hour = |time: &SystemTime| {
            time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() / 3600)
        };
        let newest = found.iter().map(|(modified, ..)| hour(modified)).max().unwrap_or(0);
        let mut store = PrefixStore {
            folder: folder.to_owned(),
            limit,
            bytes: found.iter().map(|(.., bytes)| bytes).sum(),
            blocks: HashMap::new(),
            uses: newest,
            last_depth: 0,
            problem: None,
        };
        let stored = found
            .into_iter()
            .map(|(touched, hash, bytes)| (hash, StoredBlock { bytes, last_used: hour(&touched), touched }));
        store.blocks.extend(stored);
        store.make_space(0);
        Ok(store)
    }

    /// Whether there is a file for a block.
    pub fn contains(&self, hash: BlockHash) -> bool {
        self.blocks.contains_key(&hash)
    }

    /// Reads a block into `parts`, which are filled one after the other. `false` where there is none: then the parts may
    /// have been overwritten with anything.
    pub fn load<'b>(&mut self, hash: BlockHash, parts: impl Iterator<Item = &'b mut [u8]>) -> bool {
        if !self.contains(hash) {
            return false;
        }
        let path = self.folder.join(hash.name());
        match read(&path, hash, parts) {
            Ok(()) => {
                self.touch(hash, &path);
                true
            }
            Err(error) => {
                // Whatever is in its place is in the way of a sound one.
                let _ = fs::remove_file(&path);
                self.forget(hash);
                self.note_problem(format!(
                    "{}: {error}; the file is ignored and removed, and its part of a prompt is computed again",
                    path.display()
                ));
                false
            }
        }
    }

    /// Writes a block, whose contents are `parts` one after the other, and removes those that were unused for longest
    /// where the limit wants it.
    pub fn store<'b>(&mut self, hash: BlockHash, parts: impl Iterator<Item = &'b [u8]> + Clone) {
        let bytes = OVERHEAD + parts.clone().map(|part| part.len() as u64).sum::<u64>();
        if self.contains(hash) || bytes > self.limit {
            return;
        }
        self.make_space(bytes);
        let part = self.folder.join(format!("{}.{}.part", hash.name(), std::process::id()));
        let written =
            write(&part, hash, parts).and_then(|()| fs::rename(&part, self.folder.join(hash.name())));
        match written {
            Ok(()) => {
                self.bytes += bytes;
                let last_used = self.next_use(hash);
                let touched = SystemTime::now();
                self.blocks.insert(hash, StoredBlock { bytes, last_used, touched });
            }
            Err(error) => {
                let _ = fs::remove_file(&part);
                self.note_problem(format!(
                    "{}: {error}; the beginnings of prompts are not stored there",
                    self.folder.display()
                ));
            }
        }
    }

    /// The first thing that went wrong since the last call: a sentence.
    pub fn take_problem(&mut self) -> Option<String> {
        self.problem.take()
    }

    fn note_problem(&mut self, problem: String) {
        self.problem.get_or_insert(problem);
    }

    /// Marks a block as used, in memory and now and then on disk.
    fn touch(&mut self, hash: BlockHash, path: &Path) {
        let last_used = self.next_use(hash);
        let Some(block) = self.blocks.get_mut(&hash) else { return };
        block.last_used = last_used;
        if block.touched.elapsed().is_ok_and(|age| age > TOUCH_INTERVAL) {
            block.touched = SystemTime::now();
            // A failure only makes the block one of the first to be removed.
            let _ = File::open(path).and_then(|file| file.set_modified(block.touched));
        }
    }

    /// The number of the text that is used now. The blocks of a text come one after the other.
    fn next_use(&mut self, hash: BlockHash) -> u64 {
        self.uses += u64::from(hash.depth <= self.last_depth);
        self.last_depth = hash.depth;
        self.uses
    }

    fn forget(&mut self, hash: BlockHash) {
        self.bytes -= self.blocks.remove(&hash).map_or(0, |block| block.bytes);
    }

    /// Removes blocks until `more` bytes fit.
    fn make_space(&mut self, more: u64) {
        while !self.blocks.is_empty()
            && (self.bytes + more > self.limit || self.blocks.len() >= MAX_ENTRIES)
            && let Some((hash, _)) =
                self.blocks.iter().min_by_key(|(hash, block)| (block.last_used, Reverse(hash.depth)))
        {
            let hash = *hash;
            if let Err(error) = fs::remove_file(self.folder.join(hash.name()))
                && error.kind() != io::ErrorKind::NotFound
            {
                self.note_problem(format!("{}: {error}; its files cannot be removed", self.folder.display()));
            }
            self.forget(hash);
        }
    }
}

/// Reads a file that is exactly as it was written.
fn read<'b>(path: &Path, hash: BlockHash, parts: impl Iterator<Item = &'b mut [u8]>) -> io::Result<()> {
    // No link is followed, and a pipe is not waited for.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    let (mut header, mut checksum, mut sum) = ([0; 48], Hasher::new(), [0; 4]);
    file.read_exact(&mut header)?;
    checksum.update(&header);
    if header[..16] != *MAGIC || header[16..] != hash.hash {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it holds something else than its name says"));
    }
    for part in parts {
        file.read_exact(part)?;
        checksum.update(part);
    }
    file.read_exact(&mut sum)?;
    let is_whole = file.read(&mut [0])? == 0;
    match is_whole && u32::from_le_bytes(sum) == checksum.finalize() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "it is damaged")),
    }
}

fn write<'b>(path: &Path, hash: BlockHash, parts: impl Iterator<Item = &'b [u8]>) -> io::Result<()> {
    // One that an earlier process of the same number left is not continued.
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut checksum = Hasher::new();
    let mut append = |bytes: &[u8]| {
        checksum.update(bytes);
        file.write_all(bytes)
    };
    append(MAGIC)?;
    append(&hash.hash)?;
    for part in parts {
        append(part)?;
    }
    file.write_all(&checksum.finalize().to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn folder() -> TempDir {
        TempDir::with_prefix("bitnetd-").expect("a temporary folder")
    }

    fn hash(number: u32) -> BlockHash {
        BlockHash::root("model", 0).followed_by(&[number])
    }

    fn store(store: &mut PrefixStore, number: u32) {
        store.store(hash(number), [[number as u8; 50], [7; 50]].iter().map(|part| &part[..]));
    }

    /// The contents of a block, where there are any.
    fn load(store: &mut PrefixStore, number: u32) -> Option<Vec<u8>> {
        let mut contents = vec![0; 100];
        store.load(hash(number), contents.chunks_mut(20)).then_some(contents)
    }

    fn expected(number: u32) -> Vec<u8> {
        [[number as u8; 50], [7; 50]].concat()
    }

    #[test]
    fn a_block_is_found_after_a_restart_under_its_own_hash_only() {
        let folder = folder();
        let mut first = PrefixStore::open(folder.path(), 1 << 20).expect("made");
        store(&mut first, 1);
        assert_eq!(load(&mut first, 1), Some(expected(1)));
        let mut second = PrefixStore::open(folder.path(), 1 << 20).expect("there");
        assert_eq!(load(&mut second, 1), Some(expected(1)));
        assert_eq!((load(&mut second, 2), second.take_problem()), (None, None));
        assert_ne!(BlockHash::root("model", 1), BlockHash::root("model", 0), "another scope");
        assert_ne!(BlockHash::root("other", 0), BlockHash::root("model", 0), "another model");
        assert_ne!(hash(1).followed_by(&[2, 3]), hash(1).followed_by(&[2]).followed_by(&[3]));
    }

    #[test]
    fn what_is_not_as_it_was_written_is_ignored_removed_and_reported_once() {
        let written = {
            let folder = folder();
            store(&mut PrefixStore::open(folder.path(), 1 << 20).expect("made"), 1);
            fs::read(folder.path().join(hash(1).name())).expect("there")
        };
        assert_eq!(written.len() as u64, OVERHEAD + 100);
        let mut damaged: Vec<Vec<u8>> = (0..written.len()).map(|end| written[..end].to_vec()).collect();
        damaged.push([&written[..], b"x"].concat());
        damaged.extend((0..written.len()).map(|at| {
            let mut bytes = written.clone();
            bytes[at] ^= 1;
            bytes
        }));
        let folder = folder();
        for bytes in damaged {
            let path = folder.path().join(hash(1).name());
            fs::write(&path, bytes).expect("written");
            let mut store = PrefixStore::open(folder.path(), 1 << 20).expect("there");
            assert_eq!(load(&mut store, 1), None);
            let problem = store.take_problem().expect("reported");
            assert!(problem.contains(&path.display().to_string()), "{problem}");
            assert!(!path.exists());
            assert_eq!((load(&mut store, 1), store.take_problem()), (None, None), "once");
        }
    }

    #[test]
    fn what_is_no_file_of_the_store_is_left_alone_and_never_followed() {
        let folder = folder();
        let foreign = folder.path().join("README");
        fs::write(&foreign, "mine").expect("written");
        fs::create_dir(folder.path().join(hash(1).name())).expect("made");
        std::os::unix::fs::symlink(&foreign, folder.path().join(hash(2).name())).expect("made");
        let mut store = PrefixStore::open(folder.path(), 1).expect("there");
        assert_eq!((load(&mut store, 1), load(&mut store, 2)), (None, None));
        assert_eq!(fs::read(&foreign).expect("there"), b"mine");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path(), &link).expect("made");
        assert!(PrefixStore::open(&link, 1).is_err());
    }

    #[test]
    fn the_limit_holds_and_what_was_used_last_stays() {
        let folder = folder();
        let limit = 3 * (OVERHEAD + 100);
        let bytes = || -> u64 {
            let files = fs::read_dir(folder.path()).expect("there").flatten();
            files.map(|entry| entry.metadata().expect("there").len()).sum()
        };
        let mut cache = PrefixStore::open(folder.path(), limit).expect("made");
        (1..=3).for_each(|number| store(&mut cache, number));
        assert!(load(&mut cache, 1).is_some());
        store(&mut cache, 4);
        assert_eq!((bytes(), load(&mut cache, 2)), (limit, None), "unused for longest");
        assert!([1, 3, 4].iter().all(|number| load(&mut cache, *number).is_some()));
        let mut smaller = PrefixStore::open(folder.path(), limit / 3).expect("there");
        assert_eq!(bytes(), limit / 3);
        assert_eq!([1, 3, 4].iter().filter(|number| load(&mut smaller, **number).is_some()).count(), 1);
        store(&mut PrefixStore::open(folder.path(), 10).expect("there"), 5);
        assert_eq!(bytes(), 0, "a limit below a block");
    }

    #[test]
    fn of_a_text_the_last_blocks_are_removed_first() {
        let folder = folder();
        let chain: Vec<BlockHash> = (1..=4)
            .scan(BlockHash::root("model", 0), |hash, token| {
                *hash = hash.followed_by(&[token]);
                Some(*hash)
            })
            .collect();
        let mut cache = PrefixStore::open(folder.path(), 4 * (OVERHEAD + 10)).expect("made");
        chain.iter().for_each(|hash| cache.store(*hash, [[1; 10]].iter().map(|part| &part[..])));
        let is_there =
            |cache: &PrefixStore| chain.iter().map(|hash| cache.contains(*hash)).collect::<Vec<_>>();
        assert_eq!(is_there(&cache), [true; 4]);
        let smaller = PrefixStore::open(folder.path(), 3 * (OVERHEAD + 10)).expect("there");
        assert_eq!(is_there(&smaller), [true, true, true, false]);
        let mut smaller = smaller;
        smaller.store(hash(9), [[1; 10]].iter().map(|part| &part[..]));
        assert_eq!(is_there(&smaller), [true, true, false, false]);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_reported_and_nothing_else_happens() {
        let folder = folder();
        let path = folder.path().join("store");
        let mut cache = PrefixStore::open(&path, 1 << 20).expect("made");
        fs::remove_dir(&path).expect("empty");
        store(&mut cache, 1);
        let problem = cache.take_problem().expect("reported");
        assert!(problem.contains("not stored"), "{problem}");
        assert_eq!(load(&mut cache, 1), None);
    }
}
