//! Answers given again: the same greedy question to the same model has the same answer, and a light
//! switch asks the same question all day. Bounded, oldest use out first.

use std::collections::HashMap;

/// Bytes of keys and answers; enough for a house's worth of commands.
const BYTES: usize = 256 << 10;

/// What makes two questions the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// Who asked, where no client is to learn what another asked.
    pub client: Option<String>,
    /// The prompt with its template.
    pub prompt: Vec<u32>,
    /// Most tokens of the answer.
    pub max_tokens: Option<usize>,
    /// Texts that end it.
    pub stop: Vec<String>,
    /// Bits of the repetition penalty.
    pub penalty: u32,
}

/// An answer that was computed to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub text: String,
    pub completion_tokens: u32,
    /// Whether the model ended it, or its length.
    pub stopped: bool,
}

/// The answers.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: HashMap<Key, (Stored, u64)>,
    bytes: usize,
    /// Counts uses; an entry remembers its last.
    clock: u64,
}

impl Cache {
    pub fn get(&mut self, key: &Key) -> Option<Stored> {
        self.clock += 1;
        let (stored, used) = self.entries.get_mut(key)?;
        *used = self.clock;
        Some(stored.clone())
    }

    pub fn put(&mut self, key: Key, stored: Stored) {
        let size = size(&key, &stored);
        // One large answer must not push out all small ones.
        if size > BYTES / 8 || self.entries.contains_key(&key) {
            return;
        }
        while self.bytes + size > BYTES {
            self.forget_oldest();
        }
        self.clock += 1;
        self.bytes += size;
        self.entries.insert(key, (stored, self.clock));
    }

    fn forget_oldest(&mut self) {
        let oldest = self.entries.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone());
        if let Some((key, (stored, _))) = oldest.and_then(|key| self.entries.remove_entry(&key)) {
            self.bytes -= size(&key, &stored);
        }
    }
}

fn size(key: &Key, stored: &Stored) -> usize {
    let stops: usize = key.stop.iter().map(|stop| stop.len() + size_of::<String>()).sum();
    let client = key.client.as_ref().map_or(0, String::len);
    size_of::<(Key, Stored)>() + client + key.prompt.len() * 4 + stops + stored.text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(token: u32) -> Key {
        Key { client: None, prompt: vec![token; 100], max_tokens: None, stop: Vec::new(), penalty: 0 }
    }

    fn stored(text: &str) -> Stored {
        Stored { text: text.into(), completion_tokens: 1, stopped: true }
    }

    #[test]
    fn an_answer_comes_back_for_the_same_question_only() {
        let mut cache = Cache::default();
        cache.put(key(1), stored("one"));
        assert_eq!(cache.get(&key(1)), Some(stored("one")));
        assert_eq!(cache.get(&key(2)), None);
        assert_eq!(cache.get(&Key { max_tokens: Some(5), ..key(1) }), None);
    }

    #[test]
    fn an_answer_comes_back_to_the_client_that_asked_and_to_no_other() {
        let mut cache = Cache::default();
        let of = |client: &str| Key { client: Some(client.into()), ..key(1) };
        cache.put(of("unix:uid=1"), stored("one"));
        assert_eq!(cache.get(&of("unix:uid=1")), Some(stored("one")));
        assert_eq!((cache.get(&of("unix:uid=2")), cache.get(&key(1))), (None, None));
    }

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let mut cache = Cache::default();
        cache.put(key(0), stored("kept"));
        for token in 1..2000 {
            cache.put(key(token), stored(&"x".repeat(500)));
            assert!(cache.bytes <= BYTES);
            assert!(cache.get(&key(0)).is_some());
        }
        assert_eq!(cache.get(&key(1)), None);
        cache.put(key(9999), stored(&"x".repeat(BYTES)));
        assert_eq!(cache.get(&key(9999)), None, "too large to keep");
    }
}
