//! The keys of the TOML files and of the page that explains them, beside the keys of the struct that reads them.
//!
//! It does not know TOML values, Markdown or serde: one key a line, and one struct a section, is how they are written.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Source, Token, closing};

/// `section.key`, and the line it stands on.
pub type Keys = BTreeMap<String, usize>;

/// The keys in a configuration file. `# key = value` counts: that is how a key without a default is shown.
pub fn in_toml(text: &str) -> Keys {
    let mut keys = Keys::new();
    let mut section = String::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.strip_prefix('#').unwrap_or(line).trim();
        if let Some(name) = section_of(line) {
            section = name.to_string();
        } else if let Some(key) = key_of(line) {
            keys.insert(joined(&section, key), at + 1);
        }
    }
    keys
}

/// The keys in the tables of a page: the first cell, in backticks, under a heading `## [section]`. The second value has
/// those that stand there once more.
pub fn in_page(text: &str) -> (Keys, Keys) {
    let (mut keys, mut again) = (Keys::new(), Keys::new());
    // Keys before the first section of the file stand before the first heading of a section.
    let mut section = Some("");
    for (at, line) in text.lines().enumerate() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = section_of(heading);
        } else if let (Some(section), Some(key)) = (section, first_cell(line)) {
            let key = joined(section, key);
            let keys = if keys.contains_key(&key) { &mut again } else { &mut keys };
            keys.insert(key, at + 1);
        }
    }
    (keys, again)
}

fn first_cell(line: &str) -> Option<&str> {
    let key = line.strip_prefix("| `")?.split_once("` |")?.0;
    is_name(key).then_some(key)
}

fn section_of(line: &str) -> Option<&str> {
    let name = line.trim_start_matches('[').trim_end_matches(']');
    (line.starts_with('[') && line.ends_with(']') && name.split('.').all(is_name)).then_some(name)
}

fn key_of(line: &str) -> Option<&str> {
    let key = line.split_once('=')?.0.trim_end();
    is_name(key).then_some(key)
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn joined(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_string() } else { format!("{section}.{key}") }
}

/// The keys that `struct File` and the structs of its fields read.
pub fn in_mirror(source: &Source) -> Keys {
    let structs = structs(&source.tokens);
    let mut keys = Keys::new();
    collect("File", "", &structs, &mut keys);
    keys
}

struct Field {
    key: String,
    kind: BTreeSet<String>,
    line: usize,
}

fn collect(name: &str, section: &str, structs: &BTreeMap<String, Vec<Field>>, keys: &mut Keys) {
    for field in structs.get(name).into_iter().flatten() {
        let key = joined(section, &field.key);
        match field.kind.iter().find(|kind| structs.contains_key(*kind)) {
            Some(inner) => collect(inner, &key, structs, keys),
            None => drop(keys.insert(key, field.line)),
        }
    }
}

fn structs(tokens: &[Token]) -> BTreeMap<String, Vec<Field>> {
    let word = |at: usize| tokens.get(at).map_or("", |token: &Token| token.text.as_str());
    (0..tokens.len())
        .filter(|&at| word(at) == "struct" && word(at + 2) == "{" && !tokens[at].in_test)
        .map(|at| (word(at + 1).to_string(), fields(&tokens[at + 3..closing(tokens, at + 2) - 1])))
        .collect()
}

fn fields(mut tokens: &[Token]) -> Vec<Field> {
    let mut fields = vec![];
    while !tokens.is_empty() {
        let end = field_end(tokens);
        fields.extend(field(&tokens[..end]));
        tokens = &tokens[(end + 1).min(tokens.len())..];
    }
    fields
}

/// The comma after the field; those in `Map<String, u8>` and in attributes are passed over.
fn field_end(tokens: &[Token]) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "(" | "[" | "<" => depth += 1,
            ")" | "]" | ">" => depth -= 1,
            "," if depth == 0 => return at,
            _ => {}
        }
    }
    tokens.len()
}

fn field(mut tokens: &[Token]) -> Option<Field> {
    let mut renamed = None;
    while tokens.first()?.text == "#" {
        let (attribute, rest) = tokens.split_at(closing(tokens, 1));
        if attribute.iter().any(|token| token.text == "skip") {
            return None;
        }
        let at = attribute.iter().position(|token| token.text == "rename");
        renamed = renamed.or(at.map(|at| attribute[at + 2].text.trim_start_matches('"').to_string()));
        tokens = rest;
    }
    let colon = tokens.iter().position(|token| token.text == ":")?;
    let name = &tokens[colon - 1];
    let kind = tokens[colon..].iter().map(|token| token.text.clone()).collect();
    Some(Field { key: renamed.unwrap_or(name.text.clone()), kind, line: name.line })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(keys: Keys) -> Vec<String> {
        keys.into_keys().collect()
    }

    #[test]
    fn set_and_commented_out_keys_are_found_and_prose_is_not() {
        let text = "# The broker. Left out = no link.\n# 0 = off; [log] has more\n[mqtt]\n#host = \"a\"\n# port = 1883\nprefix = \"b\"\n\n[log]\nlevel = \"x = y\"\n";
        assert_eq!(names(in_toml(text)), ["log.level", "mqtt.host", "mqtt.port", "mqtt.prefix"]);
    }

    #[test]
    fn the_tables_of_a_page_are_read_under_the_headings_of_sections() {
        let text = "# Keys\n| `a` | before the first section |\n## [log]\n| key | default |\n| `level` | info |\n| `level` | info |\n## More\n| `b` | x |\n";
        let (keys, again) = in_page(text);
        assert_eq!(
            (names(keys), again.into_values().collect::<Vec<_>>()),
            (vec!["a".into(), "log.level".into()], vec![6])
        );
    }

    #[test]
    fn the_mirror_is_read_through_its_sections() {
        let text = r#"
            #[derive(Deserialize)] #[serde(default, deny_unknown_fields)]
            pub(super) struct File { model: Model, pub(super) log: Option<Log>, #[serde(skip)] origin: Path }
            pub(super) struct Model { path: Option<PathBuf>, #[serde(rename = "type", default)] kind: Kind, alias: Map<String, u8> }
            struct Log { level: String }
            struct NotReached { key: u8 }
        "#;
        assert_eq!(
            names(in_mirror(&Source::new(text))),
            ["log.level", "model.alias", "model.path", "model.type"]
        );
    }
}
