//! The topics of one device, and the checks of every topic that a client's text becomes part of.
//!
//! Pure. Whatever a client chooses (an id, a Response Topic) is checked here before it becomes part of a PUBLISH: a
//! broker closes the connection over a malformed topic, and would do so again at every retry.

use super::prompt_client::{ClientName, PromptClient};
use super::reply_topics::{MAX_RESPONSE_TOPIC, ReplyTopics};
use crate::config::Mqtt;
use sha2::{Digest, Sha256};

/// Maximum number of levels of a Response Topic: mosquitto closes the connection over a topic of more than 200.
const MAX_LEVELS: usize = 100;
/// Maximum length in bytes of a `<client>` level that is repeated in a reply topic.
const MAX_REPLY_LEVEL: usize = 512;
/// Bytes of a client's name that the log shows: it is part of every line about its prompts.
const MAX_CLIENT_NAME: usize = 64;
/// The last levels of the topic for a thread limit; `set` is a usual name for topics that others write to.
const THREADS: &str = "threads/set";

/// The topics below `P/D`, prefix and device id, and those that the device shares with a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    base: String,
    group: Option<Group>,
    replies: ReplyTopics,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    name: String,
    /// `P/<group>`
    base: String,
}

/// A topic filter to subscribe to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicFilter {
    /// The filter; it may contain wildcards.
    pub topic: String,
    /// At QoS 1, else at QoS 0. Cancellations and thread limits are at QoS 0: behind a full window of prompts the
    /// broker would hold them back until the prompt they are to stop is answered.
    pub is_qos_1: bool,
    /// Whether the broker delivers what is retained at each subscription, in MQTT 5; in 3.1.1 it always does.
    pub wants_retained: bool,
}

/// What a message is for, by its topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopicKind {
    /// A prompt of this client.
    Prompt(PromptClient),
    /// A cancellation.
    Cancel,
    /// A thread limit for this device.
    Threads,
}

impl Topics {
    /// The topics of `device` below `prefix`; the configuration has checked both.
    pub fn new(prefix: &str, device: &str) -> Self {
        Topics { base: format!("{prefix}/{device}"), group: None, replies: ReplyTopics::any(prefix) }
    }

    /// The topics of `device` by the configuration.
    pub fn configured(config: &Mqtt, device: &str) -> Self {
        let allowed = config.reply_topics.as_deref();
        let replies = ReplyTopics::new(&config.prefix, allowed, &config.discovery_prefix);
        Topics { replies, ..Self::shared(&config.prefix, device, config.group.as_deref()) }
    }

    /// The topics of a device that shares the prompts of `group` with other devices.
    pub fn shared(prefix: &str, device: &str, group: Option<&str>) -> Self {
        let group = group.map(|name| Group { name: name.into(), base: format!("{prefix}/{name}") });
        Topics { group, ..Self::new(prefix, device) }
    }

    /// The topic for prompts of clients without a name.
    pub fn prompt(&self) -> String {
        self.below("prompt")
    }

    /// One topic for each filter of prompts, for the messages of the subscription check.
    pub fn self_check(&self) -> [String; 2] {
        [self.prompt(), self.below("prompt/self-check")]
    }

    /// The topic for cancellations.
    pub fn cancel(&self) -> String {
        self.below("cancel")
    }

    /// The topic for a thread limit.
    pub fn threads(&self) -> String {
        self.below(THREADS)
    }

    /// The filters of the device's own topics.
    pub fn filters(&self) -> Vec<TopicFilter> {
        let mut filters = request_filters(&self.base, "");
        filters.push(TopicFilter { topic: self.threads(), is_qos_1: false, wants_retained: false });
        filters
    }

    /// The filters of the group's topics: the broker delivers each prompt to one of the devices, and a cancellation
    /// to all of them, since nobody knows which device has the prompt.
    pub fn group_filters(&self) -> Vec<TopicFilter> {
        self.group
            .as_ref()
            .map(|group| request_filters(&group.base, &shared_prefix(&group.name)))
            .unwrap_or_default()
    }

    /// The filters by which a message on this topic may have been received, if they are not the present ones:
    /// subscriptions of an earlier prefix or group that the broker still has in the session.
    pub fn stale_filters(&self, topic: &[u8]) -> Vec<String> {
        let Some((base, _)) = std::str::from_utf8(topic).ok().and_then(|topic| self.split(topic)) else {
            return Vec::new();
        };
        if base == self.base || self.group.as_ref().is_some_and(|group| group.base == base) {
            return Vec::new();
        }
        let shared = request_filters(base, &shared_prefix(last_level(base)))
            .into_iter()
            .filter(|filter| filter.is_qos_1);
        let all = shared.chain(request_filters(base, "")).map(|filter| filter.topic);
        all.chain([format!("{base}/{THREADS}")]).collect()
    }

