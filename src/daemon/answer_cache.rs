//! A cache of answers: a greedy request to the same model always has the same answer, and a light switch sends the
//! same request all day. It is bounded and evicts the least recently used answer. Deliberately knows no model and
//! no transport.

use super::locked;
use crate::config::CacheScope;
use crate::protocol::ResponseFormat;
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of keys and answers, enough for all commands of a home.
const MAX_BYTES: usize = 256 << 10;

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
    /// The repetition, the presence and the frequency penalty as the bits of an `f32`, which can be hashed.
    pub penalties: [u32; 3],
    /// The biases of single tokens, as bits too.
    pub logit_bias: Vec<(u32, u32)>,
    /// What the answer has to fit.
    pub format: ResponseFormat,
    /// The version of the home whose names it may have; `None` where it has none.
    pub home_version: Option<u64>,
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
#[derive(Debug, Default)]
pub(super) struct SharedAnswers {
    cache: Mutex<AnswerCache>,
    /// Whether a client may get an answer that was computed for another.
    is_shared: AtomicBool,
}

impl SharedAnswers {
    /// Sets which clients share answers.
    pub fn set_scope(&self, scope: CacheScope) {
        self.is_shared.store(scope == CacheScope::All, Ordering::Relaxed);
    }

    /// Whether a client may get an answer that was computed for another.
    pub fn is_shared(&self) -> bool {
        self.is_shared.load(Ordering::Relaxed)
    }

    /// The stored answer to the same request.
    pub fn get(&self, key: &CacheKey) -> Option<CachedAnswer> {
        locked(&self.cache).get(key)
    }

    /// Stores an answer.
    pub fn insert(&self, key: CacheKey, answer: CachedAnswer) {
        locked(&self.cache).insert(key, answer);
    }

    /// Drops all answers.
    pub fn clear(&self) {
        *locked(&self.cache) = AnswerCache::default();
    }
}

/// The answers.
#[derive(Debug, Default)]
struct AnswerCache {
    entries: HashMap<CacheKey, (CachedAnswer, u64)>,
    bytes: usize,
    /// Counts uses; each entry has the number of its last use.
    clock: u64,
}

impl AnswerCache {
    pub fn get(&mut self, key: &CacheKey) -> Option<CachedAnswer> {
        self.clock += 1;
        let (stored, used) = self.entries.get_mut(key)?;
        *used = self.clock;
        Some(stored.clone())
    }

    pub fn insert(&mut self, key: CacheKey, stored: CachedAnswer) {
        let size = size(&key, &stored);
        // One large answer must not evict all small ones.
        if size > MAX_BYTES / 8 || self.entries.contains_key(&key) {
            return;
        }
        while self.bytes + size > MAX_BYTES {
            self.evict_oldest();
        }
        self.clock += 1;
        self.bytes += size;
        self.entries.insert(key, (stored, self.clock));
    }

    fn evict_oldest(&mut self) {
        let oldest = self.entries.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone());
        if let Some((key, (stored, _))) = oldest.and_then(|key| self.entries.remove_entry(&key)) {
            self.bytes -= size(&key, &stored);
        }
    }
}

fn size(key: &CacheKey, stored: &CachedAnswer) -> usize {
    let stops: usize = key.stop.iter().map(|stop| stop.len() + size_of::<String>()).sum();
    let client = key.client.as_ref().map_or(0, String::len);
    let tokens = key.prompt.len() * 4 + key.logit_bias.len() * 8;
    let texts = stops + key.format.text_bytes() + stored.text.len();
    size_of::<(CacheKey, CachedAnswer)>() + client + tokens + texts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(token: u32) -> CacheKey {
        CacheKey {
            client: None,
            prompt: vec![token; 100],
            max_tokens: None,
            stop: Vec::new(),
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
        let mut cache = AnswerCache::default();
        cache.insert(key(1), stored("one"));
        assert_eq!(cache.get(&key(1)), Some(stored("one")));
        assert_eq!(cache.get(&key(2)), None);
        let others = [
            CacheKey { max_tokens: Some(5), ..key(1) },
            CacheKey { penalties: [0, 0, 1], ..key(1) },
            CacheKey { format: ResponseFormat::JsonObject, ..key(1) },
            CacheKey { logit_bias: vec![(1, 1)], ..key(1) },
        ];
        assert!(others.iter().all(|other| cache.get(other).is_none()));
    }

    #[test]
    fn an_answer_comes_back_to_the_client_that_asked_and_to_no_other() {
        let mut cache = AnswerCache::default();
        let of = |client: &str| CacheKey { client: Some(client.into()), ..key(1) };
        cache.insert(of("unix:uid=1"), stored("one"));
        assert_eq!(cache.get(&of("unix:uid=1")), Some(stored("one")));
        assert_eq!((cache.get(&of("unix:uid=2")), cache.get(&key(1))), (None, None));
    }

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let mut cache = AnswerCache::default();
        cache.insert(key(0), stored("kept"));
        for token in 1..2000 {
            cache.insert(key(token), stored(&"x".repeat(500)));
            assert!(cache.bytes <= MAX_BYTES);
            assert!(cache.get(&key(0)).is_some());
        }
        assert_eq!(cache.get(&key(1)), None);
        cache.insert(key(9999), stored(&"x".repeat(MAX_BYTES)));
        assert_eq!(cache.get(&key(9999)), None, "too large to keep");
    }
}
