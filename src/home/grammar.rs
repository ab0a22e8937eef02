//! The grammar of the answers that a prompt can have in this home, in llguidance's form of Lark.
//!
//! Names are written as the prompt writes them, in lower case, since that is what the model was trained to copy; only
//! names that occur in the prompt are in it, so its size does not depend on the size of the home. An answer is one
//! terminal: all of it is a regular language. Deliberately knows nothing of tokens, and not what the names stand for.

use super::evidence::{Evidence, LIGHT_SET};
use super::intents::{ALL, INTENTS, Intent, IntentSlot, NEVERMIND, NONE};
use std::collections::HashMap;
use std::fmt::Write;

/// Slots of an intent up to which their orders are written out.
const MAX_ORDERED: usize = 4;
/// Words of a prompt that can be copied: more are no command.
const MAX_WORDS: usize = 64;

/// What the prompt contains that an answer may repeat.
#[derive(Debug, Default)]
pub struct PromptParts {
    /// Devices: the text in lower case, and the domain.
    pub names: Vec<(String, &'static str)>,
    pub areas: Vec<String>,
    pub floors: Vec<String>,
    /// The words of the prompt in lower case, with what is between each and the next; `None` where JSON would escape it.
    pub words: Vec<(String, Option<String>)>,
    /// What may be answered besides.
    pub evidence: Evidence,
    /// Whether the names of the home are unknown, so that any words of the prompt may be one.
    pub is_any_name: bool,
    /// The same for floors.
    pub is_any_floor: bool,
}

/// The grammar of the answers that have one of the `only` intents, or any; `None` where none of them is possible.
pub fn lark(parts: &PromptParts, only: Option<&[&str]>) -> Option<String> {
    let mut grammar = Grammar { parts, terminals: HashMap::new(), text: String::new() };
    let allowed = INTENTS.iter().filter(|intent| only.is_none_or(|only| only.contains(&intent.name)));
    let intents: Vec<String> = allowed.filter_map(|intent| grammar.intent(intent)).collect();
    let text = format!(
        "start: ANSWER\nANSWER: {} ({}) {}\n{}",
        quoted("{\"intent\":\""),
        intents.join(" | "),
        quoted("}}"),
        grammar.text
    );
    (!intents.is_empty()).then_some(text)
}

struct Grammar<'s> {
    parts: &'s PromptParts,
    /// Names of terminals by their definition.
    terminals: HashMap<String, String>,
    text: String,
}

