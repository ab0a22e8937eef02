//! What a prompt must contain so that an answer may have certain values: a colour only where it is named, a number only
//! where there is one, the domain `light` only where lights are spoken of.
//!
//! A small model fills slots from its training where the prompt says nothing. Deliberately knows English only, as the
//! built-in model does; names of the home are found elsewhere, in any language.

use super::words::words;
use std::collections::HashSet;
use std::ops::Range;

/// Words that stand for numbers, or for the ends of a scale.
#[rustfmt::skip] // words, not a column of them
const NUMBERS: &[&str] = &[
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty", "thirty", "forty", "fifty",
    "sixty", "seventy", "eighty", "ninety", "hundred", "half", "quarter", "max", "maximum", "highest", "full",
    "brightest", "min", "minimum", "lowest", "dimmest", "warm", "cold", "cool", "daylight", "candle", "candlelight",
];

/// Stands for "who is", with any words between: "who wrote it" asks for nobody in the home. No word has a space.
const WHO_IS: &str = "who is";

/// The intent that would set all lights where nothing says which.
pub const LIGHT_SET: &str = "HassLightSet";

/// Domains and classes of devices, with the words for them.
#[rustfmt::skip] // a table is read by its columns
const KINDS: &[(&str, &[&str])] = &[
    ("light",  &["light", "lighting", "lamp", "bulb", "illuminate"]),
    ("fan",    &["fan", "ventilator", "ventilation"]),
    ("cover",  &["cover", "window", "blind", "curtain", "shade", "shutter", "awning", "gate", "garage", "door", "drape"]),
    ("lock",   &["lock", "locked", "unlock", "unlocked", "door"]),
    ("switch", &["switch", "switche", "plug", "outlet", "socket"]),
    ("person", &[WHO_IS, "where", "anyone", "anybody", "everyone", "everybody", "someone", "somebody", "people", "person"]),
    ("all",    &["all", "every", "everything", "everywhere", "each"]),
    ("floor",  &["floor", "storey", "story", "level", "upstair", "downstair", "basement", "cellar", "attic", "loft"]),
    ("closing", &["closing", "shutting"]),
    ("closed", &["closed", "close", "shut"]),
    ("open",   &["open", "opened"]),
    ("locked", &["locked", "lock"]),
    ("unlocked", &["unlocked", "unlock"]),
];

/// By stems, as words are compared: without a final `s`. Intents that need no slot, or none that says what is meant, with words of which one must be there; others need none.
#[rustfmt::skip] // a table is read by its columns
const INTENTS: &[(&str, &[&str])] = &[
    ("HassLawnMowerStartMowing", &["mow", "mower", "mowing", "mowbot", "lawn", "lawnmower", "grass"]),
    ("HassLawnMowerDock", &["mow", "mower", "mowing", "mowbot", "lawn", "lawnmower", "base", "dock", "station", "home"]),
    ("HassVacuumStart", &["vacuum", "vacuuming", "hoover", "robot", "clean", "cleaning", "rover", "roomba"]),
    ("HassVacuumReturnToBase", &["vacuum", "hoover", "robot", "base", "dock", "station", "rover", "roomba", "home"]),
    ("HassVacuumCleanArea", &["vacuum", "hoover", "robot", "clean", "cleaning", "sweep"]),
    ("HassCancelAllTimers", &["timer"]),
    ("HassCancelTimer", &["timer"]),
    ("HassPauseTimer", &["timer"]),
    ("HassUnpauseTimer", &["timer"]),
    ("HassTimerStatus", &["timer", "left", "remaining"]),
    ("HassGetCurrentTime", &["time", "clock"]),
    ("HassGetCurrentDate", &["date", "day", "today"]),
    ("HassGetWeather", &["weather", "forecast"]),
    ("HassMediaPrevious", &["previous", "back", "last", "replay", "rewind", "before"]),
    (LIGHT_SET, &["light", "lighting", "lamp", "bulb", "illuminate", "brightnes", "bright", "brighter", "brightest", "brighten",
        "dim", "dimmer", "dimmest", "dimmed", "darker", "color", "colour"]),
    ("HassClimateGetTemperature", &["temperature", "temp", "warm", "hot", "cold", "degree", "cool", "thermostat"]),
];

