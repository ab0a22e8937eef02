//! A cache of answers: the same request to the same model has the same answer where it is greedy or names a seed, and a
//! light switch sends the same request all day. It is bounded and evicts the least recently used answer. Deliberately
//! knows no model and no transport.

use super::locked;
use crate::config;
use crate::protocol::ResponseFormat;
use crate::telemetry::AnswerCacheSize;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// An answer may take this part of the cache at most: one long answer must not evict all short ones.
const LARGEST_PART: usize = 8;

/// Bytes of an entry besides its key, answer and texts: its places in the two maps, which may be half empty, and what the
/// allocator adds to each allocation.
const ENTRY_OVERHEAD: usize = 256;

/// All that the answer depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct CacheKey {
    /// The client, where answers are not shared between clients.
    pub client: Option<String>,
    /// The tokens of the prompt, chat template included.
    pub prompt: Vec<u32>,
    /// The limit on tokens of the answer.
    pub max_tokens: Option<usize>,
    /// Stop strings.
    pub stop: Vec<String>,
    /// How tokens are sampled; `None` where the most likely one is taken, which depends on none of it.
    pub seeded: Option<SeededSampling>,
    /// The repetition, the presence and the frequency penalty as the bits of an `f32`, which can be hashed.
    pub penalties: [u32; 3],
    /// The biases of single tokens, as bits too.
    pub logit_bias: Vec<(u32, u32)>,
    /// What the answer has to fit.
    pub format: ResponseFormat,
    /// The version of the home whose names it may have; `None` where it has none.
    pub home_version: Option<u64>,
}

/// What a sampled answer depends on besides the logits: numbers as the bits of an `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SeededSampling {
    pub seed: u64,
    pub temperature: u32,
    pub top_k: usize,
    pub top_p: u32,
    pub min_p: u32,
}

/// A complete answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CachedAnswer {
    pub text: String,
    pub completion_tokens: u32,
    /// Whether the model or a stop string ended it, not the token limit.
    pub stopped: bool,
}

/// The cache as the worker, the reload and the memory watch share it.
#[derive(Debug)]
pub(super) struct SharedAnswers {
    cache: Mutex<AnswerCache>,
    /// Whether a client may get an answer that was computed for another.
    is_shared: AtomicBool,
    /// Whether answers are stored at all.
    is_enabled: AtomicBool,
    /// The most bytes that memory has a place for.
    place: AtomicUsize,
    size: Arc<AnswerCacheSize>,
}

impl SharedAnswers {
    /// An empty cache that stores nothing before [`adopt`](Self::adopt).
    pub fn new(size: Arc<AnswerCacheSize>) -> Self {
        SharedAnswers {
            cache: Mutex::default(),
            is_shared: AtomicBool::default(),
            is_enabled: AtomicBool::default(),
            place: AtomicUsize::default(),
            size,
        }
    }

    /// Adopts the settings that a reload may change, with `place` bytes at most. A smaller cache drops at once what no longer
    /// fits.
    pub fn adopt(&self, settings: &config::Cache, place: usize) {
        self.is_shared.store(settings.scope == config::CacheScope::All, Ordering::Relaxed);
        self.is_enabled.store(settings.answers_bytes > 0, Ordering::Relaxed);
        self.place.store(place, Ordering::Relaxed);
        self.update(|cache| cache.resize(settings.answers_bytes.min(place)));
    }

    /// Why less than `wanted` bytes of answers are stored until a restart; `None` where the memory plan has them.
    pub fn shortage(&self, wanted: usize) -> Option<String> {
        let place = self.place.load(Ordering::Relaxed);
        (wanted > place).then(|| {
            format!(
                "cache.answers_kb: the memory plan of this run has {} KiB for answers; a restart plans {}",
                place >> 10,
                wanted >> 10
            )
        })
    }

    /// The most bytes that it takes now.
    pub fn limit(&self) -> usize {
        locked(&self.cache).limit
    }

    /// Whether a client may get an answer that was computed for another.
    pub fn is_shared(&self) -> bool {
        self.is_shared.load(Ordering::Relaxed)
    }

    /// Whether answers are stored at all.
    pub fn is_enabled(&self) -> bool {
        self.is_enabled.load(Ordering::Relaxed)
    }

