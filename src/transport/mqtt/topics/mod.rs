//! The topics of one device, and the checks of every topic that a client's text becomes part of.
//!
//! Pure. Whatever a client chooses (an id, a Response Topic) is checked here before it becomes part of a PUBLISH: a
//! broker closes the connection over a malformed topic, and would do so again at every retry.

#[cfg(test)]
mod tests;

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

    /// The health of the daemon, retained.
    pub fn health(&self) -> String {
        self.below("health")
    }

    /// What is raised now, retained.
    pub fn alerts(&self) -> String {
        self.below("alerts")
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