    /// `online` or `offline`, retained.
    pub fn availability(&self) -> String {
        self.below("availability")
    }

    /// Version, model, kernel and budgets, retained.
    pub fn info(&self) -> String {
        self.below("info")
    }

    /// `ON` while a request is answered, else `OFF`, retained.
    pub fn answering(&self) -> String {
        self.below("answering")
    }

    /// The report, at every interval.
    pub fn telemetry(&self) -> String {
        self.below("telemetry")
    }

    /// Alerts as they are raised and cleared.
    pub fn alert(&self) -> String {
        self.below("alert")
    }

    /// The topic for the events of request `id`, where its message, received on `topic`, names no Response Topic:
    /// `reply/<id>` beside the prompts, and `reply/<client>/<id>` where the prompt's topic names its client, so
    /// that clients that count from 1 do not receive each other's answers.
    ///
    /// An id may be any text, and a refusal of it would have no topic either. So characters that a topic level
    /// cannot contain are escaped as in a URL: `a/b` is answered on `reply/a%2Fb`. The id inside the events is not
    /// changed.
    pub fn reply(&self, topic: &[u8], id: &str) -> String {
        let asked = std::str::from_utf8(topic).ok().and_then(|topic| self.split(topic));
        let mut reply = format!("{}/reply/", asked.map_or(self.base.as_str(), |(base, _)| base));
        if let Some((_, TopicSuffix::Prompt(client))) = asked
            && !client.is_empty()
            && client.len() <= MAX_REPLY_LEVEL
        {
            escape(&mut reply, client, |c| !is_allowed(c));
            reply.push('/');
        }
        escape(&mut reply, id, |c| matches!(c, '/' | '+' | '#' | '%') || !is_allowed(c));
        reply
    }

    /// The topic on which the last event that was published on `reply` is retained: `last/<client>` for
    /// `reply/<client>/<id>`, and so only where the prompt's topic named the client. `None` for every other topic.
    pub fn last(&self, reply: &str) -> Option<String> {
        let (base, rest) = self.replies_of(reply)?;
        let (client, id) = rest.split_once('/')?;
        let is_reply = !client.is_empty() && !id.is_empty() && !id.contains('/');
        is_reply.then(|| format!("{base}/last/{client}"))
    }

    /// Checks the Response Topic of a prompt received on `prompt_topic`. The error says what is wrong with it, and
    /// what to do.
    pub fn check_response(&self, topic: &str, prompt_topic: &[u8]) -> Result<(), String> {
        let checked = malformed(topic).map_or(Ok(()), Err).and_then(|()| {
            if self.is_own_topic(topic) {
                // An answer published on a prompt topic would be a new prompt, without end.
                Err("is one of the daemon's own")
            } else if self.is_reply_of_another_client(topic, prompt_topic) {
                Err("is where another client's answers go")
            } else if self.replies_of(topic).is_some() {
                self.replies.check_listed(topic)
            } else {
                self.replies.check(topic)
            }
        });
        checked.map_err(|wrong| {
            let reply = self.reply(prompt_topic, "");
            format!(
                "the Response Topic {wrong}; name another, or none and listen on {reply}<id> (the owner may allow it \
                 in mqtt.reply_topics)"
            )
        })
    }

    /// What a message on `topic` is for; `None` where it is none of the device's topics. Messages that the broker
    /// stored for an earlier prefix or group are accepted as well: they were promised an answer.
    pub fn parse(&self, topic: &[u8]) -> Option<TopicKind> {
        let (base, asked) = self.split(std::str::from_utf8(topic).ok()?)?;
        Some(match asked {
            TopicSuffix::Cancel => TopicKind::Cancel,
            TopicSuffix::Threads if base == self.base => TopicKind::Threads,
            TopicSuffix::Threads => return None,
            TopicSuffix::Prompt(name) => TopicKind::Prompt(PromptClient::of_topic(base, name)),
        })
    }

