//! The identity of the client that sent a prompt: whose turn it is in the queue, and who gets a stored answer again.
//!
//! Pure. A broker's access list protects topics, and not properties. So the identity says which of the two names the
//! client, and no property gives the identity of a client that a topic names.

use super::reply_topics::MAX_RESPONSE_TOPIC;
use sha2::{Digest, Sha256};

/// Longest name in bytes that is part of an identity as it is; of a longer one, its beginning and its digest are.
const MAX_NAME: usize = 512;

/// The client of a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PromptClient {
    /// The base of its topic, which names the device or the group: `P/D`.
    base: String,
    name: ClientName,
}

/// What names a client.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ClientName {
    /// The last level of the topic: `P/D/prompt/<name>`.
    Topic(String),
    /// The user property `client`, where the topic names none.
    Property(String),
    /// Nothing. Such clients share their turns, and stored answers are kept apart by the Response Topic, if there is
    /// one.
    Unnamed {
        /// The Response Topic, where it is one that may be answered on.
        response_topic: Option<String>,
    },
}

impl PromptClient {
    /// The client of a prompt below `base`, whose topic ends in the level `name`; empty where it names none.
    pub(super) fn of_topic(base: &str, name: &str) -> Self {
        let name = match name {
            "" => ClientName::Unnamed { response_topic: None },
            name => ClientName::Topic(bounded(name)),
        };
        PromptClient { base: base.to_owned(), name }
    }

    /// The client of the same prompt, with its user property `client` and its Response Topic. Where the topic names
    /// the client, neither counts.
    #[must_use]
    pub(super) fn with_properties(self, name: Option<&str>, response_topic: Option<&str>) -> Self {
        if !matches!(self.name, ClientName::Unnamed { .. }) {
            return self;
        }
        let name = match name.filter(|name| name.contains(|c: char| !c.is_control())) {
            Some(name) => ClientName::Property(bounded(name)),
            None => {
                let response_topic = response_topic.filter(|topic| topic.len() <= MAX_RESPONSE_TOPIC);
                ClientName::Unnamed { response_topic: response_topic.map(str::to_owned) }
            }
        };
        PromptClient { name, ..self }
    }

    /// The base of its topic.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// What names it.
    pub fn name(&self) -> &ClientName {
        &self.name
    }

    /// The key under which it takes turns with other clients. No two identities have the same one, except clients
    /// without a name below one base: a Response Topic can be made up for every prompt.
    pub fn turn_key(&self) -> String {
        match &self.name {
            ClientName::Unnamed { .. } => self.key_of("-", ""),
            _ => self.cache_key(),
        }
    }

    /// The key under which its answers are stored. No two identities have the same one.
    pub fn cache_key(&self) -> String {
        match &self.name {
            ClientName::Topic(name) => self.key_of("topic", name),
            ClientName::Property(name) => self.key_of("property", name),
            ClientName::Unnamed { response_topic: None } => self.key_of("-", ""),
            ClientName::Unnamed { response_topic: Some(topic) } => self.key_of("response", topic),
        }
    }

    /// The length shows where the base ends, whatever the name holds.
    fn key_of(&self, kind: &str, name: &str) -> String {
        format!("{kind}:{}:{}/{name}", self.base.len(), self.base)
    }

    /// The client whose [`PromptClient::cache_key`] this is, as it is read from disk. Any other text is taken for a
    /// name, so that no prompt is lost over it.
    pub fn from_cache_key(key: &str) -> Self {
        Self::parse_key(key).unwrap_or_else(|| Self::of_topic("", key))
    }

    fn parse_key(key: &str) -> Option<Self> {
        let (kind, rest) = key.split_once(':')?;
        let (length, rest) = rest.split_once(':')?;
        let (base, name) = rest.split_at_checked(length.parse().ok()?)?;
        let (base, name) = (base.to_owned(), name.strip_prefix('/')?.to_owned());
        let name = match kind {
            "topic" => ClientName::Topic(name),
            "property" => ClientName::Property(name),
            "response" => ClientName::Unnamed { response_topic: Some(name) },
            "-" => ClientName::Unnamed { response_topic: None },
            _ => return None,
        };
        Some(PromptClient { base, name })
    }

    /// Memory of its texts in bytes.
    pub fn bytes(&self) -> usize {
        let name = match &self.name {
            ClientName::Topic(name) | ClientName::Property(name) => name.len(),
            ClientName::Unnamed { response_topic } => response_topic.as_ref().map_or(0, String::len),
        };
        self.base.len() + name
    }
}

/// A name of limited length that no other name has: a shortened one is longer than any that is left as it is.
fn bounded(name: &str) -> String {
    if name.len() <= MAX_NAME {
        return name.to_owned();
    }
    let digest: String = Sha256::digest(name).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}…{digest}", &name[..name.floor_char_boundary(MAX_NAME)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(base: &str, name: &str) -> PromptClient {
        PromptClient::of_topic(base, name)
    }

    fn with_property(base: &str, name: &str) -> PromptClient {
        named(base, "").with_properties(Some(name), None)
    }

    #[test]
    fn no_two_identities_have_the_same_key() {
        let (cellar, kitchens) = ("bitnetd/cellar", "bitnetd/kitchens");
        let long = "x".repeat(70);
        let answered_on = |topic: &str| named(cellar, "").with_properties(None, Some(topic));
        let clients = [
            named(cellar, "alice"),
            named(kitchens, "alice"),
            named(cellar, "alice@kitchens"),
            with_property(cellar, "x"),
            with_property(kitchens, "x"),
            with_property(cellar, "x@kitchens"),
            with_property("bitnetd", "cellar/x"),
            named(cellar, ""),
            named(cellar, "-"),
            with_property(cellar, "-"),
            with_property(cellar, "-/-"),
            answered_on("home/a"),
            answered_on("home/b"),
            named(cellar, "home"),
            named(cellar, &format!("{long}a")),
            named(cellar, &format!("{long}b")),
            with_property(cellar, &format!("{long}a")),
            with_property(cellar, &format!("{long}b")),
            with_property(cellar, &"y".repeat(60_000)),
            with_property(cellar, &"y".repeat(60_001)),
            with_property(cellar, &bounded(&"y".repeat(60_000))),
        ];
        for (index, one) in clients.iter().enumerate() {
            assert!(one.cache_key().len() < 1_000);
            assert_eq!(PromptClient::from_cache_key(&one.cache_key()), *one);
            for other in &clients[index + 1..] {
                assert_ne!(one.cache_key(), other.cache_key());
                let are_both_unnamed =
                    [one, other].iter().all(|client| matches!(client.name, ClientName::Unnamed { .. }));
                assert_eq!(one.turn_key() == other.turn_key(), are_both_unnamed, "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn the_topic_names_the_client_before_the_property_does() {
        let hall = named("bitnetd/cellar", "hall");
        assert_eq!(hall.clone().with_properties(Some("attic"), Some("home/a")), hall);
        for nothing in ["", "\u{1b}\n"] {
            assert_eq!(with_property("b", nothing), named("b", ""));
        }
        assert_eq!(*with_property("b", "hall").name(), ClientName::Property("hall".into()));
    }

    #[test]
    fn a_text_that_is_no_key_names_a_client_all_the_same() {
        for text in ["hall", "-", "topic:9:x/y", "topic:x:y", "other:1:b/x", "topic:1:büro", ""] {
            let client = PromptClient::from_cache_key(text);
            assert_eq!(PromptClient::from_cache_key(&client.cache_key()), client, "{text}");
        }
    }
}
