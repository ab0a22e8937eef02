//! The list of Home Assistant's intents that answers may have, with their slots and the values of those.
//!
//! The list in `models/README.md` is the same. Deliberately knows nothing of a home: slots for names say only which
//! domains they take.

/// An intent.
#[derive(Debug)]
pub struct Intent {
    pub name: &'static str,
    pub slots: &'static [IntentSlot],
    /// Slots of which at least one must be there; none is required where it is empty.
    pub needs_one_of: &'static [&'static str],
    /// Slots that must be there.
    pub needs: &'static [&'static str],
}

/// A slot: its key, and what values it takes.
#[derive(Debug, Clone, Copy)]
pub enum IntentSlot {
    /// `name`: a device of one of these domains.
    Name(&'static [&'static str]),
    /// `area`: an area of the home.
    Area,
    /// `floor`: a floor of the home.
    Floor,
    /// Words of the prompt.
    Words(&'static str),
    /// A number.
    Number(&'static str),
    /// One of these words, if the prompt has a word for it.
    Evident(&'static str, &'static [&'static str]),
    /// One of these words.
    OneOf(&'static str, &'static [&'static str]),
    /// `on`, `off`, one of these words, if the prompt has a word for it, or words of the prompt.
    WordOrWords(&'static str, &'static [&'static str]),
    /// One of these words, or a number.
    WordOrNumber(&'static str, &'static [&'static str]),
}

impl IntentSlot {
    /// Its key in the answer.
    pub fn key(self) -> &'static str {
        match self {
            IntentSlot::Name(_) => "name",
            IntentSlot::Area => "area",
            IntentSlot::Floor => "floor",
            IntentSlot::Words(key) | IntentSlot::Number(key) => key,
            IntentSlot::Evident(key, _)
            | IntentSlot::OneOf(key, _)
            | IntentSlot::WordOrWords(key, _)
            | IntentSlot::WordOrNumber(key, _) => key,
        }
    }
}

/// Whether an answer is an intent that Home Assistant can execute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntentCheck {
    /// No command: none of the list, or one that says that nothing fits.
    NoCommand,
    /// A slot that it needs is missing.
    Incomplete,
    /// It has all slots that it needs.
    Complete,
}

/// Checks an intent; `has` says whether it has a slot.
pub fn check_intent(name: &str, has: impl Fn(&str) -> bool) -> IntentCheck {
    match INTENTS.iter().find(|intent| intent.name == name) {
        None => IntentCheck::NoCommand,
        Some(intent) if intent.name == NONE || intent.name == NEVERMIND => IntentCheck::NoCommand,
        Some(intent) if intent.is_complete(has) => IntentCheck::Complete,
        Some(_) => IntentCheck::Incomplete,
    }
}

/// The intent of a sentence that is no command, as the built-in model gives it.
pub const NONE: &str = "none";
/// The intent of "never mind", and of sentences to which nothing fits.
pub const NEVERMIND: &str = "HassNevermind";

/// The name that stands for all devices of a domain, as Home Assistant knows it.
pub const ALL: &str = "all";

const SWITCHED: IntentSlot = IntentSlot::Name(&[
    "button",
    "climate",
    "cover",
    "fan",
    "humidifier",
    "input_boolean",
    "input_button",
    "lawn_mower",
    "light",
    "lock",
    "media_player",
    "scene",
    "script",
    "siren",
    "switch",
    "vacuum",
    "valve",
    "water_heater",
]);
const ANY: IntentSlot = IntentSlot::Name(super::names::DOMAINS);
const STATED: IntentSlot =
    IntentSlot::Evident("domain", &["cover", "fan", "light", "lock", "person", "switch"]);
const DOMAIN: IntentSlot = IntentSlot::Evident("domain", &["cover", "fan", "light"]);
const IS_COVER: IntentSlot = IntentSlot::OneOf("domain", &["cover"]);
const IS_LIGHT: IntentSlot = IntentSlot::OneOf("domain", &["light"]);
const DEVICE_CLASS: IntentSlot = IntentSlot::Evident(
    "device_class",
    &["awning", "blind", "curtain", "door", "garage", "gate", "shade", "shutter", "window"],
);
const STATE: IntentSlot =
    IntentSlot::WordOrWords("state", &["open", "closed", "opening", "closing", "locked", "unlocked"]);
const COLOR: IntentSlot = IntentSlot::Evident(
    "color",
    &["white", "black", "red", "orange", "yellow", "green", "blue", "purple", "brown", "pink", "turquoise"],
);
const FAN_MODE: IntentSlot = IntentSlot::OneOf(
    "fan_mode",
    &["auto", "on", "off", "low", "medium", "high", "top", "middle", "focus", "diffuse"],
);
const MEDIA_CLASS: IntentSlot = IntentSlot::OneOf(
    "media_class",
    &["artist", "album", "track", "playlist", "podcast", "movie", "tv_show"],
);
const MEDIA: IntentSlot = IntentSlot::Name(&["media_player"]);
const CLIMATE: IntentSlot = IntentSlot::Name(&["climate", "water_heater"]);
const TODO: IntentSlot = IntentSlot::Name(&["todo"]);
const VACUUM: IntentSlot = IntentSlot::Name(&["vacuum"]);
const MOWER: IntentSlot = IntentSlot::Name(&["lawn_mower"]);
const HOURS: IntentSlot = IntentSlot::Number("hours");
const MINUTES: IntentSlot = IntentSlot::Number("minutes");
const SECONDS: IntentSlot = IntentSlot::Number("seconds");
const START_HOURS: IntentSlot = IntentSlot::Number("start_hours");
const START_MINUTES: IntentSlot = IntentSlot::Number("start_minutes");
const START_SECONDS: IntentSlot = IntentSlot::Number("start_seconds");
const TIMER_NAME: IntentSlot = IntentSlot::Words("name");
const ITEM: IntentSlot = IntentSlot::Words("item");

const TARGETS: &[&str] = &["name", "area", "floor", "domain"];
const PERIOD: &[&str] = &["hours", "minutes", "seconds"];
const ONE_TIMER: &[IntentSlot] = &[START_HOURS, START_MINUTES, START_SECONDS, TIMER_NAME, IntentSlot::Area];
const CHANGED_TIMER: &[IntentSlot] =
    &[HOURS, MINUTES, SECONDS, START_HOURS, START_MINUTES, START_SECONDS, TIMER_NAME, IntentSlot::Area];

const fn intent(name: &'static str, slots: &'static [IntentSlot]) -> Intent {
    Intent { name, slots, needs_one_of: &[], needs: &[] }
}

impl Intent {
    const fn with_one_of(self, needs_one_of: &'static [&'static str]) -> Self {
        Intent { needs_one_of, ..self }
    }

    const fn with(self, needs: &'static [&'static str]) -> Self {
        Intent { needs, ..self }
    }

    /// Whether it has the slots that it needs.
    pub fn is_complete(&self, has: impl Fn(&str) -> bool) -> bool {
        (self.needs_one_of.is_empty() || self.needs_one_of.iter().any(|key| has(key)))
            && self.needs.iter().all(|key| has(key))
    }
}

#[rustfmt::skip] // a table is read by its columns
/// All of them.
pub const INTENTS: &[Intent] = &[
    intent("HassTurnOn",  &[SWITCHED, IntentSlot::Area, IntentSlot::Floor, DOMAIN, DEVICE_CLASS]).with_one_of(TARGETS),
    intent("HassTurnOff", &[SWITCHED, IntentSlot::Area, IntentSlot::Floor, DOMAIN, DEVICE_CLASS]).with_one_of(TARGETS),
    intent("HassGetState", &[ANY, IntentSlot::Area, IntentSlot::Floor, STATED, DEVICE_CLASS, STATE]).with_one_of(TARGETS),
    intent("HassSetPosition", &[IntentSlot::Name(&["cover", "valve"]), IntentSlot::Area, IntentSlot::Floor, IS_COVER, DEVICE_CLASS, IntentSlot::Number("position")]).with(&["position"]),
    intent("HassLightSet", &[IntentSlot::Name(&["light"]), IntentSlot::Area, IntentSlot::Floor, IS_LIGHT, IntentSlot::Number("brightness"), COLOR, IntentSlot::Number("temperature")])
        .with_one_of(&["brightness", "color", "temperature"]),
    intent("HassClimateSetTemperature", &[CLIMATE, IntentSlot::Area, IntentSlot::Floor, IntentSlot::Number("temperature")]).with(&["temperature"]),
    intent("HassClimateGetTemperature", &[CLIMATE, IntentSlot::Area, IntentSlot::Floor]),
    intent("HassClimateSetFanMode", &[CLIMATE, IntentSlot::Area, IntentSlot::Floor, FAN_MODE]).with(&["fan_mode"]),
    intent("HassFanSetSpeed", &[IntentSlot::Name(&["fan"]), IntentSlot::Area, IntentSlot::Floor, IntentSlot::Number("percentage")]).with(&["percentage"]),
    intent("HassGetWeather", &[IntentSlot::Name(&["weather"])]),
    intent("HassGetCurrentDate", &[]),
    intent("HassGetCurrentTime", &[]),
    intent("HassListAddItem", &[ITEM, TODO]).with(&["item", "name"]),
    intent("HassListCompleteItem", &[ITEM, TODO]).with(&["item", "name"]),
    intent("HassListRemoveItem", &[ITEM, TODO]).with(&["item", "name"]),
    intent("HassShoppingListAddItem", &[ITEM]).with(&["item"]),
    intent("HassShoppingListCompleteItem", &[ITEM]).with(&["item"]),
    intent("HassBroadcast", &[IntentSlot::Words("message")]).with(&["message"]),
    intent("HassVacuumStart", &[VACUUM, IntentSlot::Area, IntentSlot::Floor]),
    intent("HassVacuumReturnToBase", &[VACUUM, IntentSlot::Area]),
    intent("HassVacuumCleanArea", &[VACUUM, IntentSlot::Area]),
    intent("HassLawnMowerStartMowing", &[MOWER]),
    intent("HassLawnMowerDock", &[MOWER]),
    intent("HassMediaPause", &[MEDIA, IntentSlot::Area]),
    intent("HassMediaUnpause", &[MEDIA, IntentSlot::Area]),
    intent("HassMediaNext", &[MEDIA, IntentSlot::Area]),
    intent("HassMediaPrevious", &[MEDIA, IntentSlot::Area]),
    intent("HassMediaPlayerMute", &[MEDIA, IntentSlot::Area]),
    intent("HassMediaPlayerUnmute", &[MEDIA, IntentSlot::Area]),
    intent("HassSetVolume", &[MEDIA, IntentSlot::Area, IntentSlot::Number("volume_level")]).with(&["volume_level"]),
    intent("HassSetVolumeRelative", &[MEDIA, IntentSlot::Area, IntentSlot::Floor, IntentSlot::WordOrNumber("volume_step", &["up", "down"])]).with(&["volume_step"]),
    intent("HassMediaSearchAndPlay", &[MEDIA, IntentSlot::Area, IntentSlot::Words("search_query"), MEDIA_CLASS]).with(&["search_query"]),
    intent("HassStartTimer", &[HOURS, MINUTES, SECONDS, TIMER_NAME, IntentSlot::Words("conversation_command")]).with_one_of(PERIOD),
    intent("HassCancelTimer", ONE_TIMER),
    intent("HassPauseTimer", ONE_TIMER),
    intent("HassUnpauseTimer", ONE_TIMER),
    intent("HassTimerStatus", ONE_TIMER),
    intent("HassIncreaseTimer", CHANGED_TIMER).with_one_of(PERIOD),
    intent("HassDecreaseTimer", CHANGED_TIMER).with_one_of(PERIOD),
    intent("HassCancelAllTimers", &[IntentSlot::Area]),
    intent(NEVERMIND, &[]),
    intent(NONE, &[]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_intent_needs_its_slots() {
        let check = |name, slots: &[&str]| check_intent(name, |key| slots.contains(&key));
        assert_eq!(check("HassTurnOn", &["area", "domain"]), IntentCheck::Complete);
        assert_eq!(check("HassTurnOn", &[]), IntentCheck::Incomplete);
        assert_eq!(check("HassTurnOn", &["device_class"]), IntentCheck::Incomplete);
        assert_eq!(check("HassListAddItem", &["item"]), IntentCheck::Incomplete);
        assert_eq!(check("HassMediaPause", &[]), IntentCheck::Complete);
        for name in ["none", "HassNevermind", "HassExplode", ""] {
            assert_eq!(check(name, &["area"]), IntentCheck::NoCommand, "{name}");
        }
    }
}