impl Grammar<'_> {
    /// The terminal of an intent with its slots; `None` where the prompt has not what it requires.
    fn intent(&mut self, intent: &Intent) -> Option<String> {
        let head = quoted(&format!("{}\",\"slots\":{{", intent.name));
        let mut pairs = Vec::new();
        let (mut has_name, mut has_place) = (false, false);
        for slot in intent.slots {
            match self.pair(*slot) {
                Some(pair) => {
                    pairs.push(pair);
                    has_name |= slot.key() == "name";
                    has_place |= matches!(slot.key(), "area" | "floor");
                }
                None if intent.needs.contains(&slot.key()) => return None,
                None => {}
            }
        }
        let says_which = has_name || (has_place && intent.name == LIGHT_SET);
        if !says_which && !self.parts.evidence.allows(intent.name) {
            return None;
        }
        if pairs.is_empty() {
            let is_complete = intent.needs_one_of.is_empty();
            return is_complete.then(|| self.terminal(head));
        }
        let is_optional = intent.needs.is_empty() && intent.needs_one_of.is_empty();
        let count = if is_optional { "?" } else { "" };
        let slots = self.slots(&pairs);
        Some(self.terminal(format!("{head} ({slots}){count}")))
    }

    /// Slots in any order, each once at most. With more than [`MAX_ORDERED`] they may be repeated, which is found when
    /// the answer is read.
    fn slots(&mut self, pairs: &[String]) -> String {
        if pairs.len() > MAX_ORDERED {
            let pair = self.terminal(pairs.join(" | "));
            return self.terminal(format!("{pair} (\",\" {pair}){{0,5}}"));
        }
        let mut orders = Vec::new();
        for (at, pair) in pairs.iter().enumerate() {
            let others = [&pairs[..at], &pairs[at + 1..]].concat();
            orders.push(match others.as_slice() {
                [] => pair.clone(),
                others => format!("{pair} (\",\" {})?", self.slots(others)),
            });
        }
        self.terminal(orders.join(" | "))
    }

    /// The terminal of a slot with its value; `None` where the prompt has no value for it.
    fn pair(&mut self, slot: IntentSlot) -> Option<String> {
        let key = slot.key();
        let is_word =
            |value: String| format!("{} ({value}) {}", quoted(&format!("\"{key}\":\"")), quoted("\""));
        let is_number = |value: &str| format!("{} {value}", quoted(&format!("\"{key}\":")));
        /// Up to five digits, one decimal.
        const NUMBER: &str = r"/-?[0-9]{1,5}(\.[0-9])?/";
        let definition = match slot {
            IntentSlot::Name(_) if self.parts.is_any_name => {
                let all = self.parts.evidence.has(ALL).then(|| quoted(ALL));
                is_word(all.into_iter().chain(self.words()).reduce(|one, other| format!("{one} | {other}"))?)
            }
            IntentSlot::Area if self.parts.is_any_name => is_word(self.words()?),
            // Any words may be a floor only where the sentence speaks of one: else "1969" could be the floor of a lamp.
            IntentSlot::Floor if self.parts.is_any_floor && !self.parts.evidence.has("floor") => return None,
            IntentSlot::Floor if self.parts.is_any_floor => is_word(self.words()?),
            IntentSlot::Name(domains) => {
                let fitting = self.parts.names.iter().filter(|(_, domain)| domains.contains(domain));
                is_word(alternatives(fitting.map(|(name, _)| name.as_str()))?)
            }
            IntentSlot::Area => is_word(alternatives(self.parts.areas.iter().map(String::as_str))?),
            IntentSlot::Floor => is_word(alternatives(self.parts.floors.iter().map(String::as_str))?),
            IntentSlot::Words(_) => is_word(self.words()?),
            IntentSlot::Number(_) if !self.parts.evidence.has_number() => return None,
            IntentSlot::Number(_) => is_number(NUMBER),
            IntentSlot::Evident(_, words) => is_word(alternatives(self.evident(words))?),
            IntentSlot::OneOf(_, words) => is_word(alternatives(words.iter().copied())?),
            IntentSlot::WordOrWords(_, words) => {
                let known = alternatives(self.evident(words).chain(["on", "off"]));
                let all = known.into_iter().chain(self.words());
                is_word(all.collect::<Vec<_>>().join(" | "))
            }
            IntentSlot::WordOrNumber(_, words) if !self.parts.evidence.has_number() => {
                is_word(alternatives(words.iter().copied())?)
            }
            IntentSlot::WordOrNumber(_, words) => {
                format!("{} | {}", is_word(alternatives(words.iter().copied())?), is_number(NUMBER))
            }
        };
        Some(self.terminal(definition))
    }

    /// Those of these words for which the prompt has a word.
    fn evident(&self, words: &'static [&'static str]) -> impl Iterator<Item = &'static str> {
        words.iter().copied().filter(|word| self.parts.evidence.has(word))
    }

    /// Words of the prompt that stand in a row.
    fn words(&mut self) -> Option<String> {
        // From the last word on, so that each refers to those after it.
        let (mut starts, mut next) = (Vec::new(), None);
        for (word, separator) in self.parts.words.iter().take(MAX_WORDS).rev() {
            let rest: Option<(&String, String)> = separator.as_ref().zip(next);
            let definition = match rest {
                Some((separator, next)) => format!("{} ({} {next})?", quoted(word), quoted(separator)),
                None => quoted(word),
            };
            let terminal = self.terminal(definition);
            next = Some(terminal.clone());
            starts.push(terminal);
        }
        starts.sort();
        starts.dedup();
        (!starts.is_empty()).then(|| self.terminal(starts.join(" | ")))
    }

    /// The name of the terminal with this definition, which is added where there is none.
    fn terminal(&mut self, definition: String) -> String {
        if let Some(name) = self.terminals.get(&definition) {
            return name.clone();
        }
        let name = format!("T{}", self.terminals.len());
        writeln!(self.text, "{name}: {definition}").expect("a string takes all");
        self.terminals.insert(definition, name.clone());
        name
    }
}

