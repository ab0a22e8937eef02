//! The topics on which the broker refuses publishes, each to be logged once.
//!
//! Pure and bounded: clients choose Response Topics, as many as they like.

use crate::protocol::text::Shown;
use std::collections::BTreeSet;

/// Maximum number of topics that are named in the log on one connection.
const MAX_NAMED_TOPICS: usize = 16;

/// The refused topics of this connection.
#[derive(Debug, Default)]
pub struct RefusedPublishes {
    topics: BTreeSet<String>,
}

impl RefusedPublishes {
    /// Notes a refused publish and its reason. Returns what to log, the first time for this topic.
    pub fn refused(&mut self, topic: &str, reason: &str) -> Option<String> {
        if self.topics.len() > MAX_NAMED_TOPICS || !self.topics.insert(topic.to_owned()) {
            return None;
        }
        let more = if self.topics.len() > MAX_NAMED_TOPICS {
            "; further topics are not named until the next connect"
        } else {
            ""
        };
        Some(format!(
            "a publish was refused on {} ({}); allow it in the broker's access list{more}",
            Shown(topic),
            Shown(reason)
        ))
    }

    /// The connection ended: the access list may have changed before the next one.
    pub fn disconnected(&mut self) {
        self.topics.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_topic_is_named_once_a_connection() {
        let mut refused = RefusedPublishes::default();
        for _ in 0..2 {
            let text = refused.refused("bitnetd/cellar/info", "NotAuthorized").expect("the first time");
            assert!(
                text.contains("bitnetd/cellar/info (NotAuthorized)") && text.contains("access list"),
                "{text}"
            );
            assert_eq!(refused.refused("bitnetd/cellar/info", "NotAuthorized"), None);
            refused.disconnected();
        }
    }

    #[test]
    fn a_client_cannot_fill_the_log_with_topics() {
        let mut refused = RefusedPublishes::default();
        let text: Vec<_> =
            (0..1000).filter_map(|n| refused.refused(&n.to_string(), "NotAuthorized")).collect();
        assert_eq!(text.len(), MAX_NAMED_TOPICS + 1);
        assert!(text[MAX_NAMED_TOPICS].contains("not named"), "{}", text[MAX_NAMED_TOPICS]);
    }
}