    /// The stored answer to the same request.
    pub fn get(&self, key: &CacheKey) -> Option<CachedAnswer> {
        locked(&self.cache).get(key)
    }

    /// Stores an answer.
    pub fn insert(&self, key: CacheKey, answer: CachedAnswer) {
        self.update(|cache| cache.insert(key, answer));
    }

    /// Drops all answers.
    pub fn clear(&self) {
        self.update(|cache| *cache = AnswerCache { limit: cache.limit, ..AnswerCache::default() });
    }

    fn update(&self, change: impl FnOnce(&mut AnswerCache)) {
        let mut cache = locked(&self.cache);
        change(&mut cache);
        self.size.set(cache.entries.len(), cache.bytes);
    }
}

/// The answers.
#[derive(Debug, Default)]
struct AnswerCache {
    entries: HashMap<Arc<CacheKey>, Entry>,
    /// The keys by their last use, the oldest first.
    by_use: BTreeMap<u64, Arc<CacheKey>>,
    bytes: usize,
    /// The most bytes that it may have.
    limit: usize,
    /// Counts uses.
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    answer: CachedAnswer,
    /// The number of its last use.
    used: u64,
}

impl AnswerCache {
    fn get(&mut self, key: &CacheKey) -> Option<CachedAnswer> {
        let entry = self.entries.get_mut(key)?;
        let key = self.by_use.remove(&entry.used).expect("each entry has its last use there");
        self.clock += 1;
        entry.used = self.clock;
        self.by_use.insert(entry.used, key);
        Some(entry.answer.clone())
    }

    fn insert(&mut self, key: CacheKey, answer: CachedAnswer) {
        let size = size(&key, &answer);
        if size > self.limit / LARGEST_PART || self.entries.contains_key(&key) {
            return;
        }
        self.evict_to(self.limit - size);
        self.clock += 1;
        self.bytes += size;
        let key = Arc::new(key);
        self.by_use.insert(self.clock, Arc::clone(&key));
        self.entries.insert(key, Entry { answer, used: self.clock });
    }

    /// Sets the most bytes, and drops what exceeds them.
    fn resize(&mut self, limit: usize) {
        let is_smaller = limit < self.limit;
        self.limit = limit;
        if is_smaller {
            self.evict_to(limit);
            self.entries.shrink_to_fit();
        }
    }

    fn evict_to(&mut self, bytes: usize) {
        while self.bytes > bytes {
            let (_, key) = self.by_use.pop_first().expect("each entry has its last use there");
            let entry = self.entries.remove(&key).expect("each use is of an entry");
            self.bytes -= size(&key, &entry.answer);
        }
    }
}

