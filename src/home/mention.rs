//! Which names of the home occur in a prompt.
//!
//! A name occurs where all its words stand in a row, whatever their case and a final `s`; a name in a script without
//! spaces occurs wherever its characters do. Deliberately knows no intent: what a name may be used for is decided
//! elsewhere.

use super::names::{NameList, NamedPlace};
use super::words::{is_unspaced, words};
use std::ops::Range;

/// What a name stands for: its number in the list of devices, areas or floors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MentionTarget {
    Device(usize),
    Area(usize),
    Floor(usize),
}

/// A name that occurs in a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mention {
    /// Bytes of the prompt.
    pub place: Range<usize>,
    pub target: MentionTarget,
    /// Whether it is written exactly so, but for case: not "lamps" for "lamp".
    pub is_exact: bool,
}

/// The words of all names of a home. A list, since its memory has to be small for a name of many short words too.
#[derive(Debug, Default)]
pub struct MentionIndex {
    /// In the order of their first words.
    names: Vec<IndexedName>,
    unspaced: Vec<(String, MentionTarget)>,
}

#[derive(Debug)]
struct IndexedName {
    /// The words as they are compared, each with a space before the next.
    words: Box<str>,
    /// The whole name in lower case.
    name: Box<str>,
    target: MentionTarget,
}

impl MentionIndex {
    pub fn new(names: &NameList) -> Self {
        let mut index = MentionIndex::default();
        for (number, device) in names.devices.iter().enumerate() {
            let all = device.aliases.iter().chain([&device.name]);
            all.for_each(|name| index.add(name, MentionTarget::Device(number)));
        }
        let mut add_places = |places: &[NamedPlace], target: fn(usize) -> MentionTarget| {
            for (number, place) in places.iter().enumerate() {
                place.aliases.iter().chain([&place.name]).for_each(|name| index.add(name, target(number)));
            }
        };
        add_places(&names.areas, MentionTarget::Area);
        add_places(&names.floors, MentionTarget::Floor);
        index.names.sort_by(|one, other| one.first_word().cmp(other.first_word()));
        index.names.shrink_to_fit();
        index
    }

    fn add(&mut self, name: &str, target: MentionTarget) {
        if is_unspaced(name) {
            return self.unspaced.push((name.to_lowercase(), target));
        }
        let stems: Vec<String> = words(name).into_iter().map(|word| word.stem).collect();
        if !stems.is_empty() {
            let (words, name) = (stems.join(" ").into(), name.to_lowercase().into());
            self.names.push(IndexedName { words, name, target });
        }
    }

    /// The names that begin with this word.
    fn beginning_with(&self, word: &str) -> &[IndexedName] {
        let start = self.names.partition_point(|name| name.first_word() < word);
        let length = self.names[start..].partition_point(|name| name.first_word() == word);
        &self.names[start..start + length]
    }

    /// The names that occur in `prompt`, in the order of their places. A name inside that of a device is left
    /// out, if that is written exactly: the device "lamp" and the area "office" in "office lamp".
    pub fn mentions(&self, prompt: &str) -> Vec<Mention> {
        let found = words(prompt);
        let mut mentions = Vec::new();
        for (at, word) in found.iter().enumerate() {
            for name in self.beginning_with(&word.stem) {
                let end = at + name.words.split(' ').count();
                let Some(these) = found.get(at..end) else { continue };
                if these.iter().zip(name.words.split(' ')).all(|(word, wanted)| word.stem == wanted) {
                    let place = word.place.start..found[end - 1].place.end;
                    let is_exact = prompt[place.clone()].to_lowercase() == *name.name;
                    mentions.push(Mention { place, target: name.target, is_exact });
                }
            }
        }
        self.find_unspaced(prompt, &mut mentions);
        mentions.sort_by_key(|mention| {
            (mention.place.start, mention.place.end, mention.target, !mention.is_exact)
        });
        mentions.dedup_by(|other, kept| other.place == kept.place && other.target == kept.target);
        without_inner_names(mentions)
    }

    fn find_unspaced(&self, prompt: &str, mentions: &mut Vec<Mention>) {
        // Only where lower case changes no length do places in one text hold for the other.
        let lower = prompt.to_lowercase();
        if lower.len() != prompt.len() || !is_unspaced(prompt) {
            return;
        }
        for (name, target) in &self.unspaced {
            let found = lower.match_indices(name.as_str());
            let places = found.map(|(at, name)| at..at + name.len());
            let sound = places.filter(|place| prompt.get(place.clone()).is_some());
            mentions.extend(sound.map(|place| Mention { place, target: *target, is_exact: true }));
        }
    }
}

impl IndexedName {
    fn first_word(&self) -> &str {
        self.words.split(' ').next().unwrap_or_default()
    }
}

fn without_inner_names(mentions: Vec<Mention>) -> Vec<Mention> {
    let is_device = |mention: &Mention| matches!(mention.target, MentionTarget::Device(_));
    let is_inside = |inner: &Range<usize>, outer: &Range<usize>| {
        inner != outer && outer.start <= inner.start && inner.end <= outer.end
    };
    let is_kept = |mention: &Mention| {
        let mut devices = mentions.iter().filter(|other| is_device(other));
        // "lamps" may be all lamps, but "office lamp" is the one of that name.
        !devices
            .any(|other| is_inside(&mention.place, &other.place) && (other.is_exact || is_device(mention)))
    };
    mentions.iter().filter(|mention| is_kept(mention)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::super::names::NamedDevice;
    use super::*;

    fn home() -> MentionIndex {
        let device = |name: &str, aliases: &[&str]| NamedDevice {
            domain: "light",
            name: name.into(),
            area: None,
            aliases: aliases.iter().map(|alias| (*alias).into()).collect(),
        };
        let area = |name: &str| NamedPlace { name: name.into(), aliases: vec![] };
        MentionIndex::new(&NameList {
            devices: vec![device("Wall lamp", &["Wandlampe", "壁灯"]), device("Lamp", &[])],
            areas: vec![area("Kitchen"), area("Wall")],
            floors: vec![area("Ground floor")],
        })
    }

    fn mentions(prompt: &str) -> Vec<(String, MentionTarget)> {
        let found = home().mentions(prompt);
        found.into_iter().map(|mention| (prompt[mention.place].to_owned(), mention.target)).collect()
    }

    #[test]
    fn names_occur_as_whole_words_whatever_their_case() {
        assert_eq!(
            mentions("Turn on the WALL lamps, in the kitchen"),
            [
                ("WALL".into(), MentionTarget::Area(1)),
                ("WALL lamps".into(), MentionTarget::Device(0)),
                ("kitchen".into(), MentionTarget::Area(0))
            ]
        );
        assert_eq!(mentions("turn on the wall lamp"), [("wall lamp".into(), MentionTarget::Device(0))]);
        assert_eq!(mentions("lamplight in kitchenette"), []);
        assert_eq!(mentions("the lamp"), [("lamp".into(), MentionTarget::Device(1))]);
        assert_eq!(mentions("ground"), []);
        assert_eq!(mentions("Wandlampe an"), [("Wandlampe".into(), MentionTarget::Device(0))]);
    }

    #[test]
    fn names_without_spaces_occur_anywhere() {
        assert_eq!(mentions("打开壁灯吧"), [("壁灯".into(), MentionTarget::Device(0))]);
    }
}
