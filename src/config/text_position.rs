//! Finds the line of a key in the text of a configuration, for error messages. Deliberately does not parse TOML.

pub(super) fn line_at(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// Section and key that are set on a line.
pub(super) fn key_on(text: &str, line: usize) -> Option<(&str, &str)> {
    let (key, _) = text.lines().nth(line - 1)?.split_once('=')?;
    let header = |line| str::trim(line).strip_prefix('[')?.split(']').next();
    let section = text.lines().take(line).filter_map(header).last()?;
    Some((section.trim(), key.trim()))
}

/// The line where a key of a section is set; that of the section's header where the key is missing.
pub(super) fn line_of(text: &str, section: &str, key: &str) -> Option<usize> {
    // Keys without a section stand before the first one.
    let mut within = section.is_empty();
    let mut header = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            within = name.trim() == section;
            header = header.or(within.then_some(index + 1));
        } else if within && line.split('=').next().is_some_and(|name| name.trim() == key) {
            return Some(index + 1);
        }
    }
    header
}