fn size(key: &CacheKey, answer: &CachedAnswer) -> usize {
    let stops: usize = key.stop.iter().map(|stop| stop.len() + size_of::<String>()).sum();
    let client = key.client.as_ref().map_or(0, String::len);
    let tokens = key.prompt.len() * 4 + key.logit_bias.len() * 8;
    let texts = stops + key.format.text_bytes() + answer.text.len();
    size_of::<(CacheKey, Entry)>() + ENTRY_OVERHEAD + client + tokens + texts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of the cache of these tests.
    const LIMIT: usize = 256 << 10;

    fn cache() -> AnswerCache {
        AnswerCache { limit: LIMIT, ..AnswerCache::default() }
    }

    fn key(token: u32) -> CacheKey {
        CacheKey {
            client: None,
            prompt: vec![token; 100],
            max_tokens: None,
            stop: Vec::new(),
            seeded: None,
            penalties: [0; 3],
            logit_bias: Vec::new(),
            format: ResponseFormat::Text,
            home_version: None,
        }
    }

    fn stored(text: &str) -> CachedAnswer {
        CachedAnswer { text: text.into(), completion_tokens: 1, stopped: true }
    }

    #[test]
    fn an_answer_comes_back_for_the_same_question_only() {
        let mut cache = cache();
        cache.insert(key(1), stored("one"));
        assert_eq!(cache.get(&key(1)), Some(stored("one")));
        assert_eq!(cache.get(&key(2)), None);
        let sampled = SeededSampling { seed: 1, temperature: 1, top_k: 1, top_p: 1, min_p: 1 };
        let others = [
            CacheKey { max_tokens: Some(5), ..key(1) },
            CacheKey { penalties: [0, 0, 1], ..key(1) },
            CacheKey { format: ResponseFormat::JsonObject, ..key(1) },
            CacheKey { logit_bias: vec![(1, 1)], ..key(1) },
            CacheKey { seeded: Some(sampled), ..key(1) },
        ];
        assert!(others.iter().all(|other| cache.get(other).is_none()));
    }

    #[test]
    fn an_answer_comes_back_to_the_client_that_asked_and_to_no_other() {
        let mut cache = cache();
        let of = |client: &str| CacheKey { client: Some(client.into()), ..key(1) };
        cache.insert(of("unix:uid=1"), stored("one"));
        assert_eq!(cache.get(&of("unix:uid=1")), Some(stored("one")));
        assert_eq!((cache.get(&of("unix:uid=2")), cache.get(&key(1))), (None, None));
    }

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let mut cache = cache();
        cache.insert(key(0), stored("kept"));
        for token in 1..2000 {
            cache.insert(key(token), stored(&"x".repeat(500)));
            assert!(cache.bytes <= LIMIT);
            assert!(cache.get(&key(0)).is_some());
        }
        assert_eq!(cache.get(&key(1)), None);
        cache.insert(key(9999), stored(&"x".repeat(LIMIT)));
        assert_eq!(cache.get(&key(9999)), None, "too large to keep");
    }

    #[test]
    fn the_least_recently_used_go_first_when_the_cache_becomes_smaller() {
        let mut cache = cache();
        (0..100).for_each(|token| cache.insert(key(token), stored("text")));
        assert!((0..10).all(|token| cache.get(&key(token)).is_some()));
        let one = cache.bytes / cache.entries.len();
        cache.resize(10 * one);
        assert_eq!((cache.entries.len(), cache.by_use.len(), cache.bytes), (10, 10, 10 * one));
        assert!((0..10).all(|token| cache.get(&key(token)).is_some()));
        cache.resize(0);
        cache.insert(key(1), stored("text"));
        assert_eq!((cache.entries.len(), cache.by_use.len(), cache.bytes), (0, 0, 0));
    }

    #[test]
    fn sizes_agree_with_the_entries_whatever_happens() {
        let mut cache = cache();
        for round in 0..5000u32 {
            let token = round.wrapping_mul(2_654_435_761) % 700;
            match round % 7 {
                0..4 => cache.insert(key(token), stored(&"x".repeat(token as usize))),
                4..6 => drop(cache.get(&key(token))),
                _ => cache.resize(LIMIT / 2 + token as usize),
            }
            let bytes: usize = cache.entries.iter().map(|(key, entry)| size(key, &entry.answer)).sum();
            assert_eq!((bytes, cache.by_use.len()), (cache.bytes, cache.entries.len()));
            assert!(cache.bytes <= cache.limit);
        }
    }

    #[test]
    fn a_reload_changes_the_size_at_once_and_never_beyond_the_plan() {
        let counted = Arc::<AnswerCacheSize>::default();
        let answers = SharedAnswers::new(Arc::clone(&counted));
        let settings =
            |answers_bytes| config::Cache { disk_bytes: 0, answers_bytes, scope: config::CacheScope::Client };
        let size = || counted.get();
        answers.insert(key(1), stored("before the settings are known"));
        assert_eq!((answers.is_enabled(), size()), (false, (0, 0)));
        answers.adopt(&settings(1 << 30), LIMIT);
        (0..2000).for_each(|token| answers.insert(key(token), stored("text")));
        let (entries, bytes) = size();
        assert!(answers.is_enabled() && entries > 100 && bytes <= LIMIT as u64, "{entries} {bytes}");
        let shortage = answers.shortage(1 << 30).expect("more than planned");
        assert!(shortage.contains("has 256 KiB") && shortage.contains("plans 1048576"), "{shortage}");
        assert_eq!(answers.shortage(LIMIT), None);
        answers.adopt(&settings(LIMIT / 2), LIMIT);
        assert!(size().1 <= LIMIT as u64 / 2 && size().0 > 50);
        answers.clear();
        assert_eq!(size(), (0, 0));
        answers.insert(key(1), stored("text"));
        assert_eq!(size().0, 1, "a cleared cache stores again");
        answers.adopt(&settings(0), LIMIT);
        assert_eq!((answers.is_enabled(), size()), (false, (0, 0)));
    }
}
