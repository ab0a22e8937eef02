//! The keys by which a prompt is recognised when it is delivered, or sent, a second time.
//!
//! Deliberately knows nothing of where the keys are kept.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What a prompt is recognised by. Each key is half of a SHA-256 hash: it has sixteen bytes whatever a client
/// sends, no client can produce two equal ones, and it means the same after a restart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DedupKeys {
    /// The request as its client sees it: id, client, topics, Correlation Data and payload.
    /// `None` for a prompt that has neither an id nor Correlation Data, and for one whose answer was an error.
    pub name: Option<u128>,
    /// The delivery as the broker's session sees it: session, packet identifier and content. `None` at QoS 0.
    pub delivery: Option<u128>,
}

/// Bytes that distinguish a missing part from an empty one.
pub fn presence_tagged(part: Option<&[u8]>) -> Vec<u8> {
    part.map_or_else(Vec::new, |part| [&[1], part].concat())
}

/// The hash of all parts, each preceded by its length, so that no two lists of parts are hashed alike.
pub fn hash_parts(parts: &[&[u8]]) -> u128 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    u128::from_le_bytes(hash.finalize()[..16].try_into().expect("sixteen of thirty-two bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moving_bytes_between_neighbouring_parts_changes_the_hash() {
        assert_ne!(hash_parts(&[b"ab", b"c"]), hash_parts(&[b"a", b"bc"]));
        assert_ne!(presence_tagged(None), presence_tagged(Some(b"")));
    }
}
