//! The answer to one prompt: what it may say, and what is sent of what was decoded.
//!
//! The model writes names as the prompt does; here they become the home's own. An answer that lacks a slot, or that the
//! model itself thinks unlikely, is replaced by one that says that nothing fits. Deliberately knows no model: the
//! logarithms of its probabilities are passed in.

use super::evidence::Evidence;
use super::grammar::{self, PromptParts, is_nothing};
use super::intents::{ALL, INTENTS, Intent, IntentSlot};
use super::mention::{Mention, MentionTarget};
use super::snapshot::Home;
use super::words::words;
use crate::external_text::JsonValue;
use std::ops::Range;
use std::sync::Arc;

/// The answer where nothing fits.
pub const NOTHING_FITS: &str = r#"{"intent":"HassNevermind"}"#;

/// The least sum of the logarithms of the probabilities that the model gives to an answer's tokens, those of copied
/// words not counted. Measured: `models/README.md`.
pub const THRESHOLD: f64 = -4.0;

/// Bytes of a prompt that may be a command; nothing fits a longer one.
const MAX_PROMPT_BYTES: usize = 1024;

/// A prompt with what of the home it mentions.
#[derive(Debug)]
pub struct IntentPrompt {
    home: Arc<Home>,
    prompt: String,
    mentions: Vec<Mention>,
    lark: String,
    /// Whether names are words of the prompt, since those of the home are unknown.
    is_any_name: bool,
    /// The same for floors.
    is_any_floor: bool,
    /// The least sum that counts as an answer.
    threshold: f64,
}

/// What may be answered to a prompt.
#[derive(Debug, Clone, Copy, Default)]
pub struct IntentScope<'s> {
    /// The home whose names an answer may have; where there is none, any words of the prompt may be a name.
    pub home: Option<&'s Arc<Home>>,
    /// Whether any words may be a floor, although there is a home.
    pub is_any_floor: bool,
    /// The intents of which an answer has to be one; any, or none that fits, where it is `None`.
    pub only: Option<&'s [&'s str]>,
}

/// What is sent of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The text to send.
    pub text: String,
    /// Whether something fits.
    pub fits: bool,
    /// The sum that was compared with [`THRESHOLD`].
    pub log_probability: f64,
}

/// An answer as the model writes it.
#[derive(Debug, serde::Deserialize)]
struct Decoded {
    intent: String,
    /// An object.
    slots: JsonValue,
}

impl IntentPrompt {
    /// What may be answered to `prompt` in this home.
    pub fn new(home: &Arc<Home>, prompt: &str) -> Self {
        let scope = IntentScope { home: Some(home), ..IntentScope::default() };
        IntentPrompt::scoped(prompt, &scope).expect("that nothing fits is always possible")
    }

    /// What may be answered to `prompt` in this scope; `None` where no intent of it is possible.
    pub fn scoped(prompt: &str, scope: &IntentScope<'_>) -> Option<Self> {
        let prompt = if prompt.len() > MAX_PROMPT_BYTES { "" } else { prompt };
        let home = scope.home.map_or_else(Arc::default, Arc::clone);
        let mentions = home.index().mentions(prompt);
        let is_any_name = scope.home.is_none();
        let is_any_floor = is_any_name || scope.is_any_floor;
        let parts = PromptParts { is_any_name, is_any_floor, ..parts(&home, prompt, &mentions) };
        let lark = grammar::lark(&parts, scope.only)?;
        let threshold = if scope.only.is_some() { f64::NEG_INFINITY } else { THRESHOLD };
        let prompt = prompt.to_owned();
        Some(IntentPrompt { home, prompt, mentions, lark, is_any_name, is_any_floor, threshold })
    }

    /// The version of the home whose names it mentions.
    pub fn home_version(&self) -> u64 {
        self.home.version()
    }

    /// The grammar of the answers, in llguidance's form of Lark.
    pub fn lark(&self) -> &str {
        &self.lark
    }