    /// The client as the log shows it: `hall`, `-` where nothing names it, `-/hall` where a property does; for a
    /// group it is followed by `@group`. It is cut and cleaned, and so may be that of another client too.
    pub fn client_label(&self, client: &PromptClient) -> String {
        let name = match client.name() {
            ClientName::Topic(name) => sanitized_client(name),
            ClientName::Property(name) => format!("-/{}", sanitized_client(name)),
            ClientName::Unnamed { .. } => "-".into(),
        };
        match client.base() {
            base if base == self.base => name,
            base => format!("{name}@{}", sanitized_client(last_level(base))),
        }
    }

    /// The base of a topic, which names the device or the group, and what follows it. The device's own topics are
    /// tried first: a client may be called `cancel`.
    fn split<'a>(&self, topic: &'a str) -> Option<(&'a str, TopicSuffix<'a>)> {
        for base in self.bases() {
            if let Some(rest) = topic.strip_prefix(base).and_then(|rest| rest.strip_prefix('/')) {
                let asked = match rest {
                    "cancel" => TopicSuffix::Cancel,
                    THREADS => TopicSuffix::Threads,
                    "prompt" => TopicSuffix::Prompt(""),
                    other => TopicSuffix::Prompt(other.strip_prefix("prompt/")?),
                };
                return Some((&topic[..base.len()], asked));
            }
        }
        let (head, last) = topic.rsplit_once('/')?;
        let (base, asked) = match (head.strip_suffix("/prompt"), last) {
            (Some(base), name) => (base, TopicSuffix::Prompt(name)),
            (None, "prompt") => (head, TopicSuffix::Prompt("")),
            (None, "cancel") => (head, TopicSuffix::Cancel),
            (None, _) => return None,
        };
        // Topics are made from it, so it is checked like a Response Topic.
        let is_sound = malformed(base).is_none() && !base.starts_with('$') && !self.is_own_topic(base);
        is_sound.then_some((base, asked))
    }

    /// The name of the device's state file with this extension: the readable part of its id, and a number that tells it from all
    /// others.
    pub(super) fn file_name(&self, extension: &str) -> String {
        let device = self.base.rsplit('/').next().unwrap_or_default();
        let plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let name: String = device.chars().filter(plain).take(32).collect();
        let digest = Sha256::digest(&self.base);
        let number = u64::from_be_bytes(digest[..8].try_into().expect("eight of thirty-two bytes"));
        format!("{name}-{number:016x}.{extension}")
    }

    fn below(&self, level: &str) -> String {
        format!("{}/{level}", self.base)
    }

    /// Whether the topic is below the device's or the group's base; `reply/` is excepted, which belongs to the
    /// clients.
    fn is_own_topic(&self, topic: &str) -> bool {
        self.bases().any(|base| match topic.strip_prefix(base) {
            Some("") => true,
            Some(rest) => rest.starts_with('/') && !rest.starts_with("/reply/"),
            None => false,
        })
    }

    /// The base of a reply topic of the device or the group, and what follows `reply/` in it.
    fn replies_of<'a>(&'a self, topic: &'a str) -> Option<(&'a str, &'a str)> {
        self.bases().find_map(|base| Some((base, topic.strip_prefix(base)?.strip_prefix("/reply/")?)))
    }

    /// Whether the topic is `reply/<client>/…` of another client than the one that sent the prompt: the device's
    /// clients are not the group's.
    fn is_reply_of_another_client(&self, topic: &str, prompt_topic: &[u8]) -> bool {
        let Some((reply_base, rest)) = self.replies_of(topic) else { return false };
        let Some((client, _)) = rest.split_once('/') else { return false };
        let asked = std::str::from_utf8(prompt_topic).ok().and_then(|topic| self.split(topic));
        !matches!(asked, Some((base, TopicSuffix::Prompt(name))) if base == reply_base && name == client)
    }

    fn bases(&self) -> impl Iterator<Item = &str> {
        [Some(self.base.as_str()), self.group.as_ref().map(|group| group.base.as_str())].into_iter().flatten()
    }
}

/// Why a broker would close the connection over a publish on this topic.
fn malformed(topic: &str) -> Option<&'static str> {
    if topic.is_empty() || !topic.chars().all(is_allowed) {
        Some("is empty or holds control characters")
    } else if topic.contains(['+', '#']) {
        Some("holds a wildcard")
    } else if topic.starts_with("$share/") {
        Some("begins with $share, where nothing can be published")
    } else if topic.len() > MAX_RESPONSE_TOPIC || topic.matches('/').count() >= MAX_LEVELS {
        Some("is too long")
    } else {
        None
    }
}

