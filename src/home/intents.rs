//! The list of Home Assistant's intents that answers may have, with their slots and the values of those.
//!
//! The list in `models/README.md` is the same. Deliberately knows nothing of a home: slots for names say only which
//! domains they take.

/// An intent.
#[derive(Debug)]
pub struct Intent {
    pub name: &'static str,
    pub slots: &'static [Slot],
    /// Slots of which at least one must be there; none is required where it is empty.
    pub needs_one_of: &'static [&'static str],
    /// Slots that must be there.
    pub needs: &'static [&'static str],
}

/// A slot: its key, and what values it takes.
#[derive(Debug, Clone, Copy)]
pub enum Slot {
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
    Spoken(&'static str, &'static [&'static str]),
    /// One of these words.
    OneOf(&'static str, &'static [&'static str]),
    /// `on`, `off`, one of these words, if the prompt has a word for it, or words of the prompt.
    WordOrWords(&'static str, &'static [&'static str]),
    /// One of these words, or a number.
    WordOrNumber(&'static str, &'static [&'static str]),
}

impl Slot {
    /// Its key in the answer.
    pub fn key(self) -> &'static str {
        match self {
            Slot::Name(_) => "name",
            Slot::Area => "area",
            Slot::Floor => "floor",
            Slot::Words(key) | Slot::Number(key) => key,
            Slot::Spoken(key, _)
            | Slot::OneOf(key, _)
            | Slot::WordOrWords(key, _)
            | Slot::WordOrNumber(key, _) => key,
        }
    }
}

/// The intent of a sentence that is no command, as the built-in model gives it.
pub const NONE: &str = "none";
/// The intent of "never mind", and of sentences to which nothing fits.
pub const NEVERMIND: &str = "HassNevermind";

const SWITCHED: Slot = Slot::Name(&[
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
const ANY: Slot = Slot::Name(super::names::DOMAINS);
const STATED: Slot = Slot::Spoken("domain", &["cover", "fan", "light", "lock", "person", "switch"]);
const DOMAIN: Slot = Slot::Spoken("domain", &["cover", "fan", "light"]);
const IS_COVER: Slot = Slot::OneOf("domain", &["cover"]);
const IS_LIGHT: Slot = Slot::OneOf("domain", &["light"]);
const DEVICE_CLASS: Slot = Slot::Spoken(
    "device_class",
    &["awning", "blind", "curtain", "door", "garage", "gate", "shade", "shutter", "window"],
);
const STATE: Slot =
    Slot::WordOrWords("state", &["open", "closed", "opening", "closing", "locked", "unlocked"]);
const COLOR: Slot = Slot::Spoken(
    "color",
    &["white", "black", "red", "orange", "yellow", "green", "blue", "purple", "brown", "pink", "turquoise"],
);
const FAN_MODE: Slot = Slot::OneOf(
    "fan_mode",
    &["auto", "on", "off", "low", "medium", "high", "top", "middle", "focus", "diffuse"],
);
const MEDIA_CLASS: Slot =
    Slot::OneOf("media_class", &["artist", "album", "track", "playlist", "podcast", "movie", "tv_show"]);
const MEDIA: Slot = Slot::Name(&["media_player"]);
const CLIMATE: Slot = Slot::Name(&["climate", "water_heater"]);
const TODO: Slot = Slot::Name(&["todo"]);
const VACUUM: Slot = Slot::Name(&["vacuum"]);
const MOWER: Slot = Slot::Name(&["lawn_mower"]);
const HOURS: Slot = Slot::Number("hours");
const MINUTES: Slot = Slot::Number("minutes");
const SECONDS: Slot = Slot::Number("seconds");
const START_HOURS: Slot = Slot::Number("start_hours");
const START_MINUTES: Slot = Slot::Number("start_minutes");
const START_SECONDS: Slot = Slot::Number("start_seconds");
const TIMER_NAME: Slot = Slot::Words("name");
const ITEM: Slot = Slot::Words("item");

const TARGETS: &[&str] = &["name", "area", "floor", "domain"];
const PERIOD: &[&str] = &["hours", "minutes", "seconds"];
const ONE_TIMER: &[Slot] = &[START_HOURS, START_MINUTES, START_SECONDS, TIMER_NAME, Slot::Area];
const CHANGED_TIMER: &[Slot] =
    &[HOURS, MINUTES, SECONDS, START_HOURS, START_MINUTES, START_SECONDS, TIMER_NAME, Slot::Area];

const fn intent(name: &'static str, slots: &'static [Slot]) -> Intent {
    Intent { name, slots, needs_one_of: &[], needs: &[] }
}

impl Intent {
    const fn with_one_of(self, needs_one_of: &'static [&'static str]) -> Self {
        Intent { needs_one_of, ..self }
    }

    const fn with(self, needs: &'static [&'static str]) -> Self {
        Intent { needs, ..self }
    }
}

#[rustfmt::skip] // a table is read by its columns
/// All of them.
pub const INTENTS: &[Intent] = &[
    intent("HassTurnOn",  &[SWITCHED, Slot::Area, Slot::Floor, DOMAIN, DEVICE_CLASS]).with_one_of(TARGETS),
    intent("HassTurnOff", &[SWITCHED, Slot::Area, Slot::Floor, DOMAIN, DEVICE_CLASS]).with_one_of(TARGETS),
    intent("HassGetState", &[ANY, Slot::Area, Slot::Floor, STATED, DEVICE_CLASS, STATE]).with_one_of(TARGETS),
    intent("HassSetPosition", &[Slot::Name(&["cover", "valve"]), Slot::Area, Slot::Floor, IS_COVER, DEVICE_CLASS, Slot::Number("position")]).with(&["position"]),
    intent("HassLightSet", &[Slot::Name(&["light"]), Slot::Area, Slot::Floor, IS_LIGHT, Slot::Number("brightness"), COLOR, Slot::Number("temperature")])
        .with_one_of(&["brightness", "color", "temperature"]),
    intent("HassClimateSetTemperature", &[CLIMATE, Slot::Area, Slot::Floor, Slot::Number("temperature")]).with(&["temperature"]),
    intent("HassClimateGetTemperature", &[CLIMATE, Slot::Area, Slot::Floor]),
    intent("HassClimateSetFanMode", &[CLIMATE, Slot::Area, Slot::Floor, FAN_MODE]).with(&["fan_mode"]),
    intent("HassFanSetSpeed", &[Slot::Name(&["fan"]), Slot::Area, Slot::Floor, Slot::Number("percentage")]).with(&["percentage"]),
    intent("HassGetWeather", &[Slot::Name(&["weather"])]),
    intent("HassGetCurrentDate", &[]),
    intent("HassGetCurrentTime", &[]),
    intent("HassListAddItem", &[ITEM, TODO]).with(&["item", "name"]),
    intent("HassListCompleteItem", &[ITEM, TODO]).with(&["item", "name"]),
    intent("HassListRemoveItem", &[ITEM, TODO]).with(&["item", "name"]),
    intent("HassShoppingListAddItem", &[ITEM]).with(&["item"]),
    intent("HassShoppingListCompleteItem", &[ITEM]).with(&["item"]),
    intent("HassBroadcast", &[Slot::Words("message")]).with(&["message"]),
    intent("HassVacuumStart", &[VACUUM, Slot::Area, Slot::Floor]),
    intent("HassVacuumReturnToBase", &[VACUUM, Slot::Area]),
    intent("HassVacuumCleanArea", &[VACUUM, Slot::Area]),
    intent("HassLawnMowerStartMowing", &[MOWER]),
    intent("HassLawnMowerDock", &[MOWER]),
    intent("HassMediaPause", &[MEDIA, Slot::Area]),
    intent("HassMediaUnpause", &[MEDIA, Slot::Area]),
    intent("HassMediaNext", &[MEDIA, Slot::Area]),
    intent("HassMediaPrevious", &[MEDIA, Slot::Area]),
    intent("HassMediaPlayerMute", &[MEDIA, Slot::Area]),
    intent("HassMediaPlayerUnmute", &[MEDIA, Slot::Area]),
    intent("HassSetVolume", &[MEDIA, Slot::Area, Slot::Number("volume_level")]).with(&["volume_level"]),
    intent("HassSetVolumeRelative", &[MEDIA, Slot::Area, Slot::Floor, Slot::WordOrNumber("volume_step", &["up", "down"])]).with(&["volume_step"]),
    intent("HassMediaSearchAndPlay", &[MEDIA, Slot::Area, Slot::Words("search_query"), MEDIA_CLASS]).with(&["search_query"]),
    intent("HassStartTimer", &[HOURS, MINUTES, SECONDS, TIMER_NAME, Slot::Words("conversation_command")]).with_one_of(PERIOD),
    intent("HassCancelTimer", ONE_TIMER),
    intent("HassPauseTimer", ONE_TIMER),
    intent("HassUnpauseTimer", ONE_TIMER),
    intent("HassTimerStatus", ONE_TIMER),
    intent("HassIncreaseTimer", CHANGED_TIMER).with_one_of(PERIOD),
    intent("HassDecreaseTimer", CHANGED_TIMER).with_one_of(PERIOD),
    intent("HassCancelAllTimers", &[Slot::Area]),
    intent(NEVERMIND, &[]),
    intent(NONE, &[]),
];