    /// What is sent where the model wrote `text`. `tokens` are its tokens: where each ends, in bytes of the text, and
    /// the logarithm of the probability that the model gives it without a grammar.
    pub fn decide(&self, text: &str, tokens: &[(usize, f64)]) -> Decision {
        let checked = serde_json::from_str(text).ok().and_then(|decoded| self.checked(text, decoded));
        let Some((answer, copied)) = checked else {
            return nothing(f64::NEG_INFINITY);
        };
        let log_probability = sum_outside(tokens, &copied);
        if log_probability < self.threshold {
            return nothing(log_probability);
        }
        Decision { text: answer, fits: true, log_probability }
    }

    /// The answer in the home's own names, and the places of the words that were copied; `None` where nothing fits.
    fn checked(&self, text: &str, decoded: Decoded) -> Option<(String, Vec<Range<usize>>)> {
        let intent = INTENTS.iter().find(|intent| intent.name == decoded.intent)?;
        let JsonValue::Object(pairs) = decoded.slots else { return None };
        let has = |key: &str| pairs.iter().any(|(name, _)| name == key);
        let is_repeated = (1..pairs.len()).any(|at| pairs[..at].iter().any(|(key, _)| *key == pairs[at].0));
        if is_nothing(intent.name) || is_repeated || !intent.is_complete(has) {
            return None;
        }
        let mut copied = Vec::new();
        let mut slots = Vec::new();
        for (key, value) in &pairs {
            let (value, is_copied) = self.slot(intent, key, value, &pairs)?;
            if is_copied {
                copied.push(value_place(text, key)?);
            }
            slots.push(format!("{}:{value}", JsonValue::Text(key.clone())));
        }
        let answer = format!("{{\"intent\":\"{}\",\"slots\":{{{}}}}}", intent.name, slots.join(","));
        Some((answer, copied))
    }

    /// The value of a slot as it is sent, as JSON, and whether it was copied from the prompt.
    fn slot(
        &self,
        intent: &Intent,
        key: &str,
        value: &JsonValue,
        all: &[(String, JsonValue)],
    ) -> Option<(String, bool)> {
        let slot = intent.slots.iter().find(|slot| slot.key() == key)?;
        let as_json = |text: &str| JsonValue::Text(text.to_owned()).to_string();
        match (slot, value) {
            (IntentSlot::Name(_), JsonValue::Text(text)) if self.is_any_name && text == ALL => {
                Some((as_json(text), false))
            }
            // It is no area and no floor.
            (IntentSlot::Area | IntentSlot::Floor, JsonValue::Text(text)) if text == ALL => None,
            (IntentSlot::Name(_) | IntentSlot::Area, JsonValue::Text(text)) if self.is_any_name => {
                Some((as_json(self.copied(text.trim())?), true))
            }
            (IntentSlot::Floor, JsonValue::Text(text)) if self.is_any_floor => {
                Some((as_json(self.copied(text.trim())?), true))
            }
            (IntentSlot::Name(domains), JsonValue::Text(text)) => {
                let area = all.iter().find(|(key, _)| key == "area").and_then(|(_, value)| value.as_text());
                Some((as_json(self.device(text, domains, area)?), true))
            }
            (IntentSlot::Area, JsonValue::Text(text)) => Some((as_json(self.area(text)?), true)),
            (IntentSlot::Floor, JsonValue::Text(text)) => Some((as_json(self.floor(text)?), true)),
            (IntentSlot::WordOrWords(_, words), JsonValue::Text(text))
                if matches!(text.as_str(), "on" | "off") || words.contains(&text.as_str()) =>
            {
                Some((as_json(text), false))
            }
            (IntentSlot::Words(_) | IntentSlot::WordOrWords(..), JsonValue::Text(text)) => {
                Some((as_json(self.copied(text.trim())?), true))
            }
            _ => Some((value.to_string(), false)),
        }
    }