/// Appends a topic level, with the characters that it cannot contain escaped as in a URL.
fn escape(topic: &mut String, level: &str, is_escaped: impl Fn(char) -> bool) {
    for c in level.chars() {
        if is_escaped(c) {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                topic.push_str(&format!("%{byte:02X}"));
            }
        } else {
            topic.push(c);
        }
    }
}

/// What the last levels of a topic request.
#[derive(Debug, Clone, Copy)]
enum TopicSuffix<'a> {
    Prompt(&'a str),
    Cancel,
    Threads,
}

/// The filters of every topic below a base that accepts requests; `share` is the prefix of the prompts' filters.
fn request_filters(base: &str, share: &str) -> Vec<TopicFilter> {
    vec![
        TopicFilter { topic: format!("{share}{base}/prompt"), is_qos_1: true, wants_retained: false },
        TopicFilter { topic: format!("{share}{base}/prompt/+"), is_qos_1: true, wants_retained: false },
        TopicFilter { topic: format!("{base}/cancel"), is_qos_1: false, wants_retained: false },
    ]
}

/// The prefix of a shared subscription (MQTT 5, section 4.8.2): each message is delivered to one of its
/// subscribers.
fn shared_prefix(group: &str) -> String {
    format!("$share/{group}/")
}

fn last_level(topic: &str) -> &str {
    topic.rsplit('/').next().unwrap_or(topic)
}

/// A client's name as it appears in the log.
fn sanitized_client(name: &str) -> String {
    let end = name.floor_char_boundary(MAX_CLIENT_NAME);
    match name[..end].chars().filter(|c| is_allowed(*c)).collect::<String>() {
        empty if empty.is_empty() => "-".into(),
        name => name,
    }
}

