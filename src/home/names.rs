//! Devices, areas and floors as plain data.
//!
//! Deliberately knows nothing of where a name was read.

use std::collections::HashSet;

/// Maximum length of a name in bytes.
pub const MAX_NAME_BYTES: usize = 128;
/// Maximum number of names from the broker, and of those in the file, aliases included.
pub const MAX_NAMES: usize = 4096;
/// Maximum number of bytes of those names together.
pub(super) const MAX_TOTAL_BYTES: usize = 256 << 10;

/// The domains of Home Assistant whose entities a sentence can name.
pub(super) const DOMAINS: &[&str] = &[
    "binary_sensor",
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
    "number",
    "person",
    "scene",
    "script",
    "select",
    "sensor",
    "siren",
    "switch",
    "todo",
    "vacuum",
    "valve",
    "water_heater",
    "weather",
];

/// The domain of this name, as a text that need not be stored.
pub(super) fn domain(name: &str) -> Option<&'static str> {
    DOMAINS.iter().copied().find(|domain| *domain == name)
}

/// A device, or one entity of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedDevice {
    /// Home Assistant's domain, as `light`.
    pub domain: &'static str,
    /// The name that answers use.
    pub name: String,
    /// The area it is in.
    pub area: Option<String>,
    /// Other names, which answers replace by `name`.
    pub aliases: Vec<String>,
}

/// An area or a floor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPlace {
    /// The name that answers use.
    pub name: String,
    /// Other names, which answers replace by `name`.
    pub aliases: Vec<String>,
}

/// The names that one source gives.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NameList {
    /// Devices.
    pub devices: Vec<NamedDevice>,
    /// Areas.
    pub areas: Vec<NamedPlace>,
    /// Floors.
    pub floors: Vec<NamedPlace>,
}

impl NameList {
    /// How many names there are, aliases included, and their bytes.
    pub fn size(&self) -> (usize, usize) {
        let devices = self.devices.iter().map(|device| (&device.name, &device.aliases, device.area.as_ref()));
        let places = self.areas.iter().chain(&self.floors).map(|place| (&place.name, &place.aliases, None));
        devices.chain(places).fold((0, 0), |(count, bytes), (name, aliases, area)| {
            let aliases_bytes: usize = aliases.iter().map(String::len).sum();
            let area_bytes = area.map_or(0, String::len);
            (count + 1 + aliases.len(), bytes + name.len() + aliases_bytes + area_bytes)
        })
    }

    /// Adds those of another source; where both name the same thing, these come first.
    pub(super) fn extend(&mut self, other: &NameList) {
        self.devices.extend(other.devices.iter().cloned());
        self.areas.extend(other.areas.iter().cloned());
        self.floors.extend(other.floors.iter().cloned());
    }

    /// Leaves one of each device of the same name and domain, and one of each place; areas of devices become areas.
    pub(super) fn deduplicated(mut self) -> Self {
        let mut seen = HashSet::new();
        self.devices.retain(|device| seen.insert((device.domain, device.name.to_lowercase())));
        let of_devices = self.devices.iter().filter_map(|device| device.area.clone());
        self.areas.extend(of_devices.map(|name| NamedPlace { name, aliases: Vec::new() }));
        for places in [&mut self.areas, &mut self.floors] {
            let mut seen = HashSet::new();
            places.retain(|place| seen.insert(place.name.to_lowercase()));
        }
        self
    }
}

/// The name without surrounding spaces; `None` where it cannot be one: empty, too long, or without a letter or digit.
pub(super) fn cleaned(name: &str) -> Option<String> {
    let name = name.trim();
    let is_sound = name.len() <= MAX_NAME_BYTES
        && name.chars().any(char::is_alphanumeric)
        && !name.chars().any(char::is_control);
    is_sound.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(domain: &'static str, name: &str, area: Option<&str>) -> NamedDevice {
        NamedDevice { domain, name: name.into(), area: area.map(Into::into), aliases: Vec::new() }
    }

    #[test]
    fn the_same_device_of_two_sources_is_one_and_its_area_is_an_area() {
        let devices = vec![
            device("light", "Wall lamp", Some("Office")),
            device("light", "wall lamp", None),
            device("switch", "Wall lamp", Some("office")),
        ];
        let names = NameList { devices, ..NameList::default() }.deduplicated();
        assert_eq!(names.devices.len(), 2);
        assert_eq!(names.areas, [NamedPlace { name: "Office".into(), aliases: vec![] }]);
    }

    #[test]
    fn names_without_a_letter_or_with_control_characters_are_none() {
        assert_eq!(cleaned("  Küche "), Some("Küche".into()));
        assert_eq!(cleaned(&"x".repeat(MAX_NAME_BYTES)).map(|name| name.len()), Some(MAX_NAME_BYTES));
        for name in ["", " ", "--", "a\nb", "a\0", &"x".repeat(MAX_NAME_BYTES + 1)] {
            assert_eq!(cleaned(name), None, "{name:?}");
        }
    }
}
