//! The topics of one device, and which of a client's texts may become one.
//!
//! Pure. Everything a client chooses (an id, a Response Topic) is looked at here before it gets
//! near a PUBLISH: a broker ends the connection over a malformed topic, and what it ends once it
//! ends at every retry.

use sha2::{Digest, Sha256};

/// Longest Response Topic, in bytes: replies repeat it in every packet.
const MAX_RESPONSE_TOPIC: usize = 512;
/// Most levels of a Response Topic: mosquitto ends the connection over a topic of more than 200.
const MAX_LEVELS: usize = 100;
/// Most bytes of a `<client>` that are kept: it goes into every log line about its prompts.
const MAX_CLIENT: usize = 64;

/// The topics below `P/D`, prefix and device id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    base: String,
}

/// What a message is for, by its topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addressed {
    /// A prompt of this client; `-` where the topic names none.
    Prompt(String),
    /// A cancellation.
    Cancel,
}

impl Topics {
    /// The topics of `device` below `prefix`; the configuration has checked both.
    pub fn new(prefix: &str, device: &str) -> Self {
        Topics { base: format!("{prefix}/{device}") }
    }

    /// Where prompts of unnamed clients arrive.
    pub fn prompt(&self) -> String {
        self.below("prompt")
    }

    /// The filter of `prompt/<client>`.
    pub fn prompts_of_clients(&self) -> String {
        self.below("prompt/+")
    }

    /// Where cancellations arrive.
    pub fn cancel(&self) -> String {
        self.below("cancel")
    }

    /// `online` or `offline`, retained.
    pub fn availability(&self) -> String {
        self.below("availability")
    }

    /// Version, model, kernel and budgets, retained.
    pub fn info(&self) -> String {
        self.below("info")
    }

    /// The report, every interval.
    pub fn telemetry(&self) -> String {
        self.below("telemetry")
    }

    /// Alerts as they are raised and cleared.
    pub fn alert(&self) -> String {
        self.below("alert")
    }

    /// Where the events of request `id` go when its message names no Response Topic.
    ///
    /// An id may be any text, and a refusal would have no topic to go to either. So what cannot
    /// stand in a topic level is escaped as in a URL: `a/b` is answered on `reply/a%2Fb`. The id
    /// inside the events stays as it came.
    pub fn reply(&self, id: &str) -> String {
        let mut topic = self.below("reply/");
        for c in id.chars() {
            if matches!(c, '/' | '+' | '#' | '%') || !is_sound(c) {
                let mut bytes = [0; 4];
                for byte in c.encode_utf8(&mut bytes).bytes() {
                    topic.push_str(&format!("%{byte:02X}"));
                }
            } else {
                topic.push(c);
            }
        }
        topic
    }

    /// Checks a Response Topic; the error says what is wrong with it and the way out.
    pub fn check_response(&self, topic: &str) -> Result<(), String> {
        let wrong = if topic.is_empty() || !topic.chars().all(is_sound) {
            "is empty or holds control characters"
        } else if topic.contains(['+', '#']) {
            "holds a wildcard"
        } else if topic.starts_with('$') {
            "begins with $, which is the broker's"
        } else if topic.len() > MAX_RESPONSE_TOPIC || topic.matches('/').count() >= MAX_LEVELS {
            "is too long"
        } else if self.is_ours(topic) {
            // An answer on a prompt topic would be a prompt: an endless loop.
            "is one of the daemon's own"
        } else {
            return Ok(());
        };
        let reply = self.below("reply/<id>");
        Err(format!("the Response Topic {wrong}; name another, or none and listen on {reply}"))
    }

    /// What a message on `topic` is for; `None` where it is nothing of ours.
    pub fn parse(&self, topic: &[u8]) -> Option<Addressed> {
        let topic = std::str::from_utf8(topic).ok()?;
        match topic.strip_prefix(&self.base)?.strip_prefix('/')? {
            "cancel" => Some(Addressed::Cancel),
            "prompt" => Some(Addressed::Prompt("-".into())),
            other => other.strip_prefix("prompt/").map(|name| Addressed::Prompt(client(name))),
        }
    }

    /// The name of the file for what is kept of this device: as much of its id as anyone reads, and
    /// a number that tells it from all others.
    pub(super) fn file_name(&self) -> String {
        let device = self.base.rsplit('/').next().unwrap_or_default();
        let plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let name: String = device.chars().filter(plain).take(32).collect();
        let digest = Sha256::digest(&self.base);
        let number = u64::from_be_bytes(digest[..8].try_into().expect("eight of thirty-two bytes"));
        format!("{name}-{number:016x}.answers")
    }