    /// The device that the prompt calls `text`: one of these domains; in this area, if there is one.
    fn device(&self, text: &str, domains: &[&str], area: Option<&str>) -> Option<&str> {
        let devices = &self.home.names().devices;
        let called = self.called(text).filter_map(|target| match target {
            MentionTarget::Device(number) => devices.get(number),
            _ => None,
        });
        let area = area.and_then(|area| self.area(area));
        let fitting = called.filter(|device| domains.contains(&device.domain));
        let fitting: Vec<_> = fitting.collect();
        // The first of equals: `max_by_key` takes the last.
        let best = fitting.into_iter().rev().max_by_key(|device| {
            let own = device.area.as_deref().map(str::to_lowercase);
            (own.is_some() && own == area.map(str::to_lowercase), device.name.to_lowercase() == text)
        });
        best.map(|device| device.name.as_str())
    }

    fn area(&self, text: &str) -> Option<&str> {
        self.called(text).find_map(|target| match target {
            MentionTarget::Area(number) => Some(self.home.names().areas.get(number)?.name.as_str()),
            _ => None,
        })
    }

    fn floor(&self, text: &str) -> Option<&str> {
        self.called(text).find_map(|target| match target {
            MentionTarget::Floor(number) => Some(self.home.names().floors.get(number)?.name.as_str()),
            _ => None,
        })
    }

    /// What the prompt calls `text`.
    fn called(&self, text: &str) -> impl Iterator<Item = MentionTarget> {
        let mentions = self.mentions.iter();
        mentions
            .filter(move |mention| lower_text(&self.prompt, &mention.place) == text)
            .map(|mention| mention.target)
    }

    /// The words of the prompt that are `text` in lower case, as the prompt writes them.
    fn copied(&self, text: &str) -> Option<&str> {
        if text.is_empty() {
            return None;
        }
        self.prompt.char_indices().find_map(|(at, _)| {
            let rest = &self.prompt[at..];
            let mut wanted = text.chars();
            for (end, c) in rest.char_indices() {
                if wanted.as_str().is_empty() {
                    return Some(&rest[..end]);
                }
                if !c.to_lowercase().all(|lower| wanted.next() == Some(lower)) {
                    return None;
                }
            }
            wanted.as_str().is_empty().then_some(rest)
        })
    }
}

/// What of the home these mentions are, and what else `prompt` has.
fn parts(home: &Home, prompt: &str, mentions: &[Mention]) -> PromptParts {
    let is_device =
        |mention: &&Mention| mention.is_exact && matches!(mention.target, MentionTarget::Device(_));
    let devices: Vec<_> = mentions.iter().filter(is_device).map(|mention| mention.place.clone()).collect();
    let evidence = Evidence::new(prompt, &devices);
    let mut parts = PromptParts { words: lower_words(prompt), evidence, ..PromptParts::default() };
    for mention in mentions {
        let text = lower_text(prompt, &mention.place);
        match mention.target {
            MentionTarget::Device(number) => parts.names.push((text, home.names().devices[number].domain)),
            MentionTarget::Area(_) => parts.areas.push(text),
            MentionTarget::Floor(_) => parts.floors.push(text),
        }
    }
    parts
}

fn nothing(log_probability: f64) -> Decision {
    Decision { text: NOTHING_FITS.into(), fits: false, log_probability }
}

/// The sum over the tokens that are not wholly inside one of these places.
fn sum_outside(tokens: &[(usize, f64)], places: &[Range<usize>]) -> f64 {
    let mut begin = 0;
    let mut sum = 0.0;
    for (end, log_probability) in tokens {
        let is_inside = places.iter().any(|place| place.start < *end && begin < place.end);
        if !is_inside {
            sum += log_probability;
        }
        begin = *end;
    }
    sum
}

/// Where the text of a slot's value stands. No value contains quotation marks.
fn value_place(text: &str, key: &str) -> Option<Range<usize>> {
    let head = format!("\"{key}\":\"");
    let start = text.find(&head)? + head.len();
    Some(start..start + text[start..].find('"')?)
}

