//! Which topics a client may name as its Response Topic (`mqtt.reply_topics`).
//!
//! The daemon publishes there with its own rights at the broker, which are often wider than the client's. So the
//! owner may list the allowed topics, and topics that command other devices are allowed only where that list names
//! them.
//!
//! Pure. Deliberately knows nothing of the daemon's own topics, which `topics` protects.

/// Maximum length of a Response Topic in bytes: every reply repeats it.
pub(super) const MAX_RESPONSE_TOPIC: usize = 512;
/// Topic levels below which, by one convention or another, devices are commanded.
const COMMAND_LEVELS: [&str; 5] = ["set", "command", "cmnd", "cmd", "zigbee2mqtt"];
/// Home Assistant's default discovery prefix, in case some of the owner's installations use it and others do not.
const HOME_ASSISTANT: &str = "homeassistant";
/// The topics of every bitnetd below its device level.
const DEVICE_TOPICS: [&str; 12] = [
    "prompt",
    "cancel",
    "threads",
    "availability",
    "info",
    "telemetry",
    "alert",
    "alerts",
    "health",
    "reply",
    "answering",
    "last",
];

/// The Response Topics that the owner allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReplyTopics {
    /// The topic filters of `mqtt.reply_topics`; `None` where the key is absent.
    allowed: Option<Vec<String>>,
    discovery_prefix: String,
    /// `mqtt.prefix`, below which other bitnetd devices may be.
    prefix: String,
}

/// Why a topic is reserved. Only a filter that names the level `at` without a wildcard allows it.
struct Reserved {
    at: usize,
    why: &'static str,
}

impl ReplyTopics {
    /// The topics that this configuration allows.
    pub fn new(prefix: &str, allowed: Option<&[String]>, discovery_prefix: &str) -> Self {
        ReplyTopics {
            allowed: allowed.map(<[String]>::to_vec),
            discovery_prefix: discovery_prefix.into(),
            prefix: prefix.into(),
        }
    }

    /// Every topic that is not reserved, as without a configuration.
    pub fn any(prefix: &str) -> Self {
        Self::new(prefix, None, HOME_ASSISTANT)
    }

    /// Checks a well-formed topic. The error completes "the Response Topic …".
    pub fn check(&self, topic: &str) -> Result<(), &'static str> {
        self.check_listed(topic)?;
        let is_named =
            |reserved: &Reserved| self.matching(topic).any(|filter| names_level(filter, reserved.at));
        match self.reserved(topic).iter().find(|reserved| !is_named(reserved)) {
            Some(reserved) => Err(reserved.why),
            None => Ok(()),
        }
    }

    /// Checks only that the owner's list, if there is one, contains the topic: for replies below the device's own
    /// topics.
    pub fn check_listed(&self, topic: &str) -> Result<(), &'static str> {
        if self.allowed.is_some() && self.matching(topic).next().is_none() {
            return Err("is not among those that mqtt.reply_topics allows");
        }
        Ok(())
    }

    fn matching<'a>(&'a self, topic: &'a str) -> impl Iterator<Item = &'a String> {
        self.allowed.iter().flatten().filter(move |filter| matches(filter, topic))
    }

    fn reserved(&self, topic: &str) -> Vec<Reserved> {
        let levels: Vec<&str> = topic.split('/').collect();
        let mut reserved = Vec::new();
        let mut reserve = |at, why| reserved.push(Reserved { at, why });
        if topic.starts_with('$') {
            reserve(0, "begins with $, which is the broker's");
        }
        for prefix in [HOME_ASSISTANT, &self.discovery_prefix] {
            if is_at_or_below(topic, prefix) {
                reserve(prefix.matches('/').count(), "is Home Assistant's (mqtt.discovery_prefix)");
            }
        }
        if let Some(at) = self.reserved_by_bitnetd(topic, &levels) {
            reserve(at, "is a topic of another bitnetd");
        }
        let commands =
            |level: &&str| COMMAND_LEVELS.iter().any(|command| level.eq_ignore_ascii_case(command));
        if let Some(at) = levels.iter().position(commands) {
            reserve(at, "looks like one that commands a device");
        }
        reserved
    }

    /// The level that makes it a topic of another bitnetd: every topic of another device below this prefix, and
    /// below any other prefix the topics that accept requests. Prefix and device are at least two levels.
    fn reserved_by_bitnetd(&self, topic: &str, levels: &[&str]) -> Option<usize> {
        let at = self.prefix.matches('/').count() + 2;
        if is_at_or_below(topic, &self.prefix)
            && levels.get(at).is_some_and(|level| DEVICE_TOPICS.contains(level))
        {
            return Some(at);
        }
        match levels {
            [_, _, .., "prompt" | "cancel"] => Some(levels.len() - 1),
            [_, _, .., "prompt", _] | [_, _, .., "threads", "set"] => Some(levels.len() - 2),
            _ => None,
        }
    }
}