    fn below(&self, level: &str) -> String {
        format!("{}/{level}", self.base)
    }

    /// Whether the topic is in our tree; `reply/` is there for the clients.
    fn is_ours(&self, topic: &str) -> bool {
        match topic.strip_prefix(&self.base) {
            Some("") => true,
            Some(rest) => rest.starts_with('/') && !rest.starts_with("/reply/"),
            None => false,
        }
    }
}

/// A client's name as the log shows it.
fn client(name: &str) -> String {
    let end = name.floor_char_boundary(MAX_CLIENT);
    match name[..end].chars().filter(|c| is_sound(*c)).collect::<String>() {
        empty if empty.is_empty() => "-".into(),
        name => name,
    }
}

/// Whether brokers take the character in a topic: MQTT 5, section 1.5.4, lets them refuse control
/// characters and what Unicode calls non-characters.
fn is_sound(c: char) -> bool {
    let code = c as u32;
    !c.is_control() && !(0xFDD0..=0xFDEF).contains(&code) && code & 0xFFFE != 0xFFFE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics() -> Topics {
        Topics::new("bitnetd", "cellar")
    }

    #[test]
    fn prompts_are_told_apart_by_their_client() {
        let parse = |topic: &str| topics().parse(topic.as_bytes());
        assert_eq!(parse("bitnetd/cellar/prompt"), Some(Addressed::Prompt("-".into())));
        assert_eq!(parse("bitnetd/cellar/prompt/"), Some(Addressed::Prompt("-".into())));
        assert_eq!(parse("bitnetd/cellar/prompt/hall"), Some(Addressed::Prompt("hall".into())));
        assert_eq!(parse("bitnetd/cellar/cancel"), Some(Addressed::Cancel));
    }

    #[test]
    fn topics_of_others_are_nothing_of_ours() {
        for topic in ["bitnetd/attic/prompt", "bitnetd/cellars/prompt", "bitnetd/cellar", "x"] {
            assert_eq!(topics().parse(topic.as_bytes()), None, "{topic}");
        }
    }

    #[test]
    fn a_topic_that_is_not_utf_8_is_nothing_of_ours() {
        assert_eq!(topics().parse(b"bitnetd/cellar/prompt/\xff"), None);
    }

    #[test]
    fn a_long_client_name_is_cut_between_characters() {
        let topic = format!("bitnetd/cellar/prompt/{}", "ü".repeat(100));
        assert_eq!(topics().parse(topic.as_bytes()), Some(Addressed::Prompt("ü".repeat(32))));
    }

    #[test]
    fn an_id_with_topic_characters_is_escaped_and_stays_one_level() {
        assert_eq!(topics().reply("küche-1"), "bitnetd/cellar/reply/küche-1");
        assert_eq!(topics().reply("a/b+#%"), "bitnetd/cellar/reply/a%2Fb%2B%23%25");
        assert_eq!(topics().reply("\0\u{85}\u{fffe}"), "bitnetd/cellar/reply/%00%C2%85%EF%BF%BE");
    }

    #[test]
    fn two_ids_never_share_a_reply_topic() {
        assert_ne!(topics().reply("a/b"), topics().reply("a%2Fb"));
    }

    #[test]
    fn each_device_has_a_file_of_its_own() {
        let name = |prefix, device| Topics::new(prefix, device).file_name();
        assert!(name("bitnetd", "cellar").starts_with("cellar-"));
        assert_ne!(name("bitnetd", "cellar"), name("other", "cellar"));
        assert!(name("a", &"ü./ \0".repeat(50)).len() < 64);
    }

    #[test]
    fn a_usual_response_topic_is_taken() {
        for topic in ["home/kitchen/answer", "bitnetd/cellar/reply/mine", "bitnetd/cellarette"] {
            assert_eq!(topics().check_response(topic), Ok(()), "{topic}");
        }
    }

    #[test]
    fn a_response_topic_that_would_hurt_is_refused() {
        let long = "a".repeat(MAX_RESPONSE_TOPIC + 1);
        let deep = "/".repeat(MAX_LEVELS);
        for topic in ["", "a/+", "#", "$SYS/x", "a\0b", &long, &deep] {
            assert!(topics().check_response(topic).is_err(), "{topic}");
        }
    }

    #[test]
    fn an_answer_never_becomes_a_prompt_of_our_own() {
        for topic in ["prompt", "prompt/hall", "cancel", "availability", "telemetry"] {
            let said = topics().check_response(&format!("bitnetd/cellar/{topic}"));
            assert!(said.expect_err("refused").contains("own"), "{topic}");
        }
    }
}