/// One of these texts; `None` where there is none.
fn alternatives<'t>(texts: impl Iterator<Item = &'t str>) -> Option<String> {
    let mut texts: Vec<String> = texts.map(quoted).collect();
    texts.sort();
    texts.dedup();
    (!texts.is_empty()).then(|| texts.join(" | "))
}

/// A text as a literal of the grammar.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a text is JSON")
}

/// Whether the intent is none that does anything.
pub fn is_nothing(intent: &str) -> bool {
    intent == NONE || intent == NEVERMIND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_names_there_is_no_slot_for_them() {
        let empty = lark(&PromptParts::default(), None).expect("that nothing fits");
        assert!(!empty.contains("\\\"name\\\"") && !empty.contains("\\\"area\\\""), "{empty}");
        assert!(!empty.contains("HassCancelAllTimers") && !empty.contains("HassListAddItem"), "{empty}");
        assert!(empty.contains("none") && empty.contains("HassMediaPause"), "{empty}");
        let parts = PromptParts {
            names: vec![("wall lamp".into(), "light")],
            areas: vec!["office".into()],
            floors: vec![],
            words: vec![("turn".into(), Some(" ".into())), ("on".into(), None)],
            evidence: Evidence::new("turn on the wall lamp in the office", std::slice::from_ref(&(12..21))),
            ..PromptParts::default()
        };
        let full = lark(&parts, None).expect("an intent");
        assert!(full.contains("\"wall lamp\"") && full.contains("\"office\""), "{full}");
        assert!(full.lines().all(|line| line.len() < 2000), "{full}");
    }

    #[test]
    fn lights_are_set_where_a_light_or_a_place_is_spoken_of() {
        let lark_of = |prompt: &str, areas: &[&str]| {
            let areas = areas.iter().map(|area| (*area).to_owned()).collect();
            let parts = PromptParts { areas, evidence: Evidence::new(prompt, &[]), ..PromptParts::default() };
            lark(&parts, None).expect("that nothing fits")
        };
        for (prompt, areas, is_possible) in [
            ("what happened in 1969", &[][..], false),
            ("set the brightness to 50", &[], true),
            ("dim the lights to 10 percent", &[], true),
            ("kitchen 50 percent", &["kitchen"], true),
        ] {
            assert_eq!(lark_of(prompt, areas).contains("HassLightSet"), is_possible, "{prompt}");
        }
    }

    #[test]
    fn a_floor_of_any_words_needs_a_word_for_one() {
        let has_floor = |prompt: &str| {
            let words = vec![("x".to_owned(), None)];
            let evidence = Evidence::new(prompt, &[]);
            let parts = PromptParts { words, evidence, is_any_floor: true, ..PromptParts::default() };
            lark(&parts, None).expect("that nothing fits").contains("\\\"floor\\\"")
        };
        assert!(has_floor("turn on the lights upstairs") && has_floor("first floor lights on"));
        assert!(!has_floor("what happened in 1969"));
    }

    #[test]
    fn where_no_names_are_known_any_words_may_be_one() {
        let parts = PromptParts {
            words: vec![("wall".into(), Some(" ".into())), ("lamp".into(), None)],
            evidence: Evidence::new("wall lamp", &[]),
            is_any_name: true,
            ..PromptParts::default()
        };
        let any = lark(&parts, None).expect("an intent");
        assert!(any.contains("\\\"name\\\"") && any.contains("\\\"area\\\""), "{any}");
        assert!(!any.contains("\"all\""), "{any}");
        let only = lark(&parts, Some(&["HassTurnOn"])).expect("one intent");
        assert!(only.contains("HassTurnOn") && !only.contains("HassTurnOff"), "{only}");
        assert_eq!(lark(&parts, Some(&["HassSetPosition"])), None, "it needs a number");
    }
}