fn is_at_or_below(topic: &str, prefix: &str) -> bool {
    topic.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether the filter has a name, and no wildcard, at this level.
fn names_level(filter: &str, at: usize) -> bool {
    filter.split('/').nth(at).is_some_and(|level| level != "+" && level != "#")
}

/// Whether a subscription with this filter receives what is published on this topic (MQTT 5, section 4.7).
fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = topic.split('/');
    for wanted in filter.split('/') {
        match (wanted, levels.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (wanted, Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowing(filters: &[&str]) -> ReplyTopics {
        let filters: Vec<String> = filters.iter().map(|filter| (*filter).to_owned()).collect();
        ReplyTopics::new("bitnetd", Some(&filters), "ha/discovery")
    }

    #[test]
    fn filters_match_as_a_broker_matches_subscriptions() {
        for (filter, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/b/c", false),
            ("a/+", "a/b", true),
            ("a/+", "a", false),
            ("a/+/c", "a/b/c", true),
            ("+", "a", true),
            ("+/+", "/a", true),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("a/#", "ab", false),
            ("#", "a/b", true),
            ("#", "$SYS/a", false),
            ("+/a", "$SYS/a", false),
            ("$SYS/#", "$SYS/a", true),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
    }

    #[test]
    fn topics_that_command_other_devices_are_refused() {
        for topic in [
            "homeassistant/device/x/config",
            "homeassistant",
            "ha/discovery/sensor/x/config",
            "$SYS/x",
            "$aws/things/x/shadow/update",
            "zigbee2mqtt/lock/set",
            "zigbee2mqtt/bridge/request/permit_join",
            "cmnd/plug/POWER",
            "shellies/relay/0/Command",
            "bitnetd/other/prompt",
            "bitnetd/other/prompt/guest",
            "bitnetd/other/cancel",
            "bitnetd/other/threads/set",
            "bitnetd/other/availability",
            "bitnetd/other/reply/1",
            "elsewhere/other/prompt",
            "a/b/c/prompt/guest",
            "elsewhere/other/cancel",
        ] {
            let text = ReplyTopics::new("bitnetd", None, "ha/discovery").check(topic);
            assert!(text.is_err(), "{topic}");
            assert!(
                allowing(&["#", "+/+/+", "+/+/+/+"]).check(topic).is_err(),
                "{topic}: a wildcard names nothing"
            );
            assert_eq!(allowing(&[topic]).check(topic), Ok(()), "{topic}");
        }
    }

    #[test]
    fn all_else_is_taken_where_the_owner_lists_nothing() {
        for topic in ["a", "/", " a b ", "home/answers", "homeassistants/x", "prompt/mine", "settings/x"] {
            assert_eq!(ReplyTopics::any("bitnetd").check(topic), Ok(()), "{topic}");
        }
    }

    #[test]
    fn a_list_allows_what_it_matches_and_nothing_else() {
        let some = allowing(&["home/+/answer", "app/#", "homeassistant/+/answer"]);
        for (topic, is_taken) in [
            ("home/hall/answer", true),
            ("app/a/b", true),
            ("homeassistant/x/answer", true),
            ("homeassistant/x/config", false),
            ("home/hall/light", false),
            ("other", false),
            ("app/light/set", false),
        ] {
            assert_eq!(some.check(topic).is_ok(), is_taken, "{topic}");
        }
        assert!(allowing(&[]).check("home/answers").is_err(), "an empty list allows none");
    }
}