/// The words of a prompt, apart from the names of devices in it.
#[derive(Debug, Default)]
pub struct Evidence {
    stems: HashSet<String>,
    has_number: bool,
}

impl Evidence {
    /// The words of `prompt`; those in `devices` are names of devices, whose words say nothing else.
    pub fn new(prompt: &str, devices: &[Range<usize>]) -> Self {
        let is_name = |place: &Range<usize>| {
            devices.iter().any(|name| name.start <= place.start && place.end <= name.end)
        };
        let words = words(prompt).into_iter();
        let mut stems: HashSet<String> =
            words.filter(|word| !is_name(&word.place)).map(|word| word.stem).collect();
        if asks_who_is(prompt) {
            stems.insert(WHO_IS.into());
        }
        let has_digit = stems.iter().any(|stem| stem.contains(|c: char| c.is_numeric()));
        let has_number = has_digit || NUMBERS.iter().any(|number| stems.contains(*number));
        Evidence { stems, has_number }
    }

    /// Whether a number may be in the answer.
    pub fn has_number(&self) -> bool {
        self.has_number
    }

    /// Whether the prompt has this value, or one of the words for it.
    pub fn has(&self, value: &str) -> bool {
        let words = KINDS.iter().find(|(kind, _)| *kind == value);
        words.map_or(&[value][..], |(_, words)| words).iter().any(|word| self.stems.contains(*word))
    }

    /// Whether the prompt has what this intent needs besides its slots.
    pub fn allows(&self, intent: &str) -> bool {
        let words = INTENTS.iter().find(|(name, _)| *name == intent);
        words.is_none_or(|(_, words)| words.iter().any(|word| self.stems.contains(*word)))
    }
}

fn asks_who_is(prompt: &str) -> bool {
    let prompt = prompt.to_lowercase().replace('’', "'");
    let words: Vec<&str> = prompt.split(|c: char| !c.is_alphanumeric() && c != '\'').collect();
    let has_one_of = |wanted: &[&str]| words.iter().any(|word| wanted.contains(word));
    has_one_of(&["who's", "whos"]) || (has_one_of(&["who"]) && has_one_of(&["is", "are", "was", "were"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_needs_a_word_for_it() {
        let evidence = Evidence::new("Shut the blinds, and the lamps at thirty percent", &[]);
        assert!(
            evidence.has("light") && evidence.has("cover") && evidence.has("closed") && evidence.has("blind")
        );
        assert!(!evidence.has("fan") && !evidence.has("red") && !evidence.has("open"));
        assert!(evidence.has_number() && !Evidence::new("hello", &[]).has_number());
        assert!(Evidence::new("to 5%", &[]).has_number());
    }

    #[test]
    fn a_person_is_asked_for_by_who_is() {
        for prompt in ["who is at home", "Who’s at work?", "please tell who are in the gym", "where is Anna"]
        {
            assert!(Evidence::new(prompt, &[]).has("person"), "{prompt}");
        }
        for prompt in ["who wrote hamlet", "turn on the light"] {
            assert!(!Evidence::new(prompt, &[]).has("person"), "{prompt}");
        }
    }

    #[test]
    fn the_name_of_a_device_says_nothing_else() {
        let prompt = "bedroom lamp 2 on";
        let evidence = Evidence::new(prompt, std::slice::from_ref(&(0..14)));
        assert!(!evidence.has("light") && !evidence.has_number());
        assert!(Evidence::new(prompt, &[]).has("light"));
    }

    #[test]
    fn an_intent_without_slots_needs_a_word_for_it() {
        assert!(Evidence::new("stop the timer", &[]).allows("HassCancelTimer"));
        assert!(!Evidence::new("wow", &[]).allows("HassLawnMowerStartMowing"));
        assert!(Evidence::new("wow", &[]).allows("HassTurnOn"));
    }
}
