//! The names in the instructions that Home Assistant gives to a model: its overview of the exposed devices.
//!
//! ```text
//! Static Context: An overview of the areas and the devices in this smart home:
//! - names: Kitchen Light, Big lamp
//!   domain: light
//!   areas: Kitchen
//! ```
//!
//! Each list of names begins with the name itself; aliases follow. Deliberately reads no other YAML than this.

use super::names::{MAX_NAME_BYTES, MAX_NAMES, MAX_TOTAL_BYTES, NameList, NamedDevice, NamedPlace, domain};

/// What the overview begins with.
const HEAD: &str = "Static Context: An overview of the areas and the devices";

/// One device, as it is being read.
#[derive(Debug, Default)]
struct Entry {
    names: String,
    domain: String,
    areas: String,
}

/// The names of the overview in a text; `None` where there is no overview, or none of a device that can be named.
pub fn names(text: &str) -> Option<NameList> {
    let overview = &text[text.find(HEAD)?..];
    let mut list = NameList::default();
    let mut entry = Entry::default();
    let mut last_key = "";
    let (mut count, mut bytes) = (0, 0);
    for line in overview.lines().skip(1) {
        if let Some(field) = line.strip_prefix("- ") {
            add(&mut list, std::mem::take(&mut entry));
            last_key = read(&mut entry, field);
        } else if let Some(more) = line.strip_prefix("    ") {
            continue_value(&mut entry, last_key, more);
        } else if let Some(field) = line.strip_prefix("  ") {
            last_key = read(&mut entry, field);
        } else {
            break;
        }
        (count, bytes) = (count + 1, bytes + line.len());
        if count > MAX_NAMES || bytes > MAX_TOTAL_BYTES {
            break;
        }
    }
    add(&mut list, entry);
    (!list.devices.is_empty()).then_some(list)
}

/// Reads one field of a device; returns its key.
fn read<'t>(entry: &mut Entry, field: &'t str) -> &'t str {
    let Some((key, value)) = field.split_once(':') else { return "" };
    if let Some(place) = entry.value(key) {
        *place = value.trim().to_owned();
    }
    key
}

/// A long value goes on in further lines.
fn continue_value(entry: &mut Entry, key: &str, more: &str) {
    if let Some(value) = entry.value(key) {
        value.push(' ');
        value.push_str(more.trim());
    }
}

impl Entry {
    fn value(&mut self, key: &str) -> Option<&mut String> {
        match key {
            "names" => Some(&mut self.names),
            "domain" => Some(&mut self.domain),
            "areas" => Some(&mut self.areas),
            _ => None,
        }
    }
}

fn add(list: &mut NameList, entry: Entry) {
    let (mut names, mut areas) = (split(&entry.names), split(&entry.areas));
    let area = areas.next();
    if let Some(name) = &area {
        list.areas.push(NamedPlace { name: name.clone(), aliases: areas.collect() });
    }
    if let (Some(domain), Some(name)) = (domain(&entry.domain), names.next()) {
        list.devices.push(NamedDevice { domain, name, area, aliases: names.collect() });
    }
}

/// The names in a value, without the quotation marks of YAML.
fn split(value: &str) -> impl Iterator<Item = String> {
    let unquoted = match value.strip_prefix('\'').and_then(|value| value.strip_suffix('\'')) {
        Some(quoted) => quoted.replace("''", "'"),
        None => serde_json::from_str(value).unwrap_or_else(|_| value.to_owned()),
    };
    let names: Vec<String> = unquoted.split(", ").map(|name| name.trim().to_owned()).collect();
    names.into_iter().filter(|name| !name.is_empty() && name.len() <= MAX_NAME_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_and_areas_are_read_with_their_aliases() {
        let text = format!(
            "You are a voice assistant.\n{HEAD} in this smart home:\n\
             - names: Kitchen Light, Big lamp\n  domain: light\n  areas: Kitchen, Galley\n\
             - names: 'Peter''s: fan'\n  domain: fan\n\
             - names: \"Bj\\xF6rn\"\n  domain: moon\n\
             - names: A very long name that does not fit into one line of\n    the overview\n  domain: sensor\n  state: on\n\
             \n- names: Not in it\n  domain: light\n"
        );
        let list = names(&text).expect("devices");
        let devices: Vec<(&str, &str)> =
            list.devices.iter().map(|device| (device.name.as_str(), device.domain)).collect();
        assert_eq!(
            devices,
            [
                ("Kitchen Light", "light"),
                ("Peter's: fan", "fan"),
                ("A very long name that does not fit into one line of the overview", "sensor")
            ]
        );
        assert_eq!(list.devices[0].aliases, ["Big lamp"]);
        assert_eq!(list.devices[0].area.as_deref(), Some("Kitchen"));
        assert_eq!(list.areas, [NamedPlace { name: "Kitchen".into(), aliases: vec!["Galley".into()] }]);
    }

    #[test]
    fn other_texts_have_no_names() {
        for text in [
            "",
            "turn on the light",
            HEAD,
            &format!("{HEAD}:\n- names: a\n"),
            &format!("{HEAD}\n  :\n-  \n- "),
        ] {
            assert_eq!(names(text), None, "{text}");
        }
    }
}