/// A name as the prompt writes it, in lower case, with single spaces between its words.
fn lower_text(prompt: &str, place: &Range<usize>) -> String {
    let separated = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '\\');
    let words: Vec<&str> = prompt[place.clone()].split(separated).filter(|word| !word.is_empty()).collect();
    words.join(" ").to_lowercase()
}

/// The words of the prompt in lower case, with what is between each and the next; `None` where JSON would escape it.
fn lower_words(prompt: &str) -> Vec<(String, Option<String>)> {
    let words = words(prompt);
    let is_escaped = |c: char| c.is_control() || matches!(c, '"' | '\\');
    let separator = |at: usize| {
        let between = &prompt[words[at].place.end..words.get(at + 1)?.place.start];
        (!between.is_empty() && !between.contains(is_escaped)).then(|| between.to_lowercase())
    };
    let lower = |at: usize| prompt[words[at].place.clone()].to_lowercase();
    (0..words.len()).map(|at| (lower(at), separator(at))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::names::{NameList, NamedDevice, NamedPlace};
    use super::*;

    fn home() -> Arc<Home> {
        let device = |domain, name: &str, area: Option<&str>, aliases: &[&str]| NamedDevice {
            domain,
            name: name.into(),
            area: area.map(Into::into),
            aliases: aliases.iter().map(|alias| (*alias).into()).collect(),
        };
        Arc::new(Home::new(
            NameList {
                devices: vec![
                    device("light", "Kitchen Light", Some("Kitchen"), &["Küchenlampe"]),
                    device("light", "Office ceiling", Some("Office"), &["Ceiling"]),
                    device("light", "Hall ceiling", Some("Hall"), &["Ceiling"]),
                    device("todo", "Groceries", None, &[]),
                    device("light", "A \"quoted\" lamp", None, &[]),
                ],
                floors: vec![NamedPlace { name: "Ground Floor".into(), aliases: vec!["Downstairs".into()] }],
                ..NameList::default()
            },
            1,
        ))
    }

    /// What is sent where the model wrote these slots, and is sure of it.
    fn sent(prompt: &str, intent: &str, slots: &str) -> String {
        let written = format!(r#"{{"intent":"{intent}","slots":{{{slots}}}}}"#);
        IntentPrompt::new(&home(), prompt).decide(&written, &[(written.len(), 0.0)]).text
    }

    #[test]
    fn names_are_sent_as_the_home_writes_them() {
        for (prompt, slots, expected) in [
            ("turn on the kitchen lights", r#""name":"kitchen lights""#, r#""name":"Kitchen Light""#),
            ("Küchenlampe an", r#""name":"küchenlampe""#, r#""name":"Kitchen Light""#),
            (
                "lights DOWNSTAIRS on",
                r#""domain":"light","floor":"downstairs""#,
                r#""domain":"light","floor":"Ground Floor""#,
            ),
            (
                "ceiling in the hall on",
                r#""name":"ceiling","area":"hall""#,
                r#""name":"Hall ceiling","area":"Hall""#,
            ),
            ("ceiling on", r#""name":"ceiling""#, r#""name":"Office ceiling""#),
            (r#"a "quoted" lamp on"#, r#""name":"a quoted lamp""#, r#""name":"A \"quoted\" lamp""#),
        ] {
            let expected = format!(r#"{{"intent":"HassTurnOn","slots":{{{expected}}}}}"#);
            assert_eq!(sent(prompt, "HassTurnOn", slots), expected);
        }
    }

    #[test]
    fn open_words_are_copied_as_the_prompt_writes_them() {
        assert_eq!(
            sent(
                "Add Oat Milk to my Groceries",
                "HassListAddItem",
                r#""item":"oat milk","name":"groceries""#
            ),
            r#"{"intent":"HassListAddItem","slots":{"item":"Oat Milk","name":"Groceries"}}"#
        );
        assert_eq!(
            sent("Pizza timer for 5 minutes", "HassStartTimer", r#""name":"pizza","minutes":5"#),
            r#"{"intent":"HassStartTimer","slots":{"name":"Pizza","minutes":5}}"#
        );
    }

    #[test]
    fn what_is_not_in_the_home_or_the_prompt_fits_nothing() {
        for (intent, slots) in [
            ("HassTurnOn", r#""name":"garage light""#),
            ("HassTurnOn", r#""name":"kitchen light""#),
            ("HassTurnOn", r#""name":"groceries""#),
            ("HassTurnOn", r#""area":"kitchen","area":"kitchen""#),
            ("HassTurnOn", r#""device_class":"blind""#),
            ("HassTurnOn", r#""item":"milk""#),
            ("HassTurnOn", ""),
            ("HassListAddItem", r#""item":"milk""#),
            ("HassShoppingListAddItem", r#""item":"butter""#),
            ("none", ""),
            ("HassExplode", ""),
        ] {
            assert_eq!(sent("add milk to the groceries", intent, slots), NOTHING_FITS, "{intent} {slots}");
        }
        let intent = IntentPrompt::new(&home(), "hello");
        for text in ["", "{", "[]", r#"{"intent":7}"#] {
            assert_eq!(intent.decide(text, &[]).text, NOTHING_FITS);
        }
    }

    #[test]
    fn an_answer_that_the_model_thinks_unlikely_fits_nothing() {
        let written = r#"{"intent":"HassTurnOn","slots":{"area":"kitchen"}}"#;
        let intent = IntentPrompt::new(&home(), "kitchen on");
        let place = value_place(written, "area").expect("there");
        // How unlikely the copied words are does not count.
        let tokens = |before, copied| [(place.start, before), (place.end, copied), (written.len(), 0.0)];
        assert!(intent.decide(written, &tokens(THRESHOLD, -50.0)).fits);
        assert!(!intent.decide(written, &tokens(THRESHOLD - 0.1, 0.0)).fits);
    }

    #[test]
    fn a_long_prompt_fits_nothing() {
        let prompt = format!("turn on the kitchen light {}", "please ".repeat(200));
        assert_eq!(sent(&prompt, "HassTurnOn", r#""name":"kitchen light""#), NOTHING_FITS);
    }

    #[test]
    fn where_no_names_are_known_they_are_words_of_the_prompt() {
        let sent = |prompt, slots: &str| {
            let written = format!(r#"{{"intent":"HassTurnOn","slots":{{{slots}}}}}"#);
            let intent = IntentPrompt::scoped(prompt, &IntentScope::default()).expect("any intent");
            intent.decide(&written, &[(written.len(), 0.0)]).text
        };
        let expected = r#"{"intent":"HassTurnOn","slots":{"area":"Attic","domain":"light"}}"#;
        assert_eq!(sent("Lights in the Attic on", r#""area":"attic","domain":"light""#), expected);
        assert_eq!(sent("lights on", r#""area":"attic","domain":"light""#), NOTHING_FITS);
        assert_eq!(sent("all lights on", r#""area":"all","domain":"light""#), NOTHING_FITS);
        let expected = r#"{"intent":"HassTurnOn","slots":{"name":"all","domain":"light"}}"#;
        assert_eq!(sent("every light on", r#""name":"all","domain":"light""#), expected);
    }

    #[test]
    fn an_intent_that_has_to_be_answered_may_be_unlikely() {
        let scope = IntentScope { only: Some(&["HassTurnOn"]), ..IntentScope::default() };
        let intent = IntentPrompt::scoped("hello", &scope).expect("a name");
        let written = r#"{"intent":"HassTurnOn","slots":{"name":"hello"}}"#;
        assert_eq!(intent.decide(written, &[(written.len(), -90.0)]).text, written);
        let scope = IntentScope { only: Some(&["HassSetPosition"]), ..IntentScope::default() };
        assert!(IntentPrompt::scoped("hello", &scope).is_none(), "there is no number");
    }
}