/// Whether brokers accept the character in a topic: MQTT 5, section 1.5.4, lets them refuse control characters and
/// Unicode non-characters.
fn is_allowed(c: char) -> bool {
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
    fn the_last_answer_is_retained_beside_the_replies_of_a_client_and_nowhere_else() {
        let last = |reply: &str| of_kitchens().last(reply);
        assert_eq!(last("bitnetd/cellar/reply/hall/1").as_deref(), Some("bitnetd/cellar/last/hall"));
        assert_eq!(last("bitnetd/kitchens/reply/hall/a%2Fb").as_deref(), Some("bitnetd/kitchens/last/hall"));
        let longer = last("bitnetd/cellar/reply/hall/a/b");
        assert_eq!(
            [last("bitnetd/cellar/reply/1"), longer, last("bitnetd/other/reply/hall/1")],
            [None, None, None]
        );
    }

    #[test]
    fn prompts_are_distinguished_by_their_client() {
        let parse = |topic: &str| topics().parse(topic.as_bytes());
        let client = |name: &str| Some(TopicKind::Prompt(PromptClient::of_topic("bitnetd/cellar", name)));
        assert_eq!(parse("bitnetd/cellar/prompt"), client(""));
        assert_eq!(parse("bitnetd/cellar/prompt/"), client(""));
        assert_eq!(parse("bitnetd/cellar/prompt/hall"), client("hall"));
        assert_ne!(client("-"), client(""));
        assert_eq!(parse("bitnetd/cellar/cancel"), Some(TopicKind::Cancel));
        assert_eq!(parse("bitnetd/cellar/threads/set"), Some(TopicKind::Threads));
    }

    #[test]
    fn only_the_device_s_own_topic_limits_its_threads() {
        for topic in ["bitnetd/kitchens/threads/set", "old/cellar/threads/set", "bitnetd/cellar/threads"] {
            assert_eq!(of_kitchens().parse(topic.as_bytes()), None, "{topic}");
        }
        let asked = of_kitchens().filters();
        assert!(asked.iter().any(|filter| filter.topic == "bitnetd/cellar/threads/set" && !filter.is_qos_1));
    }

    #[test]
    fn topics_without_a_request_are_ignored() {
        for topic in ["bitnetd/cellar/telemetry", "bitnetd/cellar/prompts", "bitnetd/cellar", "x", "prompt"] {
            assert_eq!(topics().parse(topic.as_bytes()), None, "{topic}");
        }
    }

    #[test]
    fn a_topic_that_is_not_utf_8_is_ignored() {
        assert_eq!(topics().parse(b"bitnetd/cellar/prompt/\xff"), None);
    }

    /// The label of a prompt's client, without and with a user property.
    fn labels(topics: &Topics, topic: &str) -> [String; 2] {
        let Some(TopicKind::Prompt(client)) = topics.parse(topic.as_bytes()) else { panic!("{topic}") };
        [topics.client_label(&client), topics.client_label(&client.with_properties(Some("eve"), None))]
    }

    #[test]
    fn a_long_client_name_is_cut_between_characters_for_the_log_alone() {
        let client = |last: &str| format!("bitnetd/cellar/prompt/{}{last}", "ü".repeat(100));
        assert_eq!(labels(&topics(), &client("a")), ["ü".repeat(32), "ü".repeat(32)]);
        assert_ne!(topics().parse(client("a").as_bytes()), topics().parse(client("b").as_bytes()));
    }

    #[test]
    fn the_log_shows_how_a_client_is_named() {
        assert_eq!(labels(&topics(), "bitnetd/cellar/prompt"), ["-", "-/eve"]);
        assert_eq!(labels(&of_kitchens(), "bitnetd/kitchens/prompt"), ["-@kitchens", "-/eve@kitchens"]);
        assert_eq!(labels(&topics(), "bitnetd/cellar/prompt/a\u{1b}[2J"), ["a[2J", "a[2J"]);
    }

    #[test]
    fn an_id_with_topic_characters_is_escaped_and_stays_one_level() {
        let reply = |id| topics().reply(b"bitnetd/cellar/prompt", id);
        assert_eq!(reply("küche-1"), "bitnetd/cellar/reply/küche-1");
        assert_eq!(reply("a/b+#%"), "bitnetd/cellar/reply/a%2Fb%2B%23%25");
        assert_eq!(reply("\0\u{85}\u{fffe}"), "bitnetd/cellar/reply/%00%C2%85%EF%BF%BE");
    }

    #[test]
    fn the_client_of_a_topic_has_reply_topics_of_its_own() {
        let reply =
            |client: &str| topics().reply(format!("bitnetd/cellar/prompt/{client}").as_bytes(), "a/b");
        assert_eq!(reply("hall"), "bitnetd/cellar/reply/hall/a%2Fb");
        assert_eq!(reply("50%"), "bitnetd/cellar/reply/50%/a%2Fb");
        assert_eq!(reply("a\u{1b}"), "bitnetd/cellar/reply/a%1B/a%2Fb");
        assert_eq!(reply(""), "bitnetd/cellar/reply/a%2Fb");
        assert_eq!(reply(&"x".repeat(MAX_REPLY_LEVEL + 1)), "bitnetd/cellar/reply/a%2Fb");
    }

    #[test]
    fn two_ids_never_share_a_reply_topic() {
        let reply = |id| topics().reply(b"bitnetd/cellar/prompt", id);
        assert_ne!(reply("a/b"), reply("a%2Fb"));
    }

    #[test]
    fn each_device_has_a_file_of_its_own() {
        let name = |prefix, device| Topics::new(prefix, device).file_name("answers");
        assert!(name("bitnetd", "cellar").starts_with("cellar-"));
        assert_ne!(name("bitnetd", "cellar"), name("other", "cellar"));
        assert!(name("a", &"ü./ \0".repeat(50)).len() < 64);
    }

    #[test]
    fn a_usual_response_topic_is_taken() {
        for topic in [
            "home/kitchen/answer",
            "bitnetd/cellar/reply/mine",
            "bitnetd/cellar/reply/hall/x",
            "bitnetd/cellarette",
        ] {
            assert_eq!(checked(&topics(), topic), Ok(()), "{topic}");
        }
    }

    #[test]
    fn a_response_topic_that_would_hurt_is_refused() {
        let long = "a".repeat(MAX_RESPONSE_TOPIC + 1);
        let deep = "/".repeat(MAX_LEVELS);
        for topic in ["", "a/+", "#", "$SYS/x", "a\0b", &long, &deep] {
            assert!(checked(&topics(), topic).is_err(), "{topic}");
        }
    }

    /// As asked by the client `hall`.
    fn checked(topics: &Topics, response: &str) -> Result<(), String> {
        topics.check_response(response, b"bitnetd/cellar/prompt/hall")
    }

    #[test]
    fn a_client_cannot_have_answers_sent_to_another() {
        let text = checked(&topics(), "bitnetd/cellar/reply/attic/1").expect_err("refused");
        assert!(text.contains("another client") && text.contains("reply/hall/<id>"), "{text}");
        let unnamed = topics().check_response("bitnetd/cellar/reply/hall/1", b"bitnetd/cellar/prompt");
        assert!(unnamed.is_err(), "nor the one that names none");
        let namesake =
            of_kitchens().check_response("bitnetd/cellar/reply/hall/1", b"bitnetd/kitchens/prompt/hall");
        assert!(namesake.is_err(), "nor the group's client of the same name");
    }

    #[test]
    fn the_owner_s_list_holds_for_our_own_tree_too() {
        let list = |filters: &[&str]| {
            let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
            Topics::configured(&Mqtt { reply_topics: Some(filters), ..Mqtt::new("b", 1883) }, "cellar")
        };
        assert!(checked(&list(&["home/#"]), "bitnetd/cellar/reply/x").is_err());
        assert_eq!(checked(&list(&["bitnetd/#"]), "bitnetd/cellar/reply/hall/x"), Ok(()));
        assert_eq!(checked(&list(&["bitnetd/cellar/reply/+"]), "bitnetd/cellar/reply/x"), Ok(()));
        assert_eq!(checked(&list(&["home/#"]), "home/x"), Ok(()));
        assert!(
            checked(&list(&["bitnetd/cellar/prompt"]), "bitnetd/cellar/prompt").is_err(),
            "never our own"
        );
        assert!(checked(&list(&["$share/g/a"]), "$share/g/a").is_err());
    }

    fn of_kitchens() -> Topics {
        Topics::shared("bitnetd", "cellar", Some("kitchens"))
    }

    #[test]
    fn a_group_shares_prompts_and_receives_every_cancellation() {
        let asked: Vec<_> = of_kitchens().group_filters().into_iter().map(|filter| filter.topic).collect();
        let shared = "$share/kitchens/bitnetd/kitchens";
        let wanted =
            [format!("{shared}/prompt"), format!("{shared}/prompt/+"), "bitnetd/kitchens/cancel".into()];
        assert_eq!(asked, wanted);
        assert!(topics().group_filters().is_empty());
    }

    #[test]
    fn prompts_to_a_group_are_answered_below_the_group() {
        let topics = of_kitchens();
        let named = |name: &str| Some(TopicKind::Prompt(PromptClient::of_topic("bitnetd/kitchens", name)));
        assert_eq!(topics.parse(b"bitnetd/kitchens/prompt"), named(""));
        assert_eq!(topics.parse(b"bitnetd/kitchens/prompt/hall"), named("hall"));
        assert_eq!(labels(&topics, "bitnetd/kitchens/prompt/hall")[0], "hall@kitchens");
        assert_eq!(topics.parse(b"bitnetd/kitchens/cancel"), Some(TopicKind::Cancel));
        assert_eq!(topics.reply(b"bitnetd/kitchens/prompt/hall", "a"), "bitnetd/kitchens/reply/hall/a");
        assert!(topics.stale_filters(b"bitnetd/kitchens/prompt/hall").is_empty());
        assert!(checked(&topics, "bitnetd/kitchens/prompt").is_err());
        assert_eq!(checked(&topics, "bitnetd/kitchens/reply/a"), Ok(()));
    }

    #[test]
    fn clients_may_have_the_names_of_topics() {
        for name in ["cancel", "prompt"] {
            let parsed = topics().parse(format!("bitnetd/cellar/prompt/{name}").as_bytes());
            assert_eq!(parsed, Some(TopicKind::Prompt(PromptClient::of_topic("bitnetd/cellar", name))));
        }
    }

    #[test]
    fn prompts_of_an_earlier_group_are_answered_and_its_subscriptions_ended() {
        let topic = b"old/attic/prompt/hall";
        assert_eq!(
            of_kitchens().parse(topic),
            Some(TopicKind::Prompt(PromptClient::of_topic("old/attic", "hall")))
        );
        assert_eq!(of_kitchens().reply(topic, "a"), "old/attic/reply/hall/a");
        let given_up = of_kitchens().stale_filters(topic);
        for filter in [
            "$share/attic/old/attic/prompt/+",
            "old/attic/prompt",
            "old/attic/cancel",
            "old/attic/threads/set",
        ] {
            assert!(given_up.iter().any(|one| one == filter), "{filter}: {given_up:?}");
        }
        assert!(of_kitchens().stale_filters(b"bitnetd/cellar/prompt").is_empty());
    }

    #[test]
    fn an_answer_never_becomes_a_prompt_of_our_own() {
        for topic in ["prompt", "prompt/hall", "cancel", "threads/set", "availability", "telemetry"] {
            let text = checked(&topics(), &format!("bitnetd/cellar/{topic}"));
            assert!(text.expect_err("refused").contains("own"), "{topic}");
        }
    }
}
