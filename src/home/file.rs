//! The owner's file of names, `home.file`: areas, floors and devices, as TOML or JSON by the file's extension.
//!
//! Deliberately knows nothing of what the broker says of the home.

use super::names::{DOMAINS, MAX_NAMES, MAX_TOTAL_BYTES, NameList, NamedDevice, NamedPlace, cleaned, domain};
use crate::{config, external_text};
use serde::Deserialize;
use std::path::Path;

/// An error names the place in the file, what is wrong, and a remedy.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct FileKeys {
    areas: Vec<PlaceKeys>,
    floors: Vec<PlaceKeys>,
    devices: Vec<DeviceKeys>,
}

/// A name alone, or with aliases.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a name, or a table with name and aliases")]
enum PlaceKeys {
    Name(String),
    Table(PlaceTable),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlaceTable {
    name: String,
    #[serde(default)]
    aliases: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceKeys {
    name: String,
    domain: String,
    #[serde(default)]
    area: Option<String>,
    #[serde(default)]
    aliases: Vec<String>,
}

/// Reads the file; the error names it, the place in it, and a remedy.
pub fn load(path: &Path) -> Result<NameList, String> {
    let is_json = path.extension().is_some_and(|ending| ending == "json");
    config::read_text(path)
        .and_then(|text| parse(&text, is_json))
        .map_err(|message| format!("home.file: {}: {}", path.display(), config::with_short_values(&message)))
}

/// The names in a text; the error names the place in it.
pub fn parse(text: &str, is_json: bool) -> Result<NameList, String> {
    let text = external_text::utf8(text.as_bytes()).map_err(|message| format!("the file {message}"))?;
    let file: FileKeys = if is_json {
        serde_json::from_str(text).map_err(|error| error.to_string())?
    } else {
        toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
            format!("line {line}: {message}")
        })?
    };
    let names = NameList {
        areas: places("areas", file.areas)?,
        floors: places("floors", file.floors)?,
        devices: file.devices.into_iter().enumerate().map(device).collect::<Result<_, _>>()?,
    };
    let (count, bytes) = names.size();
    if count > MAX_NAMES || bytes > MAX_TOTAL_BYTES {
        return Err(format!(
            "{count} names of {bytes} bytes; at most {MAX_NAMES} of {MAX_TOTAL_BYTES} in all"
        ));
    }
    Ok(names)
}

fn places(key: &str, places: Vec<PlaceKeys>) -> Result<Vec<NamedPlace>, String> {
    let place = |(number, keys): (usize, PlaceKeys)| {
        let PlaceTable { name, aliases } = match keys {
            PlaceKeys::Name(name) => PlaceTable { name, aliases: Vec::new() },
            PlaceKeys::Table(table) => table,
        };
        let at = format!("{key}[{number}]");
        Ok(NamedPlace { name: name_at(&at, &name)?, aliases: aliases_at(&at, &aliases)? })
    };
    places.into_iter().enumerate().map(place).collect()
}

fn device((number, keys): (usize, DeviceKeys)) -> Result<NamedDevice, String> {
    let at = format!("devices[{number}]");
    let domain = domain(&keys.domain).ok_or_else(|| {
        let known = DOMAINS.join(", ");
        format!("{at}.domain: \"{}\" is not known; use one of {known}", keys.domain.escape_debug())
    })?;
    Ok(NamedDevice {
        domain,
        name: name_at(&at, &keys.name)?,
        area: keys.area.map(|area| name_at(&at, &area)).transpose()?,
        aliases: aliases_at(&at, &keys.aliases)?,
    })
}

fn aliases_at(at: &str, aliases: &[String]) -> Result<Vec<String>, String> {
    aliases.iter().map(|alias| name_at(at, alias)).collect()
}

fn name_at(at: &str, name: &str) -> Result<String, String> {
    cleaned(name).ok_or_else(|| {
        let shown: String = name.chars().take(40).collect();
        format!(
            "{at}: \"{}\" cannot be a name; use 1 to 128 bytes with a letter or a digit, without control characters",
            shown.escape_debug()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOML: &str = r#"
        floors = ["Upstairs"]
        [[areas]]
        name = "Kitchen"
        aliases = ["Küche"]
        [[devices]]
        name = "Wall lamp"
        domain = "light"
        area = "Office"
        aliases = ["Wandlampe", "壁灯"]
    "#;
    const JSON: &str = r#"{"floors":["Upstairs"],"areas":[{"name":"Kitchen","aliases":["Küche"]}],"devices":[
        {"name":"Wall lamp","domain":"light","area":"Office","aliases":["Wandlampe","壁灯"]}]}"#;

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_file_and_long_values_are_cut() {
        assert_eq!(parse("\u{feff}areas = [\"Kitchen\"]", false).expect("sound").areas.len(), 1);
        assert_eq!(parse("\u{feff}{\"areas\":[\"Kitchen\"]}", true).expect("sound").areas.len(), 1);
        let error = parse("\u{feff}\u{feff}areas = []", false).expect_err("a second mark");
        assert!(error.contains("second byte-order mark"), "{error}");
        let folder = tempfile::TempDir::with_prefix("bitnetd-").expect("a temporary folder");
        let path = folder.path().join("home.toml");
        let domain = "x".repeat(5000);
        std::fs::write(&path, format!("[[devices]]\nname = \"a\"\ndomain = \"{domain}\"\n")).expect("a file");
        let error = load(&path).expect_err("no such domain");
        assert!(error.len() < 1000 && error.contains("devices[0].domain"), "{error}");
    }

    #[test]
    fn both_forms_say_the_same() {
        let names = parse(TOML, false).expect("sound");
        assert_eq!(names, parse(JSON, true).expect("sound"));
        assert_eq!(names.size().0, 6);
    }

    #[test]
    fn an_error_names_its_place() {
        for (text, is_json, part) in [
            ("devices = [\n7]", false, "line 2"),
            ("[[devices]]\nname = \"a\"\ndomain = \"lamp\"", false, "devices[0].domain: \"lamp\""),
            ("areas = [\"ok\", \" \"]", false, "areas[1]"),
            ("rooms = []", false, "rooms"),
            ("{\"areas\":[7]}", true, "line 1"),
        ] {
            let error = parse(text, is_json).expect_err(text);
            assert!(error.contains(part), "{error}");
        }
        let many = format!("areas = [{}]", "\"a\",".repeat(MAX_NAMES + 1));
        assert!(parse(&many, false).expect_err("too many").contains("at most"));
    }
}
